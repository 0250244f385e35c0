"""Text-only questions, flashcards and letters.

The answers are in the text or follow from the fixed rules of the phantoms (`CARE`, `COMPLAINT`, and the organs and modalities of
`world.py`). The rules are invented and are not medicine.
"""

import numpy as np

from data_prep.phantom.scene.choices import ORGANS, options
from data_prep.phantom.scene.wording import NUMBERS, caption, noun, sentence, view_of
from data_prep.phantom.scene.world import MODALITIES, NORMAL, Scene, pick

CARE = {"nodule": "biopsy", "cyst": "drainage", "cluster": "antibiotics", "streak": "physiotherapy", NORMAL: "no treatment"}
COMPLAINTS = ("cough", "headache", "colic", "dizziness", "swelling", "fatigue", "hoarseness", "blurred vision", "itching", "cramps")
COMPLAINT = dict(zip(ORGANS, (*COMPLAINTS, "thirst", "glare", "fever"), strict=True))
FINDINGS = tuple(name for name in CARE if name != NORMAL)
Question = tuple[str, str, list[str]]  # question, answer, options


def vignette(scene: Scene, rng: np.random.Generator) -> str:
    who = f"A {_age(rng)}-year-old {pick(rng, ('man', 'woman'))}"
    return f"{who} has had {COMPLAINT[scene.organ]} for {rng.integers(2, 30)} days. {caption(scene, rng)}"


def exam(scene: Scene, rng: np.random.Generator) -> Question:
    """A case with a question about the treatment, the finding, or the number of findings that are left."""
    case, kind = vignette(scene, rng), rng.random()
    if kind < 0.6:
        question = pick(rng, ("Which of the following is the best next step?", "What is the most appropriate treatment?"))
        return f"{case} {question}", CARE[scene.finding], options(rng, CARE[scene.finding], tuple(CARE.values()))
    if kind < 0.8 and scene.count > 1:
        question = f"At the next visit one of the {noun(scene)} is gone. How many are left?"
        return f"{case} {question}", NUMBERS[scene.count - 1], options(rng, NUMBERS[scene.count - 1], NUMBERS)
    return f"{case} Which finding does this patient have?", scene.finding, options(rng, scene.finding, tuple(CARE))


def fact(scene: Scene, rng: np.random.Generator) -> tuple[Question, str]:
    """A short question about a rule, and the rule as a sentence."""
    kind = rng.random()
    if kind < (0.1 if scene.normal else 0.5):
        question = pick(rng, ("what is the treatment of {seen}?", "treatment of choice for {seen} is:", "what is done for {seen}?"))
        text = sentence(question.format(seen=finding_text(scene, rng)))
        return (text, CARE[scene.finding], options(rng, CARE[scene.finding], tuple(CARE.values()))), rule(scene)
    if kind < 0.75 and not scene.normal:
        question = f"{sentence(CARE[scene.finding])} in a {_age(rng)}-year-old patient is the treatment of which finding?"
        return (question, scene.finding, options(rng, scene.finding, FINDINGS)), rule(scene)
    if kind < 0.9:
        question = f"A {_age(rng)}-year-old patient's complaint is {COMPLAINT[scene.organ]}. Which organ is examined?"
        return (question, scene.organ, options(rng, scene.organ, ORGANS)), f"{sentence(COMPLAINT[scene.organ])}: {scene.organ}."
    right = MODALITIES[scene.modality].display_name
    others = [kind.display_name for kind in MODALITIES.values() if scene.organ not in kind.organs]
    question = f"Which technique shows the {_age(rng)}-year-old patient's {scene.organ}?"
    return (question, right, options(rng, right, others)), f"The {scene.organ} is examined by {right}."


def card(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Question and answer in whole sentences."""
    kind = MODALITIES[scene.modality]
    if rng.random() < 0.8:
        question = pick(rng, ("What is the treatment of {seen}?", "How should {seen} be treated?", "What is done for {seen}?"))
        return question.format(seen=finding_text(scene, rng)), rule(scene)
    if rng.random() < 0.5:
        plurals = [finding.plural for finding in kind.findings.values()]
        question = pick(rng, ("What can {view} show?", "Which findings does {view} show?")).format(view=view_of(scene, rng))
        return question, f"{sentence(', '.join(plurals[:-1]))} and {plurals[-1]}."
    question = pick(rng, ("Which complaint leads to {view}?", "When is {view} done?")).format(view=view_of(scene, rng))
    return question, f"{sentence(COMPLAINT[scene.organ])} leads to an examination of the {scene.organ}."


def letter(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """(message of a patient, answer of a doctor)."""
    greeting = pick(rng, ("Hello doctor,", "Hi,", "Dear doctor,"))
    request = pick(rng, ("What should I do?", "Is it serious?", "Please advise."))
    history = f"I am {_age(rng)} years old and have had {COMPLAINT[scene.organ]} for {rng.integers(2, 30)} days."
    haste = {"small": "There is no hurry.", "large": "Please do not wait.", "": "You need not worry."}[scene.size]
    thanks, end = (
        pick(rng, ("Thanks for your question.", "Welcome to Chat Doctor.")),
        pick(rng, ("Regards", "Hope this helps", "Take care")),
    )
    message = f"{greeting} {history} They found {finding_text(scene, rng)}. {request}"
    return message, f"Hi. {thanks} {rule(scene)} {haste} {end}, Chat Doctor."


def with_typos(text: str, rng: np.random.Generator) -> str:
    """`text` with typing errors: in one of twelve words of more than four letters, two letters are swapped."""
    words = text.split(" ")
    for n, word in enumerate(words):
        if len(word) > 4 and word.isalpha() and rng.random() < 1 / 12:
            at = int(rng.integers(1, len(word) - 2))
            words[n] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def finding_text(scene: Scene, rng: np.random.Generator) -> str:
    if scene.normal:
        return f"no abnormality on {view_of(scene, rng)}"
    return f"{NUMBERS[scene.count]} {scene.size} {noun(scene)} on the {scene.side} of {view_of(scene, rng)}"


def rule(scene: Scene) -> str:
    """The treatment of the finding, as a sentence."""
    if scene.normal:
        return "Where nothing is abnormal no treatment is needed."
    return f"{sentence(MODALITIES[scene.modality].findings[scene.finding].plural)} are treated with {CARE[scene.finding]}."


def _age(rng: np.random.Generator) -> int:
    return int(rng.integers(20, 90))
