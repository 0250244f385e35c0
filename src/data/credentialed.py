"""Credentialed data: only a user with personal access may read it, under an agreement that binds what is derived from it, too.

The one place that decides whether a source is credentialed. docs/data.md states the rules that follow.
"""

import contextlib
import json
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


def mark_config(file: Path, sources: list[str]) -> None:
    """Adds the credentialed sources to the config.json of an exported part, which is downloaded with its weights."""
    if sources:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"credentialed": sources}, indent=2) + "\n")


def exported_sources(path: str | Path | None, *, revision: str | None = None) -> list[str]:
    """The credentialed sources of an exported model, as its config.json and its card name them.

    `path` is a part of an export, a file in it, or its hub id after a download; `revision` is that of a hub id.
    """
    if not path:
        return []
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if not Path(path).exists():
        if str(path).count("/") > 1:  # a local path
            return []
        from huggingface_hub import try_to_load_from_cache  # a third of a second, which a command without hub weights does not need

        try:
            config = try_to_load_from_cache(str(path), "config.json", revision=None if revision == "unverified" else revision)
        except ValueError:  # no hub id
            return []
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    names: set[str] = set()
    for content in (_read_config(folder / "config.json"), _read_front(folder / "README.md")):
        marked = content.get("credentialed") if isinstance(content, dict) else None
        names |= set(map(str, marked)) if isinstance(marked, list) else set()
    return sorted(names)


def _read_config(file: Path) -> Any:
    with contextlib.suppress(ValueError):  # of someone else's model
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _read_front(card: Path) -> Any:
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    with contextlib.suppress(yaml.YAMLError):  # the card of someone else's model
        return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None


def credentialed_notice(sources: Iterable[str]) -> str:
    """One line for a model that was trained on these credentialed sources; empty without any."""
    names = ", ".join(sources)
    return names and f"Credentialed: trained on {names}, to which access is personal and bound by an agreement. {TERMS}"
