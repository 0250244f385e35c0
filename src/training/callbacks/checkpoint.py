"""When checkpoints are written, and what a signal does."""

import os
import signal
from pathlib import Path

import lightning

from src.training.checkpoint import checkpoints_by_step


class CheckpointCallback(lightning.Callback):
    """Saves at optimizer-step boundaries only: every `val_every` steps, at the end, and when asked to stop.

    SIGTERM and the first Ctrl-C on any rank finish the current step, save and stop; `stopped` then holds the signal. The newest
    `keep` checkpoints stay, and `best.ckpt` by validation loss.
    """

    def __init__(self, folder: Path, *, config: dict, val_every: int, keep: int, validate):
        self.folder, self.config, self.val_every, self.keep, self.validate = folder, config, val_every, keep, validate
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
        # A signal reaches the ranks at different steps, or only one of them; saving and stopping is something that all do together.
        stop = trainer.strategy.reduce_boolean_decision(self.stopped is not None, all=False)
        if stop:
            self.stopped = self.stopped or signal.SIGTERM
        last = step == trainer.max_steps
        if step % self.val_every == 0 or last:
            loss = self.validate(step)
            improved = loss is not None and loss < self.best
            self.best = loss if improved else self.best
            if improved:  # first: a run that is killed between the two files does this step again
                self.save(trainer, "best.ckpt")
            self.save(trainer, f"step={step}.ckpt")
        elif stop:
            self.save(trainer, f"step={step}.ckpt")
        if stop and not last:
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
        try:
            trainer.save_checkpoint(partial, False)  # not the weights alone; left open, Lightning says so each time
        except OSError:
            partial.unlink(missing_ok=True)  # on a full disk it would take the room of the trials after this one
            raise
        if trainer.is_global_zero:
            os.replace(partial, self.folder / name)
            for old in checkpoints_by_step(self.folder)[: -self.keep]:
                old.unlink()

    def _ask(self, number: int, frame) -> None:
        if self.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped = number
