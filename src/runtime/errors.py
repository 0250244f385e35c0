"""A user's mistake, told in one sentence."""

import difflib
import functools
import io
import sys
from collections.abc import Callable, Iterable

from src.runtime.silence_libraries import silence_libraries


class UserError(Exception):
    """One sentence: which key or file, what was found, what is allowed. Commands exit with code 2 on it."""


def suggest(wrong: str, names: Iterable[str], *, these: str = "allowed") -> str:
    """`; did you mean 'x'?` for the closest of `names`, else their list after `these`, which tells what they are."""
    names = sorted(names)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; {these}: {', '.join(names) or 'nothing'}"


def report_user_errors(main: Callable) -> Callable:
    """The outermost function of a command: turns a `UserError` into one line and exit code 2."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        silence_libraries()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # else a log file gets what is printed at the end, after all progress lines
        try:
            return main(*args, **kwargs)
        except UserError as mistake:
            print(f"error: {mistake}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; the same command continues where it stopped", file=sys.stderr)
            raise SystemExit(130) from None

    return run
