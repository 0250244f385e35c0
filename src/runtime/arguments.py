"""Parses the `key=value` arguments of a data preparation command into a dataclass that holds its whole configuration."""

import sys
from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar

from src.runtime.errors import UserError, suggest

Schema = TypeVar("Schema")


def parse_arguments(schema: type[Schema], arguments: list[str]) -> Schema:
    """Fills `schema`; a field without a default is required. `--help` prints the docstring of `schema`.

    A field is a str, int, float, Path (or None) or list[str] (`sources=a,b`; `options.a=b, c` adds the item `a=b, c`). Unknown
    keys, missing keys and values of the wrong type raise `UserError`.
    """
    if {"-h", "--help"} & set(arguments):
        print(schema.__doc__)
        sys.exit(0)
    types = {field.name: field.type for field in fields(schema)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"'{argument}' is not of the form key=value")
        field, _, name = key.partition(".")
        if name and types.get(field) == list[str]:
            values.setdefault(field, []).append(f"{name}={text}")
            continue
        if key not in types:
            raise UserError(f"unknown key '{key}'{suggest(key, types)}")
        values[key] = _convert(key, text, types[key])
    for required in fields(schema):  # type: ignore[arg-type]
        if required.name not in values and required.default is MISSING and required.default_factory is MISSING:
            raise UserError(f"{required.name}= is missing; give {required.name}=...")
    return schema(**values)


def _convert(key: str, text: str, to: Any) -> Any:
    if isinstance(to, UnionType):
        to = to.__args__[0]  # Path | None
    if to == list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return to(text)
    except ValueError:
        raise UserError(f"{key}={text!r} is not {'a whole number' if to is int else 'a number'}") from None
