"""Runs that differ in their seed alone are one group; groups are what a comparison compares."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from src.metrics import statistics
from src.metrics.vqa import HEADLINE, has_closed_answers, score_item
from src.reporting.blocks import Interval
from src.reporting.run_data import RunData, interval
from src.runtime.errors import UserError, suggest

# Keys that say where and under which name a run is, not what it is.
PLACE = ("name", "seed", "outputs", "logger", "data.root", "data.workers", "trainer.devices", "trainer.nodes", "trainer.log_every")


@dataclass
class Group:
    label: str  # what sets it apart from the other groups
    runs: list[RunData]

    @property
    def seeds(self) -> list[int]:
        return [run.config.get("seed", 0) for run in self.runs]

    @property
    def condition(self) -> str:
        return self.runs[0].condition

    @cached_property
    def measured(self) -> list[RunData]:
        return self.having("vqa/")

    def having(self, metric: str) -> list[RunData]:
        """Of each seed the first run with a metric that begins so: two runs of one seed say nothing about the spread over seeds."""
        found: dict[int, RunData] = {}
        for run in self.runs:
            if any(key.startswith(metric) for key in run.metrics):
                found.setdefault(run.config.get("seed", 0), run)
        return list(found.values())

    @property
    def spare(self) -> list[RunData]:
        """Runs of a seed of which another run stands before them."""
        seeds = self.seeds
        return [run for number, run in enumerate(self.runs) if seeds[number] in seeds[:number]]


def settings(run: RunData) -> dict[str, Any]:
    return {key: value for key, value in run.flat.items() if not key.startswith(PLACE)}


def differing(runs: list[RunData]) -> list[str]:
    """The keys in which at least two runs differ, a key that a run does not have counting as a value."""
    found = [settings(run) for run in runs if run.config]  # a scored file is not known to have any
    keys = dict.fromkeys(key for one in found for key in one)
    return [key for key in keys if len({repr(one.get(key)) for one in found}) > 1]


def source_fingerprints(run: RunData) -> dict[str, tuple[str, str]]:
    """Of each source that the run was trained on the fingerprint of its shards and that of the rows used, which an audit changes."""
    said = run.verbs.get("train", {})
    return {source: (shards, said.get("records", {}).get(source, "")) for source, shards in said.get("shards", {}).items()}


def changed_sources(runs: list[RunData]) -> list[str]:
    """Sources of which two runs saw different shards, or different records of the same."""
    seen: dict[str, set[tuple[str, str]]] = {}
    for run in runs:
        for source, fingerprint in source_fingerprints(run).items():
            seen.setdefault(source, set()).add(fingerprint)
    return sorted(source for source, found in seen.items() if len(found) > 1)


def group(runs: list[RunData]) -> list[Group]:
    """In the order of their first run. Runs with the same settings on different data are never one group, nor are two scored files."""
    keys, changed = differing(runs), changed_sources(runs)
    found: dict[str, list[RunData]] = {}
    for run in runs:
        own = {key: settings(run).get(key) for key in keys} | {source: source_fingerprints(run).get(source) for source in changed}
        own |= {} if run.config else {"name": run.name}
        found.setdefault(repr(own), []).append(run)
    groups = []
    for members in found.values():
        label = ", ".join(f"{key}={setting_text(settings(members[0]).get(key))}" for key in keys)
        alone = len(members) == 1 and (not members[0].config or not label or len(label) > 60)
        label = members[0].name if alone else label or _shared(members)
        if changed and any(source in source_fingerprints(members[0]) for source in changed):
            label += f" [data {members[0].verbs['train'].get('data')}]"
        groups.append(Group(label, members))
    labels = [one.label for one in groups]
    for one in groups:
        if labels.count(one.label) > 1:
            one.label = one.runs[0].name
    return groups


def baseline(groups: list[Group], wanted: str | None) -> Group:
    """The group with that label or that holds a run of that name; the first where none is named."""
    if wanted is None:
        return groups[0]
    for one in groups:
        if wanted == one.label or any(wanted in (run.name, run.folder.name) for run in one.runs):
            return one
    names = [run.name for one in groups for run in one.runs]
    raise UserError(f"baseline={wanted} is none of the compared runs{suggest(wanted, names)}")


def score(one: Group, key: str, *, signed: bool = False) -> Interval | None:
    """A metric of a group, pooled over its runs."""
    return pooled([run.metrics[key] for run in one.having(key) if key in run.metrics], signed=signed)


def pooled(found: list[dict], *, signed: bool = False) -> Interval | None:
    """Of one run its own interval, of several the mean with Student's t interval over seeds, within what a score can be; of a value that no
    seed changes (that of a fixed encoder, of the majority answer) the interval of the first run."""
    values = np.array([metric["value"] for metric in found])
    if len(set(values)) < 2:
        return interval(found[0], signed=signed) if found else None
    mean, half = values.mean(), t_half_width(len(values)) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(mean), float(max(mean - half, -1 if signed else 0)), float(min(mean + half, 1)), signed)


def t_half_width(count: int) -> float:
    """Half the width of a 95% interval of a mean of `count` values, in standard errors."""
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1))


def difference(one: Group, other: Group, *, benchmarks: list[str], scorer: str, resamples: int, seed: int) -> dict | None:
    """`one` minus `other` on the same test questions, each under its `condition`: value, low, high, n, p. None where they answered
    different ones.

    Images are drawn with replacement and so are the seeds; seeds that both groups have are paired. p flips the sign of whole images.
    """
    pairs = _paired_runs(one, other)
    if not pairs:
        return None
    rows: list[list[float]] = []
    clusters: list[str] = []
    for left, right in pairs:
        a, b = (_scores(run, benchmarks, scorer) for run in (left, right))
        if not a or a.keys() != b.keys():
            return None
        rows.append([a[key][0] - b[key][0] for key in a])
        clusters = [a[key][1] for key in a]
    sums = [statistics.by_cluster(np.array(row)[:, None], clusters) for row in rows]
    sums_SCK, counts_CK = np.stack([found for found, _ in sums]), sums[0][1]
    drawn = statistics.over_seeds(sums_SCK, counts_CK, resamples=resamples, seed=seed)
    low, high = statistics.interval(drawn, clusters_K=(counts_CK > 0).sum(axis=0), widest=(-1.0, 1.0))
    p = statistics.sign_flip(sums_SCK.mean(0), resamples=resamples, seed=seed)
    value = float(sums_SCK.mean(0).sum() / counts_CK.sum())
    return {"value": value, "low": float(low[0]), "high": float(high[0]), "n": len(rows[0]), "p": float(p[0]), "seeds": len(pairs)}


def _paired_runs(one: Group, other: Group) -> list[tuple[RunData, RunData]]:
    """Runs of the same seed; where no seed is shared, in order."""
    left, right = ({run.config.get("seed", 0): run for run in side.measured} for side in (one, other))
    shared = [seed for seed in left if seed in right]
    return [(left[seed], right[seed]) for seed in shared] or list(zip(left.values(), right.values(), strict=False))


def _scores(run: RunData, benchmarks: list[str], scorer: str) -> dict[str, tuple[float, str]]:
    """Per question its score and its image."""
    found = {}
    for benchmark in benchmarks:
        for item in run.predictions(benchmark, run.condition):
            if scorer != "accuracy" or has_closed_answers(item):
                value = score_item(HEADLINE[scorer], item)
                found[f"{benchmark}:{item['id']}"] = (value, f"{benchmark}:{item.get('image') or item['id']}")
    return found


def setting_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if value == []:
        return "[]"
    return "-" if value is None else ",".join(map(setting_text, value)) if isinstance(value, list) else str(value)


def _shared(runs: list[RunData]) -> str:
    """What the names of several runs begin with."""
    names = [run.name for run in runs]
    start = next((n for n, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), len(names[0]))
    return names[0][:start].rstrip("/_-=,.") or names[0]
