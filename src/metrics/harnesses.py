"""Scorers of two evaluation harnesses with their peculiarities, implemented from their code; `protocols.py` lists what they score.

MedEvalKit: alibaba-damo-academy/MedEvalKit, commit 9b12e3b (2026-02-24), utils/utils.py and utils/<SET>/<SET>.py.
lmms-eval: EvolvingLMMs-Lab/lmms-eval, commit 75571cf (2026-08-06), lmms_eval/tasks/{slake,medqa}/utils.py.

A function whose name ends in `_bug` computes what the code prints where this differs from what it means to compute. If an item has several
references, the best score counts. Neither harness has references in a list.
"""

import difflib
import re
import string

from src.metrics import bleu
from src.metrics.published import f1_of_sets

ANSWER_MARKS = (
    *("**answer**:", "**answer**", "*answer*:", "**answer:**", "answer is", "answer:"),
    *("\u7b54\u6848:", "final answer", "final answer is"),  # the first is 'answer:' in Chinese
)
LONGEST_CHOICE = 300  # characters
LMMS_YES = {
    "yes",
    "yeah",
    "yep",
    "true",
    *["\u662f", "\u662f\u7684", "\u6709", "\u5305\u542b", "\u53ef\u4ee5", "\u80fd", "\u4f1a", "\u6b63\u5e38"],
}
LMMS_NO = {
    "no",
    "nope",
    "false",
    *[
        "\u5426",
        "\u4e0d\u662f",
        "\u6ca1\u6709",
        "\u65e0",
        "\u4e0d\u5305\u542b",
        "\u4e0d\u80fd",
        "\u4e0d\u4f1a",
        "\u4e0d\u53ef\u4ee5",
        "\u4e0d\u6b63\u5e38",
        "\u5f02\u5e38",
    ],
}
# The first and last code points of the Chinese punctuation in the list of the harness.
LMMS_RANGES = ("3001 3002", "300A 300B", "3010 3011", "FF01 FF0D", "FF0F FF0F", "FF1A FF20", "FF3B FF40", "FF5B FF5E", "FF61 FF61")
LMMS_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation), " ")
for first, last in map(str.split, LMMS_RANGES):
    LMMS_PUNCTUATION |= dict.fromkeys(range(int(first, 16), int(last, 16) + 1), " ")


def parse_response(text: str) -> str:
    """`parse_response` of MedEvalKit: the content of a box or of <answer>, and then what follows the last 'answer:', 'answer is', ...

    The result is in lower case and keeps the space after a colon. A text with the word 'boxed' but without a box becomes 'None'.
    """
    text = text.lower()
    if "boxed" in text:
        box = _boxed(text)
        text = "None" if box is None else box
    elif "<answer>" in text:
        text = _tagged(text)
    for mark in ANSWER_MARKS:
        text = text.split(mark)[-1]
    return text


def _boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` with balanced braces; None without one (`extract_boxed_content` of mathruler 0.1.0)."""
    _, mark, rest = text.rpartition("\\boxed{")
    depth = 0
    for end, character in enumerate(rest if mark else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return rest[:end].strip()
    return None


def _tagged(text: str) -> str:
    return " ".join(re.findall("<answer>(.*?)</answer>", text, re.DOTALL)).strip() or text


def _reply(prediction: str) -> str:
    """What `cal_metrics` of VQA_RAD.py, PATH_VQA.py and SLAKE.py cut out before they call a rule."""
    box = _boxed(prediction)
    return _tagged(prediction) if box is None or box == "None" else box


def _stripped(prediction: str) -> str:
    return parse_response(_reply(prediction).lower().strip())


def _without_stops(text: str) -> str:
    return text.replace("\n", "").replace(".", "")


def asks_yes_or_no(references: list[str]) -> bool:
    """Whether MedEvalKit takes the question of VQA-RAD or PathVQA for closed: the answer is yes or no."""
    return all(reference.strip().lower() in ("yes", "no") for reference in references)


def yes_or_no(prediction: str, references: list[str]) -> float:
    """MedEvalKit, yes/no questions (`judge_judgement`): exactly one of the substrings 'yes' and 'no' occurs, and it is the answer.

    'normal' and 'nodule' contain 'no': 'normal' counts as no, and 'yes, a nodule' is wrong.
    """
    text = _without_stops(parse_response(_reply(prediction)))
    return float(("yes" in text) != ("no" in text) and any(reference.lower().strip() in text for reference in references))


def open_exact(prediction: str, references: list[str]) -> float:
    """MedEvalKit, open questions without a judge ('em' of `judge_open_end_vqa`): equality in lower case, white space at the ends removed.

    Punctuation counts. 'Answer: lung' is wrong, because the space after the colon stays.
    """
    return float(any(_stripped(prediction) == reference.lower().strip() for reference in references))


def open_exact_slake(prediction: str, references: list[str]) -> float:
    """MedEvalKit, open questions of SLAKE without a judge: as `open_medevalkit`, but white space at the ends counts."""
    return float(any(parse_response(_reply(prediction)) == reference.lower() for reference in references))


def closed_slake(prediction: str, references: list[str]) -> float:
    """MedEvalKit, closed questions of SLAKE as meant: yes and no by `closed_medevalkit`, others by equality without full stops."""
    if asks_yes_or_no(references):
        return yes_or_no(prediction, references)
    return _closed_exact(prediction, references)


def closed_slake_bug(prediction: str, references: list[str]) -> float:
    """MedEvalKit, closed questions of SLAKE as its code runs (SLAKE.py:138): the answer is compared with 'yes' and 'no' in its own case.

    SLAKE writes 'Yes' and 'No', so these are compared by equality too.
    """
    if all(reference in ("yes", "no") for reference in references):
        return yes_or_no(prediction, references)
    return _closed_exact(prediction, references)


def _closed_exact(prediction: str, references: list[str]) -> float:
    text = _without_stops(parse_response(_reply(prediction)))
    return float(any(text == reference.lower() for reference in references))


def bleu1_medevalkit(prediction: str, references: list[str]) -> float:
    """MedEvalKit, open questions ('bleu1'): nltk's sentence BLEU-1 of the text split at single spaces, full stops being words."""
    tokens = _spaced_words(_stripped(prediction))
    return max(bleu.bleu1(tokens, _spaced_words(reference.strip())) for reference in references)


def _spaced_words(text: str) -> list[str]:
    return text.lower().replace(".", " .").split(" ")


def f1_medevalkit(prediction: str, references: list[str]) -> float:
    """MedEvalKit, open questions, F1 of the sets of words at white space: what its column 'precision' holds (see `f1_medevalkit_bug`).

    Its code fails on an empty text, which scores 0 here.
    """
    predicted = set(_stripped(prediction).split())
    return max(f1_of_sets(predicted, set(reference.lower().split())) for reference in references)


def f1_medevalkit_bug(prediction: str, references: list[str]) -> float:
    """MedEvalKit, open questions, its column 'f1': the recall of the set of words.

    `calculate_f1` returns (f1, precision, recall) and the caller reads (precision, recall, f1) (utils.py:192 and 224).
    """
    predicted = set(_stripped(prediction).split())
    expected_sets = [set(reference.lower().split()) for reference in references]
    return max(len(predicted & expected) / len(expected) if expected else 0.0 for expected in expected_sets)


def choice_medevalkit(item: dict) -> float:
    """MedEvalKit, multiple choice (`judge_multi_choice`) as meant: the letter or the text of the correct option.

    Otherwise the option that difflib finds most similar to the reply counts as the answer, so every reply is a guess, an empty one of the
    first option. A reply of more than 300 characters is wrong.
    """
    return 0.0 if len(_choice_reply(item)[1]) > LONGEST_CHOICE else choice_medevalkit_bug(item)


def choice_medevalkit_bug(item: dict) -> float:
    """MedEvalKit, multiple choice as its code runs: the result for a long reply is overwritten (utils.py:113), so it is a guess too."""
    whole, text = _choice_reply(item)
    choices, answer = [choice.lower() for choice in item["choices"]], correct_letter(item).lower()
    letters = list(string.ascii_lowercase[: len(choices)])
    if text == answer:
        return 1.0
    if text in letters:
        return float(choices[letters.index(text)] == answer)
    if text in choices:
        return float(answer in letters and text == choices[letters.index(answer)])
    ratios = [difflib.SequenceMatcher(None, choice, whole).ratio() for choice in choices]
    index = ratios.index(max(ratios))
    return float(answer in (letters[index], choices[index]))


def _choice_reply(item: dict) -> tuple[str, str]:
    """The reply, and its part that is compared with letters and options: from the last ':' before the first '.' up to this '.'."""
    letters = list(string.ascii_lowercase[: len(item["choices"])])
    paragraphs = item["prediction"].lower().split("\n\n")
    ends = [part for part in (paragraphs[0], paragraphs[-1].split(".")[0]) if part in letters]
    reply = ends[0] if ends else item["prediction"]
    whole = parse_response(reply).strip().lower().replace("\n", "")
    return whole, whole.split(".")[0].split(":")[-1]


def correct_letter(item: dict) -> str:
    """The letter of the first option that equals a reference, ignoring case and white space at the ends; else the first reference."""
    references = [reference.strip().casefold() for reference in item["references"]]
    places = [n for n, choice in enumerate(item["choices"]) if choice.strip().casefold() in references]
    return string.ascii_uppercase[places[0]] if places else item["references"][0].strip()


def normalise_lmms_eval(text: str) -> str:
    """`normalize_answer` of lmms-eval's SLAKE: lower case, no text in brackets, punctuation to spaces, synonyms of yes and no."""
    text = re.sub(r"\([^)]*\)|\uff08[^\uff09]*\uff09", " ", text.strip().lower())
    text = " ".join(text.translate(LMMS_PUNCTUATION).split())
    return "xray" if text in ("x ray", "xray") else "yes" if text in LMMS_YES else "no" if text in LMMS_NO else text


def exact_lmms_eval(prediction: str, references: list[str]) -> float:
    """lmms-eval, SLAKE (`slake_accuracy`): equality after `normalise_lmms_eval`.

    'Yeah.' equals 'yes'. 'x-ray (chest)' equals 'xray'. Two texts that become empty are equal.
    """
    return float(any(normalise_lmms_eval(prediction) == normalise_lmms_eval(reference) for reference in references))


def choice_lmms_eval(item: dict) -> float:
    """lmms-eval, MedQA (`_parse_multi_choice_response`): '(A)', else ' A ', else 'A.', each in upper case; the last ' A ' of several.

    A reply without such a letter, an option's text for example, counts as a random letter: here its expected score, 1 / options.
    """
    letters, text = string.ascii_uppercase[: min(5, len(item["choices"]))], item["prediction"].strip()
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} ", "{}."):
        if candidates := [letter for letter in letters if form.format(letter) in text]:
            chosen = max(candidates, key=lambda letter: text.rfind(f" {letter} "))  # the first of equal ones, as argmax
            return float(chosen == correct_letter(item).upper())
    return 1 / len(letters)
