"""Names of encoders and of classification sets, checked without torch."""

from collections.abc import Iterable
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from src.data.source_entries import source_entries
from src.runtime import paths
from src.runtime.errors import UserError, suggest
from src.runtime.run_folder import read_run

FOLDER = paths.CONF / "benchmark"
EXTERNAL = "external"  # layout of a set whose test split is that of another set
ENCODER_KINDS = ("run:NAME", "scratch:NAME", "timm:ID", "hf:ID")


def encoder_files() -> dict[str, Path]:
    """The files of conf/vision by name."""
    return {path.stem: path for path in (paths.CONF / "vision").glob("*.yaml")}


def check_encoder_name(name: str, *, outputs: str) -> None:
    """Raises `UserError` for an unknown name and for a run that does not exist. Published weights are looked up when they are loaded."""
    kind, colon, rest = name.partition(":")
    files = encoder_files()
    if colon and (kind == "run" or (kind == "scratch" and rest not in files)):
        read_run(outputs, rest)
    elif name not in files and not (colon and kind in ("scratch", "timm", "hf")):
        raise UserError(f"encoder={name}{suggest(name, [*files, *ENCODER_KINDS])}")


def set_parts(name: str) -> list[str]:
    """The names of the folders that a classification set reads: its own, or those of the two sets of an external test.

    Raises `UserError` if the file of an external test does not name both.
    """
    path = FOLDER / f"{name}.yaml"
    config = yaml.safe_load(path.read_text()) if path.exists() else {}
    if config.get("layout") != EXTERNAL:
        return [name]
    if missing := [key for key in ("train", "test") if not config.get(key)]:
        raise UserError(f"{path}: {missing[0]} is missing; name the set of this split")
    return [config["train"], config["test"]]


def dataset_folder(name: str, raw: str | Path, *, lists: Iterable[str] = ()) -> Path:
    """`raw/<name>`. Raises `UserError` if it, or a folder of `set_parts`, does not exist.

    `lists` are further names to suggest for a wrong one.
    """
    folder = Path(raw) / name
    parts = set_parts(name)
    if parts != [name]:
        for part in parts:
            dataset_folder(part, raw)
    elif not folder.is_dir():
        known = {path.stem for path in FOLDER.glob("*.yaml") if "layout" in OmegaConf.load(path)} | {p.name for p in Path(raw).glob("*/")}
        known |= set(lists)
        advice = f"; {FOLDER.name}/{name}.yaml says where its images are" if name in known else suggest(name, known)
        if name in source_entries():
            advice = f"; download it: make download SOURCES={name} RAW={raw}"
        raise UserError(f"benchmark '{name}': the folder {folder} does not exist{advice}")
    return folder
