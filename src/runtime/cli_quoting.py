"""Quotes free text for Hydra: a question may hold commas, quotes, brackets, `$` or any script, which Hydra's grammar rejects."""

import re


def quote_free_text(overrides: list[str], *, texts: tuple[str, ...]) -> list[str]:
    """Quotes the overrides whose key is in `texts`. Lists, `null` and values in quotes do not change."""
    return [_quote(override) if override.partition("=")[0] in texts else override for override in overrides]


def _quote(override: str) -> str:
    key, _, value = override.partition("=")
    return override if key != "question" and value[:1] == "[" else f"{key}={quote_text(value)}"


def quote_text(value: str) -> str:
    """Quotes one value. `null` and a value in quotes do not change."""
    if value == "null" or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return value
    # In a quoted value, Hydra's grammar only needs the backslashes before a quote to be doubled.
    escaped = re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + ('\\"' if match[2] else ""), value)
    return f'"{escaped}"'.replace("${", "\\${")
