"""The signals that end the demo."""

import signal
from types import FrameType


def handle_stop_signals() -> list[int]:
    """Makes SIGTERM end the demo as Ctrl-C does, so that uploaded images are deleted. Returns a list that gets the signals.

    Both raise `KeyboardInterrupt`. A library that is imported at that time may catch it; the list has the signal all the same.
    """
    stopped: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a process in the background ignores it
        signal.signal(signal.SIGINT, interrupt)
    return stopped
