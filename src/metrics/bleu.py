"""Sentence BLEU against one reference, as defined by nltk (Papineni et al. 2002; nltk.translate.bleu_score)."""

import math
import sys
from collections import Counter
from collections.abc import Sequence


def bleu1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Clipped unigram precision times the brevity penalty: `sentence_bleu([reference], prediction, weights=(1, 0, 0, 0))`.

    It is 0 if either side has no token.
    """
    return _matches(prediction, reference, 1) / len(prediction) * _brevity_penalty(prediction, reference) if prediction else 0.0


def bleu4(prediction: Sequence[str], reference: Sequence[str], *, old_nltk: bool) -> float:
    """`sentence_bleu([reference], prediction, smoothing_function=SmoothingFunction().method0)`: weights 1/4 each.

    `old_nltk`: up to nltk 3.2.5 the product stops at the first order without a match, so a correct answer of one word scores 1. From
    3.3 on such an order counts as the smallest positive float, and the same answer scores about 0.
    """
    if not _matches(prediction, reference, 1):
        return 0.0
    log_precisions = []
    for order in range(1, 5):
        matches = _matches(prediction, reference, order)
        if not matches and old_nltk:
            break
        log_precisions.append(math.log(matches / max(1, len(prediction) - order + 1) if matches else sys.float_info.min))
    return _brevity_penalty(prediction, reference) * math.exp(math.fsum(log_precisions) / 4)


def _matches(prediction: Sequence[str], reference: Sequence[str], order: int) -> int:
    """Number of n-grams of the prediction that are in the reference, each counted at most as often as there (clipped)."""
    counts = [Counter(zip(*(tokens[n:] for n in range(order)), strict=False)) for tokens in (prediction, reference)]
    return (counts[0] & counts[1]).total()


def _brevity_penalty(prediction: Sequence[str], reference: Sequence[str]) -> float:
    return math.exp(min(0.0, 1 - len(reference) / len(prediction)))
