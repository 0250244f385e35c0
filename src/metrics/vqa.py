"""Scores of free-text answers: what the headlines use, by slice and with intervals. Pure functions on predictions.

An item is a line of a predictions file: `id`, `references` (list), `prediction`, and optionally `type`, `closed`, `choices` and `image`,
the cluster that answers belong to. Scores lie in [0, 1]; with several references the best one counts.
"""

import functools
from collections import Counter
from collections.abc import Callable

import numpy as np

from src.metrics import bleu, published, statistics
from src.metrics.text import normalise, words
from src.runtime.errors import UserError

Scorer = Callable[[str, list[str]], float]


def bleu1(prediction: str, references: list[str]) -> float:
    """Sentence BLEU-1 on lower-cased runs of letters and digits, with nltk's brevity penalty; best reference, mean over items.

    On text without punctuation this is PathVQA's official definition. Unlike it, 'Yes.' answers 'yes' here, and 'x-ray' is 'x ray'.
    """
    said = words(prediction)
    return max(bleu.bleu1(said, words(reference)) for reference in references)


def exact(prediction: str, references: list[str]) -> float:
    """1 if the prediction equals a reference after the normalisation of the VQA challenge; the accuracy of ImageCLEF VQA-Med 2020."""
    said = normalise(prediction)
    return float(bool(said) and any(said == normalise(reference) for reference in references))


def f1(prediction: str, references: list[str]) -> float:
    """F1 of the multisets of tokens (as SQuAD counts, on the tokens of `bleu1`, articles kept); best reference, mean over items."""
    said = Counter(words(prediction))
    return max(_f1(said, Counter(words(reference))) for reference in references)


def _f1(said: Counter, meant: Counter) -> float:
    return 2 * (said & meant).total() / max(1, said.total() + meant.total())


def accuracy(prediction: str, references: list[str]) -> float:
    """Of questions with a closed set of answers. Yes or no: is the first word the right one? With options: is the text the right option,
    case and white space apart? Else ('left or right?'): `exact`."""
    if is_closed(references):
        return float(words(prediction)[:1] in [words(reference) for reference in references])
    return exact(prediction, references)


def option(prediction: str, references: list[str]) -> float:
    """1 if the prediction is the right option, case and white space apart: any normalisation would make '> 5 cm' equal '< 5 cm'."""
    said = " ".join(prediction.casefold().split())
    return float(bool(said) and any(said == " ".join(reference.casefold().split()) for reference in references))


def scored(scorer: Scorer, item: dict) -> float:
    """The score of an item; with options, `accuracy` compares those."""
    return (option if scorer is accuracy and item.get("choices") else scorer)(item["prediction"], item["references"])


def is_closed(references: list[str]) -> bool:
    """Every reference is yes or no."""
    return all(words(reference) in (["yes"], ["no"]) for reference in references)


def _any(item: dict) -> bool:
    return True


def _closed(item: dict) -> bool:
    """As `closed` says where the dataset does (SLAKE closes 'left or right?' too), else a `type` of open or closed, else the references."""
    if isinstance(item.get("closed"), bool):
        return item["closed"]
    said = str(item.get("type") or "").lower()
    return said == "closed" if said in ("open", "closed") else is_closed(item["references"])


def _open(item: dict) -> bool:
    return not _closed(item)


def _yes_or_no(item: dict) -> bool:
    return is_closed(item["references"])


def _not_yes_or_no(item: dict) -> bool:
    return not _yes_or_no(item)


def _decided(item: dict) -> bool:
    return bool(item.get("choices")) or _closed(item)


HEADLINE: dict[str, Scorer] = {"bleu1": bleu1, "exact": exact, "f1": f1, "accuracy": accuracy}
NAMES = (*HEADLINE, "accuracy_unnormalised")  # the last: of options, by likelihood as a whole instead of per token


def _mean(scorer: Scorer, over: Callable[[dict], bool]) -> Callable[[list[dict]], float | None]:
    @functools.wraps(scorer)
    def value(items: list[dict]) -> float | None:
        scores = [scored(scorer, item) for item in items if over(item)]
        defined = [score for score in scores if score == score]
        return float(np.mean(defined)) if defined else None

    return value


# Of a whole predictions file, for the table that shows what the choice of scorer does; None where it has no such question.
SCORERS: dict[str, Callable[[list[dict]], float | None]] = {
    "bleu1": _mean(bleu1, _any),
    "exact": _mean(exact, _any),
    "f1": _mean(f1, _any),
    "accuracy": _mean(accuracy, _decided),
    "bleu1_pathvqa": _mean(published.bleu1_pathvqa, _any),
    "bleu1_mmbert": _mean(published.bleu1_mmbert, _any),
    "bleu1_multimedeval": _mean(published.bleu1_multimedeval, _any),
    "bleu1_llava_med": _mean(published.bleu1_llava_med, _open),
    "bleu1_van_sonsbeek": _mean(published.bleu1_van_sonsbeek, _any),
    "corpus_bleu1": published.corpus_bleu1,
    "bleu4_imageclef_old_nltk": _mean(published.bleu4_imageclef_old_nltk, _any),
    "bleu4_imageclef_new_nltk": _mean(published.bleu4_imageclef_new_nltk, _any),
    "f1_multimedeval": _mean(published.f1_multimedeval, _any),
    "recall_llava_med": _mean(published.recall_llava_med, _open),
    "closed_llava_med": _mean(published.closed_llava_med, _closed),
    "closed_llava_med_bug": _mean(published.closed_llava_med_bug, _closed),
    "recall_multimedeval": _mean(published.recall_multimedeval, _any),
    "closed_multimedeval": _mean(published.closed_multimedeval, _yes_or_no),
    "open_multimedeval": _mean(published.open_multimedeval, _not_yes_or_no),
}


def slices(items: list[dict]) -> dict[str, np.ndarray]:
    """Masks (N,) of all questions, open and closed ones, and of each question type; only those that have a question.

    Where items say whether training data held them (`seen`), also of those that it did not hold (`unseen`) and did. An item of which
    that is unknown does not say it.
    """
    closed = np.array([_closed(item) for item in items], dtype=bool)
    types = np.array([str(item.get("type") or "") for item in items])
    masks = {"all": np.ones(len(items), dtype=bool), "open": ~closed, "closed": closed}
    masks |= {f"type={name.replace('/', '-')}": types == name for name in sorted(set(types.tolist()) - {""})}
    for name, value in (("unseen", False), ("seen", True)):
        masks[name] = np.array([item.get("seen") is value for item in items], dtype=bool)
    return {name: mask for name, mask in masks.items() if mask.any()}


def score(items: list[dict], *, resamples: int, seed: int) -> dict[str, dict]:
    """`<slice>/<headline score>` -> value, 95% interval (bootstrap over images) and n, the questions of the slice.

    A question without `image` is its own cluster. A score stands where it is defined for every question of the slice: `accuracy` where
    all have a closed set of answers, `accuracy_unnormalised` where all have options whose likelihoods were compared.
    """
    values, columns = _columns(slices(items), _scores(items))
    sums, counts = statistics.by_cluster(values, _clusters(items))
    resampled = statistics.bootstrap(sums, counts, resamples=resamples, seed=seed)
    low, high = statistics.interval(resampled, clusters_K=(counts > 0).sum(axis=0), widest=(0.0, 1.0))
    return _table(columns, sums, counts, low, high)


def paired(items: list[dict], others: list[dict], *, resamples: int, seed: int) -> dict[str, dict]:
    """As `score`, for the difference of two answers to the same questions, `items` minus `others`, with `p`.

    `p` is two-sided, by flipping the sign of whole images; adjust it with `statistics.holm` where several are read together.
    Raises UserError where the two do not answer the same questions.
    """
    found = {item["id"]: item for item in others}
    if found.keys() != {item["id"] for item in items} or len(others) != len(items):
        raise UserError(
            f"a paired difference needs the same questions on both sides: {len(items)} against {len(others)}, "
            f"{len(found.keys() & {item['id'] for item in items})} in common"
        )
    differences = _scores(items) - _scores([found[item["id"]] for item in items])
    values, columns = _columns(slices(items), differences)
    sums, counts = statistics.by_cluster(values, _clusters(items))
    resampled = statistics.bootstrap(sums, counts, resamples=resamples, seed=seed)
    low, high = statistics.interval(resampled, clusters_K=(counts > 0).sum(axis=0), widest=(-1.0, 1.0))
    p = statistics.sign_flip(sums, resamples=resamples, seed=seed)
    return {key: {**row, "p": float(p[k])} for k, (key, row) in enumerate(_table(columns, sums, counts, low, high).items())}


def clusters(items: list[dict]) -> str:
    """What the bootstrap draws, in words."""
    images = len({item.get("image") for item in items} - {None, ""})
    alone = sum(not item.get("image") for item in items)
    if not images:
        return f"{alone:,} questions, none of which names an image: if several share one, the intervals are too narrow"
    return f"{images:,} images" + (f" and {alone:,} questions that name none" if alone else "")


def _clusters(items: list[dict]) -> list[str]:
    return [f"image {item['image']}" if item.get("image") else f"id {item['id']}" for item in items]


def _scores(items: list[dict]) -> np.ndarray:
    """`NAMES` (N, H) of each item; NaN where a score is not defined for it."""
    return np.array([_row(item) for item in items], dtype=float)


def _row(item: dict) -> list[float]:
    said, right = item["prediction"], item["references"]
    closed = scored(accuracy, item) if _decided(item) else np.nan
    whole = option(item["prediction_unnormalised"], right) if item.get("prediction_unnormalised") else np.nan
    return [bleu1(said, right), exact(said, right), f1(said, right), closed, whole]


def _columns(masks: dict[str, np.ndarray], scores_NH: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """One column per slice and score that is defined for all of its questions: values (N, K), NaN outside of it, and their keys."""
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
