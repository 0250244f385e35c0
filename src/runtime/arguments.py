"""`key=value` words of a command line -> a dataclass, the whole configuration of a data preparation command."""

import sys
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar

from src.runtime.errors import UserError, suggest

Schema = TypeVar("Schema")


def parse_arguments(schema: type[Schema], words: list[str]) -> Schema:
    """Fills `schema`; a field without a default must be given. `--help` prints the docstring of `schema`.

    A field is a str, int, float, Path (or None) or list[str] (`sources=a,b`). Unknown keys, missing keys and values of another
    type raise `UserError`.
    """
    if {"-h", "--help"} & set(words):
        print(schema.__doc__)
        sys.exit(0)
    kinds = {field.name: field for field in fields(schema)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"'{word}' is not of the form key=value")
        if key not in kinds:
            raise UserError(f"unknown key '{key}'{suggest(key, kinds)}")
        values[key] = _typed(key, text, kinds[key].type)
    for name, field in kinds.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{name}= is missing; give {name}=...")
    return schema(**values)


def _typed(key: str, text: str, kind: Any) -> Any:
    if isinstance(kind, UnionType):
        kind = kind.__args__[0]  # Path | None
    if kind == list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{key}={text!r} is not {'a whole number' if kind is int else 'a number'}") from None
