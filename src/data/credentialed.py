"""Credentialed data: only a user with personal access may read it, under an agreement that binds what is derived from it, too.

The one place that decides whether a source is credentialed. docs/data.md states the rules that follow.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from src.data.source_entries import source_entries

WITHHELD = "withheld, because it may hold the text of credentialed data"
TERMS = "What is derived from it (weights, encoder, adapter, demo) is sensitive and may be shared only under the same agreement."


def is_credentialed(source: str, manifest: dict[str, Any]) -> bool:
    """Whether the manifest of a build or the entry of the source in `sources.yaml` says so. Phantoms are synthetic and hence open."""
    if manifest.get("phantom"):
        return False
    return bool(manifest.get("credentialed")) or source in listed_sources()


def listed_sources() -> frozenset[str]:
    """The sources with `licence.credentialed: yes` in `sources.yaml`."""
    return frozenset(name for name, entry in source_entries().items() if entry.get("licence", {}).get("credentialed") in (True, "yes"))


def withheld_record(key: str) -> str:
    """What is shown in place of a credentialed record."""
    return f"record {key} of a credentialed source; its content is withheld"


def exported_sources(path: str | Path | None) -> list[str]:
    """The credentialed sources that the card of an exported model names. `path` is a part of an export, or a file in it."""
    if not path:
        return []
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if not text.startswith("---\n"):
        return []
    try:
        front = yaml.safe_load(text.split("---\n")[1])
    except yaml.YAMLError:  # the card of someone else's model
        return []
    names = front.get("credentialed") if isinstance(front, dict) else None
    return sorted(map(str, names)) if isinstance(names, list) else []


def credentialed_notice(sources: Iterable[str]) -> str:
    """One line for a model that was trained on these credentialed sources; empty without any."""
    names = ", ".join(sources)
    return names and f"Credentialed: trained on {names}, to which access is personal and bound by an agreement. {TERMS}"
