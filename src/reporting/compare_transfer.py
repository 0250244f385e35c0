"""Comparison of several runs: transfer scores of their encoders."""

from src.reporting import groups
from src.reporting.blocks import Figure, Graph, Interval, Table
from src.reporting.groups import Group
from src.reporting.plots import Curve, is_dashed, legend, plot_curves
from src.reporting.run_data import RunData


def transfer_blocks(all_groups: list[Group], colours: dict[str, str]) -> list:
    """Macro-F1 of each group's own encoder and of the baselines; few-shot curves of the groups' own encoders."""
    rows = []
    for group in all_groups:
        scores: dict[tuple[str, str, str], list[dict]] = {}
        for run in group.runs_with_metric("transfer/"):
            for cell in run.results["transfer"]["transfer"]["cells"]:
                encoder = "own" if cell["ours"] else cell["encoder"]
                scores.setdefault((cell["benchmark"], encoder, cell["protocol"]), []).append(cell["macro_f1"])
        for key, metrics in scores.items():
            score = groups.pool(metrics)
            assert score is not None
            rows.append([*key, group.label, score, Graph([(score, "blue" if key[1] == "own" else "grey")])])
    rows.sort(key=lambda row: row[:3])
    columns = ["benchmark", "encoder", "protocol", "group", "macro-F1", ""]
    caption = (
        "Encoder own: the one that the run trained. The plot shows macro-F1 from 0 to 1; for a multi-label set it is the mean over labels "
        "at thresholds that were chosen on the validation split."
    )
    return ([Table(columns, rows, caption=caption)] if rows else []) + few_shot_figures(all_groups, colours)


def few_shot_figures(all_groups: list[Group], colours: dict[str, str]) -> list[Figure]:
    """One plot per benchmark, one curve per group."""
    scores: dict[str, dict[str, dict[int, list[dict]]]] = {}  # benchmark -> group -> shots -> one score per seed
    for group in all_groups:
        for run in group.runs_with_metric("transfer/"):
            encoder = own_encoder(run)
            for point in run.results["transfer"]["transfer"].get("few_shot", []):
                if point["encoder"] == encoder:
                    group_scores = scores.setdefault(point["benchmark"], {}).setdefault(group.label, {})
                    group_scores.setdefault(point["shots"], []).append(point)
    plots = []
    for benchmark, by_group in scores.items():
        curves = []
        for index, label in enumerate(colours):
            pooled = [(shots, score) for shots, points in sorted(by_group.get(label, {}).items()) if (score := groups.pool(points))]
            points = [(float(shots), score.value) for shots, score in pooled]
            band = [(score.low, score.high) for _, score in pooled]
            if points:
                curves.append(Curve(label, points, colours[label], kind="curve dashed" if is_dashed(index) else "curve", band=band))
        plots.append(plot_curves(curves, title=benchmark, x="training images per class", log_x=True))
    caption = "Linear probe of each group's own encoder on few training images: macro-F1 with 95% intervals."
    return [Figure(plots, caption=caption, legend=legend(colours))] if plots else []


def own_means(all_groups: list[Group]) -> dict[str, Interval | None]:
    """For each group the mean macro-F1 of its own encoders under the linear probe; empty if the means cover different benchmarks."""
    means = {}
    for group in all_groups:
        tables = [(own_encoder(run), run.results["transfer"]["transfer"]["means"]) for run in group.runs_with_metric("transfer/mean/")]
        means[group.label] = [
            mean for encoder, rows in tables for mean in rows if mean["encoder"] == encoder and mean["protocol"] == "probe"
        ]
    same_benchmarks = len({tuple(sorted(mean["benchmarks"])) for rows in means.values() for mean in rows}) == 1
    return {label: groups.pool(rows) for label, rows in means.items()} if same_benchmarks else {}


def own_encoder(run: RunData) -> str | None:
    """The label of the encoder that the run trained; in a folder with transfer results alone, its only trained encoder."""
    tables = run.results["transfer"]["transfer"]
    trained = {row["encoder"] for table in ("cells", "few_shot") for row in tables.get(table, []) if row["encoder"].startswith("run:")}
    name = f"run:{run.name.replace('/', '_')}"
    return name if name in trained else trained.pop() if len(trained) == 1 else None
