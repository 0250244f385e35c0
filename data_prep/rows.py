"""What a reader yields: a `Record`, or why there is none."""

from dataclasses import dataclass

from src.data.record import Record


@dataclass(frozen=True)
class Bad:
    """A row that cannot be formed; it goes to the quarantine."""

    key: str
    reason: str  # what is wrong; what follows a colon is detail, so that reasons can be counted


@dataclass(frozen=True)
class Filtered:
    """A row that a rule of its reader leaves out, such as another language."""

    key: str
    reason: str


Row = Record | Bad | Filtered
