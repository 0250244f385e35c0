"""All cells of a run -> metrics, the table behind them, paired differences and ranks.

`table` gives plain values; under `transfer` stand, for the report:

    cells         [{benchmark, encoder, protocol, name, ours, classes, pooling, setting, validation (lists, one value per seed),
                    seeds, n, groups, macro_f1, balanced_accuracy, auroc (each {value, low, high, n}), per_seed [macro-F1],
                    per_class [{class, precision, recall, f1, n}], confusion K x K (rows are labels; images, summed over seeds),
                    weights {id, revision, sha256}, parameters, input {size, mean, std}, counts {split: {class: n}}, split,
                    overlap {found, trained_on, notes, start} or None, seconds}]
    means         [{encoder, protocol, benchmarks, value, low, high, n}]   over the benchmarks that all encoders share, if two or more
    differences   [{benchmark or 'mean', protocol, ours, other, value, low, high, n, p, p_holm}]     macro-F1, ours minus other
    ranks         {protocol: {encoder: average rank over the shared benchmarks}}
    few_shot      [{benchmark, encoder, shots, value, low, high, n}]    macro-F1 of the probe on that many training images per class

src/transfer.py adds `left_out`: [{file, why}], the results in the folder that cannot be compared with these.
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
    """Macro-F1 of one protocol by (benchmark, encoder): its value, and its value in every resample."""

    name: str
    value: dict[tuple[str, str], float] = field(default_factory=dict)
    drawn: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    n: dict[str, int] = field(default_factory=dict)
    ours: set[str] = field(default_factory=set)

    @property
    def encoders(self) -> list[str]:
        return sorted({encoder for _, encoder in self.value})

    @property
    def shared(self) -> list[str]:
        """The benchmarks that every encoder has."""
        return [benchmark for benchmark in self.n if all((benchmark, encoder) in self.value for encoder in self.encoders)]

    def add_means(self) -> None:
        """The mean over the shared benchmarks as one more benchmark, where there are two or more."""
        shared = self.shared
        if len(shared) > 1:
            for encoder in self.encoders:
                self.value["mean", encoder] = float(np.mean([self.value[benchmark, encoder] for benchmark in shared]))
                self.drawn["mean", encoder] = np.mean([self.drawn[benchmark, encoder] for benchmark in shared], axis=0)
            self.n["mean"] = sum(self.n[benchmark] for benchmark in shared)


def transfer_table(found: list[tuple[dict, TransferResult]], *, resamples: int, seed: int) -> dict:
    """`metrics` as result.json has them, and `transfer` as described above."""
    protocols: dict[str, ProtocolScores] = {}
    cells = []
    for facts, cell in found:
        w_RG = resampling_weights(cell.groups_N.max() + 1, resamples=resamples, seed=seed, name=facts["benchmark"])
        with threadpool_limits(1, user_api="blas"):  # many small products: threads would wait for one another
            spread, point = resampled_scores(cell, w_RG, seed=seed), score_values(cell)
        scores = {score: interval(point[score], spread[score], n=len(cell.labels_N)) for score in SCORES}
        cells.append({key: value for key, value in facts.items() if key != "depends_on"} | scores | _details(facts["classes"], cell))
        protocol = protocols.setdefault(facts["protocol"], ProtocolScores(facts["protocol"]))
        at = facts["benchmark"], facts["encoder"]
        protocol.value[at], protocol.drawn[at], protocol.n[at[0]] = point["macro_f1"], spread["macro_f1"], len(cell.labels_N)
        protocol.ours |= {facts["encoder"]} if facts["ours"] else set()
    means, differences, ranks = [], [], {}
    for name, protocol in protocols.items():
        by_set = {set_: {encoder: protocol.value[set_, encoder] for encoder in protocol.encoders} for set_ in protocol.shared}
        protocol.add_means()
        means += _means(protocol, benchmarks=list(by_set))
        differences += _differences(protocol)
        ranks[name] = average_ranks(by_set)
    tables = {
        "cells": [cell for cell in cells if not SHOTS.fullmatch(cell["protocol"])],
        "means": means,
        "differences": differences,
        "ranks": ranks,
        "few_shot": [_shot(cell, int(match[1])) for cell in cells if (match := SHOTS.fullmatch(cell["protocol"]))],
    }
    return {"metrics": _metrics(cells, means, differences), "transfer": tables}


def _means(protocol: ProtocolScores, *, benchmarks: list[str]) -> list[dict]:
    return [
        {"encoder": encoder, "protocol": protocol.name, "benchmarks": benchmarks}
        | interval(protocol.value["mean", encoder], protocol.drawn["mean", encoder], n=protocol.n["mean"])
        for encoder in protocol.encoders
        if "mean" in protocol.n
    ]


def _differences(protocol: ProtocolScores) -> list[dict]:
    """Each encoder of ours against each other one. Two families for Holm: all single benchmarks, and the means."""
    found = []
    for our in sorted(protocol.ours):
        families: dict[bool, list[dict]] = {False: [], True: []}
        for benchmark, other in protocol.value:
            a, b = (benchmark, our), (benchmark, other)
            if a in protocol.value and other not in protocol.ours:
                said = {"benchmark": benchmark, "protocol": protocol.name, "ours": our, "other": other}
                gap = difference(protocol.value[a] - protocol.value[b], protocol.drawn[a] - protocol.drawn[b], n=protocol.n[benchmark])
                families[benchmark == "mean"].append(said | gap)
        for family in families.values():
            adjusted = holm([one["p"] for one in family])
            found += [one | {"p_holm": p} for one, p in zip(family, adjusted, strict=True)]
    return found


def _details(classes: list[str], cell: TransferResult) -> dict:
    seeds = len(cell.predictions_SN)
    sums_KK = np.sum([confusion(cell.labels_N, predicted_N, classes=len(classes)) for predicted_N in cell.predictions_SN], axis=0)
    hit, labels, said = np.diagonal(sums_KK), sums_KK.sum(1), sums_KK.sum(0)
    per_class = [
        {
            "class": name,
            "precision": float(hit[k] / max(said[k], 1)),
            "recall": float(hit[k] / max(labels[k], 1)),
            "f1": float(2 * hit[k] / max(labels[k] + said[k], 1)),
            "n": int(labels[k]) // seeds,
        }
        for k, name in enumerate(classes)
    ]
    single = (
        TransferResult(cell.labels_N, cell.groups_N, cell.predictions_SN[s : s + 1], cell.probabilities_SNK[s : s + 1])
        for s in range(seeds)
    )
    return {
        "per_class": per_class,
        "confusion": sums_KK.tolist(),
        "per_seed": [score_values(one)["macro_f1"] for one in single],
        "n": len(cell.labels_N),
        "groups": int(cell.groups_N.max()) + 1,
    }


def _shot(cell: dict, shots: int) -> dict:
    return {"benchmark": cell["benchmark"], "encoder": cell["encoder"], "shots": shots, **cell["macro_f1"]}


def _metrics(cells: list[dict], means: list[dict], differences: list[dict]) -> dict:
    kept = ("value", "low", "high", "n")
    metrics = {f"transfer/{c['benchmark']}/{c['encoder']}/{c['protocol']}/{score}": c[score] for c in cells for score in SCORES}
    for one in means:
        metrics[f"transfer/mean/{one['encoder']}/{one['protocol']}/macro_f1"] = {key: one[key] for key in kept}
    for one in differences:
        key = f"transfer/{one['benchmark']}/{one['ours']}_minus_{one['other']}/{one['protocol']}/macro_f1"
        metrics[key] = {name: one[name] for name in (*kept, "p", "p_holm")}
    return metrics
