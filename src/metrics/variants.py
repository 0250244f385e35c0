"""Scores of the same questions under every order of their options and under several wordings. All functions are pure."""

import numpy as np

from src.metrics.vqa import accuracy, in_order, item_scores, means, score_item, slice_columns, slices


def order_scores(items: list[dict], orders: list[list[dict]], *, resamples: int, seed: int) -> dict[str, dict]:
    """`<slice>/given_order`, `accuracy` and `every_order` -> as `vqa.score`, over the questions with options.

    `items` are the answers to the options in the given order; `orders[k]` those with the options rotated by k + 1, for the questions with
    more than k + 1 options. `given_order` is the accuracy of `items`. `accuracy` is the mean over a question's orders, then over
    questions: it does not depend on where the dataset put the right option. `every_order` is the share of questions that are answered
    correctly in every order; guessing among n options reaches n ** -n. Raises `KeyError` for a question without an answer in one of its
    orders.
    """
    items = [item for item in items if len(item.get("choices", [])) > 1]
    by_id = [{item["id"]: item for item in answers} for answers in orders]
    right = [[score_item(accuracy, item), *_rotated(item, by_id)] for item in items]
    scores_N3 = np.array([[scores[0], np.mean(scores), np.min(scores)] for scores in right])
    return means(items, scores_N3, ["given_order", "accuracy", "every_order"], resamples=resamples, seed=seed)


def _rotated(item: dict, by_id: list[dict[str, dict]]) -> list[float]:
    return [score_item(accuracy, by_id[k][item["id"]]) for k in range(len(item["choices"]) - 1)]


def prompt_scores(items: list[dict], wordings: list[list[dict]], *, resamples: int, seed: int) -> dict[str, dict]:
    """`<slice>/<headline score>` -> as `vqa.score`, but the mean over `items` and the answers to the same questions in other `wordings`.

    `lowest` and `highest` are the scores of the worst and the best wording. Raises `UserError` if a wording has other questions.
    """
    every = [item_scores(answers) for answers in (items, *(in_order(items, answers) for answers in wordings))]
    rows = means(items, np.mean(every, axis=0), resamples=resamples, seed=seed)
    each_WK = np.array([np.nanmean(slice_columns(slices(items), scores_NH)[0], axis=0) for scores_NH in every])
    for row, low, high in zip(rows.values(), each_WK.min(axis=0), each_WK.max(axis=0), strict=True):
        row |= {"lowest": float(low), "highest": float(high)}
    return rows
