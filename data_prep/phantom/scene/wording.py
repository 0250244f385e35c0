"""Captions, questions and answers of a scene, and made-up abstracts.

The type of a question follows from its wording: `src.data.record.question_type` returns the same type (there is a test).
"""

import numpy as np

from data_prep.phantom.scene.world import MODALITIES, RADIOLOGY, Scene, pick

NUMBERS = ("zero", "one", "two", "three", "four")

WORDINGS = {
    "modality": (
        "what imaging technique was used?",
        "which modality is shown?",
        "what is the imaging modality?",
        "how was this image taken?",
    ),
    "plane": ("in which plane was this image taken?", "what plane is shown?", "which imaging plane is this?"),
    "organ": ("what organ is shown?", "which organ was imaged?", "what part of the body is this?"),
    "specimen": ("which stain was used?", "what stain is seen here?", "what is the stain of this slide?"),
    "finding": (
        "what abnormality is seen?",
        "what is the main finding?",
        "which abnormality does the image show?",
        "what is wrong in this image?",
    ),
    "count": ("how many {plural} are there?", "what is the number of {plural}?", "how many {plural} are seen in the image?"),
    "side": (
        "on which side of the image {is} the {noun}?",
        "which side of the image shows the {noun}?",
        "{is_cap} the {noun} on the left or right?",
    ),
    "size": ("how large {is} the {noun}?", "what size {is} the {noun}?", "how big {is} the {noun}?"),
    "presence": (
        "is there any {finding}?",
        "does the image show {plural}?",
        "are there {plural} in this image?",
        "is any {finding} visible?",
    ),
    "normal": ("does this image look normal?", "is this image normal?"),
    "abnormal": ("is there any abnormality?", "does this image show an abnormality?"),
}


def noun(scene: Scene) -> str:
    return scene.finding if scene.count == 1 else MODALITIES[scene.modality].findings[scene.finding].plural


def questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(type, question, answer) of every type that applies, in a random wording. `presence` occurs twice."""
    kind = MODALITIES[scene.modality]
    factors: list[tuple[str, dict, str]] = [("modality", {}, kind.display_name), ("organ", {}, scene.organ), ("finding", {}, scene.finding)]
    if scene.plane:
        factors.append(("plane", {}, scene.plane))
    if scene.stain:
        factors.append(("specimen", {}, scene.stain))
    if not scene.normal:
        be = "is" if scene.count == 1 else "are"
        words = {"noun": noun(scene), "plural": kind.findings[scene.finding].plural, "is": be, "is_cap": be}
        factors += [("count", words, NUMBERS[scene.count]), ("side", words, scene.side), ("size", words, scene.size)]
    worded = [(kind_of, pick(rng, WORDINGS[kind_of]).format(**words), answer) for kind_of, words, answer in factors]
    return worded + [presence(scene, rng), presence(scene, rng)]


def presence(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str]:
    """A yes/no question. 3/4 of the scenes are abnormal; 2/3 of the questions about these name their finding, to balance answers."""
    if rng.random() < 0.25:
        about = pick(rng, ("normal", "abnormal"))
        return "presence", pick(rng, WORDINGS[about]), "yes" if scene.normal == (about == "normal") else "no"
    findings = MODALITIES[scene.modality].findings
    others = [name for name in findings if name != scene.finding]
    named = scene.finding if not scene.normal and rng.random() < 2 / 3 else pick(rng, others)
    question = pick(rng, WORDINGS["presence"]).format(finding=named, plural=findings[named].plural)
    return "presence", question, "yes" if named == scene.finding else "no"


def alternatives(scene: Scene, kind: str) -> list[str]:
    """Further accepted answers to a question of type `kind`, as the test references of VQA-Med-2019 list them."""
    if kind == "count":
        return [str(scene.count)]
    if kind == "finding" and not scene.normal:
        return [f"{scene.size} {noun(scene)}"]
    long_names = {"x-ray": "plain film", "ct": "computed tomography", "mri": "magnetic resonance imaging", "ultrasound": "sonography"}
    return [long_names[MODALITIES[scene.modality].display_name]] if kind == "modality" and scene.modality in RADIOLOGY else []


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One sentence with the modality, the organ, and the finding with count, size and side, or that there is no abnormality."""
    view = view_of(scene, rng)
    if scene.normal:
        forms = ("{view} without abnormality.", "Normal {view}.", "{view} with no abnormality.", "No abnormality is seen on this {view}.")
        return sentence(pick(rng, forms).format(view=view))
    forms = (
        "{view} showing {count} {size} {noun} on the {side} side of the image.",
        "{count} {size} {noun} on the {side} side of this {view}.",
        "{view}: {count} {size} {noun}, {side} side.",
        "{view} with {count} {size} {noun} on the {side}.",
    )
    return sentence(pick(rng, forms).format(view=view, count=NUMBERS[scene.count], size=scene.size, noun=noun(scene), side=scene.side))


def view_of(scene: Scene, rng: np.random.Generator) -> str:
    technique = MODALITIES[scene.modality].display_name
    if scene.plane:
        return pick(rng, (f"{scene.plane} {scene.organ} {technique}", f"{scene.plane} {technique} of the {scene.organ}"))
    stain = f" stained with {scene.stain}" if scene.stain and rng.random() < 0.5 else ""
    if scene.organ in technique:
        return f"{technique}{stain}"
    return pick(rng, (f"{technique} of the {scene.organ}{stain}", f"{scene.organ} {technique}{stain}"))


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def article(rng: np.random.Generator) -> dict:
    """A made-up abstract with a question that its contexts answer: question, contexts, conclusion, decision (yes, no or maybe).

    Decisions are 2/5 yes, 2/5 no, 1/5 maybe.
    """
    kind = MODALITIES[pick(rng, tuple(MODALITIES))]
    organ, (one, other) = pick(rng, tuple(kind.organs)), rng.permutation(tuple(kind.findings))[:2]
    ones, others = kind.findings[one].plural, kind.findings[other].plural
    decision = pick(rng, ("yes", "yes", "no", "no", "maybe"))
    patients, few = int(rng.integers(4, 20)) * 10, int(rng.integers(2, 9))
    many = patients - few
    aim = f"We reviewed {kind.display_name} images of the {organ} in {patients} patients."
    if rng.random() < 0.5:
        question = f"Are {ones} more frequent than {others} on {organ} {kind.display_name}?"
        a, b = {"yes": (many, few), "no": (few, many), "maybe": (few, few)}[decision]
        result = f"{sentence(ones)} were seen in {a} patients and {others} in {b}."
        verdict = {"yes": "more frequent than", "no": "less frequent than", "maybe": "as frequent as"}[decision]
        conclusion = f"{sentence(ones)} were {verdict} {others}."
    else:
        question = f"Can {ones} be found on {organ} {kind.display_name}?"
        result = {
            "yes": f"{sentence(ones)} were found in {many} patients.",
            "no": f"{sentence(ones)} were found in none of the patients, {others} in {few}.",
            "maybe": f"The readers disagreed on {ones} in {few} patients.",
        }[decision]
        may = {"yes": "can", "no": "cannot", "maybe": "may"}[decision]
        conclusion = f"{sentence(ones)} {may} be found on {organ} {kind.display_name}."
    return {
        "question": question,
        "contexts": [aim, result],
        "conclusion": conclusion,
        "decision": decision,
        "subjects": [organ.capitalize(), kind.display_name.capitalize(), one.capitalize()],
    }
