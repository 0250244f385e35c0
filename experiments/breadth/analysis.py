"""results.csv -> slope per doubling of sources, best single source, what text adds, a plot, and one sentence whichever way it comes out."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t

from experiments.breadth.trials import SIZES


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval (Student's t), and the smallest true value that would be found with 80% power."""

    value: float
    low: float
    high: float
    detectable: float
    n: int

    @property
    def shown(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def estimate(values: list[float]) -> Estimate:
    found = np.array(values)
    error = found.std(ddof=1) / len(found) ** 0.5
    reach, power = t.ppf([0.975, 0.8], len(found) - 1)
    middle = float(found.mean())
    return Estimate(middle, middle - reach * error, middle + reach * error, float((reach + power) * error), len(found))


@dataclass(frozen=True)
class Breadth:
    by_size: dict[int, dict[int, float]]  # sources -> seed -> mean macro-F1
    text: dict[int, float]  # seed -> with the text-only sources besides
    alone: dict[str, float]  # source -> mean macro-F1 of the encoder that saw nothing else, over the seeds that there are
    start: float

    @property
    def slope(self) -> Estimate:
        """Macro-F1 per doubling of the number of sources, fitted in each seed."""
        seeds = self.by_size[SIZES[0]]
        fits = [np.polyfit(np.log2(SIZES), [self.by_size[size][seed] for size in SIZES], 1)[0] for seed in seeds]
        return estimate([float(fit) for fit in fits])

    @property
    def all_minus_one(self) -> Estimate:
        return estimate([self.by_size[SIZES[-1]][seed] - self.by_size[SIZES[0]][seed] for seed in self.by_size[SIZES[0]]])

    @property
    def all_minus_best(self) -> Estimate:
        """All sources against the best of the single ones, which was chosen on the same benchmarks: it flatters the single one."""
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
    first = {row["seed"]: row["names"].split()[0] for row in rows if row["sources"] == str(SIZES[-1])}  # with which each seed begins
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


def sentence(found: Breadth) -> str:
    slope, best = found.slope, max(found.alone, key=lambda source: found.alone[source])
    said = f"{slope} macro-F1 per doubling of sources over {slope.n} seeds"
    if not slope.shown:
        gain = found.all_minus_start
        rest = ("better" if gain.value > 0 else "WORSE") if gain.shown else "neither better nor worse"
        return (
            f"No effect of breadth shown: {said}, where {slope.detectable:.4f} would have been found with 80% power; trained on all "
            f"eleven, the encoder is {rest} than where it started, {gain}."
        )
    against = found.all_minus_best
    rest = ("better than" if against.value > 0 else "WORSE than") if against.shown else "not shown to differ from"
    way = "helps" if slope.value > 0 else "HURTS"
    return f"Breadth {way}: {said}; all eleven are {rest} the best single source ({best}), {against}."


def tables(found: Breadth) -> str:
    """Markdown, for the README."""
    lines = [
        "| sources | mean macro-F1 of eight benchmarks, per seed | mean |",
        "|---|---|---|",
        f"| 0 (where all start) | | {found.start:.3f} |",
    ]
    for size, seeds in found.by_size.items():
        lines.append(_row(str(size), seeds))
    lines.append(_row("11 + 3 text-only", found.text))
    lines += ["", "| one source alone | mean macro-F1 |", "|---|---|"]
    lines += [f"| {source} | {score:.3f} |" for source, score in sorted(found.alone.items(), key=lambda pair: -pair[1])]
    lines += ["", "| difference | macro-F1, 95% interval over seeds | smallest that 80% power finds |", "|---|---|---|"]
    for name, one in (
        ("slope per doubling of sources", found.slope),
        ("eleven - one", found.all_minus_one),
        ("eleven - where all start", found.all_minus_start),
        ("eleven - the best alone, which was chosen on these scores", found.all_minus_best),
        ("text-only sources besides - without", found.text_minus_none),
    ):
        lines.append(f"| {name} | {one} | {one.detectable:.4f} |")
    return "\n".join([*lines, "", sentence(found)])


def _row(name: str, seeds: dict[int, float]) -> str:
    return f"| {name} | {', '.join(f'{score:.3f}' for _, score in sorted(seeds.items()))} | {np.mean(list(seeds.values())):.3f} |"


def plot(found: Breadth, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=120)
    for seed in sorted(found.by_size[SIZES[0]]):
        said = {"label": "each seed"} if seed == 0 else {}
        axes.plot(SIZES, [found.by_size[size][seed] for size in SIZES], color="#56B4E9", linewidth=1, marker="o", markersize=3, **said)
    means = [np.mean(list(found.by_size[size].values())) for size in SIZES]
    axes.plot(SIZES, means, color="#0072B2", linewidth=2.5, label="mean of the seeds")
    axes.scatter([1] * len(found.alone), list(found.alone.values()), marker="x", color="#D55E00", zorder=3, label="each source alone")
    text = list(found.text.values())
    axes.scatter([14] * len(text), text, marker="s", color="#009E73", zorder=3, label="all, with the text-only ones")
    axes.axhline(found.start, color="grey", linestyle="--", linewidth=1, label="where all start")
    axes.set_xscale("log", base=2)
    axes.set_xticks([*SIZES, 14], [*map(str, SIZES), "11+3"])
    axes.set_xlabel("image sources trained on")
    axes.set_ylabel("macro-F1, mean of eight benchmarks")
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, columnspacing=1.2, handletextpad=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
