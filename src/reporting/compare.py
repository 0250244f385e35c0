"""Several runs side by side: in what they differ, how they score over seeds, and whether a difference is shown."""

import csv
import io
from typing import Any

from src.config.train import MixConfig
from src.metrics import statistics
from src.reporting import groups
from src.reporting.answers import CONDITIONS, SCORES, grouped
from src.reporting.blocks import Figure, Graph, Interval, Section, Table, Text
from src.reporting.compare_transfer import legend, own_means, transfer_blocks
from src.reporting.groups import Group
from src.reporting.plots import Curve, curves
from src.reporting.run_data import RunData, phantom_sources
from src.reporting.svg import colour, dashed
from src.reporting.training import speed
from src.runtime.run_folder import trial_failure

COLUMNS = {
    "BLEU-1": "all/bleu1",
    "exact match": "all/exact",
    "closed accuracy": "closed/accuracy",
    "exact match on findings": "type=finding/exact",
}


def summary(runs: list[RunData]) -> str:
    keys = groups.differing(runs)
    names = ", ".join(run.name for run in runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
    alien = sum(not run.config for run in runs)
    differ = f" They differ in {', '.join(keys) or 'nothing but their seed or name'}." if len(runs) - alien > 1 else ""
    unknown = f" No settings are known of {alien} of them, which were not trained here." if alien else ""
    return f"{names}.{differ}{phantom_sources(*runs)}{unknown}"


def sections(runs: list[RunData], *, baseline: str | None, resamples: int, seed: int) -> list[Section]:
    found = groups.group(runs)
    base = groups.baseline(found, baseline)
    paint = {one.label: colour(number) for number, one in enumerate(found)}
    parts = [
        Section("Runs", run_blocks(runs)),
        Section("Scores", score_blocks(found, paint)),
        Section("Differences", difference_blocks(found, base, resamples=resamples, seed=seed)),
        Section("Real, shuffled and blank images", condition_blocks(found)),
        Section("Dependence on a setting", trend_blocks(found)),
        Section("Transfer", transfer_blocks(found, paint)),
        Section("Curves", [curve_figure(found, paint)] if any(run.log for run in runs) else []),
        Section("Cost", [cost_table(runs)]),
    ]
    return [part for part in parts if part.blocks]


def run_blocks(runs: list[RunData]) -> list:
    keys = groups.differing(runs)
    rows = [[run.name, state(run), run.config.get("seed"), *(_cell(run.flat.get(key)) for key in keys), _data(run)] for run in runs]
    blocks: list = [Table(["run", "state", "seed", *keys, "data"], rows, caption="The settings in which these runs differ.")]
    changed = groups.changed_sources(runs)
    if changed:
        words = f"These runs were trained on different data of {', '.join(changed)}: they are shown side by side, and never averaged."
        blocks.insert(0, Text(words, "gap"))
    return blocks


def state(run: RunData) -> str:
    failed = trial_failure(run.folder)
    if failed:
        return f"FAILED: {failed}"
    if unfinished(run):
        last = int(run.log[-1]["step"]) if run.log else 0
        return f"unfinished, step {last:,} of {run.config['optim']['steps']:,}"
    return ", ".join([*run.verbs, *(f"{verb} unfinished" for verb in run.unfinished)])


def unfinished(run: RunData) -> bool:
    return "train" not in run.verbs and bool(run.config.get("optim"))


def score_blocks(found: list[Group], paint: dict[str, str]) -> list:
    blocks: list = [Text(words, "gap") for words in doubts(found)]
    for benchmark in _benchmarks(found):
        rows = []
        for one in found:
            scores = [groups.score(one, f"vqa/{benchmark}/{one.condition}/{key}") for key in COLUMNS.values()]
            if any(scores):
                rows.append([one.label, _seeds(one), *scores, Graph([(scores[0], paint[one.label])]) if scores[0] else None])
        caption = (
            f"{benchmark}: of one run the 95% bootstrap interval over images, of several seeds the mean with Student's t interval over "
            "seeds, cut at 0 and 1. The drawing shows BLEU-1 from 0 to 1. Runs trained without images (data.images=false) are shown none."
        )
        if rows:
            blocks.append(Table(["group", "seeds", *COLUMNS, ""], rows, caption=caption))
    if not any(isinstance(block, Table) for block in blocks):
        blocks.append(Text("None of these runs has been evaluated yet: python -m src.evaluate run=NAME", "gap"))
    return blocks


def doubts(found: list[Group]) -> list[str]:
    """What a reader of means over seeds must know."""
    early = [run.name for one in found for run in one.measured if unfinished(run)]
    lines = [f"{', '.join(early)}: evaluated before the training had ended, and averaged like what is finished."] if early else []
    spare = [run.name for one in found for run in one.spare]
    return lines + ([f"{', '.join(spare)}: another run has the same settings and seed; one run per seed is averaged."] if spare else [])


def difference_blocks(found: list[Group], base: Group, *, resamples: int, seed: int) -> list:
    """Paired differences to the baseline on all free-text image questions, corrected by Holm over this table."""
    names = sorted({name for run in base.runs for name in run.verbs.get("evaluate", {}).get("pooled") or run.answered})
    others = [one for one in found if one is not base]
    if not names or not others:
        how = (
            f"{base.label} has not been evaluated, so that no difference to it can be given: python -m src.evaluate run={base.runs[0].name}"
        )
        return [Text(how, "gap")] if others and any(one.measured for one in others) else []
    table, blocks = [], []
    for one in others:
        for scorer in ("bleu1", "exact"):
            asked = [name for name in names if all(name in run.answered for run in one.measured)]
            metric = groups.difference(one, base, benchmarks=asked, scorer=scorer, resamples=resamples, seed=seed)
            if metric:
                where = "" if asked == names else f" on {', '.join(asked)}"
                table.append((f"{one.label} minus {base.label}{where}", scorer, metric))
            elif scorer == "bleu1":
                blocks.append(Text(f"{one.label} did not answer the same questions as {base.label}; no difference is given.", "gap"))
    adjusted = statistics.holm([metric["p"] for _, _, metric in table]) if table else []
    rows = []
    for (label, scorer, metric), p in zip(table, adjusted, strict=True):
        shown = Interval(metric["value"], metric["low"], metric["high"], signed=True)
        clear = p < 0.05 and shown.clear
        verdict = ("better" if shown.value > 0 else "WORSE") if clear else "no difference shown"
        graph = Graph([(shown, "blue" if clear else "grey")], start=-0.5, stop=0.5)
        rows.append([label, SCORES[scorer], metric["n"], metric["seeds"], shown, graph, f"{p:.3g}", verdict])
    caption = (
        f"Difference to {base.label} on the questions of {', '.join(names)}, paired by question and, where both have it, by seed. "
        "Intervals draw images and seeds; p flips the sign of whole images and is corrected by Holm over this table. "
        "With one seed nothing is known about the spread over seeds. Drawn from -0.5 to 0.5."
    )
    columns = ["difference", "score", "questions", "seeds", "value", "", "p (Holm)", "verdict"]
    return blocks + ([Table(columns, rows, caption=caption)] if rows else [])


def condition_blocks(found: list[Group]) -> list:
    rows, there = [], [name for name in CONDITIONS if any(_has(one, f"vqa/pooled/{name}/all/bleu1") for one in found)]
    for one in found:
        scores = {name: groups.score(one, f"vqa/pooled/{name}/all/bleu1") for name in there}
        marks = [(score, CONDITIONS[name][1]) for name, score in scores.items() if score]
        if marks:
            rows.append([one.label, Graph(marks), *scores.values()])
    if not rows:
        return []
    legend = "drawn from top to bottom: " + ", ".join(f"{name} {CONDITIONS[name][1]}" for name in there)
    return [Table(["group", "BLEU-1, 0 to 1", *there], rows, caption=f"BLEU-1 of all free-text image questions; {legend}.")]


def trend_blocks(found: list[Group]) -> list:
    """A score against every setting that takes another number in each of three or more groups, and against the number of sources."""
    runs = [run for one in found for run in one.runs]
    axes: dict[str, dict[str, float]] = {}
    for key in [*groups.differing(runs), "number of sources"]:
        at = {one.label: value for one in found if (value := _number(one.runs[0], key)) is not None}
        if len(set(at.values())) == len(found) >= 3:
            axes[key] = at
    drawings = []
    for key, at in axes.items():
        bleu1 = {one.label: groups.score(one, f"vqa/pooled/{one.condition}/all/bleu1") for one in found}
        for name, scores in (("BLEU-1", bleu1), ("mean macro-F1", own_means(found))):
            placed = sorted((at[label], score) for label, score in scores.items() if score)
            if len(placed) >= 3:
                line = Curve(name, [(x, s.value) for x, s in placed], "blue", band=[(s.low, s.high) for _, s in placed])
                log_x = placed[0][0] > 0 and placed[-1][0] / placed[0][0] >= 4
                drawings.append(curves([line], title=f"{name} against {key}", x=key, log_x=log_x))
    return [Figure(drawings, caption="Bands: 95% intervals as in the table of scores.")] if drawings else []


def curve_figure(found: list[Group], paint: dict[str, str]) -> Figure:
    """Every run a thin line in the colour of its group."""
    kinds = {label: "thin dashed" if dashed(number) else "thin" for number, label in enumerate(paint)}
    drawings = []
    for title, pick in (
        ("Training loss", lambda run: run.column("loss")),
        ("Validation loss", lambda run: run.column("val")),
        ("Tokens per second", lambda run: speed(run, "tokens")),
    ):
        lines = [Curve(run.name, pick(run), paint[one.label], kind=kinds[one.label]) for one in found for run in one.runs]
        drawings.append(curves([line for line in lines if line.points], title=title, x="step"))
    return Figure(drawings, legend=legend(paint))


def cost_table(runs: list[RunData]) -> Table:
    rows = []
    for run in runs:
        samples = int(run.log[-1]["samples"]) if run.log else None
        rate = run.metrics.get("train/samples_per_second", {}).get("value")
        seconds = [round(run.verbs[verb]["seconds"], 1) if verb in run.verbs else None for verb in ("train", "evaluate", "transfer")]
        rows.append([run.name, samples, rate, *seconds, round(run.seconds, 1), round(run.peak_rss_mb)])
    columns = ["run", "samples seen", "samples/s", "train, s", "evaluate, s", "transfer, s", "all, s", "peak memory, MB"]
    return Table(columns, rows, caption="Seconds sum restarts; memory is the peak over the process tree.")


def csv_text(runs: list[RunData]) -> str:
    """One line per run and metric, with the settings that differ, the commit and the data fingerprint."""
    keys = groups.differing(runs)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "seed", *keys, "git", "data", "metric", "value", "low", "high", "n"])
    for run in runs:
        git = next((said["git"] for said in run.verbs.values()), "")
        about = [run.name, run.config.get("seed", ""), *(groups.setting_text(run.flat.get(key)) for key in keys), git, _data(run)]
        for key, metric in run.metrics.items():
            numbers = [f"{metric[name]:.6g}" for name in ("value", "low", "high")]
            writer.writerow([*about, key, *numbers, metric["n"]])
    return out.getvalue()


def _benchmarks(found: list[Group]) -> list[str]:
    names = [name for one in found for run in one.runs for name in grouped(run.metrics)]
    several = len({name for name in names if name != "pooled"}) > 1
    return [name for name in dict.fromkeys(names) if several or name != "pooled"]


def _seeds(one: Group) -> str:
    if not one.runs[0].config:
        return "-"
    early = {run.config.get("seed", 0) for run in one.measured if unfinished(run)}
    return ", ".join(f"{seed} (unfinished)" if seed in early else str(seed) for seed in sorted(set(one.seeds)))


def _has(one: Group, key: str) -> bool:
    return any(key in run.metrics for run in one.runs)


def _number(run: RunData, key: str) -> float | None:
    if key == "number of sources":
        return float(len(MixConfig(**run.config["mix"]).sampling_weights)) if "mix" in run.config else None
    value = run.flat.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _data(run: RunData) -> str:
    return run.verbs.get("train", {}).get("data", "")


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | Interval) and not isinstance(value, bool) else groups.setting_text(value)
