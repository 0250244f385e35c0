"""Errors of the user, which commands print as one line without a traceback."""

import difflib
import functools
import io
import sys
from collections.abc import Callable, Iterable

from src.runtime.silence_libraries import silence_libraries


class UserError(Exception):
    """A mistake in a configuration or in a file. The message is one line: the key or file, what was found, what to do."""


def suggest(wrong: str, names: Iterable[str], *, these: str = "allowed") -> str:
    """`; did you mean 'x'?` for the closest of `names`; if none is close, all of them after the label `these`."""
    names = sorted(names)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; {these}: {', '.join(names) or 'nothing'}"


def report_user_errors(main: Callable) -> Callable:
    """Decorates the main function of a command: a `UserError` is printed to stderr as one line, with exit code 2."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        silence_libraries()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # keeps the order of stdout and progress lines in a log file
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted; run the same command again to continue", file=sys.stderr)
            raise SystemExit(130) from None

    return run
