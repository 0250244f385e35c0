"""Reads a classification set from its raw files, as its file in conf/benchmark describes it."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.classification.dataset import ClassificationDataset, build_dataset, dataset_fingerprint
from src.classification.external import external_test
from src.classification.groups import apply_group_rules
from src.classification.layouts import ClassificationConfig, read_text
from src.classification.names import EXTERNAL, FOLDER, dataset_folder
from src.classification.published_layouts import LAYOUTS
from src.runtime.errors import UserError, suggest
from src.runtime.schema import to_typed

CHECKSUMS = "md5sums.txt"  # output of `md5sum`; its files are verified before the set is read


def read_dataset(name: str, *, raw: str | Path, lists: Iterable[str] = ()) -> ClassificationDataset:
    """Reads the set in `raw/<name>` as described by `conf/benchmark/<name>.yaml`. `lists` are further names to suggest for a wrong one.

    Without that file, a `labels.csv` or one folder per class is expected. A set without splits is split 60/20/20, stratified by class,
    with each group in one split; a set without val has a fifth of its train split as val. Raises `UserError` for an unknown label, an
    empty class, a group in two given splits and a wrong checksum.
    A multi-label set may have classes without an image in val or test: `ClassificationDataset.absent_classes` lists them.
    """
    folder, path = dataset_folder(name, raw, lists=lists), FOLDER / f"{name}.yaml"
    default = ClassificationConfig("csv" if (folder / "labels.csv").exists() else "folder")
    config = to_typed(ClassificationConfig, DictConfig(OmegaConf.load(path))) if path.exists() else default
    if config.layout == EXTERNAL:
        return external_test(name, read_dataset(config.train, raw=raw), read_dataset(config.test, raw=raw), config.labels)
    if config.layout not in LAYOUTS:
        raise UserError(f"benchmark '{name}': layout={config.layout!r}{suggest(config.layout, LAYOUTS)}")
    _verify_checksums(folder)
    examples = list(LAYOUTS[config.layout](folder, config))
    if config.multilabel and any(isinstance(example.label, str) for example in examples):
        raise UserError(f"benchmark '{name}': layout={config.layout} gives one label per image; set multilabel: false in its file")
    origin = dataset_fingerprint(examples, folder / config.path) if config.duplicates else ""
    examples = apply_group_rules(name, examples, config, origin=origin, cache=Path(raw) / f".{name}-duplicates.json")
    data = build_dataset(name, examples, classes=list(config.classes), array_file=folder / config.path)
    return replace(data, split_note=config.split_note or data.split_note)


def _verify_checksums(folder: Path) -> None:
    if not (folder / CHECKSUMS).exists():
        return
    for line in read_text(folder / CHECKSUMS).splitlines():
        expected, _, name = line.partition("  ")
        path = folder / name.strip()
        if not path.is_file():
            raise UserError(f"{folder / CHECKSUMS}: {name.strip()} does not exist; download it again")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != expected.strip():
            raise UserError(f"{path}: the MD5 is {digest}, but {CHECKSUMS} has {expected.strip()}; download it again")
