"""Scores of a run's answers: the question's own image against other images, no image, and answers that need no model."""

from typing import Any

from src.evaluation.summary import pool_items
from src.metrics.statistics import holm
from src.metrics.vqa import paired_difference
from src.reporting import definitions
from src.reporting.blocks import Folded, Graph, Section, Table, Text, Tiles
from src.reporting.run_data import RunData, Scores, interval, scores_by_benchmark
from src.reporting.unchanged import unchanged_blocks

CONDITIONS = {
    "real": ("model, the question's own image", "blue"),
    "shuffled": ("model, the image of another test question", "orange"),
    "other_modality": ("model, a test image of another modality", "yellow"),
    "blank": ("model, a blank image", "vermilion"),
    "none": ("model, the question alone", "purple"),
    "blind": ("model trained without any image", "sky"),
    "colour": ("logistic regression on the colour histogram", "green"),
    "majority": ("most frequent training answer to the question's type", "grey"),
}
SCORES = {"bleu1": "BLEU-1", "exact": "exact match", "f1": "token F1", "accuracy": "accuracy"}
SLICES = ("all", "open", "closed")


def section(run: RunData, *, blind: RunData | None = None, resamples: int = 10_000, seed: int = 0) -> Section:
    benchmarks = scores_by_benchmark(run.metrics)
    if blind:
        benchmarks = {name: with_blind(name, scores, run, blind, resamples=resamples, seed=seed) for name, scores in benchmarks.items()}
    if not benchmarks:
        return Section("Answers", [Text(f"This run has not been evaluated yet; run: python -m src.evaluate run={run.name}", "gap")])
    (first, first_scores), *others = benchmarks.items()
    blocks: list = [Text(sentence, "finding") for sentence in verdicts(first_scores)]
    clusters = run.results.get("evaluate", {}).get("clusters", {})
    blocks += benchmark_blocks(first_scores, pooled=len(benchmarks) > 2 and first == "pooled", clusters=clusters.get(first, ""))
    if len(benchmarks) > 2:
        blocks.append(benchmark_table({name: scores for name, scores in benchmarks.items() if name != "pooled"}))
    for name, scores in others:
        findings = [Text(sentence, "finding") for sentence in verdicts(scores)]
        blocks.append(Folded(f"{name} alone", [*findings, *benchmark_blocks(scores, clusters=clusters.get(name, ""))]))
    scorers = run.results.get("evaluate", {}).get("scorers", {})
    if scorers:
        blocks.append(Folded("The same answers under every published scorer", [definitions.scorer_table(scorers)]))
    return Section("Answers", blocks)


def with_blind(name: str, scores: Scores, run: RunData, blind: RunData, *, resamples: int, seed: int) -> Scores:
    """Adds the scores of a run that was trained without images, and the paired difference if both answered the same questions.

    The p-values of all differences are corrected again by Holm, because the family grows by this one.
    """
    blind_scores = scores_by_benchmark(blind.metrics).get(name, {})
    condition = next((condition for condition in ("none", "real", "blank") if condition in blind_scores), None)
    if condition is None or "real" not in scores:
        return scores
    result = {**scores, "blind": blind_scores[condition]}
    # Evaluations written by older versions do not record which benchmarks were pooled.
    benchmarks = run.results["evaluate"].get("pooled", []) if name == "pooled" else [name]
    real_items = pool_items({benchmark: run.predictions(benchmark, "real") for benchmark in benchmarks})
    blind_items = pool_items({benchmark: blind.predictions(benchmark, condition) for benchmark in benchmarks})
    if real_items and {item["id"] for item in real_items} == {item["id"] for item in blind_items}:
        result["real_minus_blind"] = {}
        for key, metric in paired_difference(real_items, blind_items, resamples=resamples, seed=seed).items():
            part, score = key.split("/")
            result["real_minus_blind"].setdefault(part, {})[score] = metric
            family = [parts[part][score] for pair, parts in result.items() if "_minus_" in pair and score in parts.get(part, {})]
            for member, adjusted in zip(family, holm([member["p"] for member in family]), strict=True):
                member["p_holm"] = adjusted
    return result


def verdicts(scores: Scores) -> list[str]:
    """States for another and for a blank image whether the model scores differently with the question's own image."""
    lines = []
    for condition, image in (("shuffled", "another test image"), ("blank", "a blank image")):
        metric = scores.get(f"real_minus_{condition}", {}).get("all", {}).get("bleu1")
        if metric:
            lines.append(f"{_verdict(metric, image)} (BLEU-1, {metric['n']:,} questions).")
    return lines


def _verdict(metric: dict, image: str) -> str:
    difference = interval(metric, signed=True)
    if not _is_significant(metric):
        p = f", p {metric['p_holm']:.2g} after Holm's correction" if "p_holm" in metric else ""
        return f"No significant difference between the question's own image and {image}: {difference}{p}"
    direction = "more" if difference.value > 0 else "LESS"
    low, high = sorted((abs(difference.low), abs(difference.high)))
    size = f"{abs(difference.value):.3f} {direction}"
    return f"With its own image the model scores {size} than with {image}, 95% interval {low:.3f} to {high:.3f}"


def _is_significant(metric: dict) -> bool:
    """The interval excludes zero, and the p-value after Holm's correction is below 0.05."""
    return interval(metric, signed=True).excludes_zero and metric.get("p_holm", 0.0) < 0.05


def benchmark_table(benchmarks: dict[str, Scores]) -> Table:
    """One row per benchmark."""
    rows = []
    for name, scores in benchmarks.items():
        condition = _main_condition(scores)
        match = _match_score(scores)
        own = scores[condition]["all"]
        differences = [scores.get(f"real_minus_{other}", {}).get("all", {}).get(match) for other in ("shuffled", "blank")]
        majority = scores.get("majority", {}).get("all", {}).get(match)
        cells = [interval(own.get("bleu1")), interval(own.get(match)), *(interval(metric, signed=True) for metric in differences)]
        rows.append([name, condition, _count(own), *cells, interval(majority)])
    columns = ["benchmark", "image", "questions", "BLEU-1", "exact match", "... above shuffled", "... above blank", "majority answer"]
    caption = "The last three columns are exact match, too; for multiple choice, the accuracy of the option likeliest per token."
    return Table(columns, rows, caption=caption)


def _main_condition(scores: Scores) -> str:
    return "real" if "real" in scores else "none"


def _count(metrics: dict[str, dict]) -> int:
    """Number of questions that were scored."""
    return next(iter(metrics.values()))["n"]


def _match_score(scores: Scores) -> str:
    """The score for a correct answer: accuracy for multiple choice, where options are ranked by likelihood, else exact match."""
    return "accuracy" if any("accuracy_unnormalised" in parts.get("all", {}) for parts in scores.values()) else "exact"


def benchmark_blocks(scores: Scores, *, pooled: bool = False, clusters: str = "") -> list:
    blocks: list = [condition_table(scores, pooled=pooled, clusters=clusters)]
    if "real_minus_shuffled" in scores or "real_minus_blank" in scores:
        blocks.append(difference_table(scores, ("shuffled", "other_modality", "blank")))
    blocks += unchanged_blocks(scores)
    if "real_minus_majority" in scores or "real_minus_blind" in scores:
        table = difference_table(scores, ("none", "blind", "colour", "majority"))
        blocks.append(Folded("Differences to answers without the image", [table]))
    parts = scores.get(_main_condition(scores), {})
    if "seen" in parts:
        blocks.append(contamination_table(parts))
    elif "unseen" in parts:
        blocks.append(Text("The audits found no question of this benchmark in the training data, neither by its image nor by its text."))
    if len(parts) > 1:
        blocks.append(slice_table(scores, _match_score(scores)))
        blocks.append(Folded("BLEU-1 by kind of question", [slice_table(scores, "bleu1")]))
    return blocks


def condition_table(scores: Scores, *, pooled: bool, clusters: str = "") -> Table:
    match = _match_score(scores)
    last = ("all", "accuracy_unnormalised") if match == "accuracy" else ("closed", "accuracy")
    rows = []
    for condition, (label, colour) in CONDITIONS.items():
        if condition in scores:
            parts = scores[condition]
            cells = [interval(parts.get("all", {}).get(score)) for score in ("bleu1", match, "f1")]
            graph = Graph([(cells[0], colour)]) if cells[0] else None
            rows.append([label, _count(parts["all"]), *cells, interval(parts.get(last[0], {}).get(last[1])), graph])
    scope = "All free-text image benchmarks together. " if pooled else ""
    drawn = f" over {clusters}" if clusters else ""
    caption = f"{scope}Brackets: 95% intervals by bootstrap{drawn}. The plot shows BLEU-1 from 0 to 1."
    last_column = "accuracy, not length-normalised" if match == "accuracy" else "closed accuracy"
    return Table(["answered by", "questions", "BLEU-1", SCORES[match], "token F1", last_column, ""], rows, caption=caption)


def contamination_table(parts: dict[str, dict[str, dict]]) -> Table:
    """Scores of all questions, of those found in the training data, and, if known, of those not in it."""
    labels = {"all": "all questions", "unseen": "image or text not in the training data", "seen": "image or text in the training data"}
    rows = [
        [label, _count(parts[part]), *(interval(parts[part].get(score)) for score in ("bleu1", "exact", "f1"))]
        for part, label in labels.items()
        if part in parts
    ]
    caption = (
        "How much of the score may come from memory, according to the audits at the time of the evaluation. Compare with other models on "
        "the questions that are not in the training data. If that row is missing, not all of the training data has been audited."
    )
    return Table(["scored", "questions", "BLEU-1", "exact match", "token F1"], rows, caption=caption)


def difference_table(scores: Scores, conditions: tuple[str, ...]) -> Table:
    rows: list[list] = []
    rules: list[int] = []
    match = _match_score(scores)
    for condition in conditions:
        parts = scores.get(f"real_minus_{condition}", {})
        if parts:
            rules.append(len(rows))
        for part in [*SLICES, *_question_types(parts)]:
            metrics = [parts.get(part, {}).get(score) for score in ("bleu1", match)]
            if metric := metrics[1] or metrics[0]:
                cells = [interval(metric, signed=True) for metric in metrics]
                rows.append([f"real - {condition}", part.removeprefix("type="), metric["n"], *cells, *_verdict_cells(metric)])
    caption = (
        "Paired differences on the same questions. A difference is significant if its interval excludes 0 and p is below 0.05. The test "
        "flips the sign of whole images; p is corrected by Holm over everything that is subtracted from real. "
        f"The plot shows {SCORES[match]} from -1 to 1."
    )
    columns = ["difference", "questions on", "n", "BLEU-1", SCORES[match], "", "p (Holm)", "verdict"]
    return Table(columns, rows, caption=caption, rules=rules[1:])


def _question_types(parts: dict[str, dict[str, dict]]) -> list[str]:
    """The question types that need the image most, if the benchmark has them, else its three most frequent types."""
    types = [part for part in parts if part.startswith("type=")]
    types.sort(key=lambda part: -max(metric["n"] for metric in parts[part].values()))
    return [part for part in ("type=finding", "type=count", "type=side") if part in types] or types[:3]


def _verdict_cells(metric: dict) -> list:
    """Plot, p-value and verdict of a difference."""
    difference, significant = interval(metric, signed=True), _is_significant(metric)
    verdict = ("real is better" if difference.value > 0 else "real is WORSE") if significant else "no significant difference"
    p = f"{metric['p_holm']:.2g}" if "p_holm" in metric else None
    return [Graph([(difference, "blue" if significant else "grey")], start=-1.0), p, verdict]


def slice_table(scores: Scores, score: str) -> Table:
    """One row per kind of question, one column per condition."""
    main = scores.get("real") or scores["none"]
    conditions = [condition for condition in CONDITIONS if condition in scores]
    parts = [part for part in main if part != "unseen" or "seen" in main]  # without "seen", "unseen" equals "all"
    order = [part for part in SLICES if part in parts] + sorted(part for part in parts if part not in SLICES)
    rows = []
    for part in order:
        cells = [interval(scores[condition].get(part, {}).get(score)) for condition in conditions]
        if any(cells):
            rows.append([part.removeprefix("type="), _count(main[part]), *cells])
    rule = sum(part in SLICES for part in order)
    caption = f"{SCORES[score][0].upper()}{SCORES[score][1:]} by kind of question and by condition."
    return Table(["questions on", "n", *conditions], rows, caption=caption, rules=[rule])


def tiles(run: RunData) -> Tiles:
    """Headline numbers: BLEU-1 with real images, its gain over other images, exact match on findings, transfer."""
    numbers: list[tuple[str, Any, str]] = []
    for name, scores in list(scores_by_benchmark(run.metrics).items())[:1]:
        main = _main_condition(scores)
        for label, condition, part, score in (
            (f"BLEU-1, {name}", main, "all", "bleu1"),
            ("... above another image", "real_minus_shuffled", "all", "bleu1"),
            ("... above a blank image", "real_minus_blank", "all", "bleu1"),
            ("exact match on findings", main, "type=finding", "exact"),
        ):
            metric = scores.get(condition, {}).get(part, {}).get(score)
            if metric:
                numbers.append((label, interval(metric, signed="minus" in condition), f"{metric['n']:,} questions"))
    for key, metric in run.metrics.items():
        if key.startswith("transfer/") and key.endswith(f"/run:{run.name}/probe/macro_f1"):
            numbers.append((f"macro-F1, {key.split('/')[1]}", interval(metric), "linear probe of the encoder"))
    return Tiles(numbers[:5])
