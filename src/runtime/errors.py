"""Errors of the user, which commands print as one line without a traceback."""

import difflib
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from itertools import accumulate

from src.runtime.silence_libraries import silence_libraries

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota exceeded, file too large for the file system

MAX_NAMES = 500  # characters of the names that a message lists
LONG_WORD = re.compile(r"[^\s/'=,]{300,}")  # longer than a file name can be
MAX_BEGINNING, MAX_END = 3000, 1000  # characters of a message that quotes a long text of a file


class UserError(Exception):
    """A mistake in a configuration or in a file. The message is one line: the key or file, what was found, what to do.

    Very long values that it quotes are shortened, so that the rest of the message can be read.
    """

    def __init__(self, message: str):
        message = LONG_WORD.sub(lambda word: f"{word[0][:80]}[...]", message)
        if len(message) > MAX_BEGINNING + MAX_END:
            message = f"{message[:MAX_BEGINNING]} [...] {message[-MAX_END:]}"
        super().__init__(message)


def suggest(wrong: str, names: Iterable[str], *, these: str = "allowed") -> str:
    """`; did you mean 'x'?` for the closest of `names`; if none is close, as many of them as fit a message after the label `these`."""
    names = sorted(names)
    if close := difflib.get_close_matches(wrong, names, n=1, cutoff=0.6):
        return f"; did you mean '{close[0]}'?"
    listed = [name for name, end in zip(names, accumulate(map(len, names)), strict=True) if end <= MAX_NAMES]
    more = [f"and {len(names) - len(listed):,} more"] if len(listed) < len(names) else []
    return f"; {these}: {', '.join([*listed, *more]) or 'nothing'}"


def full_disk_message(error: Exception) -> str | None:
    """The message for an error that a full disk causes, or None. Libraries of other languages state the reason in their text only."""
    reason = error.strerror if isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS else None
    texts = {os.strerror(number): f"{os.strerror(number)} (os error {number})" for number in DISK_FULL_ERRNOS}  # as Rust writes it
    texts[os.strerror(errno.ENOSPC)] = os.strerror(errno.ENOSPC)
    reason = reason or next((reason for reason, text in texts.items() if text in str(error)), None)
    place = f" for {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return reason and f"no space is left{place} ({reason}); free some and run the same command again, what is finished is kept"


def report_user_errors(main: Callable) -> Callable:
    """Decorates the main function of a command: a `UserError` or a full disk is printed to stderr as one line, with exit code 2."""

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
        except Exception as error:
            if not (message := full_disk_message(error)):
                raise
            print(f"error: {message}", file=sys.stderr)
            raise SystemExit(2) from None

    return run
