"""A run keeps the hub revision of its weights, although its configuration may name none."""

from dataclasses import replace
from pathlib import Path

import yaml

from src.config.train import TrainConfig
from src.model.weight_files import UNVERIFIED
from src.runtime import run_folder
from src.runtime.atomic_file import write_atomically
from src.runtime.schema import to_plain


def restore_revisions(config: TrainConfig, folder: Path) -> TrainConfig:
    """Returns `config` with the revisions that an earlier start of this run recorded for the same paths."""
    stored = run_folder.read_config(folder) if (folder / "config.yaml").exists() else {}
    parts = {part: stored.get(part, {}) for part in ("vision", "language")}
    return _set_revisions(config, {part: old["revision"] for part, old in parts.items() if old.get("path") == getattr(config, part).path})


def pin_revisions(config: TrainConfig, folder: Path, weights: dict[str, dict[str, str]]) -> TrainConfig:
    """Returns `config` with the revisions of the loaded `weights` in place of `unverified`.

    It prints each new revision and writes it to config.yaml, which every command reads.
    """
    pinned = _set_revisions(config, {part: identity["revision"] for part, identity in weights.items()})
    if pinned != config:
        for part in ("vision", "language"):
            if getattr(pinned, part) != getattr(config, part):
                print(f"{part}.revision: {weights[part]['id']} is at {weights[part]['revision']}, which this run keeps")
        if run_folder.is_first_rank():
            write_atomically(folder / "config.yaml", yaml.safe_dump(run_folder.redact_secrets(to_plain(pinned)), sort_keys=False))
    return pinned


def _set_revisions(config: TrainConfig, revisions: dict[str, str]) -> TrainConfig:
    """Replaces the revisions that are still unverified."""
    unpinned = {part: revision for part, revision in revisions.items() if revision and getattr(config, part).revision == UNVERIFIED}
    return replace(config, **{part: replace(getattr(config, part), revision=revision) for part, revision in unpinned.items()})
