"""All cells of a run -> metrics, the table behind them, paired differences and ranks.

`table` gives a dict of plain values that `transfer.json` holds beside `metrics`:

    cells         [{benchmark, encoder, protocol, pooling, setting, validation, seeds, n, groups, classes,
                    macro_f1, balanced_accuracy, auroc (each {value, low, high, n}), per_class [{class, precision, recall, f1, n}],
                    confusion K x K (rows are labels; images, summed over seeds), per_seed [macro-F1], seconds, weights, input}]
    means         [{encoder, protocol, value, low, high, n}]            over the benchmarks that all encoders of a protocol share
    differences   [{benchmark or 'mean', protocol, ours, other, value, low, high, n, p, p_holm}]     macro-F1, ours minus other
    ranks         {protocol: {encoder: average rank}}
    few_shot      [{benchmark, encoder, shots, value, low, high, n}]    the probe on that many training images per class
"""

import re

import numpy as np

from src.scoring.transfer import Cell, average_ranks, confusion, difference, holm, interval, resampled, values, weights

SCORES = ("macro_f1", "balanced_accuracy", "auroc")
SHOTS = re.compile(r"probe_(\d+)shot")


def table(found: list[tuple[dict, Cell]], *, resamples: int, seed: int) -> dict:
    drawn: dict[tuple[str, str, str], np.ndarray] = {}  # (protocol, benchmark, encoder) -> macro-F1 in every resample
    cells = []
    for facts, cell in found:
        name = (facts["protocol"], facts["benchmark"], facts["encoder"])
        w_RG = weights(cell.groups_N.max() + 1, resamples=resamples, seed=seed, name=facts["benchmark"])
        spread, point = resampled(cell, w_RG, seed=seed), values(cell)
        drawn[name] = spread["macro_f1"]
        scores = {score: interval(point[score], spread[score], n=len(cell.labels_N)) for score in SCORES}
        cells.append({**facts, **scores, **_details(facts["classes"], cell)})
    value = {(c["protocol"], c["benchmark"], c["encoder"]): c["macro_f1"]["value"] for c in cells}
    n = {(c["protocol"], c["benchmark"]): c["macro_f1"]["n"] for c in cells}
    ours = sorted({c["encoder"] for c in cells if c["ours"]})
    means, differences, ranks = [], [], {}
    for protocol in dict.fromkeys(name[0] for name in value):
        rows = {}
        for _, benchmark, encoder in (name for name in value if name[0] == protocol):
            rows.setdefault(benchmark, {})[encoder] = value[protocol, benchmark, encoder]
        encoders = sorted({encoder for row in rows.values() for encoder in row})
        shared = [benchmark for benchmark, row in rows.items() if len(row) == len(encoders)]
        ranks[protocol] = average_ranks(rows)

        def mean(encoder: str, of: dict, protocol=protocol, shared=shared):
            return np.mean([of[protocol, benchmark, encoder] for benchmark in shared], axis=0)

        total = sum(n[protocol, benchmark] for benchmark in shared)
        if shared:
            for encoder in encoders:
                said = {"encoder": encoder, "protocol": protocol, "benchmarks": shared}
                means.append(said | interval(float(mean(encoder, value)), mean(encoder, drawn), n=total))
        for our in ours:
            others = [encoder for encoder in encoders if encoder not in ours]
            family = []
            for benchmark, row in rows.items():
                for other in (other for other in others if other in row and our in row):
                    a, b = (protocol, benchmark, our), (protocol, benchmark, other)
                    said = {"benchmark": benchmark, "protocol": protocol, "ours": our, "other": other}
                    family.append(said | difference(value[a] - value[b], drawn[a] - drawn[b], n=n[protocol, benchmark]))
            overall = []
            for other in others if shared and our in encoders else []:
                said = {"benchmark": "mean", "protocol": protocol, "ours": our, "other": other}
                gap = float(mean(our, value) - mean(other, value))
                overall.append(said | difference(gap, mean(our, drawn) - mean(other, drawn), n=total))
            differences += _corrected(family) + _corrected(overall)
    shown = [c for c in cells if not SHOTS.fullmatch(c["protocol"])]
    few = [_shot(c, int(found[1])) for c in cells if (found := SHOTS.fullmatch(c["protocol"]))]
    tables = {"cells": shown, "means": means, "differences": differences, "ranks": ranks, "few_shot": few}
    return {"metrics": _metrics(cells, means, differences), "transfer": tables}


def _corrected(family: list[dict]) -> list[dict]:
    """Holm over one family: all encoders and benchmarks of a protocol, or all encoders of a protocol's mean."""
    return [one | {"p_holm": p} for one, p in zip(family, holm([one["p"] for one in family]), strict=True)]


def _details(classes: list[str], cell: Cell) -> dict:
    sums_KK = sum(confusion(cell.labels_N, predicted_N, classes=len(classes)) for predicted_N in cell.predictions_SN)
    hit, labels, said = np.diagonal(sums_KK), sums_KK.sum(1), sums_KK.sum(0)
    per_class = [
        {
            "class": name,
            "precision": float(hit[k] / max(said[k], 1)),
            "recall": float(hit[k] / max(labels[k], 1)),
            "f1": float(2 * hit[k] / max(labels[k] + said[k], 1)),
            "n": int(labels[k]) // len(cell.predictions_SN),
        }
        for k, name in enumerate(classes)
    ]
    single = [
        Cell(cell.labels_N, cell.groups_N, cell.predictions_SN[s : s + 1], cell.probabilities_SNK[s : s + 1])
        for s in range(len(cell.predictions_SN))
    ]
    return {
        "per_class": per_class,
        "confusion": sums_KK.tolist(),
        "per_seed": [values(one)["macro_f1"] for one in single],
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
