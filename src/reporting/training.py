"""How a run was trained: its parts, its losses, its pace."""

from itertools import pairwise

from src.reporting.blocks import Figure, Folded, Section, Table, Text
from src.reporting.plots import Curve, curves
from src.reporting.run_data import RunData
from src.reporting.svg import COLOURS, colour


def section(run: RunData) -> Section:
    if not run.log:
        return Section("Training", [Text(f"No training has been logged; train with: python -m src.train name={run.name} ...", "gap")])
    blocks: list = []
    parts = run.verbs.get("train", {}).get("parts", [])
    if parts:
        blocks.append(parts_table(parts))
    if "train" not in run.verbs:
        last, steps = int(run.log[-1]["step"]), run.config["optim"]["steps"]
        blocks.append(Text(f"Unfinished: {last:,} of {steps:,} steps are logged; the same training command resumes.", "gap"))
    blocks += [losses(run), Folded("Pace, learning rates and gradient norm", [pace(run)])]
    return Section("Training", blocks)


def parts_table(parts: list[dict]) -> Table:
    rows = [
        [part["part"], part["parameters"], part["trainable"], f"{part['lr']:g}" if part["trainable"] else "frozen", part["weights"]]
        for part in parts
    ]
    total = ["all", sum(part["parameters"] for part in parts), sum(part["trainable"] for part in parts), None, None]
    columns = ["part", "parameters", "trainable", "peak learning rate", "weights"]
    return Table(columns, [*rows, total], rules=[len(rows)], caption="In the language model only the LoRA adapters train.")


def losses(run: RunData) -> Figure:
    """Three drawings: all sources together, training per source, validation per source."""
    sources = [name.removeprefix("loss/") for name in (run.log[0] | run.log[-1]) if name.startswith("loss/")]
    paint = {source: colour(number) for number, source in enumerate(sources)}

    def again(source: str) -> bool:  # there are more sources than colours
        return sources.index(source) >= len(COLOURS)

    together = [Curve("training", run.column("loss"), "grey"), Curve("validation", run.column("val"), "blue")]
    drawings = [curves(together, title="Loss: training grey, validation blue", x="step")]
    for kind, title in (("loss", "Training loss per source"), ("val", "Validation loss per source")):
        found = [
            Curve(source, run.column(f"{kind}/{source}"), paint[source], kind="curve dashed" if again(source) else "curve")
            for source in sources
            if run.column(f"{kind}/{source}")
        ]
        if found:
            drawings.append(curves(found, title=title, x="step"))
    caption = "Cross-entropy per supervised (answer) token, in nats. Validation is the mean over sources of a fixed list of records."
    legend = [(f"{source} (dashed)" if again(source) else source, shade) for source, shade in paint.items()]
    return Figure(drawings, caption=caption, legend=legend)


def pace(run: RunData) -> Figure:
    rates = [name for name in run.log[-1] if name.startswith("lr/")]
    paint = {name.removeprefix("lr/"): colour(number) for number, name in enumerate(rates)}
    drawings = [
        curves([Curve("tokens/s", speed(run, "tokens"), "blue")], title="Tokens per second", x="step", y_from=0),
        curves([Curve("samples/s", speed(run, "samples"), "blue")], title="Samples per second", x="step", y_from=0),
        curves([Curve(name, run.column(f"lr/{name}"), paint[name]) for name in paint], title="Learning rate per part", x="step", y_from=0),
        curves([Curve("norm", run.column("grad_norm"), "grey")], title="Gradient norm before clipping", x="step", y_from=0),
        curves([Curve("wait", run.column("data_wait"), "grey")], title="Share of the time spent waiting for data", x="step", y_from=0),
    ]
    return Figure(drawings, legend=list(paint.items()), caption="Colours: learning rate of each part.")


def speed(run: RunData, what: str) -> list[tuple[float, float]]:
    """Rate between consecutive log lines; `log.csv` holds running totals."""
    rows = [{"step": 0.0, "seconds": 0.0, what: 0.0}, *run.log]
    pairs = [(before, after) for before, after in pairwise(rows) if after["seconds"] > before["seconds"]]
    return [(after["step"], (after[what] - before[what]) / (after["seconds"] - before["seconds"])) for before, after in pairs]
