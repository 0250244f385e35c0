"""Progress of long commands: a bar on a terminal, otherwise a line every 30 seconds."""

import sys

from tqdm import tqdm

from src.runtime.run_folder import is_first_rank

INTERVAL = 30.0  # seconds between two lines if stderr is not a terminal


class Progress(tqdm):
    """`tqdm` that writes whole lines to stderr if it is not a terminal, so that a log file or a pipe shows progress.

    A task that ends within `INTERVAL` writes no line. Only the first rank writes.
    """

    def __init__(self, *args, **settings):
        self.line_mode = not sys.stderr.isatty()
        if not is_first_rank():
            settings["disable"] = True
        if self.line_mode:  # miniters=1 checks the clock at every update; smoothing=0 gives mean rates over the whole task
            settings |= {"mininterval": INTERVAL, "miniters": 1, "smoothing": 0, "leave": False}
        super().__init__(*args, dynamic_ncols=not self.line_mode, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar. tqdm also calls this method in line mode, where it does nothing."""
        return False if self.line_mode else super().display(msg, pos)

    def update(self, n: float | None = 1) -> bool | None:
        due = super().update(n)
        if due and self.line_mode:
            self._write_line()
        return due

    def report(self) -> None:
        """Shows the current state at once and restarts the interval."""
        if self.disable:
            return
        self.refresh()
        if self.line_mode:
            self.last_print_n, self.last_print_t = self.n, self._time()
            self._write_line()

    def close(self) -> None:
        """Writes a final line if the task was long enough for a first one."""
        if not getattr(self, "disable", True) and self.line_mode and self.initial < self.last_print_n < self.n:
            self._write_line()
        super().close()

    def _write_line(self) -> None:
        self.fp.write(self.line() + "\n")
        self.fp.flush()

    def line(self) -> str:
        """For example `train: step 120/1,000, 0.52 step/s, loss 2.312, 03:50 elapsed, 28:12 left`."""
        elapsed = self.format_dict["elapsed"]
        rate = (self.n - self.initial) / elapsed if elapsed > 0 else 0.0
        done = self._amount(self.n) + (f"/{self._amount(self.total)}" if self.total else "")
        parts = [f"{done}{self.unit}" if self.unit_scale else f"{self.unit} {done}"]
        parts += [f"{tqdm.format_sizeof(rate) if self.unit_scale else tqdm.format_num(rate) + ' '}{self.unit}/s"] if rate else []
        parts += [self.postfix] if self.postfix else []
        parts += [f"{tqdm.format_interval(elapsed)} elapsed"]
        parts += [f"{tqdm.format_interval((self.total - self.n) / rate)} left"] if self.total and rate else []
        return f"{self.desc}: {', '.join(parts)}" if self.desc else ", ".join(parts)

    def _amount(self, number: float) -> str:
        return tqdm.format_sizeof(number, divisor=self.unit_divisor) if self.unit_scale else f"{number:,}"
