"""Free text on the command line: a question may hold commas, quotes, brackets, `$` or any script, which Hydra's grammar refuses."""

import re


def quote_free_text(words: list[str], *, texts: tuple[str, ...]) -> list[str]:
    """Overrides whose key is in `texts` quoted for Hydra; lists, `null` and what is quoted already stay as they are."""
    return [_quoted(word) if word.partition("=")[0] in texts else word for word in words]


def _quoted(word: str) -> str:
    key, _, value = word.partition("=")
    if value == "null" or (key != "question" and value[:1] == "[") or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return word
    # Backslashes are doubled only where they stand before a quote (Hydra's grammar of quoted values).
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
    return f'{key}="{escaped}"'.replace("${", "\\${")
