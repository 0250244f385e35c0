"""The training section: trained parts, losses, throughput."""

from itertools import pairwise

from src.reporting.blocks import Figure, Folded, Section, Table, Text
from src.reporting.plots import Curve, colour, is_dashed, legend, plot_curves
from src.reporting.run_data import RunData


def section(run: RunData) -> Section:
    if not run.log:
        return Section("Training", [Text(f"No training has been logged; train with: python -m src.train name={run.name} ...", "gap")])
    blocks: list = []
    parts = run.results.get("train", {}).get("parts", [])
    if parts:
        blocks.append(parts_table(parts))
    if "train" not in run.results:
        last, steps = int(run.log[-1]["step"]), run.config["optim"]["steps"]
        blocks.append(Text(f"Unfinished: {last:,} of {steps:,} steps are logged; the same training command resumes.", "gap"))
    blocks += [loss_figure(run), Folded("Throughput, learning rates and gradient norm", [throughput_figure(run)])]
    return Section("Training", blocks)


def parts_table(parts: list[dict]) -> Table:
    rows = [
        [part["part"], part["parameters"], part["trainable"], f"{part['lr']:g}" if part["trainable"] else "frozen", part["weights"]]
        for part in parts
    ]
    total = ["all", sum(part["parameters"] for part in parts), sum(part["trainable"] for part in parts), None, None]
    columns = ["part", "parameters", "trainable", "peak learning rate", "weights"]
    caption = "In the language model, only the LoRA adapters are trained."
    return Table(columns, [*rows, total], rules=[len(rows)], caption=caption)


def loss_figure(run: RunData) -> Figure:
    """Three plots: all sources together, training loss per source, validation loss per source."""
    sources = [name.removeprefix("loss/") for name in (run.log[0] | run.log[-1]) if name.startswith("loss/")]
    colours = {source: colour(index) for index, source in enumerate(sources)}
    kinds = {source: "curve dashed" if is_dashed(index) else "curve" for index, source in enumerate(sources)}
    totals = [Curve("training", run.column("loss"), "grey"), Curve("validation", run.column("val"), "blue")]
    plots = [plot_curves(totals, title="Loss: training grey, validation blue", x="step")]
    for key, title in (("loss", "Training loss per source"), ("val", "Validation loss per source")):
        columns = {source: run.column(f"{key}/{source}") for source in sources}
        curves = [Curve(source, points, colours[source], kind=kinds[source]) for source, points in columns.items() if points]
        if curves:
            plots.append(plot_curves(curves, title=title, x="step"))
    caption = (
        "Cross-entropy per supervised (answer) token, in nats. The validation loss is the mean over the sources; each source has a fixed "
        "list of records."
    )
    return Figure(plots, caption=caption, legend=legend(colours))


def throughput_figure(run: RunData) -> Figure:
    parts = [name.removeprefix("lr/") for name in run.log[-1] if name.startswith("lr/")]
    colours = {part: colour(index) for index, part in enumerate(parts)}
    learning_rates = [Curve(part, run.column(f"lr/{part}"), colours[part]) for part in parts]
    plots = [
        plot_curves([Curve("tokens/s", throughput(run, "tokens"), "blue")], title="Tokens per second", x="step", y_from=0),
        plot_curves([Curve("samples/s", throughput(run, "samples"), "blue")], title="Samples per second", x="step", y_from=0),
        plot_curves(learning_rates, title="Learning rate per part", x="step", y_from=0),
        plot_curves([Curve("norm", run.column("grad_norm"), "grey")], title="Gradient norm before clipping", x="step", y_from=0),
        plot_curves([Curve("wait", run.column("data_wait"), "grey")], title="Fraction of time spent waiting for data", x="step", y_from=0),
    ]
    return Figure(plots, legend=legend(colours), caption="Colours: learning rate of each part.")


def throughput(run: RunData, column: str) -> list[tuple[float, float]]:
    """(step, rate per second) between consecutive rows of `log.csv`, which holds running totals."""
    rows = [{"step": 0.0, "seconds": 0.0, column: 0.0}, *run.log]
    pairs = [(before, after) for before, after in pairwise(rows) if after["seconds"] > before["seconds"]]
    return [(after["step"], (after[column] - before[column]) / (after["seconds"] - before["seconds"])) for before, after in pairs]
