"""`log.csv` and the progress: what the run is doing, for people and for the report."""

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning

from src.data.packing import Batch
from src.runtime.progress import Progress
from src.runtime.run_folder import write_atomically


class CSVLog(lightning.Callback):
    """One row of `log.csv` every `log_every` optimizer steps, the same values to `board`; the progress with rates and time left."""

    def __init__(self, path: Path, *, sources: list[str], parts: list[str], log_every: int, board: Any = None):
        self.path, self.log_every, self.board = path, log_every, board
        per_source = [f"{kind}/{source}" for kind in ("loss", "val", "f1") for source in sources]
        self.columns = ["step", "seconds", "samples", "tokens", "fill", "cut_tokens", "loss", "val", "grad_norm", "skipped", "data_wait"]
        self.columns += [f"lr/{part}" for part in parts] + per_source
        self.totals = {"seconds": 0.0, "samples": 0, "tokens": 0, "places": 0}

    def on_train_start(self, trainer, module) -> None:
        self._step = self._written = trainer.global_step
        self._wait = 0.0
        self._started = self._since = self._batch_ended = time.perf_counter()
        if trainer.is_global_zero:
            rows, before = self._keep_until(trainer.global_step), dict.fromkeys(self.totals, 0.0)
            for row in rows if self.board else []:  # what a kill kept from wandb
                after = {name: float(value) for name, value in row.items() if value}
                self.board.log(after | rates(before, after) | {"step": int(row["step"])})
                before = after
            self._progress = Progress(total=trainer.max_steps, initial=trainer.global_step, desc="train", unit="step")

    def on_train_batch_start(self, trainer, module, batch: Batch, batch_idx: int) -> None:
        self._wait += time.perf_counter() - self._batch_ended

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        step = trainer.global_step
        if step != self._step:
            self._step = step
            if step % self.log_every == 0 and step != self._written:
                self.write(trainer, module, step, validation={})
            if trainer.is_global_zero:
                self._progress.update(step - self._progress.n)
        self._batch_ended = time.perf_counter()

    def on_train_end(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self._progress.close()

    def on_exception(self, trainer, module, exception) -> None:
        if hasattr(self, "_progress"):  # an error message begins on a new line
            self._progress.close()

    def state_dict(self) -> dict:
        return dict(self.totals)

    def load_state_dict(self, state: dict) -> None:
        self.totals = dict(state)

    def write(self, trainer, module, step: int, *, validation: dict[str, float]) -> None:
        now = time.perf_counter()
        seconds = now - self._since
        (samples, tokens, places, cut), sums, counts = module.totals()
        before = dict(self.totals)
        for name, amount in (("seconds", seconds), ("samples", samples), ("tokens", tokens), ("places", places)):
            self.totals[name] += amount
        row = {
            "step": step,
            "seconds": self.totals["seconds"],
            "samples": self.totals["samples"],
            "tokens": self.totals["tokens"],
            "fill": tokens / max(places, 1),
            "cut_tokens": cut,
            "loss": sum(sums) / max(sum(counts), 1),
            "grad_norm": float(module.grad_norm),
            "skipped": module.skipped,
            "data_wait": self._wait / max(seconds, 1e-9),
        }
        row |= {f"lr/{group['part']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        row |= {f"loss/{source}": loss / count for source, loss, count in zip(module.sources, sums, counts, strict=True) if count}
        row |= validation
        if trainer.is_global_zero:
            self._append(row)
            pace = rates(before, self.totals)
            losses = [f"{name} {row[name]:.3f}" for name in ("loss", "val") if name in row]
            self._progress.set_postfix_str(", ".join([*losses, *(f"{rate:,.1f} {name}" for name, rate in pace.items())]), refresh=False)
            if validation:  # before `on_train_batch_end` counts this step
                self._progress.n = step
                self._progress.report()
            if self.board:
                self.board.log(row | pace)
        module.reset_sums()
        self._since, self._wait, self._written = time.perf_counter(), 0.0, step

    def _append(self, row: dict) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if new:
                writer.writeheader()
            writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})

    def _keep_until(self, step: int) -> list[dict[str, str]]:
        """Rows after the checkpoint that is resumed from would stand twice, and a crash may have cut one short; returns the others."""
        if not self.path.exists():
            return []
        kept = io.StringIO(newline="")
        writer = csv.DictWriter(kept, self.columns)
        writer.writeheader()
        with self.path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdigit() and int(row["step"]) <= step]
        writer.writerows(rows)
        write_atomically(self.path, kept.getvalue())
        return rows


def rates(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Samples and tokens per second between two rows, which hold running totals; nothing where no time has passed."""
    seconds = after["seconds"] - before["seconds"]
    return {f"{what}/s": (after[what] - before[what]) / seconds for what in ("samples", "tokens")} if seconds > 0 else {}
