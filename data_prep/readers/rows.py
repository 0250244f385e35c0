"""The rows that a reader yields: a `Record`, or the reason why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

from data_prep.sources import Source
from src.data.record import Record


@dataclass(frozen=True)
class InvalidRow:
    """A raw row that cannot be turned into a record; it is written to the quarantine."""

    key: str
    reason: str  # text after a colon is detail, so that reasons can be counted


@dataclass(frozen=True)
class FilteredRow:
    """A raw row that a rule of its reader excludes, for example by language."""

    key: str
    reason: str


@dataclass(frozen=True)
class Note:
    """What a reader changed in the record before it; notes are counted in the manifest."""

    text: str


Row = Record | InvalidRow | FilteredRow
TYPE_NAMES = {str: "text", int: "number", float: "number", bool: "true or false", type(None): "null", dict: "object"}  # as JSON has them


def type_name(value: object) -> str:
    return TYPE_NAMES.get(type(value), type(value).__name__)


def row_errors_as_invalid(make_record: Callable[..., Row]) -> Callable[..., Row]:
    """Decorates the function of a reader that makes a record: a field of an unexpected type (a number instead of a list, null
    instead of an object) gives an `InvalidRow` that lists the types instead of an exception. Its key is the argument after the `Source`,
    which is the key or the fields of the raw row."""

    @wraps(make_record)
    def wrapper(*args, **kwargs) -> Row:
        try:
            return make_record(*args, **kwargs)
        except (AttributeError, LookupError, TypeError, ValueError):
            position = next(n for n, arg in enumerate(args) if isinstance(arg, Source))
            fields = next((arg for arg in args[position + 1 :] if isinstance(arg, dict)), {})
            types = ", ".join(f"{name} is {type_name(value)}" for name, value in fields.items())
            return InvalidRow(str(args[position + 1])[:80], f"unexpected field type: {types}"[:300])

    return wrapper
