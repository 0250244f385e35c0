"""When checkpoints are written, and how a run stops."""

import os
import signal
from pathlib import Path

from lightning.pytorch.callbacks import Checkpoint

from src.training.checkpoint import checkpoints_by_step
from src.training.trainer import validates_after


class CheckpointCallback(Checkpoint):
    """Saves at optimizer-step boundaries only: after every validation, at the end, and before a stop.

    It keeps the newest `keep_last` checkpoints, and `best.ckpt` by the mean validation loss (`val`). SIGTERM and the first Ctrl-C on any
    rank finish the current step, save and stop; `stop_signal` then holds the number of the signal. A stop that another callback asks for
    (early stopping, `max_time`) also waits for the end of the step. Lightning runs subclasses of `Checkpoint` after all other callbacks.
    """

    def __init__(self, folder: Path, *, config: dict, keep_last: int):
        self.folder, self.config, self.keep_last = folder, config, keep_last
        self.stop_signal: int | None = None
        self.best = float("inf")
        self._step = self._saved_step = -1
        self._stop_requested = False

    def on_train_start(self, trainer, module) -> None:
        self._step = self._saved_step = trainer.global_step
        self._handlers = {number: signal.signal(number, self._handle_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_end(self, trainer, module) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step == self._step:  # between two micro-batches: the gradients of an unfinished step cannot be saved
            self._stop_requested |= trainer.should_stop
            trainer.should_stop = False
            return
        self._step = step
        last = step == trainer.max_steps
        stop = self._agree_to_stop(trainer)
        if validates_after(trainer, step):
            # Setting `should_stop` makes Lightning validate now, then stop. The checkpoint is written in `on_validation_end`.
            trainer.should_stop = stop or last
        elif stop or last:
            self._save_step(trainer)
            trainer.limit_val_batches = 0  # Lightning would validate before it stops
            trainer.should_stop = True

    def on_validation_end(self, trainer, module) -> None:
        if trainer.global_step == self._saved_step:
            return
        loss = float(trainer.callback_metrics.get("val", float("inf")))
        # Write best.ckpt before step=N.ckpt: if the run is killed in between, it resumes from the older step and repeats this validation.
        if loss < self.best:
            self.best = loss
            self.save(trainer, "best.ckpt")
        self._save_step(trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint: dict) -> None:
        checkpoint["config"] = self.config
        checkpoint["weights"] = module.model.weights

    @property
    def state_key(self) -> str:
        return "Checkpoints"  # the key in checkpoint files; it does not follow the name of the class

    def state_dict(self) -> dict:
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.best = state["best"]

    def save(self, trainer, name: str) -> None:
        """Writes one checkpoint file and removes those that are older than the newest `keep_last`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.part"
        try:
            trainer.save_checkpoint(partial, False)  # False: not the weights alone. Lightning warns where it is not given
        except OSError:
            partial.unlink(missing_ok=True)  # on a full disk it would take the room of the next trials
            raise
        if trainer.is_global_zero:
            os.replace(partial, self.folder / name)
            for old in checkpoints_by_step(self.folder)[: -self.keep_last]:
                old.unlink()

    def _save_step(self, trainer) -> None:
        self._saved_step = trainer.global_step
        self.save(trainer, f"step={trainer.global_step}.ckpt")

    def _agree_to_stop(self, trainer) -> bool:
        """Whether any rank wants to stop. A signal may reach only one rank, or each at another step, but all save and stop together."""

        def any_rank(decision: bool) -> bool:
            return trainer.strategy.reduce_boolean_decision(decision, all=False)

        if not any_rank(self.stop_signal is not None or self._stop_requested or trainer.should_stop):
            return False
        if any_rank(self.stop_signal is not None):
            self.stop_signal = self.stop_signal or signal.SIGTERM
        return True

    def _handle_signal(self, number: int, frame) -> None:
        if self.stop_signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop_signal = number
