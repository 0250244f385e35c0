"""Parses the `key=value` arguments of `data_prep` and `experiments` into the dataclass that holds the configuration of a command.

The grammar is Hydra's, as for the commands of `src`. In addition, a list may be written without brackets.
"""

import sys
from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.runtime.cli_quoting import quote_text
from src.runtime.errors import UserError, suggest

Schema = TypeVar("Schema")
NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


def parse_arguments(schema: type[Schema], arguments: list[str]) -> Schema:
    """Fills `schema`; a field without a default is required. `--help` prints the docstring of `schema`.

    | field | grammar |
    |---|---|
    | bool, int, float | `small=true`, `workers=2` |
    | str, Path | the text as it is; quotes around the whole text are removed |
    | list of these | `sources=[a,b]`, `sources=a,b`, `sources='["a, b",c]'` |
    | dict | `options.a.section=findings`, `'options={a: {section: findings}}'` |

    Unknown keys, missing keys and values of the wrong type raise `UserError`.
    """
    if {"-h", "--help"} & set(arguments):
        print(schema.__doc__)
        sys.exit(0)
    types = {field.name: field.type for field in fields(schema)}  # type: ignore[arg-type]
    config: Any = OmegaConf.structured(schema)
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise UserError(f"'{argument}' is not of the form key=value")
        name, *path = key.split(".")
        if name not in types or (path and get_origin(types[name]) is not dict):
            raise UserError(f"unknown key '{key}'{suggest(key, types)}")
        kind = _type_at(types[name], path)
        try:
            OmegaConf.update(config, key, _parse_value(key, text, kind))
        except (HydraException, OmegaConfBaseException) as error:
            reason = f"is not {NAMES[kind]}" if kind in NAMES else f"cannot be parsed: {str(error).splitlines()[0]}"
            raise UserError(f"{key}={text!r} {reason}") from None
    for missing in sorted(OmegaConf.missing_keys(config), key=list(types).index):
        raise UserError(f"{missing}= is missing; give {missing}=...")
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def _type_at(kind: Any, path: list[str]) -> Any:
    """The type of a field, without None, or of the value at `path` in a field that is a dict."""
    for _ in path:
        kind = get_args(kind)[1] if get_origin(kind) is dict else kind
    return get_args(kind)[0] if isinstance(kind, UnionType) else kind


def _parse_value(key: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is list and not text.startswith("["):
        text = f"[{text}]"
    elif get_origin(kind) not in (list, dict) and kind not in NAMES:
        text = quote_text(text)
    return OverridesParser.create().parse_override(f"{key}={text}").value()
