"""The composed YAML as checked dataclasses: every key that a command understands, with its type."""

from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from src.runtime.errors import UserError, suggest

Schema = TypeVar("Schema")


def to_typed(schema: type[Schema], config: DictConfig) -> Schema:
    """The composed YAML as a checked dataclass; a wrong key, a wrong type or a missing value is named in the error."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), config)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except ConfigKeyError as error:
        raise UserError(_unknown_key(schema, error)) from None
    except MissingMandatoryValue as error:
        raise UserError(f"config key '{error.full_key}' has no value; give {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        said = str(error).splitlines()[0]
        raise UserError(f"config key '{error.full_key}': {said}") from None


def _unknown_key(schema: type, error: ConfigKeyError) -> str:
    full = str(error.full_key)
    parent = error.parent_node
    allowed = [str(key) for key in parent] if parent is not None else [one.name for one in fields(schema)]
    return f"unknown config key '{full}'{suggest(full.rpartition('.')[2], allowed)}"


def to_plain(config: Any) -> dict:
    """A dataclass as nested dicts of plain values, fit for YAML, JSON and `torch.load(weights_only=True)`."""
    return OmegaConf.to_container(OmegaConf.structured(config), resolve=True)  # type: ignore[return-value]


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value!r}{suggest(value, allowed)}")
