"""The table of `loss_curves.csv`."""

from statistics import fmean, stdev


def loss_curves(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """A row per step: validation loss with each `data.shuffle` as mean and standard deviation over seeds, and the differences by seed."""
    values = {(row["shuffle"], row["step"], row["seed"]): float(row["val"]) for row in rows}
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    lines = []
    for step in dict.fromkeys(row["step"] for row in rows):
        line = {"step": step}
        for mode in ("global", "blocks"):
            losses = [values[mode, step, seed] for seed in seeds]
            line[mode] = f"{fmean(losses):.3f} ({stdev(losses):.3f})" if len(seeds) > 1 else f"{losses[0]:.3f}"
        line["blocks - global, per seed"] = ", ".join(
            f"{values['blocks', step, seed] - values['global', step, seed]:+.3f}" for seed in seeds
        )
        lines.append(line)
    return lines
