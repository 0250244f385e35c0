"""Every published protocol for one predictions file: its score, and a line on what makes its number differ from the others.

`src/metrics/published.py` and `src/metrics/harnesses.py` define the scores of single answers.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from src.metrics import harnesses, published, vqa
from src.metrics.vqa import Scorer, has_closed_answers, is_closed, is_closed_question, score_item

Score = Callable[[list[dict]], float | None]
Predicate = Callable[[dict], bool]


class Protocol(NamedTuple):
    """`score` is the score of all items of a predictions file, or None if no question applies. `note`: why its number differs."""

    score: Score
    note: str


def _any(item: dict) -> bool:
    return True


def _open(item: dict) -> bool:
    return not is_closed_question(item)


def _yes_or_no(item: dict) -> bool:
    return is_closed(item["references"])


def _not_yes_or_no(item: dict) -> bool:
    return not _yes_or_no(item)


def _medevalkit_closed(item: dict) -> bool:
    return harnesses.asks_yes_or_no(item["references"])


def _medevalkit_open(item: dict) -> bool:
    return not _medevalkit_closed(item)


def _has_choices(item: dict) -> bool:
    return bool(item.get("choices"))


def _mean_of(score: Callable[[dict], float], applies: Predicate) -> Score:
    """The mean of an item score over the items that it applies to. Items with the score NaN are not counted."""

    @functools.wraps(score)
    def value(items: list[dict]) -> float | None:
        scores = [score(item) for item in items if applies(item)]
        defined = [score for score in scores if score == score]
        return float(np.mean(defined)) if defined else None

    return value


def _mean(scorer: Scorer, applies: Predicate) -> Score:
    @functools.wraps(scorer)
    def score(item: dict) -> float:
        return score_item(scorer, item)

    return _mean_of(score, applies)


def _total(closed: Scorer, otherwise: Scorer, is_closed: Predicate, doc: str) -> Score:
    """The mean of all items under two rules, one for closed questions."""

    def score(item: dict) -> float:
        return (closed if is_closed(item) else otherwise)(item["prediction"], item["references"])

    score.__doc__ = doc
    return _mean_of(score, _any)


def _verdict(item: dict) -> float:
    return float(item["judged"])


def judged_medevalkit(items: list[dict]) -> float | None:
    """MedEvalKit, VQA-RAD with a judge (VQA_RAD.py): yes/no questions by `closed_medevalkit`, others by `judged`, the judge's verdict."""
    return _judged(items, lambda item: _closed_right(item) if _medevalkit_closed(item) else _verdict(item), needs=_medevalkit_open)


def judged_medevalkit_pathvqa_bug(items: list[dict]) -> float | None:
    """MedEvalKit, PathVQA with a judge as its code runs (PATH_VQA.py:122): right yes/no answers are reset to 0, so only others count."""
    return _judged(items, lambda item: 0.0 if _medevalkit_closed(item) else _verdict(item), needs=_medevalkit_open)


def judged_medevalkit_slake_bug(items: list[dict]) -> float | None:
    """MedEvalKit, SLAKE with a judge as its code runs (SLAKE.py:153): closed answers count once by rule and again by verdict.

    It can exceed 1.
    """
    rule = harnesses.closed_slake_bug
    return _judged(
        items,
        lambda item: _verdict(item) + (rule(item["prediction"], item["references"]) if is_closed_question(item) else 0.0),
        needs=_any,
    )


def _closed_right(item: dict) -> float:
    return harnesses.yes_or_no(item["prediction"], item["references"])


def _judged(items: list[dict], score: Callable[[dict], float], *, needs: Predicate) -> float | None:
    """None if no item has a verdict, or one that needs a verdict has none."""
    complete = all("judged" in item for item in items if needs(item)) and any("judged" in item for item in items)
    return float(np.mean([score(item) for item in items])) if complete else None


CLOSED_AND_OPEN = "MedEvalKit without a judge, VQA-RAD and PathVQA: `closed_medevalkit` for yes/no, `open_medevalkit` for other questions."
CLOSED_AND_OPEN_SLAKE = "MedEvalKit without a judge, SLAKE: `closed_medevalkit_slake` and `open_medevalkit_slake` by its answer_type."
CLOSED_AND_OPEN_BUG = "MedEvalKit without a judge, SLAKE as its code runs: `closed_medevalkit_slake_bug` and `open_medevalkit_slake`."

PROTOCOLS: dict[str, Protocol] = {
    "bleu1": Protocol(_mean(vqa.bleu1, _any), "ours: words without punctuation; long answers lose by precision, short ones by brevity"),
    "exact": Protocol(_mean(vqa.exact, _any), "equality after the normalisation of the VQA challenge; a longer right answer is wrong"),
    "f1": Protocol(_mean(vqa.f1, _any), "overlap of words; order does not count"),
    "accuracy": Protocol(_mean(vqa.accuracy, has_closed_answers), "closed questions only; the first word decides yes or no"),
    "bleu1_pathvqa": Protocol(_mean(published.bleu1_pathvqa, _any), "as bleu1, but punctuation is part of a word: 'yes.' is wrong"),
    "bleu1_mmbert": Protocol(_mean(published.bleu1_mmbert, _any), "as bleu1_pathvqa; alternatives form one long reference"),
    "bleu1_multimedeval": Protocol(_mean(published.bleu1_multimedeval, _any), "as bleu1 without articles; number words are digits"),
    "bleu1_llava_med": Protocol(_mean(published.bleu1_llava_med, _open), "as bleu1_multimedeval, open questions only"),
    "bleu1_van_sonsbeek": Protocol(_mean(published.bleu1_van_sonsbeek, _any), "compares characters, so wrong answers score too"),
    "corpus_bleu1": Protocol(published.corpus_bleu1, "one score of all answers together: long ones weigh more, one brevity penalty"),
    "bleu4_imageclef_old_nltk": Protocol(
        _mean(published.bleu4_imageclef_old_nltk, _any), "stems without stop words ('no' is one); orders without a match are ignored"
    ),
    "bleu4_imageclef_new_nltk": Protocol(
        _mean(published.bleu4_imageclef_new_nltk, _any), "the same, but answers of fewer than four words score 0"
    ),
    "f1_multimedeval": Protocol(_mean(published.f1_multimedeval, _any), "as f1, but each word counts once; no articles"),
    "recall_llava_med": Protocol(_mean(published.recall_llava_med, _open), "open only; a long answer that contains the words is right"),
    "closed_llava_med": Protocol(_mean(published.closed_llava_med, is_closed_question), "closed only; substring: 'normal' is no"),
    "closed_llava_med_bug": Protocol(_mean(published.closed_llava_med_bug, is_closed_question), "closed only; wrong answers not counted"),
    "recall_multimedeval": Protocol(_mean(published.recall_multimedeval, _any), "as recall_llava_med on all questions, each word once"),
    "closed_multimedeval": Protocol(_mean(published.closed_multimedeval, _yes_or_no), "yes/no only; the answer is one of the words"),
    "open_multimedeval": Protocol(_mean(published.open_multimedeval, _not_yes_or_no), "not yes/no; three quarters of the words suffice"),
    "total_medevalkit": Protocol(
        _total(harnesses.yes_or_no, harnesses.open_exact, _medevalkit_closed, CLOSED_AND_OPEN),
        "VQA-RAD, PathVQA: a substring decides yes/no, all else needs equality with punctuation",
    ),
    "closed_medevalkit": Protocol(_mean(harnesses.yes_or_no, _medevalkit_closed), "yes/no only; substring, wrong if both occur"),
    "open_medevalkit": Protocol(_mean(harnesses.open_exact, _medevalkit_open), "not yes/no; equality in lower case, punctuation counts"),
    "total_medevalkit_slake": Protocol(
        _total(harnesses.closed_slake, harnesses.open_exact_slake, is_closed_question, CLOSED_AND_OPEN_SLAKE),
        "SLAKE: the data set says what is closed; others as total_medevalkit",
    ),
    "total_medevalkit_slake_bug": Protocol(
        _total(harnesses.closed_slake_bug, harnesses.open_exact_slake, is_closed_question, CLOSED_AND_OPEN_BUG),
        "SLAKE as its code runs: 'Yes' and 'No' need equality, 'yes, it is' is wrong",
    ),
    "closed_medevalkit_slake": Protocol(_mean(harnesses.closed_slake, is_closed_question), "closed only; substring for yes/no"),
    "closed_medevalkit_slake_bug": Protocol(_mean(harnesses.closed_slake_bug, is_closed_question), "closed only; equality for 'Yes', 'No'"),
    "open_medevalkit_slake": Protocol(_mean(harnesses.open_exact_slake, _open), "open only; equality, white space at the ends counts"),
    "bleu1_medevalkit": Protocol(_mean(harnesses.bleu1_medevalkit, _medevalkit_open), "not yes/no; commas stay part of words"),
    "f1_medevalkit": Protocol(_mean(harnesses.f1_medevalkit, _medevalkit_open), "not yes/no; sets of words with punctuation"),
    "f1_medevalkit_bug": Protocol(_mean(harnesses.f1_medevalkit_bug, _medevalkit_open), "its column 'f1' is the recall of these sets"),
    "choice_medevalkit": Protocol(
        _mean_of(harnesses.choice_medevalkit, _has_choices), "options only; an unclear reply counts as the most similar option"
    ),
    "choice_medevalkit_bug": Protocol(_mean_of(harnesses.choice_medevalkit_bug, _has_choices), "the same for replies of any length"),
    "judged_medevalkit": Protocol(judged_medevalkit, "needs judge.url; a paraphrase is right"),
    "judged_medevalkit_pathvqa_bug": Protocol(judged_medevalkit_pathvqa_bug, "needs judge.url; right yes/no answers count 0"),
    "judged_medevalkit_slake_bug": Protocol(judged_medevalkit_slake_bug, "needs judge.url for all; right closed answers count twice"),
    "exact_lmms_eval": Protocol(_mean(harnesses.exact_lmms_eval, _any), "SLAKE: as exact, but with articles and without brackets"),
    "open_lmms_eval": Protocol(_mean(harnesses.exact_lmms_eval, _open), "exact_lmms_eval, open only"),
    "closed_lmms_eval": Protocol(_mean(harnesses.exact_lmms_eval, is_closed_question), "exact_lmms_eval, closed only; 'yeah' is yes"),
    "choice_lmms_eval": Protocol(
        _mean_of(harnesses.choice_lmms_eval, _has_choices), "MedQA: letters only; a reply with the option's text is a random guess"
    ),
}
SCORERS: dict[str, Score] = {name: protocol.score for name, protocol in PROTOCOLS.items()}


def protocol_lines(scores: dict[str, float | None]) -> list[str]:
    """A line per protocol that applies: the score in per cent and why it differs; `scores` are those of `SCORERS`."""
    notes = {name: protocol.note for name, protocol in PROTOCOLS.items()}
    return [f"{name:30} {100 * value:6.1f}  {notes.get(name, '')}".rstrip() for name, value in scores.items() if value is not None]
