"""Weights of a hub stay those that a run was started with, although the configuration names no revision."""

from dataclasses import replace
from pathlib import Path

import yaml

from src import run
from src.config import Train, plain
from src.model.stored import UNVERIFIED


def as_started(config: Train, folder: Path) -> Train:
    """`config` with the revisions that an earlier start of this run found at the same addresses."""
    stored = run.read_config(folder) if (folder / "config.yaml").exists() else {}
    parts = {part: stored.get(part, {}) for part in ("vision", "language")}
    same = {part: then["revision"] for part, then in parts.items() if then.get("path") == getattr(config, part).path}
    return _with(config, same)


def hold(config: Train, folder: Path, weights: dict[str, dict[str, str]]) -> Train:
    """`config` with the revisions of `weights` in place of `unverified`, told and written to config.yaml, which every verb reads."""
    held = _with(config, {part: found["revision"] for part, found in weights.items()})
    if held != config:
        for part in ("vision", "language"):
            if getattr(held, part) != getattr(config, part):
                print(f"{part}.revision: {weights[part]['id']} is at {weights[part]['revision']}, which this run keeps")
        if run.first_rank():
            run.write_atomically(folder / "config.yaml", yaml.safe_dump(run.mask(plain(held)), sort_keys=False))
    return held


def _with(config: Train, revisions: dict[str, str]) -> Train:
    open_ones = {part: found for part, found in revisions.items() if found and getattr(config, part).revision == UNVERIFIED}
    return replace(config, **{part: replace(getattr(config, part), revision=found) for part, found in open_ones.items()})
