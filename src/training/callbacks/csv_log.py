"""`log.csv` and the progress bar: losses, learning rates, speed."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning

from src.data.packing import Batch
from src.runtime.atomic_file import write_atomically
from src.runtime.progress import Progress
from src.training.trainer import validates_after


class CSVLog(lightning.Callback):
    """Writes a row of `log.csv` every `log_every` optimizer steps and after each validation, sends it to `wandb_run`, and shows
    the progress.

    Its values also go to `trainer.callback_metrics`, where other callbacks read them under the names of the columns (`loss`,
    `loss/<source>`, `grad_norm`, `lr/<part>`, ...). They cover the steps since the last row, over all ranks.

    A Lightning `Logger` cannot do this. It gets training and validation values in separate calls and cannot sum over ranks. This callback
    writes both in one row. On resume it deletes the rows after the checkpoint, so each step appears once.
    """

    def __init__(self, path: Path, *, sources: list[str], parts: list[str], log_every: int, wandb_run: Any = None):
        self.path, self.log_every, self.wandb_run = path, log_every, wandb_run
        self.validation_columns = ["val", *(f"{kind}/{source}" for kind in ("val", "f1") for source in sources)]
        self.columns = ["step", "seconds", "samples", "tokens", "fill", "cut_tokens", "loss", "val", "grad_norm", "skipped", "data_wait"]
        self.columns += [f"lr/{part}" for part in parts] + [f"loss/{source}" for source in sources] + self.validation_columns[1:]
        self.totals = {"seconds": 0.0, "samples": 0, "tokens": 0, "places": 0}

    def on_train_start(self, trainer, module) -> None:
        self._step = self._written_step = trainer.global_step
        self._wait = 0.0
        self._since = time.perf_counter()
        self._batch_ended: float | None = self._since
        if trainer.is_global_zero:
            rows, before = self._keep_until(trainer.global_step), dict.fromkeys(self.totals, 0.0)
            for row in rows if self.wandb_run else []:  # rows that a killed process did not send to wandb
                after = {name: float(value) for name, value in row.items() if value}
                self.wandb_run.log(after | rates(before, after) | {"step": int(row["step"])})
                before = after
            self._progress = Progress(total=trainer.max_steps, initial=trainer.global_step, desc="train", unit="step")

    def on_train_batch_start(self, trainer, module, batch: Batch, batch_idx: int) -> None:
        if self._batch_ended is not None:
            self._wait += time.perf_counter() - self._batch_ended

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        validates = step != self._step and validates_after(trainer, step)
        if step != self._step:
            self._step = step
            if validates or step % self.log_every == 0:
                row, totals = self._measure(trainer, module)
                values = {name: float(value) for name, value in row.items() if name != "step"}
                module.log_dict(values, on_step=True, on_epoch=False, logger=False, batch_size=1)
                if not validates:
                    self._write(trainer, module, row, totals)
            if trainer.is_global_zero and not validates:
                self._progress.update(step - self._progress.n)
        # The time of a validation and of its checkpoint is not time spent waiting for data.
        self._batch_ended = None if validates else time.perf_counter()

    def on_validation_end(self, trainer, module) -> None:
        if trainer.global_step == self._written_step:
            return
        row, totals = self._measure(trainer, module)
        row |= {name: float(trainer.callback_metrics[name]) for name in self.validation_columns if name in trainer.callback_metrics}
        self._write(trainer, module, row, totals)
        if trainer.is_global_zero:
            self._progress.n = trainer.global_step
            self._progress.report()

    def on_train_end(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self._progress.close()

    def on_exception(self, trainer, module, exception) -> None:
        if hasattr(self, "_progress"):  # an error message begins on a new line
            self._progress.close()

    @property
    def state_key(self) -> str:
        return "Log"  # the key in checkpoint files; it does not follow the name of the class

    def state_dict(self) -> dict:
        return dict(self.totals)

    def load_state_dict(self, state: dict) -> None:
        self.totals = dict(state)

    def _measure(self, trainer, module) -> tuple[dict, dict]:
        """The row of this step without validation values, and the new running totals. All ranks have to call it."""
        seconds = time.perf_counter() - self._since
        (samples, tokens, places, cut), sums, counts = module.totals()
        added = {"seconds": seconds, "samples": samples, "tokens": tokens, "places": places}
        totals = {name: self.totals[name] + amount for name, amount in added.items()}
        row = {
            "step": trainer.global_step,
            "seconds": totals["seconds"],
            "samples": totals["samples"],
            "tokens": totals["tokens"],
            "fill": tokens / max(places, 1),
            "cut_tokens": cut,
            "loss": sum(sums) / max(sum(counts), 1),
            "grad_norm": float(module.grad_norm),
            "skipped": module.skipped,
            "data_wait": self._wait / max(seconds, 1e-9),
        }
        row |= {f"lr/{group['part']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        row |= {f"loss/{source}": loss / count for source, loss, count in zip(module.sources, sums, counts, strict=True) if count}
        return row, totals

    def _write(self, trainer, module, row: dict, totals: dict) -> None:
        speed = rates(self.totals, totals)
        self.totals = totals
        if trainer.is_global_zero:
            self._append(row)
            losses = [f"{name} {row[name]:.3f}" for name in ("loss", "val") if name in row]
            self._progress.set_postfix_str(", ".join([*losses, *(f"{rate:,.1f} {name}" for name, rate in speed.items())]), refresh=False)
            if self.wandb_run:
                self.wandb_run.log(row | speed)
        module.reset_sums()
        self._since, self._wait, self._written_step = time.perf_counter(), 0.0, row["step"]

    def _append(self, row: dict) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if new:
                writer.writeheader()
            writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})

    def _keep_until(self, step: int) -> list[dict[str, str]]:
        """Removes the rows after `step`, which the resumed run writes again, and a row that a crash truncated; returns the others."""
        if not self.path.exists():
            return []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        with self.path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdigit() and int(row["step"]) <= step]
        writer.writerows(rows)
        write_atomically(self.path, text.getvalue())
        return rows


def rates(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Samples and tokens per second between two rows, which hold running totals; empty if no time has passed."""
    seconds = after["seconds"] - before["seconds"]
    return {f"{unit}/s": (after[unit] - before[unit]) / seconds for unit in ("samples", "tokens")} if seconds > 0 else {}


def best_validation_value(path: Path) -> float | None:
    """The lowest mean validation loss in a `log.csv`; None if the run has not been validated."""
    with path.open(newline="") as file:
        return min((float(row["val"]) for row in csv.DictReader(file) if row["val"] not in ("", "nan")), default=None)
