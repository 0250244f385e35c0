"""Checkpoints: what was trained, the plain config, the data state; nothing that `weights_only=True` would refuse."""

import os
import re
import signal
from pathlib import Path

import lightning
import torch
from torch import Tensor

from src.errors import UserError
from src.model.vlm import VLM


def trained(model: VLM) -> dict[str, Tensor]:
    """The parameters that differ from the stored weights: trainable ones, and what an earlier stage had trained."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad or name in model.inherited}


def restore(model: VLM, state: dict[str, Tensor], *, whole: bool = True) -> None:
    """Copies trained parameters back; an unknown one, one of another shape or, if `whole`, a missing one is an error."""
    params = dict(model.named_parameters())
    needed = {name for name, p in params.items() if p.requires_grad and whole}
    missing, unknown = sorted(needed - set(state)), sorted(set(state) - set(params))
    reshaped = [name for name in state if name in params and params[name].shape != state[name].shape]
    for what, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes for", reshaped)):
        if names:
            some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            raise UserError(f"the checkpoint {what} {some}; was it made with another model?")
    with torch.no_grad():
        for name, value in state.items():
            params[name].copy_(value)
    model.inherited |= set(state)


def load(model: VLM, path: Path, *, whole: bool = True) -> None:
    """The trained parameters of a checkpoint file into a model that was built from the same configuration.

    `whole=False` is the start of a new stage: what the file holds is taken, other trainable parameters stay as they are.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    same_weights(model, stored.get("weights", {}))
    restore(model, stored["state_dict"], whole=whole)


def same_weights(model: VLM, stored: dict[str, dict[str, str]]) -> None:
    """Frozen weights are not in a checkpoint, and adapters fit no others; raises `UserError` where they differ."""
    for part, then in stored.items():
        now = model.weights[part]
        if now["sha256"] != then["sha256"]:
            raise UserError(
                f"the checkpoint was trained on {part} weights {then['id']} (revision {then['revision']}, sha256 {then['sha256'][:12]}), "
                f"but {part}.path={now['id']} holds sha256 {now['sha256'][:12]}; give it the weights of then"
            )


def choose(folder: Path, which: str) -> Path:
    """The checkpoint file of a run folder: `best` by validation loss, else, and for `last`, the newest."""
    best = folder / "checkpoints" / "best.ckpt"
    found = best if which == "best" and best.exists() else newest(folder / "checkpoints")
    if found is None:
        raise UserError(f"{folder} holds no checkpoint; train it first: python -m src.train name={folder.name} ...")
    return found


def newest(folder: Path) -> Path | None:
    """The newest readable `step=N.ckpt` of a run; unreadable ones are passed over with a warning."""
    found = sorted(folder.glob("step=*.ckpt"), key=_step, reverse=True)
    for path in found:
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # any damage: a cut file, a bad zip, a wrong pickle
            print(f"warning: {path} cannot be read ({type(error).__name__}); trying the one before")
        else:
            return path
    return None


def _step(path: Path) -> int:
    return int(re.fullmatch(r"step=(\d+)\.ckpt", path.name)[1])  # type: ignore[index]


class Checkpoints(lightning.Callback):
    """Saves at optimizer-step boundaries only: every `check_every` steps, at the end, and when asked to stop.

    SIGTERM and the first Ctrl-C on any rank finish the current step, save and stop; `stopped` then holds the signal. The newest
    `keep` checkpoints stay, and `best.ckpt` by validation loss.
    """

    def __init__(self, folder: Path, *, config: dict, check_every: int, keep: int, validate):
        self.folder, self.config, self.check_every, self.keep, self.validate = folder, config, check_every, keep, validate
        self.stopped: int | None = None
        self.best = float("inf")
        self._done = -1

    def on_train_start(self, trainer, module) -> None:
        self._done = trainer.global_step
        self._handlers = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_end(self, trainer, module) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step == self._done:
            return  # inside an accumulation window: gradients of a half-finished step cannot be saved
        self._done = step
        # A signal reaches the ranks at different steps, or only one of them; saving is something that all do together.
        if trainer.strategy.reduce_boolean_decision(self.stopped is not None, all=False):
            self.stopped = self.stopped or signal.SIGTERM
        last = step == trainer.max_steps
        if step % self.check_every == 0 or last:
            loss = self.validate(step)
            self.save(trainer, f"step={step}.ckpt")
            if loss is not None and loss < self.best:
                self.best = loss
                self.save(trainer, "best.ckpt")
        elif self.stopped:
            self.save(trainer, f"step={step}.ckpt")
        if self.stopped and not last:
            trainer.should_stop = True

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        checkpoint["config"] = self.config
        checkpoint["weights"] = module.model.weights

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]

    def save(self, trainer, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.part"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.folder / name)
            for old in sorted(self.folder.glob("step=*.ckpt"), key=_step)[: -self.keep]:
                old.unlink()

    def _ask(self, number: int, frame) -> None:
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped = number
