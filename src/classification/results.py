"""Cells of the transfer table on disk: `<run>/transfer/<benchmark>/<encoder>/<protocol>.jsonl` and `.json`.

The jsonl holds a line per seed and test image: `id, source, group, label, prediction, seed, probabilities`. The json is written
last and tells what the cell depends on; a cell whose `depends_on` still holds is not computed again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.classification.dataset import ClassificationDataset
from src.classification.encoders import Encoder, to_label
from src.classification.scores import TransferResult
from src.runtime.run_folder import write_atomically
from src.runtime.schema import to_plain


@dataclass
class TransferResultFile:
    folder: Path  # of the run
    benchmark: str
    encoder: str
    protocol: str

    @property
    def path(self) -> Path:
        return self.folder / "transfer" / self.benchmark / self.encoder / f"{self.protocol}.json"

    def finished(self, depends_on: dict) -> bool:
        return self.path.exists() and json.loads(self.path.read_text())["depends_on"] == depends_on

    def note(self, **facts: object) -> None:
        """Facts that change without the predictions, such as what an audit says."""
        write_atomically(self.path, json.dumps(json.loads(self.path.read_text()) | facts, indent=1))

    def write(self, data: ClassificationDataset, probabilities_SNK: np.ndarray, facts: dict) -> None:
        """The predictions of every seed, then the facts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = data.rows("test")
        lines = []
        for seed, p_NK in enumerate(probabilities_SNK):
            for n, p_K in zip(rows, p_NK, strict=True):
                example = data.examples[n]
                line = {"id": example.key, "source": data.name, "group": example.group, "label": example.label}
                line |= {"prediction": data.classes[int(p_K.argmax())], "seed": seed, "probabilities": [round(float(p), 6) for p in p_K]}
                lines.append(json.dumps(line, ensure_ascii=False))
        write_atomically(self.path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
        named = {"benchmark": self.benchmark, "encoder": self.encoder, "protocol": self.protocol, "classes": data.classes}
        write_atomically(self.path, json.dumps({**named, **facts}, indent=1))


# What a cell depends on -> what the message says has changed since.
SETTINGS = {
    "encoder": "the weights",
    "architecture": "the architecture",
    "seed": "seed=",
    "seeds": "seeds=",
    "finetune": "the settings of finetune",
}


def read_results(folder: Path, *, data: dict[str, str]) -> tuple[list[tuple[dict, TransferResult]], list[dict[str, str]]]:
    """(facts, predictions) of the finished cells of a run that can be compared, sorted by path, and what was left out: {file, why}.

    Cells of one benchmark must be of the same images: of those that `data` gives the fingerprints of, else of those of the newest cell.
    Cells of one encoder must be of the same weights, seeds and settings: of those of its newest cell. A mean of others would be that of
    no encoder.
    """
    facts_of = {path: json.loads(path.read_text()) for path in sorted(folder.glob("transfer/*/*/*.json"))}
    images: dict[str, str] = {}
    newest: dict[tuple[str, str], Any] = {}  # (encoder, setting)
    for path in sorted(facts_of, key=lambda path: path.stat().st_mtime_ns):
        facts = facts_of[path]
        images[facts["benchmark"]] = facts["depends_on"]["data"]
        newest |= {(facts["encoder"], key): facts["depends_on"][key] for key in SETTINGS if key in facts["depends_on"]}
    images |= data
    kept, left_out = [], []
    for path, facts in facts_of.items():
        depends_on = facts["depends_on"]
        changed = [f"the images of {facts['benchmark']} changed"] if depends_on["data"] != images[facts["benchmark"]] else []
        differ = [said for key, said in SETTINGS.items() if key in depends_on and depends_on[key] != newest[facts["encoder"], key]]
        changed += [f"{' and '.join(differ)} of {facts['encoder']} changed"] if differ else []
        if changed:
            left_out.append({"file": path.relative_to(folder).as_posix(), "why": " and ".join(changed)})
            print(f"left out, because {left_out[-1]['why']}: {path}; compute it again, or remove it")
        else:
            kept.append(read_result(path))
    return kept, left_out


def check_distinct_labels(chosen: list[Encoder], folder: Path) -> None:
    """An encoder whose label stands for another one in this run takes its whole name, as the second of scratch:a and scratch:b does."""
    owners: dict[str, tuple[str, dict]] = {}
    for path in folder.glob("transfer/*/*/*.json"):
        facts = json.loads(path.read_text())
        owners[facts["encoder"]] = facts["name"], facts["depends_on"]["architecture"]
    for encoder in chosen:
        name, architecture = owners.setdefault(encoder.label, (encoder.name, to_plain(encoder.config)))
        if name != encoder.name and architecture != to_plain(encoder.config):
            encoder.label = to_label(encoder.name)


def read_result(path: Path) -> tuple[dict, TransferResult]:
    facts = json.loads(path.read_text())
    with path.with_suffix(".jsonl").open() as file:
        lines = [json.loads(line) for line in file]
    first = [line for line in lines if line["seed"] == 0]
    seeds, classes = len(lines) // len(first), facts["classes"]
    numbers = {name: n for n, name in enumerate(sorted({line["group"] for line in first}))}
    predictions = np.array([classes.index(line["prediction"]) for line in lines]).reshape(seeds, len(first))
    cell = TransferResult(
        labels_N=np.array([classes.index(line["label"]) for line in first]),
        groups_N=np.array([numbers[line["group"]] for line in first]),
        predictions_SN=predictions,
        probabilities_SNK=np.array([line["probabilities"] for line in lines]).reshape(seeds, len(first), len(classes)),
    )
    return facts, cell
