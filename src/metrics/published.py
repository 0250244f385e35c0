"""Scorers as others published them, each with its peculiarities, written from their definitions.

Where a scorer knows one reference and an item has several, the best one counts. None of these is used in a headline.
"""

import functools
import string
from collections import Counter

from sacrebleu.metrics.bleu import BLEU

from src.metrics import bleu
from src.metrics.text import normalise

STRIPPED = str.maketrans("", "", string.punctuation)
# nltk's English stop words without those that have an apostrophe, which no word has once punctuation is stripped.
FREQUENT = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself they
them their theirs themselves what which who whom this that these those am is are was were be been being have has had having do does
did doing a an the and but if or because as until while of at by for with about against between into through during before after
above below to from up down in out on off over under again further then once here there when where why how all any both each few
more most other some such no nor not only own same so than too very s t can will just don should now d ll m o re ve y ain aren
couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
"""
STOP_WORDS = set(FREQUENT.split())


def bleu1_pathvqa(prediction: str, references: list[str]) -> float:
    """PathVQA's own evaluation (UCSD-AI4H/PathVQA, baselines/method1, `PVQAEvaluator`): mean sentence BLEU-1 of all questions.

    Tokens: `str(text).lower().split()`, so punctuation belongs to words and 'yes.' does not answer 'yes'.
    """
    said = prediction.lower().split()
    return max(bleu.bleu1(said, reference.lower().split()) for reference in references)


def bleu1_mmbert(prediction: str, references: list[str]) -> float:
    """MMBERT on VQA-Med-2019 (VirajBagal/MMBERT, vqamed2019/utils.py, `calculate_bleu_score`): mean sentence BLEU-1.

    Tokens are split at spaces after lower-casing; alternatives that the data separates by '#' are one long reference.
    """
    return bleu.bleu1(prediction.lower().split(), "#".join(references).lower().split())


def bleu1_van_sonsbeek(prediction: str, references: list[str]) -> float:
    """van Sonsbeek et al. 2023 (tjvsonsbeek/open-ended-medical-vqa, predict.py): `sentence_bleu` called with strings, not lists.

    So every character of the reference becomes a reference of its own: the score is the number of different characters of the
    prediction that the reference has, over the length of the prediction. No brevity penalty, case counts, and a perfect answer with
    a repeated letter scores below 1.
    """
    if not prediction:
        return 0.0
    return max(len(set(prediction) & set(reference)) / len(prediction) for reference in references)


def normalise_llava_med(text: str) -> str:
    """`normalize_word` of LLaVA-Med v1.0.0 and `clean_str` of MultiMedEval: the VQA challenge's after lower-casing, without commas."""
    return normalise(text.lower()).replace(",", "")


def bleu1_llava_med(prediction: str, references: list[str]) -> float:
    """LLaVA-Med v1.0.0 (llava/eval/run_eval.py, 'bleu_score_1'): mean sentence BLEU-1 of the open questions, after its normalisation."""
    said = normalise_llava_med(prediction).split()
    return max(bleu.bleu1(said, normalise_llava_med(reference).split()) for reference in references)


def recall_llava_med(prediction: str, references: list[str]) -> float:
    """LLaVA-Med v1.0.0 (eval_metrics/evaluate_metrics.py, `calculate_f1score`), its 'open' score: token recall of the open questions.

    Hits are counted as often as the *prediction* repeats them, so repeating a right word raises the recall.
    """
    said = Counter(normalise_llava_med(prediction).split())
    return max(_recall_llava_med(said, Counter(normalise_llava_med(reference).split())) for reference in references)


def _recall_llava_med(said: Counter, meant: Counter) -> float:
    hits = sum(count for word, count in said.items() if word in meant)
    missed = sum(count for word, count in meant.items() if word not in said)
    return hits / (hits + missed) if hits else 0.0


def closed_llava_med(prediction: str, references: list[str]) -> float:
    """LLaVA-Med after its fix (#35): the closed questions whose prediction has the answer as a substring, in the sense of letters.

    'no' is found in 'normal' and in 'cannot be told', and 'yes and no' answers both.
    """
    said = normalise_llava_med(prediction)
    return float(("yes" in said or "no" in said) and any(normalise_llava_med(reference) in said for reference in references))


def closed_llava_med_bug(prediction: str, references: list[str]) -> float:
    """LLaVA-Med before its fix, still in run_eval_pvqa.py of v1.0.0: a wrong yes or no is not counted at all.

    Such items are NaN here, and the mean is over the others: only answers without any 'yes' or 'no' lower the score.
    """
    said = normalise_llava_med(prediction)
    if "yes" not in said and "no" not in said:
        return 0.0
    return 1.0 if any(normalise_llava_med(reference) in said for reference in references) else float("nan")


def bleu1_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval (corentin-ryr/MultiMedEval, task_families.py): mean over all of torchmetrics' `BLEUScore(n_gram=1)` of each item."""
    return bleu1_llava_med(prediction, references)


def f1_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval: F1 of the *sets* of tokens after the same normalisation, mean over all items; 1e-8 is added below the fraction."""
    said = set(normalise_llava_med(prediction).split())
    return max(_f1_multimedeval(said, set(normalise_llava_med(reference).split())) for reference in references)


def _f1_multimedeval(said: set[str], meant: set[str]) -> float:
    if not said or not meant:
        return 0.0
    precision, recall = len(said & meant) / len(said), len(said & meant) / len(meant)
    return 2 * precision * recall / (precision + recall + 1e-8)


def recall_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval: the share of the answer's *set* of tokens that the prediction has, mean over all items."""
    said = set(normalise_llava_med(prediction).split())
    meant = [set(normalise_llava_med(reference).split()) for reference in references]
    return max(len(said & one) / len(one) if one else 0.0 for one in meant)


def open_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval: the questions whose answer is not yes or no and that have at least three quarters of its tokens in the prediction."""
    return float(recall_multimedeval(prediction, references) >= 0.75)


def closed_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval: the yes-or-no questions with the answer among the words of the prediction; 'not' answers 'no' as well."""
    said = set(normalise_llava_med(prediction).split())
    right = {normalise_llava_med(reference) for reference in references}
    return float(bool(said & (right | {"not"} if "no" in right else right)))


def bleu4_imageclef_old_nltk(prediction: str, references: list[str]) -> float:
    """ImageCLEF VQA-Med 2020 (abachaa/VQA-Med-2020, Evaluator-VQA-Med-2020.py) under nltk until 3.2.5: BLEU-4, mean over all.

    Lower case, ASCII punctuation deleted, nltk's word tokens without English stop words, Snowball stems; nothing against nothing is 1.
    The orders after the first one without a match are left out, so a right answer of one word scores 1.
    """
    return _bleu4_imageclef(prediction, references, old_nltk=True)


def bleu4_imageclef_new_nltk(prediction: str, references: list[str]) -> float:
    """The same evaluator under nltk from 3.3 on, the version that its requirements name: an order without a match makes the score 0.

    So a right answer of fewer than four words scores 0.
    """
    return _bleu4_imageclef(prediction, references, old_nltk=False)


def _bleu4_imageclef(prediction: str, references: list[str], *, old_nltk: bool) -> float:
    said = imageclef_words(prediction)
    scores = []
    for reference in references:
        meant = imageclef_words(reference)
        scores.append(bleu.bleu4(said, meant, old_nltk=old_nltk) if said or meant else 1.0)
    return max(scores)


@functools.lru_cache(maxsize=100_000)
def imageclef_words(text: str) -> tuple[str, ...]:
    """The pre-processing of the ImageCLEF evaluator.

    `nltk.word_tokenize` splits into sentences first, with a model to be downloaded; without punctuation there is one sentence, so its
    tokenizer of words alone gives the same.
    """
    tokenizer, stemmer = _nltk()
    tokens = tokenizer.tokenize(text.lower().translate(STRIPPED))
    return tuple(stemmer.stem(token) for token in tokens if token not in STOP_WORDS)


@functools.cache
def _nltk() -> tuple:
    """Imported by whoever scores so: it takes a second, and training imports this file for its validation."""
    from nltk.stem.snowball import SnowballStemmer
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer(), SnowballStemmer("english")


def corpus_bleu1(items: list[dict]) -> float | None:
    """sacrebleu's corpus BLEU of order 1: lower case, its default tokens (13a); matches and lengths are summed over all items first."""
    if not items:
        return None
    most = max(len(item["references"]) for item in items)
    streams = [[item["references"][n] if n < len(item["references"]) else None for item in items] for n in range(most)]
    scorer = BLEU(max_ngram_order=1, lowercase=True)
    said = [item["prediction"] for item in items]
    return scorer.corpus_score(said, streams).score / 100  # type: ignore[arg-type]  # None: that item has no such reference
