"""The metrics of `result.json` from predictions files, and the table that compares scorers."""

from collections.abc import Callable

from src.metrics.protocols import SCORERS, protocol_lines
from src.metrics.statistics import holm
from src.metrics.variants import order_scores, prompt_scores
from src.metrics.vqa import describe_clusters, paired_difference, score, unchanged

REFERENCE_CONDITIONS = ("shuffled", "other_modality", "blank", "none", "majority", "colour")
IMAGE_CONDITIONS = ("shuffled", "other_modality", "blank", "none")  # the same model without the question's own image

PRINTED_SCORES = {
    "orders": ("accuracy", "every_order"),
    "prompts": ("exact", "accuracy"),
    "": ("bleu1", "exact", "unchanged"),
}  # "": any other condition


def summarise(
    predictions: dict[str, dict[str, list[dict]]],
    *,
    pooled: list[str],
    variants: dict[str, dict[str, list[dict]]] | None = None,
    resamples: int,
    seed: int,
) -> dict:
    """Scores of all predictions. `predictions[benchmark][condition]` are the items of one predictions file.

    Returns `metrics`, `scorers`, `clusters`, `pooled`, `cut` and `empty`; the last two count, per benchmark and condition, the answers
    that reached the token limit and those that are empty. A paired difference has `p` and `p_holm`, adjusted for the family of all
    conditions that are subtracted from `real` under the same key. `vqa/<name>/<condition>/<slice>/unchanged` is the share of answers
    that are the same under `real` and under another image condition: the answers that need no image. `vqa/pooled` contains the
    benchmarks in `pooled`, for each condition that all of them have; it exists for a single benchmark too. `variants[benchmark][variant]`
    are answers to the questions asked in other ways; `vqa/<name>/orders` and `vqa/<name>/prompts` compare them with the main answers.
    """
    predictions = {name: {condition: items for condition, items in files.items() if items} for name, files in predictions.items()}
    if pooled:
        shared = [condition for condition in predictions[pooled[0]] if all(condition in predictions[name] for name in pooled)]
        predictions["pooled"] = {condition: pool_items({name: predictions[name][condition] for name in pooled}) for condition in shared}
    metrics: dict[str, dict] = {}
    for name, files in predictions.items():
        for condition, items in files.items():
            metrics |= {f"vqa/{name}/{condition}/{key}": value for key, value in score(items, resamples=resamples, seed=seed).items()}
        metrics |= _differences(name, files, resamples=resamples, seed=seed)
        metrics |= _unchanged(name, files, resamples=resamples, seed=seed)
    main = {name: files.get("real") or files.get("none") for name, files in predictions.items()}
    for name, files in (variants or {}).items():
        metrics |= _variants(name, main[name] or [], files, resamples=resamples, seed=seed)
    scorers = {name: {scorer: function(items) for scorer, function in SCORERS.items()} for name, items in main.items() if items}
    clusters = {name: describe_clusters(items) for name, items in main.items() if items}
    counts = {
        "cut": _count(predictions, lambda item: bool(item.get("cut"))),
        "empty": _count(predictions, lambda item: not item["prediction"].strip()),
    }
    return {"metrics": metrics, "scorers": scorers, "clusters": clusters, "pooled": pooled, **counts}


def _differences(name: str, files: dict[str, list[dict]], *, resamples: int, seed: int) -> dict[str, dict]:
    """`vqa/<name>/real_minus_<other>/...` for each other condition with predictions."""
    others = [other for other in REFERENCE_CONDITIONS if "real" in files and other in files]
    differences = {other: paired_difference(files["real"], files[other], resamples=resamples, seed=seed) for other in others}
    for key in dict.fromkeys(key for rows in differences.values() for key in rows):
        family = [rows[key] for rows in differences.values() if key in rows]  # baselines have no accuracy_unnormalised
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = adjusted
    return {f"vqa/{name}/real_minus_{other}/{key}": value for other, rows in differences.items() for key, value in rows.items()}


def _unchanged(name: str, files: dict[str, list[dict]], *, resamples: int, seed: int) -> dict[str, dict]:
    """`vqa/<name>/<condition>/<slice>/unchanged` for each condition in which the model gets another image or none."""
    others = [other for other in IMAGE_CONDITIONS if "real" in files and other in files]
    shares = {other: unchanged(files["real"], files[other], resamples=resamples, seed=seed) for other in others}
    return {f"vqa/{name}/{other}/{key}": row for other, rows in shares.items() for key, row in rows.items()}


def _variants(name: str, items: list[dict], files: dict[str, list[dict]], *, resamples: int, seed: int) -> dict[str, dict]:
    metrics: dict[str, dict] = {}
    for group, prefix, scores in (("orders", "order", order_scores), ("prompts", "prompt", prompt_scores)):
        numbered = sorted((key for key in files if key.startswith(prefix)), key=lambda key: int(key.removeprefix(prefix)))
        if numbered:
            rows = scores(items, [files[key] for key in numbered], resamples=resamples, seed=seed)
            metrics |= {f"vqa/{name}/{group}/{key}": row for key, row in rows.items()}
    return metrics


def _count(predictions: dict[str, dict[str, list[dict]]], matches: Callable[[dict], bool]) -> dict[str, dict[str, int]]:
    return {
        name: {condition: count for condition, items in files.items() if (count := sum(map(matches, items)))}
        for name, files in predictions.items()
    }


def pool_items(files: dict[str, list[dict]]) -> list[dict]:
    """The items of several benchmarks in one list. The benchmark name is added to ids and image names, so that they stay distinct."""
    return [_unique(name, item) for name, items in files.items() for item in items]


def _unique(benchmark: str, item: dict) -> dict:
    return {**item, "id": f"{benchmark}:{item['id']}", **({"image": f"{benchmark}:{item['image']}"} if item.get("image") else {})}


def summary_text(summary: dict) -> str:
    """The text that the command prints: per benchmark and condition the scores of all items, with 95% intervals.

    `unchanged` is the share of answers that are the same with the question's own image.

    `pooled` appears only if it pools several benchmarks; for one it would repeat its lines.
    """
    repeated = "pooled" if len(summary["pooled"]) == 1 else ""
    lines = [f"{name:16} 95% intervals by bootstrap over {clusters}" for name, clusters in summary["clusters"].items() if name != repeated]
    for key, message in (("cut", "answers reached max_new_tokens and were cut"), ("empty", "answers are empty")):
        for name, counts in summary[key].items():
            if name == repeated:
                continue
            lines += [f"{name:16} {condition:22} {count:,} {message}" for condition, count in counts.items()]
    for key, row in summary["metrics"].items():
        _, name, condition, part, scorer = key.split("/")
        if part == "all" and scorer in PRINTED_SCORES.get(condition, PRINTED_SCORES[""]) and name != repeated:
            line = f"{name:16} {condition:22} {scorer:9} {row['value']:7.3f}  [{row['low']:.3f}, {row['high']:.3f}]  n={row['n']:,}"
            lines.append(line + (f"  by wording {row['lowest']:.3f} to {row['highest']:.3f}" if "lowest" in row else ""))
    return "\n".join(lines)


def protocol_text(summary: dict) -> str:
    """The table of one predictions file under every published protocol: score in per cent, and why it differs from the others."""
    names = [name for name in summary["scorers"] if name != "pooled"]
    return "\n".join(
        line for name in names for line in [f"{name} under every protocol, in per cent:", *protocol_lines(summary["scorers"][name])]
    )
