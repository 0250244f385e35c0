"""Statistics, tables, plot and conclusion of the breadth experiment from results.csv."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t

from experiments.breadth.trials import SIZES


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its 95% interval (Student's t), and the smallest true value detectable with 80% power."""

    value: float
    low: float
    high: float
    detectable: float
    n: int

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def estimate(values: list[float]) -> Estimate:
    n, mean = len(values), float(np.mean(values))
    error = np.std(values, ddof=1) / n**0.5
    quantile, power = t.ppf([0.975, 0.8], n - 1)
    return Estimate(mean, mean - quantile * error, mean + quantile * error, float((quantile + power) * error), n)


@dataclass(frozen=True)
class Breadth:
    by_size: dict[int, dict[int, float]]  # sources -> seed -> mean macro-F1
    text: dict[int, float]  # seed -> mean macro-F1 of all sources plus the text-only ones
    alone: dict[str, float]  # source -> mean macro-F1 of the encoders trained on it alone, over the available seeds
    start: float  # mean macro-F1 of the initial encoder

    @property
    def slope(self) -> Estimate:
        """Macro-F1 per doubling of the number of sources, fitted for each seed."""
        seeds = self.by_size[SIZES[0]]
        fits = [np.polyfit(np.log2(SIZES), [self.by_size[size][seed] for size in SIZES], 1)[0] for seed in seeds]
        return estimate([float(fit) for fit in fits])

    @property
    def all_minus_one(self) -> Estimate:
        return estimate([self.by_size[SIZES[-1]][seed] - self.by_size[SIZES[0]][seed] for seed in self.by_size[SIZES[0]]])

    @property
    def all_minus_best(self) -> Estimate:
        """All sources minus the best single source. The best is selected on the same benchmarks, which favours the single source."""
        best = max(self.alone.values())
        return estimate([score - best for score in self.by_size[SIZES[-1]].values()])

    @property
    def all_minus_start(self) -> Estimate:
        return estimate([score - self.start for score in self.by_size[SIZES[-1]].values()])

    @property
    def text_minus_none(self) -> Estimate:
        return estimate([self.text[seed] - self.by_size[SIZES[-1]][seed] for seed in self.text])


def read(rows: list[dict[str, str]]) -> Breadth:
    """`rows` of results.csv, whose column `mean` is the mean macro-F1 over the benchmarks."""
    by_size: dict[int, dict[int, float]] = {size: {} for size in SIZES}
    text: dict[int, float] = {}
    alone: dict[str, list[float]] = defaultdict(list)
    start = float("nan")
    first = {row["seed"]: row["names"].split()[0] for row in rows if row["sources"] == str(SIZES[-1])}  # first source of each seed
    for row in rows:
        score, size = float(row["mean"]), int(row["sources"])
        if size == 0:
            start = score
        elif row["text"] == "yes":
            text[int(row["seed"])] = score
        elif size > 1 or row["names"] == first[row["seed"]]:
            by_size[size][int(row["seed"])] = score
        if size == 1:
            alone[row["names"]].append(score)
    return Breadth(by_size, text, {source: float(np.mean(scores)) for source, scores in alone.items()}, start)


def conclusion(breadth: Breadth) -> str:
    slope, best = breadth.slope, max(breadth.alone, key=lambda source: breadth.alone[source])
    effect = f"{slope} macro-F1 per doubling of sources over {slope.n} seeds"
    if not slope.significant:
        gain = breadth.all_minus_start
        comparison = ("better than" if gain.value > 0 else "worse than") if gain.significant else "not significantly different from"
        return (
            f"No significant effect of breadth: {effect}; 80% power detects {slope.detectable:.4f} or more. The encoder trained on all "
            f"eleven sources is {comparison} the initial encoder, {gain}."
        )
    gain = breadth.all_minus_best
    comparison = ("better than" if gain.value > 0 else "worse than") if gain.significant else "not significantly different from"
    verb = "helps" if slope.value > 0 else "hurts"
    return f"Breadth {verb}: {effect}; all eleven sources are {comparison} the best single source ({best}), {gain}."


def tables(breadth: Breadth) -> str:
    """The Markdown tables and the conclusion for the README."""
    lines = [
        "| sources | mean macro-F1 of eight benchmarks, per seed | mean |",
        "|---|---|---|",
        f"| 0 (initial encoder) | | {breadth.start:.3f} |",
    ]
    for size, seeds in breadth.by_size.items():
        lines.append(_row(str(size), seeds))
    lines.append(_row("11 + 3 text-only", breadth.text))
    lines += ["", "| single source | mean macro-F1 |", "|---|---|"]
    lines += [f"| {source} | {score:.3f} |" for source, score in sorted(breadth.alone.items(), key=lambda pair: -pair[1])]
    lines += ["", "| difference | macro-F1, 95% interval over seeds | smallest detectable with 80% power |", "|---|---|---|"]
    for name, difference in (
        ("slope per doubling of sources", breadth.slope),
        ("eleven - one", breadth.all_minus_one),
        ("eleven - initial encoder", breadth.all_minus_start),
        ("eleven - best single source, selected on these scores", breadth.all_minus_best),
        ("with text-only sources - without", breadth.text_minus_none),
    ):
        lines.append(f"| {name} | {difference} | {difference.detectable:.4f} |")
    return "\n".join([*lines, "", conclusion(breadth)])


def _row(name: str, seeds: dict[int, float]) -> str:
    return f"| {name} | {', '.join(f'{score:.3f}' for _, score in sorted(seeds.items()))} | {np.mean(list(seeds.values())):.3f} |"


def plot(breadth: Breadth, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=120)
    for seed in sorted(breadth.by_size[SIZES[0]]):
        label = {"label": "each seed"} if seed == 0 else {}
        axes.plot(SIZES, [breadth.by_size[size][seed] for size in SIZES], color="#56B4E9", linewidth=1, marker="o", markersize=3, **label)
    means = [np.mean(list(breadth.by_size[size].values())) for size in SIZES]
    axes.plot(SIZES, means, color="#0072B2", linewidth=2.5, label="mean over seeds")
    axes.scatter([1] * len(breadth.alone), list(breadth.alone.values()), marker="x", color="#D55E00", zorder=3, label="single sources")
    text = list(breadth.text.values())
    axes.scatter([14] * len(text), text, marker="s", color="#009E73", zorder=3, label="all, with text-only sources")
    axes.axhline(breadth.start, color="grey", linestyle="--", linewidth=1, label="initial encoder")
    axes.set_xscale("log", base=2)
    axes.set_xticks([*SIZES, 14], [*map(str, SIZES), "11+3"])
    axes.set_xlabel("image sources in training")
    axes.set_ylabel("macro-F1, mean of eight benchmarks")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, columnspacing=1.2, handletextpad=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
