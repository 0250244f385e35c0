"""Weights of a hub stay those that a run was started with, although the configuration names no revision."""

from dataclasses import replace
from pathlib import Path

import yaml

from src.config.train import TrainConfig
from src.model.weight_files import UNVERIFIED
from src.runtime import run_folder
from src.runtime.schema import to_plain


def restore_revisions(config: TrainConfig, folder: Path) -> TrainConfig:
    """`config` with the revisions that an earlier start of this run found at the same addresses."""
    stored = run_folder.read_config(folder) if (folder / "config.yaml").exists() else {}
    parts = {part: stored.get(part, {}) for part in ("vision", "language")}
    same = {part: then["revision"] for part, then in parts.items() if then.get("path") == getattr(config, part).path}
    return _with(config, same)


def pin_revisions(config: TrainConfig, folder: Path, weights: dict[str, dict[str, str]]) -> TrainConfig:
    """`config` with the revisions of `weights` in place of `unverified`, told and written to config.yaml, which every verb reads."""
    held = _with(config, {part: found["revision"] for part, found in weights.items()})
    if held != config:
        for part in ("vision", "language"):
            if getattr(held, part) != getattr(config, part):
                print(f"{part}.revision: {weights[part]['id']} is at {weights[part]['revision']}, which this run keeps")
        if run_folder.is_first_rank():
            run_folder.write_atomically(folder / "config.yaml", yaml.safe_dump(run_folder.redact_secrets(to_plain(held)), sort_keys=False))
    return held


def _with(config: TrainConfig, revisions: dict[str, str]) -> TrainConfig:
    open_ones = {part: found for part, found in revisions.items() if found and getattr(config, part).revision == UNVERIFIED}
    return replace(config, **{part: replace(getattr(config, part), revision=found) for part, found in open_ones.items()})
