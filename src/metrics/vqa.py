"""Headline scores of free-text answers, by slice and with intervals. All functions are pure.

An item is a line of a predictions file: `id`, `references` (list), `prediction`, and optionally `type`, `closed`, `choices` and `image`,
the cluster of the answer. Scores are in [0, 1]; with several references the best score counts.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from src.metrics import bleu, statistics
from src.metrics.text import normalise, words
from src.runtime.errors import UserError

Scorer = Callable[[str, list[str]], float]


def bleu1(prediction: str, references: list[str]) -> float:
    """Sentence BLEU-1 on lower-cased runs of letters and digits, with the brevity penalty of nltk; best reference, mean over items.

    On text without punctuation this equals the official definition of PathVQA. Unlike there, 'Yes.' matches 'yes', and 'x-ray' 'x ray'.
    """
    tokens = words(prediction)
    return max(bleu.bleu1(tokens, words(reference)) for reference in references)


def exact(prediction: str, references: list[str]) -> float:
    """1 if the prediction equals a reference after the normalisation of the VQA challenge; the accuracy of ImageCLEF VQA-Med 2020."""
    text = normalise(prediction)
    return float(bool(text) and any(text == normalise(reference) for reference in references))


def f1(prediction: str, references: list[str]) -> float:
    """F1 of the multisets of tokens, as in SQuAD but with the tokens of `bleu1` and with articles; best reference, mean over items."""
    predicted = Counter(words(prediction))
    return max(_f1(predicted, Counter(words(reference))) for reference in references)


def _f1(predicted: Counter, expected: Counter) -> float:
    return 2 * (predicted & expected).total() / max(1, predicted.total() + expected.total())


def accuracy(prediction: str, references: list[str]) -> float:
    """Accuracy of questions with a closed set of answers. Yes/no questions compare the first word; questions with options compare the
    text with the correct option, ignoring case and white space; others ('left or right?') use `exact`."""
    if is_closed(references):
        return float(words(prediction)[:1] in [words(reference) for reference in references])
    return exact(prediction, references)


def option(prediction: str, references: list[str]) -> float:
    """1 if the prediction is the correct option, ignoring case and white space. Normalisation would make '> 5 cm' equal '< 5 cm'."""
    text = _folded(prediction)
    return float(bool(text) and any(text == _folded(reference) for reference in references))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def score_item(scorer: Scorer, item: dict) -> float:
    """The score of an item. `accuracy` of an item with options compares the options."""
    return (option if scorer is accuracy and item.get("choices") else scorer)(item["prediction"], item["references"])


def is_closed(references: list[str]) -> bool:
    """Whether every reference is yes or no."""
    return all(words(reference) in (["yes"], ["no"]) for reference in references)


def is_closed_question(item: dict) -> bool:
    """`closed` if the dataset states it (in SLAKE 'left or right?' is closed too), else a `type` of open or closed, else the references."""
    if isinstance(item.get("closed"), bool):
        return item["closed"]
    kind = str(item.get("type") or "").lower()
    return kind == "closed" if kind in ("open", "closed") else is_closed(item["references"])


def has_closed_answers(item: dict) -> bool:
    """Whether `accuracy` is defined: the item has options or is closed."""
    return bool(item.get("choices")) or is_closed_question(item)


HEADLINE: dict[str, Scorer] = {"bleu1": bleu1, "exact": exact, "f1": f1, "accuracy": accuracy}
NAMES = (*HEADLINE, "accuracy_unnormalised")  # the last ranks options by total likelihood instead of likelihood per token


def slices(items: list[dict]) -> dict[str, np.ndarray]:
    """Masks (N,) of the non-empty slices: all, open and closed questions, and each question type other than open and closed.

    Items with `seen` also form the slices `seen` and `unseen` (in or not in the training data). It is absent where this is unknown.
    """
    closed = np.array([is_closed_question(item) for item in items], dtype=bool)
    types = np.array([str(item.get("type") or "") for item in items])
    masks = {"all": np.ones(len(items), dtype=bool), "open": ~closed, "closed": closed}
    names = [name for name in sorted(set(types.tolist())) if name.lower() not in ("", "open", "closed")]
    masks |= {f"type={name.replace('/', '-')}": types == name for name in names}
    for name, value in (("unseen", False), ("seen", True)):
        masks[name] = np.array([item.get("seen") is value for item in items], dtype=bool)
    return {name: mask for name, mask in masks.items() if mask.any()}


def score(items: list[dict], *, resamples: int, seed: int) -> dict[str, dict]:
    """`<slice>/<headline score>` -> value, 95% interval (bootstrap over images) and n, the number of questions in the slice.

    A question without `image` is its own cluster. A score is included if it is defined for every question of the slice: `accuracy` if
    all have a closed set of answers, `accuracy_unnormalised` if all have options whose likelihoods were compared.
    """
    values, columns = _columns(slices(items), _scores(items))
    sums, counts = statistics.by_cluster(values, _clusters(items))
    resampled = statistics.bootstrap(sums, counts, resamples=resamples, seed=seed)
    low, high = statistics.interval(resampled, clusters_K=(counts > 0).sum(axis=0), widest=(0.0, 1.0))
    return _table(columns, sums, counts, low, high)


def paired_difference(items: list[dict], others: list[dict], *, resamples: int, seed: int) -> dict[str, dict]:
    """As `score`, but for the difference between two answers to the same questions, `items` minus `others`, with `p`.

    `p` is two-sided, from sign flips of whole images; adjust a family of them with `statistics.holm`. Raises `UserError` if the two do
    not answer the same questions.
    """
    others = _in_order(items, others)
    differences = _scores(items) - _scores(others)
    values, columns = _columns(slices(items), differences)
    sums, counts = statistics.by_cluster(values, _clusters(items))
    resampled = statistics.bootstrap(sums, counts, resamples=resamples, seed=seed)
    low, high = statistics.interval(resampled, clusters_K=(counts > 0).sum(axis=0), widest=(-1.0, 1.0))
    p = statistics.sign_flip(sums, resamples=resamples, seed=seed)
    return {key: {**row, "p": float(p[k])} for k, (key, row) in enumerate(_table(columns, sums, counts, low, high).items())}


def unchanged(items: list[dict], others: list[dict], *, resamples: int, seed: int) -> dict[str, dict]:
    """`<slice>/unchanged` -> as `score`, but the share of answers that are equal in `items` and `others`, ignoring case and white space.

    With `others` from another image condition these are the answers that need no image. Raises `UserError` as `paired_difference`.
    """
    pairs = zip(items, _in_order(items, others), strict=True)
    same_N = np.array([_folded(one["prediction"]) == _folded(other["prediction"]) for one, other in pairs], dtype=float)
    masks = slices(items)
    values = np.stack([np.where(mask, same_N, np.nan) for mask in masks.values()], axis=1)
    sums, counts = statistics.by_cluster(values, _clusters(items))
    resampled = statistics.bootstrap(sums, counts, resamples=resamples, seed=seed)
    low, high = statistics.interval(resampled, clusters_K=(counts > 0).sum(axis=0), widest=(0.0, 1.0))
    return _table([f"{name}/unchanged" for name in masks], sums, counts, low, high)


def _in_order(items: list[dict], others: list[dict]) -> list[dict]:
    """`others` in the order of the questions of `items`. Raises `UserError` if the two do not answer the same questions."""
    other_by_id = {item["id"]: item for item in others}
    ids = {item["id"] for item in items}
    if other_by_id.keys() != ids or len(others) != len(items):
        raise UserError(
            f"paired difference: needs the same questions on both sides, found {len(items)} and {len(others)} with "
            f"{len(other_by_id.keys() & ids)} in common; compare files of the same benchmark"
        )
    return [other_by_id[item["id"]] for item in items]


def describe_clusters(items: list[dict]) -> str:
    """A description of the clusters that the bootstrap draws."""
    images = len({item.get("image") for item in items} - {None, ""})
    single = sum(not item.get("image") for item in items)
    if not images:
        return f"{single:,} questions without an image name: if several share an image, the intervals are too narrow"
    return f"{images:,} images" + (f" and {single:,} questions without an image name" if single else "")


def _clusters(items: list[dict]) -> list[str]:
    return [f"image {item['image']}" if item.get("image") else f"id {item['id']}" for item in items]


def _scores(items: list[dict]) -> np.ndarray:
    """The scores `NAMES` (N, H) of each item; NaN if a score is not defined for it."""
    return np.array([_item_scores(item) for item in items], dtype=float)


def _item_scores(item: dict) -> list[float]:
    prediction, references = item["prediction"], item["references"]
    closed = score_item(accuracy, item) if has_closed_answers(item) else np.nan
    unnormalised = option(item["prediction_unnormalised"], references) if item.get("prediction_unnormalised") else np.nan
    return [bleu1(prediction, references), exact(prediction, references), f1(prediction, references), closed, unnormalised]


def _columns(masks: dict[str, np.ndarray], scores_NH: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """One column per slice and score that is defined for all its questions: values (N, K), NaN outside the slice, and their keys."""
    columns, keys = [], []
    for part, mask in masks.items():
        for h, name in enumerate(NAMES):
            if not np.isnan(scores_NH[mask, h]).any():
                columns.append(np.where(mask, scores_NH[:, h], np.nan))
                keys.append(f"{part}/{name}")
    return np.stack(columns, axis=1), keys


def _table(keys: list[str], sums_CK: np.ndarray, counts_CK: np.ndarray, low_K: np.ndarray, high_K: np.ndarray) -> dict[str, dict]:
    value, n = sums_CK.sum(axis=0) / counts_CK.sum(axis=0), counts_CK.sum(axis=0)
    return {key: {"value": float(value[k]), "low": float(low_K[k]), "high": float(high_K[k]), "n": int(n[k])} for k, key in enumerate(keys)}
