"""Conversion between composed YAML and the typed dataclasses of `src/config`."""

from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from src.runtime.errors import UserError, suggest

Schema = TypeVar("Schema")


def to_typed(schema: type[Schema], config: DictConfig) -> Schema:
    """Converts composed YAML to the dataclass `schema`. Raises `UserError` for an unknown key, a wrong type or a missing value."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigKeyError as error:
        raise UserError(_unknown_key(schema, error)) from None
    except MissingMandatoryValue as error:
        raise UserError(f"config key '{error.full_key}' has no value; give {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise UserError(f"config key '{error.full_key}': {str(error).splitlines()[0]}") from None


def _unknown_key(schema: type, error: ConfigKeyError) -> str:
    key, parent = str(error.full_key), error.parent_node
    allowed = [str(name) for name in parent] if parent is not None else [field.name for field in fields(schema)]
    return f"unknown config key '{key}'{suggest(key.rpartition('.')[2], allowed)}"


def to_plain(config: Any) -> dict:
    """Converts a dataclass to nested dicts of plain values for YAML, JSON and `torch.load(weights_only=True)`."""
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)  # type: ignore[return-value]


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value!r}{suggest(value, allowed)}")
