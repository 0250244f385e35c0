"""Rules on the fields of a configuration, as their metadata: `steps: int = field(metadata=bounded(1))`."""

import math
from dataclasses import fields, is_dataclass
from typing import Any

from src.runtime.errors import UserError
from src.runtime.schema import check_choice


def bounded(minimum: float, *, below: float = math.inf) -> dict[str, Any]:
    """The value is None or a number from `minimum` to below `below`."""
    return {"minimum": minimum, "below": below}


def choices(*allowed: str) -> dict[str, Any]:
    """The value is one of `allowed`."""
    return {"choices": allowed}


def check_fields(config: Any) -> None:
    """Checks `bounded` and `choices` of all fields, nested ones included, and that all numbers are finite; raises `UserError`."""
    check_finite(config)
    _check_rules(config)


def check_finite(config: Any, prefix: str = "") -> None:
    """YAML accepts nan and inf as numbers, and nan passes every comparison with a bound."""
    items: Any = vars(config) if is_dataclass(config) else config if isinstance(config, dict) else dict(enumerate(config))
    for key, value in items.items():
        if isinstance(value, dict | list) or is_dataclass(value):
            check_finite(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{key} must be a finite number, found {value}")


def _check_rules(config: Any, prefix: str = "") -> None:
    for rule in fields(config):
        key, value = f"{prefix}{rule.name}", getattr(config, rule.name)
        if is_dataclass(value):
            _check_rules(value, f"{key}.")
        if "choices" in rule.metadata:
            check_choice(key, value, rule.metadata["choices"])
        if "minimum" in rule.metadata and value is not None:
            if value < rule.metadata["minimum"]:
                raise UserError(f"{key} must be at least {rule.metadata['minimum']}, found {value}")
            if value >= rule.metadata["below"]:
                raise UserError(f"{key} must be below {rule.metadata['below']}, found {value}")
