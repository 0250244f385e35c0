"""Several runs side by side: how their encoders carry over."""

from src.reporting import groups
from src.reporting.blocks import Figure, Graph, Interval, Table
from src.reporting.groups import Group
from src.reporting.plots import Curve, curves
from src.reporting.run_data import RunData
from src.reporting.svg import dashed


def transfer_blocks(found: list[Group], paint: dict[str, str]) -> list:
    """Macro-F1 of each group's own encoder and, beside it, of the baselines; few-shot curves of the groups' own encoders."""
    rows = []
    for one in found:
        cells: dict[tuple[str, str, str], list[dict]] = {}
        for run in one.having("transfer/"):
            for cell in run.verbs["transfer"]["transfer"]["cells"]:
                encoder = "its own" if cell["ours"] else cell["encoder"]
                cells.setdefault((cell["benchmark"], encoder, cell["protocol"]), []).append(cell["macro_f1"])
        for about, scores in cells.items():
            score = groups.pooled(scores)
            assert score is not None
            rows.append([*about, one.label, score, Graph([(score, "blue" if about[1] == "its own" else "grey")])])
    rows.sort(key=lambda row: row[:3])
    columns = ["benchmark", "encoder", "protocol", "group", "macro-F1", ""]
    table = [Table(columns, rows, caption="The drawing shows macro-F1 from 0 to 1.")] if rows else []
    return table + few_shot(found, paint)


def few_shot(found: list[Group], paint: dict[str, str]) -> list[Figure]:
    """A drawing per benchmark, a curve per group."""
    scores: dict[str, dict[str, dict[int, list[dict]]]] = {}  # benchmark -> group -> shots -> a score per seed
    for one in found:
        for run in one.having("transfer/"):
            points, mine = run.verbs["transfer"]["transfer"].get("few_shot", []), own_encoder(run)
            for point in points:
                if point["encoder"] == mine:
                    of_group = scores.setdefault(point["benchmark"], {}).setdefault(one.label, {})
                    of_group.setdefault(point["shots"], []).append(point)
    drawings = []
    for benchmark, lines in scores.items():
        drawn = []
        for number, label in enumerate(paint):
            pooled = [(shots, score) for shots, points in sorted(lines.get(label, {}).items()) if (score := groups.pooled(points))]
            at, band = [(float(shots), score.value) for shots, score in pooled], [(score.low, score.high) for _, score in pooled]
            drawn += [Curve(label, at, paint[label], kind="curve dashed" if dashed(number) else "curve", band=band)] if at else []
        drawings.append(curves(drawn, title=benchmark, x="training images per class", log_x=True))
    caption = "Linear probe on few images, each group's own encoder: macro-F1 with 95% intervals."
    return [Figure(drawings, caption=caption, legend=legend(paint))] if drawings else []


def own_means(found: list[Group]) -> dict[str, Interval | None]:
    """By group the mean macro-F1 of its own encoders under the linear probe; nothing where groups have it over other benchmarks."""
    means = {}
    for one in found:
        tables = [(own_encoder(run), run.verbs["transfer"]["transfer"]["means"]) for run in one.having("transfer/mean/")]
        means[one.label] = [mean for mine, of in tables for mean in of if mean["encoder"] == mine and mean["protocol"] == "probe"]
    alike = len({tuple(sorted(mean["benchmarks"])) for of in means.values() for mean in of}) == 1
    return {label: groups.pooled(of) for label, of in means.items()} if alike else {}


def own_encoder(run: RunData) -> str | None:
    """The label of the encoder that the run itself trained; of a folder of cells alone that of the only trained one."""
    tables = run.verbs["transfer"]["transfer"]
    trained = {one["encoder"] for part in ("cells", "few_shot") for one in tables.get(part, []) if one["encoder"].startswith("run:")}
    name = f"run:{run.name.replace('/', '_')}"
    return name if name in trained else trained.pop() if len(trained) == 1 else None


def legend(paint: dict[str, str]) -> list[tuple[str, str]]:
    """Names with their colours; beyond the colours that can be told apart lines are dashed."""
    return [(f"{name} (dashed)" if dashed(number) else name, ink) for number, (name, ink) in enumerate(paint.items())]
