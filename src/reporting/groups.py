"""Groups of runs that differ only in their seed. Comparisons compare groups."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from src.metrics import statistics
from src.metrics.vqa import HEADLINE, has_closed_answers, score_item
from src.reporting.blocks import Interval
from src.reporting.run_data import RunData, interval
from src.runtime.errors import UserError, suggest

# Keys that describe where a run takes place and what it is called, not what it computes.
IGNORED_KEYS = ("name", "seed", "outputs", "logger", "data.root", "data.workers", "trainer.devices", "trainer.nodes", "trainer.log_every")


@dataclass
class Group:
    label: str  # the settings in which this group differs from the others
    runs: list[RunData]

    @property
    def seeds(self) -> list[int]:
        return [run.config.get("seed", 0) for run in self.runs]

    @property
    def condition(self) -> str:
        return self.runs[0].condition

    @cached_property
    def evaluated_runs(self) -> list[RunData]:
        return self.runs_with_metric("vqa/")

    def runs_with_metric(self, prefix: str) -> list[RunData]:
        """For each seed, the first run with a metric that starts with `prefix`.

        Two runs with the same seed carry no information about the spread over seeds, so only one of them counts.
        """
        by_seed: dict[int, RunData] = {}
        for run in self.runs:
            if any(key.startswith(prefix) for key in run.metrics):
                by_seed.setdefault(run.config.get("seed", 0), run)
        return list(by_seed.values())

    @property
    def duplicate_runs(self) -> list[RunData]:
        """Runs whose seed an earlier run of the group has."""
        seeds = self.seeds
        return [run for index, run in enumerate(self.runs) if seeds[index] in seeds[:index]]


def settings(run: RunData) -> dict[str, Any]:
    return {key: value for key, value in run.flat_config.items() if not key.startswith(IGNORED_KEYS)}


def differing_keys(runs: list[RunData]) -> list[str]:
    """The keys in which at least two runs differ. A missing key counts as a value."""
    all_settings = [settings(run) for run in runs if run.config]  # a scored predictions file has no configuration
    keys = dict.fromkeys(key for run_settings in all_settings for key in run_settings)
    return [key for key in keys if len({repr(run_settings.get(key)) for run_settings in all_settings}) > 1]


def source_fingerprints(run: RunData) -> dict[str, tuple[str, str]]:
    """For each training source: fingerprint of its shards, fingerprint of the rows that were used (an audit changes these)."""
    result = run.results.get("train", {})
    return {source: (shards, result.get("records", {}).get(source, "")) for source, shards in result.get("shards", {}).items()}


def changed_sources(runs: list[RunData]) -> list[str]:
    """Sources for which two runs used different shards, or different records of the same shards."""
    fingerprints: dict[str, set[tuple[str, str]]] = {}
    for run in runs:
        for source, fingerprint in source_fingerprints(run).items():
            fingerprints.setdefault(source, set()).add(fingerprint)
    return sorted(source for source, distinct in fingerprints.items() if len(distinct) > 1)


def group_runs(runs: list[RunData]) -> list[Group]:
    """Groups runs with equal settings on equal data, in the order of their first run. A scored predictions file is its own group."""
    keys, changed = differing_keys(runs), changed_sources(runs)
    members_by_identity: dict[str, list[RunData]] = {}
    for run in runs:
        identity = {key: settings(run).get(key) for key in keys} | {source: source_fingerprints(run).get(source) for source in changed}
        identity |= {} if run.config else {"name": run.name}
        members_by_identity.setdefault(repr(identity), []).append(run)
    groups = []
    for members in members_by_identity.values():
        label = ", ".join(f"{key}={setting_text(settings(members[0]).get(key))}" for key in keys)
        use_name = len(members) == 1 and (not members[0].config or not label or len(label) > 60)
        label = members[0].name if use_name else label or _common_prefix(members)
        if changed and any(source in source_fingerprints(members[0]) for source in changed):
            label += f" [data {members[0].results['train'].get('data')}]"
        groups.append(Group(label, members))
    labels = [group.label for group in groups]
    for group in groups:
        if labels.count(group.label) > 1:
            group.label = group.runs[0].name
    return groups


def find_baseline(groups: list[Group], name: str | None) -> Group:
    """The group with this label or with a run of this name; the first group if `name` is None."""
    if name is None:
        return groups[0]
    for group in groups:
        if name == group.label or any(name in (run.name, run.folder.name) for run in group.runs):
            return group
    names = [run.name for group in groups for run in group.runs]
    raise UserError(f"baseline={name} is none of the compared runs{suggest(name, names)}")


def score(group: Group, key: str, *, signed: bool = False) -> Interval | None:
    """A metric of a group, pooled over its runs."""
    return pool([run.metrics[key] for run in group.runs_with_metric(key) if key in run.metrics], signed=signed)


def pool(metrics: list[dict], *, signed: bool = False) -> Interval | None:
    """Pools the same metric of several seeds.

    One run keeps its own interval. Several seeds give the mean with Student's t interval over seeds, clipped to the range of a score.
    If all values are equal (a fixed encoder, the majority answer), no seed changes them and the interval of the first run is kept.
    """
    values = np.array([metric["value"] for metric in metrics])
    if len(set(values)) < 2:
        return interval(metrics[0], signed=signed) if metrics else None
    mean, half_width = values.mean(), t_half_width(len(values)) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(mean), float(max(mean - half_width, -1 if signed else 0)), float(min(mean + half_width, 1)), signed)


def t_half_width(count: int) -> float:
    """Half the width of the 95% interval of a mean of `count` values, in standard errors."""
    from scipy.stats import t

    return float(t.ppf(0.975, count - 1))


def difference(group: Group, other: Group, *, benchmarks: list[str], scorer: str, resamples: int, seed: int) -> dict | None:
    """`group` minus `other` on the same test questions, each group under its own image condition.

    Returns value, low, high, n, p and the number of seeds, or None if the two groups answered different questions. The interval resamples
    images and seeds; seeds that both groups have are paired. The test for p flips the sign of whole images.
    """
    pairs = _paired_runs(group, other)
    if not pairs:
        return None
    rows: list[list[float]] = []
    clusters: list[str] = []
    for left, right in pairs:
        left_scores, right_scores = (_question_scores(run, benchmarks, scorer) for run in (left, right))
        if not left_scores or left_scores.keys() != right_scores.keys():
            return None
        rows.append([left_scores[key][0] - right_scores[key][0] for key in left_scores])
        clusters = [left_scores[key][1] for key in left_scores]
    per_seed = [statistics.by_cluster(np.array(row)[:, None], clusters) for row in rows]
    sums_SCK, counts_CK = np.stack([sums for sums, _ in per_seed]), per_seed[0][1]
    resampled = statistics.over_seeds(sums_SCK, counts_CK, resamples=resamples, seed=seed)
    low, high = statistics.interval(resampled, clusters_K=(counts_CK > 0).sum(axis=0), widest=(-1.0, 1.0))
    p = statistics.sign_flip(sums_SCK.mean(0), resamples=resamples, seed=seed)
    value = float(sums_SCK.mean(0).sum() / counts_CK.sum())
    return {"value": value, "low": float(low[0]), "high": float(high[0]), "n": len(rows[0]), "p": float(p[0]), "seeds": len(pairs)}


def _paired_runs(group: Group, other: Group) -> list[tuple[RunData, RunData]]:
    """Runs with the same seed; if the groups share no seed, runs in order."""
    left, right = ({run.config.get("seed", 0): run for run in side.evaluated_runs} for side in (group, other))
    shared = [seed for seed in left if seed in right]
    return [(left[seed], right[seed]) for seed in shared] or list(zip(left.values(), right.values(), strict=False))


def _question_scores(run: RunData, benchmarks: list[str], scorer: str) -> dict[str, tuple[float, str]]:
    """For each question its score and the key of its image."""
    scores = {}
    for benchmark in benchmarks:
        for item in run.predictions(benchmark, run.condition):
            if scorer != "accuracy" or has_closed_answers(item):
                value = score_item(HEADLINE[scorer], item)
                scores[f"{benchmark}:{item['id']}"] = (value, f"{benchmark}:{item.get('image') or item['id']}")
    return scores


def setting_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if value == []:
        return "[]"
    return "-" if value is None else ",".join(map(setting_text, value)) if isinstance(value, list) else str(value)


def _common_prefix(runs: list[RunData]) -> str:
    """The common start of the names of several runs."""
    names = [run.name for run in runs]
    length = next((n for n, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), len(names[0]))
    return names[0][:length].rstrip("/_-=,.") or names[0]
