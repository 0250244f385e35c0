"""MedEvalKit's and lmms-eval's scorers: replies that each rule treats differently, worked by hand from the code of the harness."""

import pytest

from src.metrics import harnesses
from src.metrics.protocols import PROTOCOLS, SCORERS, protocol_lines


@pytest.mark.parametrize(
    ("reply", "parsed"),
    [
        ("Lung", "lung"),
        ("Answer: Lung", " lung"),
        ("The final answer is: lung", ": lung"),
        ("<answer>Left</answer> or <answer>Right</answer>", "left right"),
        (r"so \boxed{\text{Lung}}", r"\text{lung}"),
        ("a boxed text", "None"),
        ("answer: left. answer: right", " right"),
    ],
)
def test_medevalkit_cuts_the_reply_after_the_last_mark(reply, parsed):
    assert harnesses.parse_response(reply) == parsed


@pytest.mark.parametrize(
    ("name", "reply", "reference", "score"),
    [
        ("yes_or_no", "Yes.", "yes", 1),
        ("yes_or_no", "normal", "no", 1),  # 'no' is a substring
        ("yes_or_no", "yes, a nodule", "yes", 0),  # both occur
        ("yes_or_no", "lung", "yes", 0),
        ("open_exact", " Left Lung ", "left lung", 1),
        ("open_exact", "left lung.", "left lung", 0),
        ("open_exact", "Answer: lung", "lung", 0),  # the space stays
        ("open_exact", r"\boxed{lung}", "lung", 1),
        ("open_exact_slake", "lung ", "Lung", 0),
        ("closed_slake", "Yes, it does", "Yes", 1),
        ("closed_slake_bug", "Yes, it does", "Yes", 0),
        ("closed_slake_bug", "Yes, it does", "yes", 1),
        ("closed_slake_bug", "yes.", "Yes", 1),
        ("closed_slake", "Left.", "left", 1),
        ("f1_medevalkit", "the left lung", "left lung", 0.8),  # precision 2/3, recall 1
        ("f1_medevalkit_bug", "the left lung", "left lung", 1),
        ("f1_medevalkit_bug", "lung", "left lung", 0.5),
        ("bleu1_medevalkit", "left lung.", "left lung", 2 / 3),  # '.' is a word
        ("exact_lmms_eval", "Yeah.", "yes", 1),
        ("exact_lmms_eval", "X-ray (chest)", "xray", 1),
        ("exact_lmms_eval", "the lung", "lung", 0),  # articles stay
        ("exact_lmms_eval", "\u6b63\u5e38", "yes", 1),  # 'normal' in Chinese
    ],
)
def test_rule_of_a_harness_scores_a_reply(name, reply, reference, score):
    assert getattr(harnesses, name)(reply, [reference]) == pytest.approx(score, abs=1e-6)
    if not name.startswith("closed_slake"):  # which first decide by all references whether the question is yes/no
        assert getattr(harnesses, name)(reply, ["other", reference]) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("reply", "medevalkit", "bug", "lmms"),
    [
        ("B", 1, 1, 1),
        ("b. left lung", 1, 1, 1 / 3),  # lmms-eval knows upper case only
        ("(A) or (B)", 0, 0, 0),  # the option most similar to the text is not B; lmms-eval takes the first one in brackets
        ("A or B", 0, 0, 1),  # the most similar option is another one; lmms-eval takes the last letter
        ("Left lung", 1, 1, 1 / 3),
        ("the left lungs", 1, 1, 1 / 3),  # the most similar option
        ("I think:\n\nB.", 1, 1, 1 / 3),  # lmms-eval needs a space before the letter
        ("left lung " + "x" * 300, 0, 1, 1 / 3),  # too long
        ("", 0, 0, 1 / 3),  # an empty reply is the first option
    ],
)
def test_multiple_choice_reply_becomes_an_option(reply, medevalkit, bug, lmms):
    item = {"choices": ["Heart", "Left lung", "Rib"], "references": ["left lung "], "prediction": reply}
    scores = [function(item) for function in (harnesses.choice_medevalkit, harnesses.choice_medevalkit_bug, harnesses.choice_lmms_eval)]
    assert scores == pytest.approx([medevalkit, bug, lmms])


def test_empty_reply_is_the_first_option_in_medevalkit():
    assert harnesses.choice_medevalkit({"choices": ["Heart", "Rib"], "references": ["heart"], "prediction": ""}) == 1


@pytest.fixture
def judged() -> list[dict]:
    """Two yes/no questions, of which the rule accepts the first, and two open ones, of which the judge accepts the first."""
    lines = [("Yes", "yes", True), ("Yes", "no", False), ("lung", "the lung", True), ("lung", "rib", False)]
    return [{"references": [ref], "prediction": reply, "closed": ref == "Yes", "judged": verdict} for ref, reply, verdict in lines]


def test_total_combines_closed_and_open_questions(judged):
    assert SCORERS["closed_medevalkit"](judged) == SCORERS["closed_medevalkit_slake"](judged) == 1 / 2
    assert SCORERS["open_medevalkit"](judged) == 0
    assert SCORERS["total_medevalkit"](judged) == SCORERS["total_medevalkit_slake"](judged) == 1 / 4
    judged[0]["prediction"] = "yes, it is"
    assert SCORERS["total_medevalkit_slake_bug"](judged) == 0
    assert SCORERS["open_lmms_eval"](judged) == 0


def test_judge_bugs_change_only_the_count(judged):
    assert SCORERS["judged_medevalkit"](judged) == 2 / 4
    assert SCORERS["judged_medevalkit_pathvqa_bug"](judged) == 1 / 4  # the right 'yes' is reset
    assert SCORERS["judged_medevalkit_slake_bug"](judged) == 3 / 4  # the right 'yes' counts twice
    assert SCORERS["judged_medevalkit_slake_bug"](judged[:1]) == 2
    del judged[1]["judged"]
    assert SCORERS["judged_medevalkit"](judged) == 2 / 4  # needs no verdict for yes/no questions
    assert SCORERS["judged_medevalkit_slake_bug"](judged) is None
    del judged[2]["judged"]
    assert SCORERS["judged_medevalkit"](judged) is None


def test_every_protocol_says_why_it_differs(judged):
    assert all(protocol.note and "\n" not in protocol.note and len(protocol.note) < 100 for protocol in PROTOCOLS.values())
    lines = protocol_lines({name: score(judged) for name, score in SCORERS.items()})
    assert next(line for line in lines if line.startswith("exact ")).split(maxsplit=2)[:2] == ["exact", "50.0"]
    assert not any(line.startswith("choice_") for line in lines)  # no item has options
