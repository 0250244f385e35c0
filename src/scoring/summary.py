"""Prediction files -> the metrics of `result.json`, and the table that shows what the choice of scorer does."""

from src.scoring.vqa import SCORERS, paired, score

SUBTRACTED = ("shuffled", "blank", "none", "majority", "colour")


def summarise(found: dict[str, dict[str, list[dict]]], *, pooled: list[str], resamples: int, seed: int) -> dict:
    """`found[benchmark][condition]` are the items of one prediction file. Gives `metrics` and `scorers`.

    `vqa/pooled` joins the benchmarks named in `pooled`, condition by condition where all have it; it stands beside them from one on.
    """
    found = {name: {condition: items for condition, items in files.items() if items} for name, files in found.items()}
    shared = [condition for condition in next(iter(found.values()), {}) if all(condition in found[name] for name in pooled)]
    if pooled:
        found["pooled"] = {condition: [_unique(name, item) for name in pooled for item in found[name][condition]] for condition in shared}
    metrics = {}
    for name, files in found.items():
        for condition, items in files.items():
            metrics |= {f"vqa/{name}/{condition}/{key}": value for key, value in score(items, resamples=resamples, seed=seed).items()}
        for other in SUBTRACTED:
            if "real" in files and other in files:
                differences = paired(files["real"], files[other], resamples=resamples, seed=seed)
                metrics |= {f"vqa/{name}/real_minus_{other}/{key}": value for key, value in differences.items()}
    main = {name: files.get("real") or files.get("none") for name, files in found.items()}
    scorers = {name: {scorer: function(items) for scorer, function in SCORERS.items()} for name, items in main.items() if items}
    return {"metrics": metrics, "scorers": scorers}


def _unique(benchmark: str, item: dict) -> dict:
    """An item whose image and id cannot be mistaken for those of another benchmark."""
    return {**item, "id": f"{benchmark}:{item['id']}", **({"image": f"{benchmark}:{item['image']}"} if item.get("image") else {})}


def text(metrics: dict[str, dict]) -> str:
    """The lines that a terminal shows: per benchmark and condition the score of all items, with its 95% interval."""
    lines = []
    for key, found in metrics.items():
        _, name, condition, part, scorer = key.split("/")
        if part == "all" and scorer in ("bleu1", "exact"):
            lines.append(
                f"{name:16} {condition:22} {scorer:6} {found['value']:7.3f}  [{found['low']:.3f}, {found['high']:.3f}]  n={found['n']:,}"
            )
    return "\n".join(lines)
