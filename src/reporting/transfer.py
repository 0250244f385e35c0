"""How well encoders carry over to images that training never saw. The tables come from `transfer.json`, see scoring/transfer_table.py."""

from src.reporting.blocks import Figure, Folded, Graph, Section, Table, Text
from src.reporting.plots import Curve, curves, matrix
from src.reporting.run_data import RunData, interval
from src.reporting.svg import colour


def section(run: RunData) -> Section:
    found = run.verbs.get("transfer", {}).get("transfer")
    if not found:
        how = f"python -m src.transfer encoder=[run:{run.name},scratch:{run.name}] benchmark=breastmnist"
        return Section("Transfer", [Text(f"No encoder has been transferred yet; run: {how}", "gap")])
    cells = found["cells"]
    paint = {name: colour(number) for number, name in enumerate(dict.fromkeys(cell["encoder"] for cell in cells))}
    protocols = {cell["protocol"] for cell in cells}
    whole = [one for one in found["differences"] if one["protocol"] in protocols]  # few-shot fits have their own drawing
    blocks: list = [Text(words, "finding") for words in verdicts(whole)]
    blocks += [Text(f"{one['file']} is left out, because {one['why']}.", "gap") for one in found.get("left_out", [])]
    blocks.append(score_table(found, paint))
    blocks += encoder_table(cells)
    if whole:
        blocks.append(difference_table(whole))
    if found["few_shot"]:
        blocks.append(few_shot(found["few_shot"], paint))
    blocks.append(Folded("Confusion matrices", [confusions(cells)]))
    blocks.append(Folded("Scores per class", [class_table(cells)]))
    return Section("Transfer", blocks)


def verdicts(differences: list[dict]) -> list[str]:
    """One sentence per baseline: the mean over benchmarks where there is one, else each benchmark."""
    means = [one for one in differences if one["benchmark"] == "mean"]
    lines = []
    for one in means or differences:
        where = "on the mean of the benchmarks" if one["benchmark"] == "mean" else f"on {one['benchmark']}"
        difference = interval(one, signed=True)
        if one["p_holm"] >= 0.05 or not difference.clear:
            lines.append(f"{one['ours']} against {one['other']} {where} ({one['protocol']}): no difference shown, macro-F1 {difference}.")
        else:
            way = "above" if one["value"] > 0 else "BELOW"
            lines.append(f"{one['ours']} is {way} {one['other']} {where} ({one['protocol']}): macro-F1 {difference}.")
    return lines


def score_table(found: dict, paint: dict[str, str]) -> Table:
    rows, rules, before = [], [], None
    for cell in sorted(found["cells"], key=lambda cell: (cell["protocol"], cell["benchmark"])):
        if before not in (None, (cell["protocol"], cell["benchmark"])):
            rules.append(len(rows))
        before = (cell["protocol"], cell["benchmark"])
        scores = [interval(cell[score]) for score in ("macro_f1", "balanced_accuracy", "auroc")]
        ink, pooling = paint[cell["encoder"]], ", ".join(dict.fromkeys(cell["pooling"]))
        about = [cell["benchmark"], cell["protocol"], cell["encoder"], cell["n"], *scores]
        rows.append([*about, Graph([(scores[0], ink)]), pooling, _unseen(cell.get("overlap"))])
    means = [mean for mean in found["means"] if mean["protocol"] in {cell["protocol"] for cell in found["cells"]}]
    rules += [len(rows)] if means else []
    for mean in means:
        score, rank = interval(mean), found["ranks"].get(mean["protocol"], {}).get(mean["encoder"])
        remark = "" if rank is None else f"rank {rank:.2f}"
        about = ["mean", mean["protocol"], mean["encoder"], mean["n"], score, None, None]
        rows.append([*about, Graph([(score, paint[mean["encoder"]])]), remark, None])
    columns = ["benchmark", "protocol", "encoder", "test images", "macro-F1", "balanced accuracy", "AUROC", "", "pooling", "unseen"]
    caption = (
        "Every choice (regularisation, pooling) was made on the validation split; each test split was used once. Brackets: 95% bootstrap "
        "intervals over patients, slides or images; the drawing shows macro-F1 from 0 to 1. Rank: average over the benchmarks, 1 is best. "
        "Unseen is what `make audit` found in the shards that ours was trained on; not checked: it has not looked for this set, or not in "
        "these shards; empty: an encoder of others."
    )
    return Table(columns, rows, caption=caption, rules=rules)


def encoder_table(cells: list[dict]) -> list[Table]:
    """One row per encoder: its weights and what it was shown; the pooling is chosen on each benchmark."""
    rows = []
    for name, cell in {cell["encoder"]: cell for cell in reversed(cells) if "input" in cell}.items():
        shown, weights = cell["input"], cell["weights"]
        mine = [one for one in cells if one["encoder"] == name]
        pooling = ", ".join(dict.fromkeys(how for one in mine for how in one["pooling"]))
        mean, std = (", ".join(f"{value:.3f}" for value in shown[key]) for key in ("mean", "std"))
        rows.append([name, weights["id"], weights["sha256"][:12], cell["parameters"], shown["size"], mean, std, pooling])
    columns = ["encoder", "weights", "sha256", "parameters", "side, pixels", "mean", "std", "pooling chosen"]
    caption = "Every picture is squashed to the encoder's own square and normalised as it was trained."
    return [Table(columns, sorted(rows), caption=caption)] if rows else []


def _unseen(overlap: dict | None) -> str | None:
    """A set of which images were trained on cannot be called unseen; of encoders of others nobody can tell."""
    if overlap is None:
        return None
    if overlap["trained_on"] is None:
        return "not checked"
    shared = sum(overlap["found"].values())
    if overlap["trained_on"]:
        return f"NO: {shared:,} samples with its images were trained on"
    said = f"yes: {shared:,} samples with its images were left out" if shared else "yes"
    return f"{said}; what {start} saw, where it started, is unknown" if (start := overlap.get("start")) else said


def difference_table(differences: list[dict]) -> Table:
    rows = []
    for one in differences:
        difference = interval(one, signed=True)
        verdict = "no difference shown"
        if one["p_holm"] < 0.05 and difference.clear:
            verdict = "ours is better" if one["value"] > 0 else "ours is WORSE"
        graph = Graph([(difference, "blue" if verdict.startswith("ours") else "grey")], start=-1.0)
        pair = f"{one['ours']} - {one['other']}"
        rows.append([one["benchmark"], one["protocol"], pair, difference, graph, f"{one['p_holm']:.3g}", verdict])
    columns = ["benchmark", "protocol", "difference", "macro-F1", "", "p (Holm)", "verdict"]
    return Table(columns, rows, caption="Paired differences on the same test images; p is two-sided and corrected by Holm over its family.")


def few_shot(points: list[dict], paint: dict[str, str]) -> Figure:
    drawings = []
    for benchmark in dict.fromkeys(point["benchmark"] for point in points):
        lines = []
        for encoder, ink in paint.items():
            mine = sorted((p for p in points if p["benchmark"] == benchmark and p["encoder"] == encoder), key=lambda p: p["shots"])
            at, band = [(p["shots"], p["value"]) for p in mine], [(p["low"], p["high"]) for p in mine]
            lines += [Curve(encoder, at, ink, band=band)] if mine else []
        drawings.append(curves(lines, title=benchmark, x="training images per class", log_x=True))
    caption = (
        "Linear probe on few training images: macro-F1 with 95% intervals. Regularisation and pooling were chosen on the whole validation "
        "split, which may hold more images than were trained on."
    )
    return Figure(drawings, legend=list(paint.items()), caption=caption)


def confusions(cells: list[dict]) -> Figure:
    drawings = [
        matrix(cell["confusion"], cell["classes"], title=f"{cell['benchmark']}: {cell['encoder']}, {cell['protocol']}") for cell in cells
    ]
    return Figure(drawings, caption="Test images, summed over seeds; the shade is the share of the true class.")


def class_table(cells: list[dict]) -> Table:
    rows = [
        [cell["benchmark"], cell["encoder"], cell["protocol"], one["class"], one["n"], one["precision"], one["recall"], one["f1"]]
        for cell in cells
        for one in cell["per_class"]
    ]
    return Table(["benchmark", "encoder", "protocol", "class", "test images", "precision", "recall", "F1"], rows)
