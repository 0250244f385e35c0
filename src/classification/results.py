"""Transfer results on disk: `<run>/transfer/<benchmark>/<encoder>/<protocol>.jsonl` and `.json`.

The jsonl has a line per seed and test image: `id, source, group, label, prediction, seed, probabilities`. In a multi-label set `label` and
`prediction` (at the thresholds of the validation split) are lists. The json has the metadata of the result and is written last. A result
whose `depends_on` is unchanged is not computed again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.classification.dataset import ClassificationDataset
from src.classification.encoders import Encoder, to_label
from src.classification.multilabel import MultilabelResult
from src.classification.probe import Fit
from src.classification.scores import TransferResult
from src.runtime.atomic_file import write_atomically
from src.runtime.schema import to_plain

Result = TransferResult | MultilabelResult


@dataclass
class TransferResultFile:
    """The files of one result: one encoder on one benchmark under one protocol."""

    folder: Path  # of the run
    benchmark: str
    encoder: str
    protocol: str

    @property
    def path(self) -> Path:
        return self.folder / "transfer" / self.benchmark / self.encoder / f"{self.protocol}.json"

    def is_current(self, depends_on: dict) -> bool:
        """Whether the result exists and was computed with the same `depends_on`."""
        return self.path.exists() and json.loads(self.path.read_text())["depends_on"] == depends_on

    def update_metadata(self, **changes: object) -> None:
        """Updates metadata that can change while the predictions do not, such as the overlap found by an audit."""
        write_atomically(self.path, json.dumps(json.loads(self.path.read_text()) | changes, indent=1))

    def write(self, data: ClassificationDataset, fits: list[Fit], metadata: dict) -> None:
        """Writes the predictions of all seeds, with probabilities of six significant digits, then the metadata."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = data.rows("test")
        lines = []
        for seed, fit in enumerate(fits):
            for n, p_K in zip(rows, fit.probabilities_NK, strict=True):
                example = data.examples[n]
                line = {"id": example.key, "source": data.name, "group": example.group, "label": example.label}
                if fit.thresholds_K is None:
                    line |= {"prediction": data.classes[int(p_K.argmax())]}
                else:
                    line |= {"prediction": [data.classes[k] for k in np.flatnonzero(p_K >= fit.thresholds_K)]}
                line |= {"seed": seed, "probabilities": [float(f"{p:.6g}") for p in p_K]}
                lines.append(json.dumps(line, ensure_ascii=False))
        write_atomically(self.path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
        names = {"benchmark": self.benchmark, "encoder": self.encoder, "protocol": self.protocol}
        metadata = {**names, "classes": data.classes, **metadata}
        if data.multilabel:
            metadata |= {"multilabel": True, "thresholds": [fit.thresholds_K.tolist() for fit in fits if fit.thresholds_K is not None]}
        write_atomically(self.path, json.dumps(metadata, indent=1))


# Key of `depends_on` -> its name in the message about a result that differs.
SETTING_NAMES = {
    "encoder": "the weights",
    "architecture": "the architecture",
    "seed": "seed=",
    "seeds": "seeds=",
    "finetune": "the settings of finetune",
    "paper": "the settings of paper",
}


def read_results(folder: Path, *, data: dict[str, str]) -> tuple[list[tuple[dict, Result]], list[dict[str, str]]]:
    """(metadata, predictions) of the comparable results of a run, sorted by path, and the results that were left out: {file, why}.

    All results of a benchmark must be on the same images: those with the fingerprint in `data`, else those of the newest result. All
    results of an encoder must have the weights, seeds and settings of its newest result, so that their mean belongs to one encoder.
    """
    metadata_by_path = {path: json.loads(path.read_text()) for path in sorted(folder.glob("transfer/*/*/*.json"))}
    fingerprints: dict[str, str] = {}
    newest: dict[tuple[str, str], Any] = {}  # (encoder, key of depends_on) -> value in the newest result
    for path in sorted(metadata_by_path, key=lambda path: path.stat().st_mtime_ns):
        metadata = metadata_by_path[path]
        fingerprints[metadata["benchmark"]] = metadata["depends_on"]["data"]
        newest |= {(metadata["encoder"], key): metadata["depends_on"][key] for key in SETTING_NAMES if key in metadata["depends_on"]}
    fingerprints |= data
    results, left_out = [], []
    for path, metadata in metadata_by_path.items():
        encoder, depends_on = metadata["encoder"], metadata["depends_on"]
        reasons = []
        if depends_on["data"] != fingerprints[metadata["benchmark"]]:
            reasons.append(f"the images of {metadata['benchmark']} changed")
        changed = [name for key, name in SETTING_NAMES.items() if key in depends_on and depends_on[key] != newest[encoder, key]]
        if changed:
            reasons.append(f"{' and '.join(changed)} of {encoder} changed")
        if reasons:
            left_out.append({"file": path.relative_to(folder).as_posix(), "why": " and ".join(reasons)})
            print(f"left out, because {left_out[-1]['why']}: {path}; compute it again, or remove it")
        else:
            results.append(read_result(path))
    return results, left_out


def make_labels_distinct(encoders: list[Encoder], folder: Path) -> None:
    """Changes the label of an encoder to its full name if another encoder in this run has that label (scratch:a and scratch:b)."""
    owners: dict[str, tuple[str, dict]] = {}
    for path in folder.glob("transfer/*/*/*.json"):
        metadata = json.loads(path.read_text())
        owners[metadata["encoder"]] = metadata["name"], metadata["depends_on"]["architecture"]
    for encoder in encoders:
        name, architecture = owners.setdefault(encoder.label, (encoder.name, to_plain(encoder.config)))
        if name != encoder.name and architecture != to_plain(encoder.config):
            encoder.label = to_label(encoder.name)


def read_result(path: Path) -> tuple[dict, Result]:
    """(metadata, predictions) of one result."""
    metadata = json.loads(path.read_text())
    with path.with_suffix(".jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    first = [line for line in lines if line["seed"] == 0]
    seeds, classes = len(lines) // len(first), metadata["classes"]
    group_numbers = {name: n for n, name in enumerate(sorted({line["group"] for line in first}))}
    groups_N = np.array([group_numbers[line["group"]] for line in first])
    probabilities_SNK = np.array([line["probabilities"] for line in lines]).reshape(seeds, len(first), len(classes))
    if metadata.get("multilabel"):
        labels_NK, predictions = (
            np.array([[name in line[key] for name in classes] for line in part]) for part, key in ((first, "label"), (lines, "prediction"))
        )
        return metadata, MultilabelResult(labels_NK, groups_N, predictions.reshape(probabilities_SNK.shape), probabilities_SNK)
    labels_N, predictions = (
        np.array([classes.index(line[key]) for line in part]) for part, key in ((first, "label"), (lines, "prediction"))
    )
    return metadata, TransferResult(labels_N, groups_N, predictions.reshape(seeds, len(first)), probabilities_SNK)
