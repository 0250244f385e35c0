"""BLEU of one sentence against one reference, as nltk defines it (Papineni et al. 2002; nltk.translate.bleu_score)."""

import math
import sys
from collections import Counter
from collections.abc import Sequence


def bleu1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Clipped unigram precision times the brevity penalty: `sentence_bleu([reference], prediction, weights=(1, 0, 0, 0))`.

    0 where either side has no token.
    """
    return _matches(prediction, reference, 1) / len(prediction) * _brevity(prediction, reference) if prediction else 0.0


def bleu4(prediction: Sequence[str], reference: Sequence[str], *, old_nltk: bool) -> float:
    """`sentence_bleu([reference], prediction, smoothing_function=SmoothingFunction().method0)`: weights 1/4 each.

    `old_nltk`: until nltk 3.2.5 the product stopped at the first order without a match, so that a right answer of one word scored 1;
    from 3.3 on such an order counts as the smallest positive float, and the same answer scores about 0.
    """
    if not _matches(prediction, reference, 1):
        return 0.0
    logs = []
    for order in range(1, 5):
        matches = _matches(prediction, reference, order)
        if not matches and old_nltk:
            break
        logs.append(math.log(matches / max(1, len(prediction) - order + 1) if matches else sys.float_info.min))
    return _brevity(prediction, reference) * math.exp(math.fsum(logs) / 4)


def _matches(prediction: Sequence[str], reference: Sequence[str], order: int) -> int:
    """How many n-grams of the prediction the reference has, each at most as often as there."""
    both = [Counter(zip(*(tokens[n:] for n in range(order)), strict=False)) for tokens in (prediction, reference)]
    return (both[0] & both[1]).total()


def _brevity(prediction: Sequence[str], reference: Sequence[str]) -> float:
    return math.exp(min(0.0, 1 - len(reference) / len(prediction)))
