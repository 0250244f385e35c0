"""External test sets: a classifier is trained on one classification set and tested on another one with the same labels."""

import json
from collections.abc import Mapping
from dataclasses import replace

import xxhash

from src.classification.dataset import ClassificationDataset, build_dataset
from src.classification.layouts import Example
from src.runtime.errors import UserError, suggest


def external_test(
    name: str, train: ClassificationDataset, test: ClassificationDataset, labels: Mapping[str, list[str]]
) -> ClassificationDataset:
    """The train and validation split of `train` with the test split of `test`.

    `labels` maps each class to the labels of `test` that mean it; an empty list is an image without any label. Both sets may be
    multi-label. If `train` has one label per image, all its classes must be in `labels`, and test images of no or of several classes are
    left out, which is printed. If it is multi-label, its other labels are ignored. Raises `UserError` for unknown labels.
    """
    _check_labels(name, train, test, labels)
    examples = [_renamed(train, example, _train_label(train, example, labels)) for n in ("train", "val") for example in _split(train, n)]
    images = _split(test, "test")
    for example in images:
        positive = tuple(own for own, theirs in labels.items() if _has_label(test, example, theirs))
        if train.multilabel:
            examples.append(_renamed(test, example, positive))
        elif len(positive) == 1:
            examples.append(_renamed(test, example, positive[0]))
    left_out = len(images) - sum(example.split == "test" for example in examples)
    if left_out:
        print(f"{name}: {left_out:,} of {len(images):,} test images of {test.name} have none, or several, of the classes and are left out")
    data = build_dataset(name, examples, classes=list(labels))
    origin = json.dumps([train.fingerprint, test.fingerprint, dict(labels)])
    note = f"train and val of {train.name} ({train.split_note}), test of {test.name} ({test.split_note})"
    fingerprint = xxhash.xxh3_128_hexdigest(origin.encode())
    return replace(data, fingerprint=fingerprint, split_note=note, external=(test.name, test.fingerprint))


def _split(data: ClassificationDataset, split: str) -> list[Example]:
    return [data.examples[n] for n in data.rows(split)]


def _renamed(data: ClassificationDataset, example: Example, label: str | tuple[str, ...]) -> Example:
    """The example with a label, and with a key and a group that no other set has."""
    return example._replace(key=f"{data.name}/{example.key}", group=f"{data.name}/{example.group}", label=label)


def _train_label(train: ClassificationDataset, example: Example, labels: Mapping[str, list[str]]) -> str | tuple[str, ...]:
    return tuple(name for name in labels if name in example.label) if train.multilabel else example.label


def _has_label(test: ClassificationDataset, example: Example, names: list[str]) -> bool:
    """Whether an image of `test` has one of these labels; no names: whether it has no label."""
    own = example.label if isinstance(example.label, tuple) else (example.label,)
    return bool(set(own) & set(names)) if names else not own


def _check_labels(name: str, train: ClassificationDataset, test: ClassificationDataset, labels: Mapping[str, list[str]]) -> None:
    for data, names in ((train, labels), (test, {label: None for theirs in labels.values() for label in theirs})):
        for label in names:
            if label not in data.classes:
                raise UserError(f"benchmark '{name}': labels has '{label}', but {data.name} does not{suggest(label, data.classes)}")
    absent = [label for label in train.classes if label not in labels]
    if absent and not train.multilabel:
        raise UserError(f"benchmark '{name}': labels lacks the class '{absent[0]}' of {train.name}; add it with the labels of {test.name}")
    if not test.multilabel and not all(labels.values()):
        raise UserError(f"benchmark '{name}': [] means an image without any label, but each image of {test.name} has one; name its label")
