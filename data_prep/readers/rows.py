"""What a reader yields: a `Record`, or why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

from data_prep.sources import Source
from src.data.record import Record


@dataclass(frozen=True)
class InvalidRow:
    """A row that cannot be formed; it goes to the quarantine."""

    key: str
    reason: str  # what is wrong; what follows a colon is detail, so that reasons can be counted


@dataclass(frozen=True)
class FilteredRow:
    """A row that a rule of its reader leaves out, such as another language."""

    key: str
    reason: str


Row = Record | InvalidRow | FilteredRow


def row_errors_as_invalid(form: Callable[..., Row]) -> Callable[..., Row]:
    """For the function of a reader that forms a record: a field of another kind than the layout has (a number for a list, null for
    an object) makes the row `Bad`. It stands for the row by the argument after the `Source`, which is its key or its fields."""

    @wraps(form)
    def formed(*args, **named) -> Row:
        try:
            return form(*args, **named)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            place = next(n for n, arg in enumerate(args) if isinstance(arg, Source))
            return InvalidRow(str(args[place + 1])[:80], f"row of another shape: {type(error).__name__} {error}")

    return formed
