"""Metrics, tables, paired differences and ranks of all transfer results of a run.

`transfer_table` returns plain values. The key `transfer` has, for the report:

    cells         [{benchmark, encoder, protocol, name, ours, classes, pooling, setting, validation (lists, one value per seed),
                    seeds, n, groups, macro_f1, balanced_accuracy, auroc (each {value, low, high, n}), per_seed [macro-F1],
                    per_class [{class, precision, recall, f1, n}], confusion K x K (rows are labels; images, summed over seeds),
                    weights {id, revision, sha256}, parameters, input {size, mean, std}, counts {split: {class: n}}, split,
                    overlap {found, trained_on, notes, start} or None, seconds}]
    means         [{encoder, protocol, benchmarks, value, low, high, n}]   over the benchmarks that all encoders share, if two or more
    differences   [{benchmark or 'mean', protocol, ours, other, value, low, high, n, p, p_holm}]     macro-F1, ours minus other
    ranks         {protocol: {encoder: average rank over the shared benchmarks}}
    few_shot      [{benchmark, encoder, shots, value, low, high, n}]    macro-F1 of the probe on that many training images per class

src/transfer.py adds `left_out`: [{file, why}], the results in the folder that are not comparable with these.
"""

import re
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits

from src.classification.scores import (
    TransferResult,
    average_ranks,
    confusion,
    difference,
    interval,
    resampled_scores,
    resampling_weights,
    score_values,
)
from src.metrics.statistics import holm

SCORES = ("macro_f1", "balanced_accuracy", "auroc")
SHOTS = re.compile(r"probe_(\d+)shot")


@dataclass
class ProtocolScores:
    """Macro-F1 of one protocol by (benchmark, encoder): its value, and its value in each resample."""

    name: str
    value: dict[tuple[str, str], float] = field(default_factory=dict)
    resampled: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    ours: set[str] = field(default_factory=set)

    @property
    def encoders(self) -> list[str]:
        return sorted({encoder for _, encoder in self.value})

    @property
    def shared(self) -> list[str]:
        """The benchmarks with results of all encoders."""
        return [benchmark for benchmark in self.n if all((benchmark, encoder) in self.value for encoder in self.encoders)]

    def add_means(self) -> None:
        """Adds the mean over the shared benchmarks as the benchmark `mean`, if there are two or more."""
        shared = self.shared
        if len(shared) > 1:
            for encoder in self.encoders:
                self.value["mean", encoder] = float(np.mean([self.value[benchmark, encoder] for benchmark in shared]))
                self.resampled["mean", encoder] = np.mean([self.resampled[benchmark, encoder] for benchmark in shared], axis=0)
            self.n["mean"] = sum(self.n[benchmark] for benchmark in shared)


def transfer_table(results: list[tuple[dict, TransferResult]], *, resamples: int, seed: int) -> dict:
    """`metrics` as in result.json, and `transfer` as described above, from (metadata, predictions) of each result."""
    protocols: dict[str, ProtocolScores] = {}
    cells = []
    for metadata, result in results:
        benchmark, encoder, name, n = metadata["benchmark"], metadata["encoder"], metadata["protocol"], len(result.labels_N)
        w_RG = resampling_weights(result.groups_N.max() + 1, resamples=resamples, seed=seed, name=benchmark)
        with threadpool_limits(1, user_api="blas"):  # the products are small, so threads would wait for each other
            resampled, values = resampled_scores(result, w_RG, seed=seed), score_values(result)
        scores = {score: interval(values[score], resampled[score], n=n) for score in SCORES}
        cells.append(
            {key: value for key, value in metadata.items() if key != "depends_on"} | scores | _details(metadata["classes"], result)
        )
        protocol = protocols.setdefault(name, ProtocolScores(name))
        protocol.value[benchmark, encoder], protocol.resampled[benchmark, encoder] = values["macro_f1"], resampled["macro_f1"]
        protocol.n[benchmark] = n
        protocol.ours |= {encoder} if metadata["ours"] else set()
    means, differences, ranks = [], [], {}
    for name, protocol in protocols.items():
        shared = {
            benchmark: {encoder: protocol.value[benchmark, encoder] for encoder in protocol.encoders} for benchmark in protocol.shared
        }
        protocol.add_means()
        means += _means(protocol, benchmarks=list(shared))
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


def _means(protocol: ProtocolScores, *, benchmarks: list[str]) -> list[dict]:
    return [
        {"encoder": encoder, "protocol": protocol.name, "benchmarks": benchmarks}
        | interval(protocol.value["mean", encoder], protocol.resampled["mean", encoder], n=protocol.n["mean"])
        for encoder in protocol.encoders
        if "mean" in protocol.n
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


def _details(classes: list[str], result: TransferResult) -> dict:
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
    per_seed = (
        TransferResult(result.labels_N, result.groups_N, result.predictions_SN[s : s + 1], result.probabilities_SNK[s : s + 1])
        for s in range(seeds)
    )
    return {
        "per_class": per_class,
        "confusion": sums_KK.tolist(),
        "per_seed": [score_values(one_seed)["macro_f1"] for one_seed in per_seed],
        "n": len(result.labels_N),
        "groups": int(result.groups_N.max()) + 1,
    }


def _few_shot_row(cell: dict, shots: int) -> dict:
    return {"benchmark": cell["benchmark"], "encoder": cell["encoder"], "shots": shots, **cell["macro_f1"]}


def _metrics(cells: list[dict], means: list[dict], differences: list[dict]) -> dict:
    fields = ("value", "low", "high", "n")
    metrics = {f"transfer/{c['benchmark']}/{c['encoder']}/{c['protocol']}/{score}": c[score] for c in cells for score in SCORES}
    for row in means:
        metrics[f"transfer/mean/{row['encoder']}/{row['protocol']}/macro_f1"] = {name: row[name] for name in fields}
    for row in differences:
        key = f"transfer/{row['benchmark']}/{row['ours']}_minus_{row['other']}/{row['protocol']}/macro_f1"
        metrics[key] = {name: row[name] for name in (*fields, "p", "p_holm")}
    return metrics
