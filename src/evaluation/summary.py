"""Prediction files -> the metrics of `result.json`, and the table that shows what the choice of scorer does."""

from collections.abc import Callable

from src.metrics.statistics import holm
from src.metrics.vqa import SCORERS, clusters, paired, score

SUBTRACTED = ("shuffled", "blank", "none", "majority", "colour")


def summarise(found: dict[str, dict[str, list[dict]]], *, pooled: list[str], resamples: int, seed: int) -> dict:
    """`found[benchmark][condition]` are the items of one prediction file. Gives `metrics`, `scorers`, `clusters`, `pooled`,
    `cut` and `empty`: per benchmark and condition how many answers did not end by themselves, and how many are empty.

    A paired difference has `p` and `p_holm`, adjusted for the family of all that are subtracted from `real` under the same key.
    `vqa/pooled` joins the benchmarks named in `pooled`, condition by condition where all have it; it stands beside them from one on.
    """
    found = {name: {condition: items for condition, items in files.items() if items} for name, files in found.items()}
    if pooled:
        shared = [condition for condition in found[pooled[0]] if all(condition in found[name] for name in pooled)]
        found["pooled"] = {condition: pool_items({name: found[name][condition] for name in pooled}) for condition in shared}
    metrics: dict[str, dict] = {}
    for name, files in found.items():
        for condition, items in files.items():
            metrics |= {f"vqa/{name}/{condition}/{key}": value for key, value in score(items, resamples=resamples, seed=seed).items()}
        metrics |= _differences(name, files, resamples=resamples, seed=seed)
    main = {name: files.get("real") or files.get("none") for name, files in found.items()}
    scorers = {name: {scorer: function(items) for scorer, function in SCORERS.items()} for name, items in main.items() if items}
    drawn = {name: clusters(items) for name, items in main.items() if items}
    counts = {
        "cut": _counted(found, lambda item: bool(item.get("cut"))),
        "empty": _counted(found, lambda item: not item["prediction"].strip()),
    }
    return {"metrics": metrics, "scorers": scorers, "clusters": drawn, "pooled": pooled, **counts}


def _differences(name: str, files: dict[str, list[dict]], *, resamples: int, seed: int) -> dict[str, dict]:
    """`vqa/<name>/real_minus_<other>/...` for each other condition that there is."""
    others = [other for other in SUBTRACTED if "real" in files and other in files]
    found = {other: paired(files["real"], files[other], resamples=resamples, seed=seed) for other in others}
    for key in dict.fromkeys(key for rows in found.values() for key in rows):
        family = [rows[key] for rows in found.values() if key in rows]  # a control chooses no option by its likelihood
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = adjusted
    return {f"vqa/{name}/real_minus_{other}/{key}": value for other, rows in found.items() for key, value in rows.items()}


def _counted(found: dict[str, dict[str, list[dict]]], such: Callable[[dict], bool]) -> dict[str, dict[str, int]]:
    return {
        name: {condition: count for condition, items in files.items() if (count := sum(map(such, items)))} for name, files in found.items()
    }


def pool_items(files: dict[str, list[dict]]) -> list[dict]:
    """The items of several benchmarks in one list; no image and no id can be mistaken for one of another benchmark."""
    return [_unique(name, item) for name, items in files.items() for item in items]


def _unique(benchmark: str, item: dict) -> dict:
    return {**item, "id": f"{benchmark}:{item['id']}", **({"image": f"{benchmark}:{item['image']}"} if item.get("image") else {})}


def summary_text(summary: dict) -> str:
    """The lines that a terminal shows: per benchmark and condition the score of all items, with its 95% interval."""
    lines = [f"{name:16} 95% intervals by bootstrap over {words}" for name, words in summary["clusters"].items()]
    for key, words in (("cut", "answers reached max_new_tokens and were cut"), ("empty", "answers are empty")):
        for name, counts in summary[key].items():
            lines += [f"{name:16} {condition:22} {count:,} {words}" for condition, count in counts.items()]
    for key, found in summary["metrics"].items():
        _, name, condition, part, scorer = key.split("/")
        if part == "all" and scorer in ("bleu1", "exact"):
            lines.append(
                f"{name:16} {condition:22} {scorer:6} {found['value']:7.3f}  [{found['low']:.3f}, {found['high']:.3f}]  n={found['n']:,}"
            )
    return "\n".join(lines)
