"""What the answers of a run are worth: real images against none, against the wrong ones, against answers that need no model."""

from typing import Any

from src.evaluation.summary import pool_items
from src.metrics.statistics import holm
from src.metrics.vqa import paired_difference
from src.reporting import definitions
from src.reporting.blocks import Folded, Graph, Section, Table, Text, Tiles
from src.reporting.run_data import RunData, interval

CONDITIONS = {
    "real": ("model, the question's own image", "blue"),
    "shuffled": ("model, the image of another test question", "orange"),
    "blank": ("model, a blank image", "vermilion"),
    "none": ("model, the question alone", "purple"),
    "blind": ("a model trained without any image", "sky"),
    "colour": ("logistic regression on the colour histogram", "green"),
    "majority": ("most frequent training answer of the question's type", "grey"),
}
SCORES = {"bleu1": "BLEU-1", "exact": "exact match", "f1": "token F1", "accuracy": "accuracy"}
SLICES = ("all", "open", "closed")

Scores = dict[str, dict[str, dict[str, dict]]]  # [condition][slice][score] -> metric


def grouped(metrics: dict[str, dict]) -> dict[str, Scores]:
    """`vqa/<benchmark>/<condition>/<slice>/<score>` as nested dicts, `pooled` first."""
    found: dict[str, Scores] = {}
    for key, metric in metrics.items():
        if key.startswith("vqa/"):
            _, benchmark, condition, part, score = key.split("/")
            found.setdefault(benchmark, {}).setdefault(condition, {}).setdefault(part, {})[score] = metric
    return dict(sorted(found.items(), key=lambda item: item[0] != "pooled"))


def section(run: RunData, *, blind: RunData | None = None, resamples: int = 10_000, seed: int = 0) -> Section:
    found = grouped(run.metrics)
    if blind:
        found = {name: with_blind(name, scores, run, blind, resamples=resamples, seed=seed) for name, scores in found.items()}
    if not found:
        return Section("Answers", [Text(f"Nothing has been evaluated yet; run: python -m src.evaluate run={run.name}", "gap")])
    first = next(iter(found))
    blocks: list = [Text(words, "finding") for words in verdicts(found[first])]
    blocks += benchmark_blocks(found[first], several=len(found) > 2 and first == "pooled")
    if len(found) > 2:
        blocks.append(benchmark_table({name: scores for name, scores in found.items() if name != "pooled"}))
    for name, scores in list(found.items())[1:]:
        blocks.append(Folded(f"{name} alone", [*(Text(words, "finding") for words in verdicts(scores)), *benchmark_blocks(scores)]))
    scorers = run.verbs.get("evaluate", {}).get("scorers", {})
    if scorers:
        blocks.append(Folded("The same answers under every published scorer", [definitions.scorer_table(scorers)]))
    return Section("Answers", blocks)


def with_blind(name: str, scores: Scores, run: RunData, blind: RunData, *, resamples: int, seed: int) -> Scores:
    """Adds the answers of a run that never saw an image, and the paired difference to them where both answered the same questions.

    Holm's family of p-values grows by that difference.
    """
    theirs = grouped(blind.metrics).get(name, {})
    asked = next((condition for condition in ("none", "real", "blank") if condition in theirs), None)
    if asked is None or "real" not in scores:
        return scores
    added = {**scores, "blind": theirs[asked]}
    parts = run.verbs["evaluate"].get("pooled", []) if name == "pooled" else [name]  # runs of before do not say what they pooled
    ours, others = (
        pool_items({part: of.predictions(part, condition) for part in parts}) for of, condition in ((run, "real"), (blind, asked))
    )
    if ours and {item["id"] for item in ours} == {item["id"] for item in others}:
        added["real_minus_blind"] = {}
        for key, metric in paired_difference(ours, others, resamples=resamples, seed=seed).items():
            part, scorer = key.split("/")
            added["real_minus_blind"].setdefault(part, {})[scorer] = metric
            family = [rows[part][scorer] for of, rows in added.items() if "_minus_" in of and scorer in rows.get(part, {})]
            for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
                row["p_holm"] = adjusted
    return added


def verdicts(scores: Scores) -> list[str]:
    """One sentence per difference that the claim needs; where an interval holds zero it says that nothing was shown."""
    lines = []
    for other, words in (("shuffled", "another test image"), ("blank", "a blank image")):
        metric = scores.get(f"real_minus_{other}", {}).get("all", {}).get("bleu1")
        if metric:
            lines.append(f"{_compared(metric, words)} (BLEU-1, {metric['n']:,} questions).")
    return lines


def _compared(metric: dict, words: str) -> str:
    difference = interval(metric, signed=True)
    if not _shown(metric):
        p = f", p {metric['p_holm']:.2g} after Holm's correction" if "p_holm" in metric else ""
        return f"No difference shown between the question's own image and {words}: {difference}{p}"
    way = "more" if difference.value > 0 else "LESS"
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return f"With its own image the model scores {abs(difference.value):.3f} {way} than with {words}, 95% interval {low:.3f} to {high:.3f}"


def _shown(metric: dict) -> bool:
    """A difference is shown where its interval leaves zero out and its p-value, corrected by Holm, is below 0.05."""
    return interval(metric, signed=True).clear and metric.get("p_holm", 0.0) < 0.05


def benchmark_table(found: dict[str, Scores]) -> Table:
    """One row per benchmark, so that none has to be unfolded to be known."""
    rows = []
    for name, scores in found.items():
        main = "real" if "real" in scores else "none"
        equal = _equality(scores)
        bleu, exact = (scores[main]["all"].get(score) for score in ("bleu1", equal))
        less = [scores.get(f"real_minus_{other}", {}).get("all", {}).get(equal) for other in ("shuffled", "blank")]
        majority = scores.get("majority", {}).get("all", {}).get(equal)
        differences = [interval(metric, signed=True) if metric else None for metric in less]
        count = next(iter(scores[main]["all"].values()))["n"]
        rows.append([name, main, count, interval(bleu), interval(exact), *differences, interval(majority)])
    columns = ["benchmark", "image", "questions", "BLEU-1", "exact match", "... above shuffled", "... above blank", "majority answer"]
    caption = "Benchmark by benchmark; the last three are exact match too. With options it is accuracy, of the likeliest answer per token."
    return Table(columns, rows, caption=caption)


def _equality(scores: Scores) -> str:
    """What says whether an answer is the right one: of options, which a model chose by their likelihood, accuracy."""
    return "accuracy" if any("accuracy_unnormalised" in parts.get("all", {}) for parts in scores.values()) else "exact"


def benchmark_blocks(scores: Scores, *, several: bool = False) -> list:
    blocks: list = [condition_table(scores, pooled=several)]
    if "real_minus_shuffled" in scores or "real_minus_blank" in scores:
        blocks.append(difference_table(scores, ("shuffled", "blank")))
    if "real_minus_majority" in scores or "real_minus_blind" in scores:
        blocks.append(
            Folded("Differences to answers without the image", [difference_table(scores, ("none", "blind", "colour", "majority"))])
        )
    main = "real" if "real" in scores else "none"
    if "seen" in scores.get(main, {}):
        blocks.append(contamination_table(scores[main]))
    elif "unseen" in scores.get(main, {}):
        blocks.append(Text("No question of it is in the training data, by its image or its text, as far as the audit can tell."))
    if len(scores.get(main, {})) > 1:
        blocks.append(slice_table(scores, _equality(scores)))
        blocks.append(Folded("The same by BLEU-1", [slice_table(scores, "bleu1")]))
    return blocks


def condition_table(scores: Scores, *, pooled: bool) -> Table:
    equal = _equality(scores)
    rows = []
    for condition, (words, colour) in CONDITIONS.items():
        if condition in scores:
            found = [interval(scores[condition].get("all", {}).get(score)) for score in ("bleu1", equal, "f1")]
            closed = interval(scores[condition].get("closed", {}).get("accuracy"))
            whole = interval(scores[condition].get("all", {}).get("accuracy_unnormalised"))
            count = next(iter(scores[condition]["all"].values()))["n"]
            rows.append([words, count, *found, whole if equal == "accuracy" else closed, Graph([(found[0], colour)]) if found[0] else None])
    about = "All free-text image benchmarks together. " if pooled else ""
    caption = f"{about}Brackets: 95% bootstrap intervals, clustered by image; the drawing shows BLEU-1 from 0 to 1."
    last = "accuracy, not length-normalised" if equal == "accuracy" else "closed accuracy"
    return Table(["who answers", "questions", "BLEU-1", SCORES[equal], "token F1", last, ""], rows, caption=caption)


def contamination_table(parts: dict[str, dict[str, dict]]) -> Table:
    """All questions beside those that the training data hold and, where that is known, those that they do not."""
    named = {"all": "all questions", "unseen": "image or text not in the training data", "seen": "image or text in the training data"}
    rows = []
    for part, words in named.items():
        if part in parts:
            count = next(iter(parts[part].values()))["n"]
            rows.append([words, count, *(interval(parts[part].get(score)) for score in ("bleu1", "exact", "f1"))])
    caption = (
        "What of the score may be memory, by the audits as they were at the evaluation. Compare with other models on the questions that "
        "are not in the training data; where that row is missing, not all of the training data was audited."
    )
    return Table(["scored", "questions", "BLEU-1", "exact match", "token F1"], rows, caption=caption)


def difference_table(scores: Scores, others: tuple[str, ...]) -> Table:
    rows: list[list] = []
    rules: list[int] = []
    equal = _equality(scores)
    for other in others:
        parts = scores.get(f"real_minus_{other}", {})
        if parts:
            rules.append(len(rows))
        for part in [*SLICES, *_types(parts)]:
            bleu, exact = (parts.get(part, {}).get(score) for score in ("bleu1", equal))
            if metric := exact or bleu:
                both = (interval(found, signed=True) for found in (bleu, exact))
                rows.append([f"real - {other}", _part(part), metric["n"], *both, *_verdict(metric)])
    caption = (
        "Paired differences on the same questions. None is shown where the interval holds 0, or where p is 0.05 or more: it flips the "
        f"sign of whole images and is corrected by Holm over all that is subtracted from real. Drawn: {SCORES[equal]} from -1 to 1."
    )
    columns = ["difference", "questions on", "n", "BLEU-1", SCORES[equal], "", "p (Holm)", "verdict"]
    return Table(columns, rows, caption=caption, rules=rules[1:])


def _types(parts: dict[str, dict[str, dict]]) -> list[str]:
    """The question types that need the image most, where a benchmark has them, else its three most frequent ones."""
    found = [part for part in parts if part.startswith("type=")]
    found.sort(key=lambda part: -max(metric["n"] for metric in parts[part].values()))
    return [part for part in ("type=finding", "type=count", "type=side") if part in found] or found[:3]


def _verdict(metric: dict) -> list:
    difference, shown = interval(metric, signed=True), _shown(metric)
    verdict = ("real is better" if difference.value > 0 else "real is WORSE") if shown else "no difference shown"
    p = f"{metric['p_holm']:.2g}" if "p_holm" in metric else None
    return [Graph([(difference, "blue" if shown else "grey")], start=-1.0), p, verdict]


def slice_table(scores: Scores, score: str) -> Table:
    """One row per kind of question, one column per condition."""
    main = scores.get("real") or scores["none"]
    there = [condition for condition in CONDITIONS if condition in scores]
    parts = [part for part in main if part != "unseen" or "seen" in main]  # all questions, if none was seen
    order = [part for part in SLICES if part in parts] + sorted(part for part in parts if part not in SLICES)
    rows = []
    for part in order:
        found = [interval(scores[condition].get(part, {}).get(score)) for condition in there]
        if any(found):
            rows.append([_part(part), next(iter(main[part].values()))["n"], *found])
    rule = sum(part in SLICES for part in order)
    columns = ["questions on", "n", *(condition for condition in there)]
    return Table(columns, rows, caption=f"{SCORES[score]} by kind of question and by who answers.", rules=[rule])


def _part(name: str) -> str:
    return name.removeprefix("type=")


def tiles(run: RunData) -> Tiles:
    """The headline: BLEU-1 with real images, what the image is worth, exact match on the hardest type, transfer."""
    found = grouped(run.metrics)
    shown: list[tuple[str, Any, str]] = []
    if found:
        name, scores = next(iter(found.items()))
        main = "real" if "real" in scores else "none"
        for label, condition, part, score in (
            (f"BLEU-1, {name}", main, "all", "bleu1"),
            ("... above another image", "real_minus_shuffled", "all", "bleu1"),
            ("... above a blank image", "real_minus_blank", "all", "bleu1"),
            ("exact match on findings", main, "type=finding", "exact"),
        ):
            metric = scores.get(condition, {}).get(part, {}).get(score)
            if metric:
                shown.append((label, interval(metric, signed="minus" in condition), f"{metric['n']:,} questions"))
    for key, metric in run.metrics.items():
        if key.startswith("transfer/") and key.endswith(f"/run:{run.name}/probe/macro_f1"):
            shown.append((f"macro-F1, {key.split('/')[1]}", interval(metric), "probe of the encoder"))
    return Tiles(shown[:5])
