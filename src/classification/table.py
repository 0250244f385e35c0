"""Metrics, tables, paired differences and ranks of all transfer results of a run.

`transfer_table` returns plain values. The key `transfer` has, for the report:

    cells         [{benchmark, encoder, protocol, name, ours, classes, pooling, setting, validation (lists, one value per seed),
                    seeds, n, groups, macro_f1, balanced_accuracy, auroc, ece (each {value, low, high, n}), per_seed [macro-F1],
                    per_class [{class, precision, recall, f1, n}], confusion K x K (rows are labels; images, summed over seeds),
                    weights {id, revision, sha256}, parameters, input {size, mean, std}, counts {split: {class: n}}, split,
                    overlap {found, trained_on, notes, start} or None, seconds}]
                  A multi-label set has `multilabel` true, the scores of src/classification/multilabel.py, `labels_scored`, thresholds,
                  and in per_class further scores of each label (null if undefined), but no balanced accuracy, ece and confusion matrix.
    means         [{encoder, protocol, benchmarks, value, low, high, n}]   over the benchmarks that all encoders share, if two or more,
                  without external tests;
                  with multi-label sets also `macro_f1@0.5`: {value, low, high, n}, in which they contribute macro_f1@0.5
    differences   [{benchmark or 'mean', protocol, ours, other, value, low, high, n, p, p_holm}]     macro-F1, ours minus other
    ranks         {protocol: {encoder: average rank over the shared benchmarks}}
    few_shot      [{benchmark, encoder, shots, value, low, high, n}]    macro-F1 of the probe on that many training images per class

src/commands/transfer.py adds `left_out`: [{file, why}], the results in the folder that are not comparable with these.
"""

import re
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from src.classification import multilabel, scores
from src.classification.multilabel import MultilabelResult
from src.classification.results import Result
from src.classification.scores import TransferResult, average_ranks, confusion, difference, interval, resampling_weights
from src.metrics.statistics import holm

SCORES = tuple(dict.fromkeys(scores.SCORES + multilabel.SCORES))
AT_HALF = "macro_f1@0.5"
SHOTS = re.compile(r"probe_(\d+)shot")


@dataclass
class ProtocolScores:
    """Macro-F1 of one protocol by (benchmark, encoder): its value, and its value in each resample."""

    name: str
    value: dict[tuple[str, str], float] = field(default_factory=dict)
    resampled: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    ours: set[str] = field(default_factory=set)
    external: set[str] = field(default_factory=set)  # external test sets, which do not count in means and ranks

    def add(self, benchmark: str, encoder: str, value: float, resampled_R: np.ndarray, *, n: int) -> None:
        self.value[benchmark, encoder], self.resampled[benchmark, encoder], self.n[benchmark] = value, resampled_R, n

    @property
    def encoders(self) -> list[str]:
        return sorted({encoder for _, encoder in self.value})

    @property
    def shared(self) -> list[str]:
        """The benchmarks with results of all encoders, without external tests."""
        own = [benchmark for benchmark in self.n if benchmark not in self.external]
        return [benchmark for benchmark in own if all((benchmark, encoder) in self.value for encoder in self.encoders)]

    def interval(self, benchmark: str, encoder: str) -> dict:
        return interval(self.value[benchmark, encoder], self.resampled[benchmark, encoder], n=self.n[benchmark])

    def add_means(self) -> None:
        """Adds the mean over the shared benchmarks as the benchmark `mean`, if there are two or more."""
        shared = self.shared
        if len(shared) > 1:
            for encoder in self.encoders:
                self.value["mean", encoder] = float(np.mean([self.value[benchmark, encoder] for benchmark in shared]))
                self.resampled["mean", encoder] = np.mean([self.resampled[benchmark, encoder] for benchmark in shared], axis=0)
            self.n["mean"] = sum(self.n[benchmark] for benchmark in shared)


def transfer_table(results: list[tuple[dict, Result]], *, resamples: int, seed: int) -> dict:
    """`metrics` as in result.json, and `transfer` as described above, from (metadata, predictions) of each result."""
    protocols: dict[str, ProtocolScores] = {}
    at_half: dict[str, ProtocolScores] = {}  # with macro_f1@0.5 of the multi-label sets
    cells = []
    for metadata, result in results:
        benchmark, encoder, name, n = metadata["benchmark"], metadata["encoder"], metadata["protocol"], len(result.groups_N)
        weights = resampling_weights(result.groups_N.max() + 1, resamples=resamples, seed=seed, name=benchmark)
        with threadpool_limits(1, user_api="blas"):  # the products are small, so threads would wait for each other
            if isinstance(result, MultilabelResult):
                resampled, values = multilabel.resampled_scores(result, weights, seed=seed), multilabel.score_values(result)
            else:
                resampled, values = scores.resampled_scores(result, weights, seed=seed), scores.score_values(result)
        cell = {key: value for key, value in metadata.items() if key != "depends_on"}
        cell |= {score: interval(values[score], resampled[score], n=n) for score in values}
        cells.append(cell | _details(metadata["classes"], result))
        for by_protocol, score in ((protocols, "macro_f1"), (at_half, AT_HALF if AT_HALF in values else "macro_f1")):
            protocol = by_protocol.setdefault(name, ProtocolScores(name))
            protocol.add(benchmark, encoder, values[score], resampled[score], n=n)
            protocol.ours |= {encoder} if metadata["ours"] else set()
            protocol.external |= {benchmark} if len(metadata.get("parts", ())) > 1 else set()
    means, differences, ranks = [], [], {}
    multilabel_sets = {cell["benchmark"] for cell in cells if AT_HALF in cell}
    for name, protocol in protocols.items():
        shared = {
            benchmark: {encoder: protocol.value[benchmark, encoder] for encoder in protocol.encoders} for benchmark in protocol.shared
        }
        protocol.add_means()
        means += _means(protocol, at_half[name] if multilabel_sets & set(shared) else None, benchmarks=list(shared))
        differences += _differences(protocol)
        ranks[name] = average_ranks(shared)
    tables = {
        "cells": [cell for cell in cells if not SHOTS.fullmatch(cell["protocol"])],
        "means": means,
        "differences": differences,
        "ranks": ranks,
        "few_shot": [_few_shot_row(cell, int(match[1])) for cell in cells if (match := SHOTS.fullmatch(cell["protocol"]))],
    }
    return {"metrics": _metrics(cells, means, differences), "transfer": tables}


def _means(protocol: ProtocolScores, at_half: ProtocolScores | None, *, benchmarks: list[str]) -> list[dict]:
    if "mean" not in protocol.n:
        return []
    if at_half:
        at_half.add_means()
    return [
        {"encoder": encoder, "protocol": protocol.name, "benchmarks": benchmarks}
        | protocol.interval("mean", encoder)
        | ({AT_HALF: at_half.interval("mean", encoder)} if at_half else {})
        for encoder in protocol.encoders
    ]


def _differences(protocol: ProtocolScores) -> list[dict]:
    """Macro-F1 of each of our encoders minus each other one. Holm's families are all single benchmarks, and the means."""
    differences = []
    for ours in sorted(protocol.ours):
        families: dict[bool, list[dict]] = {False: [], True: []}
        for benchmark, other in protocol.value:
            a, b = (benchmark, ours), (benchmark, other)
            if a in protocol.value and other not in protocol.ours:
                names = {"benchmark": benchmark, "protocol": protocol.name, "ours": ours, "other": other}
                value, resampled_R = protocol.value[a] - protocol.value[b], protocol.resampled[a] - protocol.resampled[b]
                families[benchmark == "mean"].append(names | difference(value, resampled_R, n=protocol.n[benchmark]))
        for family in families.values():
            adjusted = holm([row["p"] for row in family])
            differences += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    return differences


def _details(classes: list[str], result: Result) -> dict:
    if isinstance(result, MultilabelResult):
        per_seed = [multilabel.score_values(result.seed(s))["macro_f1"] for s in range(len(result.predictions_SNK))]
        details = _label_details(classes, result)
    else:
        per_seed = [scores.score_values(result.seed(s))["macro_f1"] for s in range(len(result.predictions_SN))]
        details = _class_details(classes, result)
    return details | {"per_seed": per_seed, "n": len(result.groups_N), "groups": int(result.groups_N.max()) + 1}


def _label_details(classes: list[str], result: MultilabelResult) -> dict:
    """`labels_scored`: the labels with a positive test image, over which the scores are means, and the others by name."""
    rows = [{"class": name, "n": row.pop("positives")} | row for name, row in zip(classes, multilabel.label_scores(result), strict=True)]
    absent = [row["class"] for row in rows if not row["n"]]
    return {"per_class": rows, "labels_scored": {"scored": len(rows) - len(absent), "labels": len(rows), "without_positive": absent}}


def _class_details(classes: list[str], result: TransferResult) -> dict:
    seeds = len(result.predictions_SN)
    sums_KK = np.sum([confusion(result.labels_N, predicted_N, classes=len(classes)) for predicted_N in result.predictions_SN], axis=0)
    correct, labels, predicted = np.diagonal(sums_KK), sums_KK.sum(1), sums_KK.sum(0)
    per_class = [
        {
            "class": name,
            "precision": float(correct[k] / max(predicted[k], 1)),
            "recall": float(correct[k] / max(labels[k], 1)),
            "f1": float(2 * correct[k] / max(labels[k] + predicted[k], 1)),
            "n": int(labels[k]) // seeds,
        }
        for k, name in enumerate(classes)
    ]
    return {"per_class": per_class, "confusion": sums_KK.tolist()}


def _few_shot_row(cell: dict, shots: int) -> dict:
    return {"benchmark": cell["benchmark"], "encoder": cell["encoder"], "shots": shots, **cell["macro_f1"]}


def _metrics(cells: list[dict], means: list[dict], differences: list[dict]) -> dict:
    fields = ("value", "low", "high", "n")
    metrics = {f"transfer/{c['benchmark']}/{c['encoder']}/{c['protocol']}/{name}": c[name] for c in cells for name in SCORES if name in c}
    for row in means:
        key = f"transfer/mean/{row['encoder']}/{row['protocol']}"
        metrics[f"{key}/macro_f1"] = {name: row[name] for name in fields}
        metrics |= {f"{key}/{AT_HALF}": row[AT_HALF]} if AT_HALF in row else {}
    for row in differences:
        key = f"transfer/{row['benchmark']}/{row['ours']}_minus_{row['other']}/{row['protocol']}/macro_f1"
        metrics[key] = {name: row[name] for name in (*fields, "p", "p_holm")}
    return metrics
