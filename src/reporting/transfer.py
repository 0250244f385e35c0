"""The transfer section: scores of encoders on classification sets, from `transfer.json` (written by src/classification/table.py)."""

from src.reporting.blocks import Figure, Folded, Graph, Section, Table, Text
from src.reporting.plots import Curve, colour, plot_confusion_matrix, plot_curves
from src.reporting.releases import release_blocks
from src.reporting.run_data import RunData, interval


def section(run: RunData) -> Section:
    tables = run.results.get("transfer", {}).get("transfer")
    if not tables:
        how = f"python -m src.transfer encoder=[run:{run.name},scratch:{run.name}] benchmark=breastmnist"
        return Section("Transfer", [Text(f"No encoder has been transferred yet; run: {how}", "gap")])
    cells = tables["cells"]
    colours = {name: colour(index) for index, name in enumerate(dict.fromkeys(cell["encoder"] for cell in cells))}
    protocols = {cell["protocol"] for cell in cells}
    differences = [row for row in tables["differences"] if row["protocol"] in protocols]  # few-shot scores have their own plot
    blocks: list = [Text(sentence, "finding") for sentence in verdicts(differences)]
    blocks += [Text(f"{result['file']} is left out, because {result['why']}.", "gap") for result in tables.get("left_out", [])]
    blocks.append(score_table(tables, colours))
    blocks += multilabel_table(cells)
    blocks += release_blocks(run, cells)
    blocks += encoder_table(cells)
    if differences:
        blocks.append(difference_table(differences))
    if tables["few_shot"]:
        blocks.append(few_shot_figure(tables["few_shot"], colours))
    if with_confusion := [cell for cell in cells if "confusion" in cell]:
        blocks.append(Folded("Confusion matrices", [confusion_figure(with_confusion)]))
    blocks.append(Folded("Scores per class", [class_table(cells)]))
    return Section("Transfer", blocks)


def verdicts(differences: list[dict]) -> list[str]:
    """The comparison with each baseline, in words: on the mean over the benchmarks if there is one, else on each benchmark."""
    means = [row for row in differences if row["benchmark"] == "mean"]
    lines = []
    for row in means or differences:
        scope = f"{'on the mean of the benchmarks' if row['benchmark'] == 'mean' else 'on ' + row['benchmark']} ({row['protocol']})"
        difference = interval(row, signed=True)
        if not _is_significant(row):
            lines.append(f"{row['ours']} against {row['other']} {scope}: no significant difference, macro-F1 {difference}.")
        else:
            direction = "above" if row["value"] > 0 else "BELOW"
            lines.append(f"{row['ours']} is {direction} {row['other']} {scope}: macro-F1 {difference}.")
    return lines


def _is_significant(row: dict) -> bool:
    return row["p_holm"] < 0.05 and interval(row, signed=True).excludes_zero


def score_table(tables: dict, colours: dict[str, str]) -> Table:
    rows: list[list] = []
    rules: list[int] = []
    previous = None
    external = external_scores(tables["cells"])
    for cell in sorted(tables["cells"], key=lambda cell: (cell["protocol"], cell["benchmark"])):
        key = (cell["protocol"], cell["benchmark"])
        if previous not in (None, key):
            rules.append(len(rows))
        previous = key
        score, others = interval(cell["macro_f1"]), [interval(cell.get(name)) for name in ("balanced_accuracy", "auroc", "ece")]
        graph = Graph([(score, colours[cell["encoder"]])])
        pooling = ", ".join(dict.fromkeys(cell["pooling"]))
        identity = [cell["benchmark"], cell["protocol"], cell["encoder"], cell["n"]]
        elsewhere = external.get((cell["benchmark"], cell["protocol"], cell["encoder"]))
        rows.append([*identity, _mean_over(cell), score, *others, graph, elsewhere, pooling, _unseen_text(cell.get("overlap"))])
    means = [mean for mean in tables["means"] if mean["protocol"] in {cell["protocol"] for cell in tables["cells"]}]
    rules += [len(rows)] if means else []
    for mean in means:
        score, rank = interval(mean), tables["ranks"].get(mean["protocol"], {}).get(mean["encoder"])
        graph = Graph([(score, colours[mean["encoder"]])])
        identity = ["mean", mean["protocol"], mean["encoder"], mean["n"], f"{len(mean['benchmarks'])} benchmarks"]
        rows.append([*identity, score, None, None, None, graph, None, "" if rank is None else f"rank {rank:.2f}", None])
        if at_half := mean.get("macro_f1@0.5"):
            identity[-1] += ", labels at 0.5"
            rows.append(
                [*identity, interval(at_half), None, None, None, Graph([(interval(at_half), colours[mean["encoder"]])]), None, None, None]
            )
    columns = ["benchmark", "protocol", "encoder", "test images", "mean over", "macro-F1"]
    columns += ["balanced accuracy", "AUROC", "ECE", "", "external test", "pooling", "unseen"]
    caption = (
        "Regularisation and pooling were chosen on the validation split; each test split was used once. Brackets: 95% bootstrap intervals "
        "over patients, slides or images. The plot shows macro-F1 from 0 to 1. Mean over: what the macro-F1 is averaged over. For the "
        "labels of a multi-label set, thresholds were chosen on the validation split, unless 0.5 is named. Classes and labels without a "
        "test image do not count. ECE: expected calibration error in 15 bins, 0 is best. Rank: average over the benchmarks, "
        "1 is best. External test: macro-F1 of a classifier with the same training images on the test split of another set, which has a "
        "row of its own. Unseen: whether `make audit` found images of the benchmark in the training shards of our encoder. 'not checked' "
        "means that no audit of these shards covers the benchmark; an empty cell means an encoder that was not trained here."
    )
    return Table(columns, rows, caption=caption, rules=rules)


def external_scores(cells: list[dict]) -> dict[tuple[str, str, str], str]:
    """(training set, protocol, encoder) -> macro-F1 on the external test sets of this training set, by name."""
    scores: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        train, *test = cell.get("parts") or [cell["benchmark"]]
        if test:
            scores.setdefault((train, cell["protocol"], cell["encoder"]), []).append(f"{test[0]}: {interval(cell['macro_f1'])}")
    return {key: "; ".join(texts) for key, texts in scores.items()}


def _mean_over(cell: dict) -> str:
    """What the macro-F1 of a cell is averaged over."""
    if labels := cell.get("labels_scored"):
        absent = f" (not {', '.join(labels['without_positive'])})" if labels["without_positive"] else ""
        return f"{labels['scored']} of {labels['labels']} labels{absent}"
    return f"{len(cell['classes'])} classes"


def multilabel_table(cells: list[dict]) -> list[Table]:
    """The scores of the multi-label sets, whose macro-F1 depends on its thresholds."""
    cells = sorted((cell for cell in cells if cell.get("multilabel")), key=lambda cell: (cell["protocol"], cell["benchmark"]))
    names = {"macro_f1@val": "macro-F1@val", "macro_f1@0.5": "macro-F1@0.5", "auroc": "AUROC", "map": "mAP", "cf1@0.5": "CF1@0.5"}
    rows = [
        [cell["benchmark"], cell["protocol"], cell["encoder"], _mean_over(cell), *(interval(cell[name]) for name in names)]
        for cell in cells
    ]
    caption = (
        "Multi-label sets. Means over the labels with a positive test image; a label that is never predicted counts 0. @val: one threshold "
        "per label, with the best F1 on the validation split; this is the macro-F1 of all other tables. CF1: harmonic mean of the mean "
        "precision and the mean recall (mmpretrain), for comparison only."
    )
    return [Table(["benchmark", "protocol", "encoder", "mean over", *names.values()], rows, caption=caption)] if rows else []


def encoder_table(cells: list[dict]) -> list[Table]:
    """One row per encoder with its weights, its input and the pooling that was chosen on each benchmark."""
    rows = []
    for name, cell in {cell["encoder"]: cell for cell in reversed(cells) if "input" in cell}.items():
        image_input, weights = cell["input"], cell["weights"]
        pooling = ", ".join(dict.fromkeys(pooling for other in cells if other["encoder"] == name for pooling in other["pooling"]))
        mean, std = (", ".join(f"{value:.3f}" for value in image_input[key]) for key in ("mean", "std"))
        rows.append([name, weights["id"], weights["sha256"][:12], cell["parameters"], image_input["size"], mean, std, pooling])
    columns = ["encoder", "weights", "sha256", "parameters", "side, pixels", "mean", "std", "pooling chosen"]
    caption = "Images are resized to the encoder's square input (the aspect ratio is not kept) and normalised as in the encoder's training."
    return [Table(columns, sorted(rows), caption=caption)] if rows else []


def _unseen_text(overlap: dict | None) -> str | None:
    """Whether the encoder was trained without the benchmark's images; None for encoders that were not trained here."""
    if overlap is None:
        return None
    if overlap["trained_on"] is None:
        return "not checked"
    shared = sum(overlap["found"].values())
    if overlap["trained_on"]:
        return f"NO: {shared:,} samples with its images were trained on"
    text = f"yes: {shared:,} samples with its images were left out" if shared else "yes"
    return f"{text}; training data of the initial weights {start} unknown" if (start := overlap.get("start")) else text


def difference_table(differences: list[dict]) -> Table:
    rows = []
    for row in differences:
        difference, significant = interval(row, signed=True), _is_significant(row)
        verdict = ("ours is better" if row["value"] > 0 else "ours is WORSE") if significant else "no significant difference"
        graph = Graph([(difference, "blue" if significant else "grey")], start=-1.0)
        pair = f"{row['ours']} - {row['other']}"
        rows.append([row["benchmark"], row["protocol"], pair, difference, graph, f"{row['p_holm']:.3g}", verdict])
    columns = ["benchmark", "protocol", "difference", "macro-F1", "", "p (Holm)", "verdict"]
    caption = "Paired differences on the same test images. p is two-sided and corrected by Holm over its family. The plot shows -1 to 1."
    return Table(columns, rows, caption=caption)


def few_shot_figure(points: list[dict], colours: dict[str, str]) -> Figure:
    plots = []
    for benchmark in dict.fromkeys(point["benchmark"] for point in points):
        curves = []
        for encoder, encoder_colour in colours.items():
            own = sorted((p for p in points if p["benchmark"] == benchmark and p["encoder"] == encoder), key=lambda p: p["shots"])
            band = [(point["low"], point["high"]) for point in own]
            if own:
                curves.append(Curve(encoder, [(point["shots"], point["value"]) for point in own], encoder_colour, band=band))
        plots.append(plot_curves(curves, title=benchmark, x="training images per class", log_x=True))
    caption = (
        "Linear probe on few training images: macro-F1 with 95% intervals. Regularisation and pooling were chosen on the whole validation "
        "split, which may hold more images than the training set."
    )
    return Figure(plots, legend=list(colours.items()), caption=caption)


def confusion_figure(cells: list[dict]) -> Figure:
    plots = [
        plot_confusion_matrix(cell["confusion"], cell["classes"], title=f"{cell['benchmark']}: {cell['encoder']}, {cell['protocol']}")
        for cell in cells
    ]
    return Figure(plots, caption="Test images, summed over seeds. The shade is the fraction of the true class.")


def class_table(cells: list[dict]) -> Table:
    """Precision, recall and F1 of each class, and for labels of multi-label sets also F1 at 0.5 and the scores of the ranking."""
    scores = {"precision": "precision", "recall": "recall", "f1": "F1"}
    if any(cell.get("multilabel") for cell in cells):
        scores |= {"f1@0.5": "F1@0.5", "auroc": "AUROC", "average_precision": "AP"}
    rows = [
        [cell["benchmark"], cell["encoder"], cell["protocol"], row["class"], row["n"], *(row.get(name) for name in scores)]
        for cell in cells
        for row in cell["per_class"]
    ]
    return Table(["benchmark", "encoder", "protocol", "class", "test images", *scores.values()], rows)
