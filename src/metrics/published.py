"""Scorers of other publications with their peculiarities, implemented from their definitions.

If a scorer takes one reference and an item has several, the best score counts. No headline score uses these.
"""

import functools
import string
from collections import Counter

from sacrebleu.metrics.bleu import BLEU

from src.metrics import bleu
from src.metrics.text import normalise

REMOVE_PUNCTUATION = str.maketrans("", "", string.punctuation)
# English stop words of nltk, without those with an apostrophe: punctuation is removed before they are compared.
FUNCTION_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself they
them their theirs themselves what which who whom this that these those am is are was were be been being have has had having do does
did doing a an the and but if or because as until while of at by for with about against between into through during before after
above below to from up down in out on off over under again further then once here there when where why how all any both each few
more most other some such no nor not only own same so than too very s t can will just don should now d ll m o re ve y ain aren
couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
"""
STOP_WORDS = set(FUNCTION_WORDS.split())


def bleu1_pathvqa(prediction: str, references: list[str]) -> float:
    """Evaluation of PathVQA (UCSD-AI4H/PathVQA, baselines/method1, `PVQAEvaluator`): mean sentence BLEU-1 of all questions.

    Tokens are `str(text).lower().split()`, so punctuation is part of a word and 'yes.' does not match 'yes'.
    """
    tokens = prediction.lower().split()
    return max(bleu.bleu1(tokens, reference.lower().split()) for reference in references)


def bleu1_mmbert(prediction: str, references: list[str]) -> float:
    """MMBERT on VQA-Med-2019 (VirajBagal/MMBERT, vqamed2019/utils.py, `calculate_bleu_score`): mean sentence BLEU-1.

    The text is lower-cased and split at spaces. Alternatives, which the data separates by '#', form one long reference.
    """
    return bleu.bleu1(prediction.lower().split(), "#".join(references).lower().split())


def bleu1_van_sonsbeek(prediction: str, references: list[str]) -> float:
    """van Sonsbeek et al. 2023 (tjvsonsbeek/open-ended-medical-vqa, predict.py): `sentence_bleu` called with strings, not lists.

    Each character of the reference thus becomes a reference: the score is the number of distinct characters of the prediction that are
    in the reference, divided by the length of the prediction. There is no brevity penalty, upper and lower case differ, and a perfect
    answer with a repeated letter scores below 1.
    """
    if not prediction:
        return 0.0
    return max(len(set(prediction) & set(reference)) / len(prediction) for reference in references)


def normalise_llava_med(text: str) -> str:
    """`normalize_word` of LLaVA-Med v1.0.0 and `clean_str` of MultiMedEval: lower case, `normalise`, then no commas."""
    return normalise(text.lower()).replace(",", "")


def bleu1_llava_med(prediction: str, references: list[str]) -> float:
    """LLaVA-Med v1.0.0 (llava/eval/run_eval.py, 'bleu_score_1'): mean sentence BLEU-1 of the open questions, after its normalisation."""
    tokens = normalise_llava_med(prediction).split()
    return max(bleu.bleu1(tokens, normalise_llava_med(reference).split()) for reference in references)


def recall_llava_med(prediction: str, references: list[str]) -> float:
    """LLaVA-Med v1.0.0 (eval_metrics/evaluate_metrics.py, `calculate_f1score`), its 'open' score: token recall of the open questions.

    A match counts as often as the *prediction* repeats it, so repeating a correct word raises the recall.
    """
    predicted = Counter(normalise_llava_med(prediction).split())
    return max(_recall_llava_med(predicted, Counter(normalise_llava_med(reference).split())) for reference in references)


def _recall_llava_med(predicted: Counter, expected: Counter) -> float:
    hits = sum(count for word, count in predicted.items() if word in expected)
    misses = sum(count for word, count in expected.items() if word not in predicted)
    return hits / (hits + misses) if hits else 0.0


def closed_llava_med(prediction: str, references: list[str]) -> float:
    """LLaVA-Med after its fix (#35): fraction of the closed questions whose prediction contains the answer as a substring.

    Letters are compared, not words: 'no' matches 'normal' and 'cannot be seen', and 'yes and no' matches both answers.
    """
    text = normalise_llava_med(prediction)
    return float(("yes" in text or "no" in text) and any(normalise_llava_med(reference) in text for reference in references))


def closed_llava_med_bug(prediction: str, references: list[str]) -> float:
    """LLaVA-Med before its fix, still in run_eval_pvqa.py of v1.0.0: closed questions with a wrong yes or no are not counted.

    They are NaN here, and the mean is over the other questions: only answers without 'yes' and 'no' lower the score.
    """
    text = normalise_llava_med(prediction)
    if "yes" not in text and "no" not in text:
        return 0.0
    return 1.0 if any(normalise_llava_med(reference) in text for reference in references) else float("nan")


def bleu1_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval (corentin-ryr/MultiMedEval, task_families.py): `BLEUScore(n_gram=1)` of torchmetrics per item, mean over all items."""
    return bleu1_llava_med(prediction, references)


def f1_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval: F1 of the *sets* of tokens after the same normalisation, mean over all items; 1e-8 is added to the denominator."""
    predicted = set(normalise_llava_med(prediction).split())
    return max(f1_of_sets(predicted, set(normalise_llava_med(reference).split())) for reference in references)


def f1_of_sets(predicted: set[str], expected: set[str]) -> float:
    if not predicted or not expected:
        return 0.0
    precision, recall = len(predicted & expected) / len(predicted), len(predicted & expected) / len(expected)
    return 2 * precision * recall / (precision + recall + 1e-8)


def recall_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval: fraction of the *set* of tokens of the answer that are in the prediction, mean over all items."""
    predicted = set(normalise_llava_med(prediction).split())
    expected_sets = [set(normalise_llava_med(reference).split()) for reference in references]
    return max(len(predicted & expected) / len(expected) if expected else 0.0 for expected in expected_sets)


def open_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval: fraction of the questions other than yes/no whose prediction has at least three quarters of the answer's tokens."""
    return float(recall_multimedeval(prediction, references) >= 0.75)


def closed_multimedeval(prediction: str, references: list[str]) -> float:
    """MultiMedEval: fraction of the yes/no questions with the answer among the words of the prediction; 'not' also matches 'no'."""
    predicted = set(normalise_llava_med(prediction).split())
    expected = {normalise_llava_med(reference) for reference in references}
    return float(bool(predicted & (expected | {"not"} if "no" in expected else expected)))


def bleu4_imageclef_old_nltk(prediction: str, references: list[str]) -> float:
    """ImageCLEF VQA-Med 2020 (abachaa/VQA-Med-2020, Evaluator-VQA-Med-2020.py) under nltk up to 3.2.5: mean BLEU-4.

    The text is lower-cased and loses its ASCII punctuation; word tokens of nltk lose English stop words and are reduced to Snowball
    stems. Two empty texts score 1. Orders after the first one without a match are ignored, so a correct answer of one word scores 1.
    """
    return _bleu4_imageclef(prediction, references, old_nltk=True)


def bleu4_imageclef_new_nltk(prediction: str, references: list[str]) -> float:
    """The same evaluator under nltk from 3.3 on, the version in its requirements: an order without a match makes the score 0.

    A correct answer of fewer than four words thus scores 0.
    """
    return _bleu4_imageclef(prediction, references, old_nltk=False)


def _bleu4_imageclef(prediction: str, references: list[str], *, old_nltk: bool) -> float:
    predicted, expected_lists = imageclef_words(prediction), map(imageclef_words, references)
    return max(bleu.bleu4(predicted, expected, old_nltk=old_nltk) if predicted or expected else 1.0 for expected in expected_lists)


@functools.lru_cache(maxsize=100_000)
def imageclef_words(text: str) -> tuple[str, ...]:
    """Pre-processing of the ImageCLEF evaluator.

    `nltk.word_tokenize` first splits into sentences, with a model that must be downloaded. Without punctuation there is only one
    sentence, so the word tokenizer alone gives the same result.
    """
    tokenizer, stemmer = _nltk()
    tokens = tokenizer.tokenize(text.lower().translate(REMOVE_PUNCTUATION))
    return tuple(stemmer.stem(token) for token in tokens if token not in STOP_WORDS)


@functools.cache
def _nltk() -> tuple:
    """The tokenizer and stemmer. The import takes a second and is deferred, because training imports this file for its validation."""
    from nltk.stem.snowball import SnowballStemmer
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer(), SnowballStemmer("english")


def corpus_bleu1(items: list[dict]) -> float | None:
    """Corpus BLEU-1 of sacrebleu in lower case with its default tokens (13a): matches and lengths are summed over all items first."""
    if not items:
        return None
    longest = max(len(item["references"]) for item in items)
    streams = [[item["references"][n] if n < len(item["references"]) else None for item in items] for n in range(longest)]
    scorer = BLEU(max_ngram_order=1, lowercase=True)
    predictions = [item["prediction"] for item in items]
    return scorer.corpus_score(predictions, streams).score / 100  # type: ignore[arg-type]  # None marks a missing reference
