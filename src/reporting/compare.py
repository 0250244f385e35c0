"""Comparison of several runs: their settings, scores over seeds, and significant differences."""

import csv
import io
from typing import Any

from src.config.train import MixConfig
from src.metrics import statistics
from src.reporting import groups
from src.reporting.answers import CONDITIONS, SCORES
from src.reporting.blocks import Figure, Graph, Interval, Section, Table, Text
from src.reporting.compare_transfer import own_means, transfer_blocks
from src.reporting.groups import Group
from src.reporting.plots import Curve, colour, is_dashed, legend, plot_curves
from src.reporting.run_data import RunData, credentialed_sources, phantom_sources, scores_by_benchmark
from src.reporting.training import throughput
from src.runtime.run_folder import trial_failure

COLUMNS = {
    "BLEU-1": "all/bleu1",
    "exact match": "all/exact",
    "closed accuracy": "closed/accuracy",
    "exact match on findings": "type=finding/exact",
}


def summary(runs: list[RunData]) -> str:
    keys = groups.differing_keys(runs)
    names = ", ".join(run.name for run in runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
    unconfigured = sum(not run.config for run in runs)
    differences = f" They differ in {', '.join(keys) or 'nothing but their seed or name'}." if len(runs) - unconfigured > 1 else ""
    unknown = f" The settings of {unconfigured} of them are unknown, because they were not trained here." if unconfigured else ""
    return f"{names}.{differences}{phantom_sources(*runs)}{credentialed_sources(*runs)}{unknown}"


def sections(runs: list[RunData], *, baseline: str | None, resamples: int, seed: int) -> list[Section]:
    all_groups = groups.group_runs(runs)
    base = groups.find_baseline(all_groups, baseline)
    colours = {group.label: colour(index) for index, group in enumerate(all_groups)}
    candidates = [
        Section("Runs", run_blocks(runs)),
        Section("Scores", score_blocks(all_groups, colours)),
        Section("Differences", difference_blocks(all_groups, base, resamples=resamples, seed=seed)),
        Section("Real, shuffled and blank images", condition_blocks(all_groups)),
        Section("Dependence on a setting", trend_blocks(all_groups)),
        Section("Transfer", transfer_blocks(all_groups, colours)),
        Section("Curves", [curve_figure(all_groups, colours)] if any(run.log for run in runs) else []),
        Section("Cost", [cost_table(runs)]),
    ]
    return [section for section in candidates if section.blocks]


def run_blocks(runs: list[RunData]) -> list:
    keys = groups.differing_keys(runs)
    rows = [
        [run.name, state(run), run.config.get("seed"), *(_cell(run.flat_config.get(key)) for key in keys), run.data_fingerprint]
        for run in runs
    ]
    blocks: list = [Table(["run", "state", "seed", *keys, "data"], rows, caption="The settings in which these runs differ.")]
    changed = groups.changed_sources(runs)
    if changed:
        sentence = f"These runs were trained on different data of {', '.join(changed)}: they are compared, but never averaged."
        blocks.insert(0, Text(sentence, "gap"))
    return blocks


def state(run: RunData) -> str:
    failure = trial_failure(run.folder)
    if failure:
        return f"FAILED: {failure}"
    if run.is_training_unfinished:
        last = int(run.log[-1]["step"]) if run.log else 0
        return f"unfinished, step {last:,} of {run.config['optim']['steps']:,}"
    return ", ".join([*run.results, *(f"{command} unfinished" for command in run.unfinished_commands)])


def score_blocks(all_groups: list[Group], colours: dict[str, str]) -> list:
    blocks: list = [Text(sentence, "gap") for sentence in caveats(all_groups)]
    for benchmark in _benchmarks(all_groups):
        rows = []
        for group in all_groups:
            scores = [groups.score(group, f"vqa/{benchmark}/{group.condition}/{key}") for key in COLUMNS.values()]
            if any(scores):
                graph = Graph([(scores[0], colours[group.label])]) if scores[0] else None
                rows.append([group.label, _seeds_text(group), *scores, graph])
        caption = (
            f"{benchmark}: for one run, the 95% bootstrap interval over images; for several seeds, the mean with Student's t interval over "
            "seeds, clipped to 0 and 1. The plot shows BLEU-1 from 0 to 1. Runs that were trained without images (data.images=false) "
            "answered without images."
        )
        if rows:
            blocks.append(Table(["group", "seeds", *COLUMNS, ""], rows, caption=caption))
    if not any(isinstance(block, Table) for block in blocks):
        blocks.append(Text("None of these runs has been evaluated yet; run: python -m src.evaluate run=NAME", "gap"))
    return blocks


def caveats(all_groups: list[Group]) -> list[str]:
    """Limitations of the means over seeds."""
    lines = []
    if early := [run.name for group in all_groups for run in group.evaluated_runs if run.is_training_unfinished]:
        lines.append(f"{', '.join(early)}: evaluated before the end of training, and averaged like finished runs.")
    if duplicates := [run.name for group in all_groups for run in group.duplicate_runs]:
        lines.append(f"{', '.join(duplicates)}: another run has the same settings and seed; only one run per seed is averaged.")
    return lines


def difference_blocks(all_groups: list[Group], base: Group, *, resamples: int, seed: int) -> list:
    """Paired differences to the baseline on all free-text image questions, corrected by Holm over this table."""
    benchmarks = sorted({name for run in base.runs for name in run.results.get("evaluate", {}).get("pooled") or run.benchmarks})
    others = [group for group in all_groups if group is not base]
    if not benchmarks or not others:
        message = (
            f"The baseline {base.label} has not been evaluated, so there are no differences to it; run: "
            f"python -m src.evaluate run={base.runs[0].name}"
        )
        return [Text(message, "gap")] if any(group.evaluated_runs for group in others) else []
    differences, blocks = [], []
    for group in others:
        for scorer in ("bleu1", "exact"):
            shared = [name for name in benchmarks if all(name in run.benchmarks for run in group.evaluated_runs)]
            metric = groups.difference(group, base, benchmarks=shared, scorer=scorer, resamples=resamples, seed=seed)
            if metric:
                scope = "" if shared == benchmarks else f" on {', '.join(shared)}"
                differences.append((f"{group.label} minus {base.label}{scope}", scorer, metric))
            elif scorer == "bleu1":
                blocks.append(Text(f"{group.label} did not answer the same questions as {base.label}; there is no difference.", "gap"))
    adjusted = statistics.holm([metric["p"] for _, _, metric in differences]) if differences else []
    rows = []
    for (label, scorer, metric), p in zip(differences, adjusted, strict=True):
        value = Interval(metric["value"], metric["low"], metric["high"], signed=True)
        significant = p < 0.05 and value.excludes_zero
        verdict = ("better" if value.value > 0 else "WORSE") if significant else "no significant difference"
        graph = Graph([(value, "blue" if significant else "grey")], start=-0.5, stop=0.5)
        rows.append([label, SCORES[scorer], metric["n"], metric["seeds"], value, graph, f"{p:.3g}", verdict])
    caption = (
        f"Difference to {base.label} on the questions of {', '.join(benchmarks)}, paired by question and, if both groups have it, by seed. "
        "Intervals resample images and seeds. The test flips the sign of whole images; p is corrected by Holm over this table. "
        "With one seed, the spread over seeds is unknown. The plot shows -0.5 to 0.5."
    )
    columns = ["difference", "score", "questions", "seeds", "value", "", "p (Holm)", "verdict"]
    return blocks + ([Table(columns, rows, caption=caption)] if rows else [])


def condition_blocks(all_groups: list[Group]) -> list:
    keys = {name: f"vqa/pooled/{name}/all/bleu1" for name in CONDITIONS}
    keys = {name: key for name, key in keys.items() if any(key in run.metrics for group in all_groups for run in group.runs)}
    rows = []
    for group in all_groups:
        scores = {name: groups.score(group, key) for name, key in keys.items()}
        marks = [(score, CONDITIONS[name][1]) for name, score in scores.items() if score]
        if marks:
            rows.append([group.label, Graph(marks), *scores.values()])
    if not rows:
        return []
    order = ", ".join(f"{name} {CONDITIONS[name][1]}" for name in keys)
    caption = f"BLEU-1 of all free-text image questions. The plot shows, from top to bottom: {order}."
    return [Table(["group", "BLEU-1, 0 to 1", *keys], rows, caption=caption)]


def trend_blocks(all_groups: list[Group]) -> list:
    """Scores against each setting that has a different number in each of three or more groups, and against the number of sources."""
    runs = [run for group in all_groups for run in group.runs]
    axes: dict[str, dict[str, float]] = {}
    for key in [*groups.differing_keys(runs), "number of sources"]:
        values = {group.label: value for group in all_groups if (value := _numeric_setting(group.runs[0], key)) is not None}
        if len(set(values.values())) == len(all_groups) >= 3:
            axes[key] = values
    bleu1 = {group.label: groups.score(group, f"vqa/pooled/{group.condition}/all/bleu1") for group in all_groups}
    plots = []
    for key, values in axes.items():
        for name, scores in (("BLEU-1", bleu1), ("mean macro-F1", own_means(all_groups))):
            points = sorted((values[label], score) for label, score in scores.items() if score)
            if len(points) >= 3:
                curve = Curve(name, [(x, s.value) for x, s in points], "blue", band=[(s.low, s.high) for _, s in points])
                log_x = points[0][0] > 0 and points[-1][0] / points[0][0] >= 4
                plots.append(plot_curves([curve], title=f"{name} against {key}", x=key, log_x=log_x))
    return [Figure(plots, caption="Bands: 95% intervals, as in the table of scores.")] if plots else []


def curve_figure(all_groups: list[Group], colours: dict[str, str]) -> Figure:
    """Each run is a thin line in the colour of its group."""
    kinds = {label: "thin dashed" if is_dashed(index) else "thin" for index, label in enumerate(colours)}
    plots = []
    for title, points in (
        ("Training loss", lambda run: run.column("loss")),
        ("Validation loss", lambda run: run.column("val")),
        ("Tokens per second", lambda run: throughput(run, "tokens")),
    ):
        curves = [Curve(run.name, points(run), colours[group.label], kind=kinds[group.label]) for group in all_groups for run in group.runs]
        plots.append(plot_curves([curve for curve in curves if curve.points], title=title, x="step"))
    return Figure(plots, legend=legend(colours))


def cost_table(runs: list[RunData]) -> Table:
    rows = []
    for run in runs:
        samples = int(run.log[-1]["samples"]) if run.log else None
        rate = run.metrics.get("train/samples_per_second", {}).get("value")
        results = [run.results.get(command) for command in ("train", "evaluate", "transfer")]
        seconds = [round(result["seconds"], 1) if result else None for result in results]
        rows.append([run.name, samples, rate, *seconds, round(run.seconds, 1), round(run.peak_rss_mb)])
    columns = ["run", "training samples", "samples/s", "train, s", "evaluate, s", "transfer, s", "all, s", "peak memory, MB"]
    return Table(columns, rows, caption="Seconds include restarts. Memory is the peak over the process tree.")


def csv_text(runs: list[RunData]) -> str:
    """One line per run and metric, with the settings that differ, the commit and the data fingerprint."""
    keys = groups.differing_keys(runs)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "seed", *keys, "git", "data", "metric", "value", "low", "high", "n"])
    for run in runs:
        git = next((result["git"] for result in run.results.values()), "")
        values = [groups.setting_text(run.flat_config.get(key)) for key in keys]
        for key, metric in run.metrics.items():
            numbers = [f"{metric[name]:.6g}" for name in ("value", "low", "high")]
            writer.writerow([run.name, run.config.get("seed", ""), *values, git, run.data_fingerprint, key, *numbers, metric["n"]])
    return out.getvalue()


def _benchmarks(all_groups: list[Group]) -> list[str]:
    names = [name for group in all_groups for run in group.runs for name in scores_by_benchmark(run.metrics)]
    several = len({name for name in names if name != "pooled"}) > 1
    return [name for name in dict.fromkeys(names) if several or name != "pooled"]


def _seeds_text(group: Group) -> str:
    if not group.runs[0].config:
        return "-"
    unfinished = {run.config.get("seed", 0) for run in group.evaluated_runs if run.is_training_unfinished}
    return ", ".join(f"{seed} (unfinished)" if seed in unfinished else str(seed) for seed in sorted(set(group.seeds)))


def _numeric_setting(run: RunData, key: str) -> float | None:
    if key == "number of sources":
        return float(len(MixConfig(**run.config["mix"]).sampling_weights)) if "mix" in run.config else None
    value = run.flat_config.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | Interval) and not isinstance(value, bool) else groups.setting_text(value)
