import numpy as np
import pytest
import torch

from src.data.prompt import IGNORE, Prompter, prompt_answer_pairs, truncate_turns
from src.data.record import Record
from src.model.generate import make_request
from src.model.language_checkpoint import load_language
from src.runtime.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(language):
    return load_language(str(language), revision="unverified", dtype=torch.float32)[1]


def prompter(tokenizer, budget: int = 200) -> Prompter:
    return Prompter(tokenizer, patches=4, budget=budget)


def asked(*turns: tuple[str, str], **fields) -> Record:
    return Record(key="k", source="s", split="train", turns=list(turns), **fields)


def test_an_encoded_question_reads_as_the_docstring_says(tokenizer):
    made = prompter(tokenizer).encode([asked(("which organ?", "lung"))], num_images=[1])[0]
    assert tokenizer.decode(made.ids) == "<s><image><image><image><image>Question: which organ?\nAnswer:lung</s>"
    supervised = made.labels != IGNORE
    assert tokenizer.decode(made.ids[supervised]) == "lung</s>"
    assert np.array_equal(made.ids[supervised], made.labels[supervised])
    assert made.cut == 0


def test_choices_captions_and_further_turns(tokenizer):
    assert prompt_answer_pairs(asked(("which?", "b"), choices=["lung", "liver"])) == [("Question: which?\nA: lung\nB: liver\nAnswer:", "b")]
    caption = Record(key="k", source="s", split="train", caption="a scan")
    made = prompter(tokenizer).encode([caption, asked(("a?", "lung"), ("b?", "liver"))], num_images=[2, 0])
    assert tokenizer.decode(made[0].ids) == "<s>" + "<image>" * 8 + "Caption:a scan</s>"
    assert tokenizer.decode(made[1].labels[made[1].labels != IGNORE]) == "lung</s>liver</s>"


def test_a_text_is_encoded_as_if_it_were_alone(tokenizer):
    """Batched tokenisation is only faster: neighbours in the call change nothing."""
    records = [asked((f"which organ is {n}?", "the lung " * n)) for n in range(1, 9)]
    together = prompter(tokenizer).encode(records, num_images=[0] * 8)
    for record, made in zip(records, together, strict=True):
        alone = prompter(tokenizer).encode([record], num_images=[0])[0]
        assert np.array_equal(alone.ids, made.ids)
        assert np.array_equal(alone.labels, made.labels)


def test_a_sample_above_the_budget_is_cut_at_its_answer_and_never_in_its_image(tokenizer):
    long = asked(("which organ?", "the lung " * 100))
    made = prompter(tokenizer, budget=60).encode([long], num_images=[2])[0]
    assert len(made.ids) == 60
    assert (made.ids == prompter(tokenizer).image_id).sum() == 8
    assert made.cut == len(prompter(tokenizer, budget=999).encode([long], num_images=[2])[0].ids) - 60
    assert made.ids[-1] == made.labels[-1] == tokenizer.eos_token_id
    assert "which organ?\nAnswer:the lung the lung" in tokenizer.decode(made.ids)


def test_what_a_text_says_is_neither_an_image_nor_an_end(tokenizer):
    """Questions in LLaVA's format begin with <image>; it would be one image too many."""
    made = prompter(tokenizer).encode([asked(("<image>\nwhat is <s>?", "</s> ends it"))], num_images=[1])[0]
    assert (made.ids == prompter(tokenizer).image_id).sum() == 4
    assert (made.ids == tokenizer.eos_token_id).sum() == (made.ids == tokenizer.bos_token_id).sum() == 1
    assert tokenizer.decode(made.ids).endswith("Question: <image>\nwhat is <s>?\nAnswer:</s> ends it</s>")


def test_images_that_leave_no_room_for_text_are_one_sentence(tokenizer):
    """Training and answering alike; eight tokens of text are enough."""
    record = asked(("which organ is shown here?", "lung"))
    said = r"'k': 3 image\(s\) of 4 tokens and 8 tokens of text do not fit into max_seq_len=20; set it to 21 or more"
    with pytest.raises(UserError, match=said):
        prompter(tokenizer, budget=20).encode([record], num_images=[3])
    with pytest.raises(UserError, match=said):
        make_request(record, images=[torch.zeros(3, 8, 8)] * 3, prefix="", prompter=prompter(tokenizer, budget=20), max_new_tokens=5)
    assert len(prompter(tokenizer, budget=21).encode([record], num_images=[3])[0].ids) == 21


@pytest.mark.parametrize(
    ("turns", "room", "kept", "cut"),
    [
        ([([1] * 5, [2] * 3)], 9, [(5, 3)], 0),
        ([([1] * 5, [2] * 30)], 20, [(5, 14)], 16),  # the answer's end goes
        ([([1] * 50, [2] * 3)], 20, [(16, 3)], 34),  # then the beginning of the prompt
        ([([1] * 50, [2] * 30)], 20, [(14, 5)], 61),  # the answer keeps a quarter
        ([([1] * 5, [2] * 5), ([3] * 5, [4] * 5)], 15, [(5, 5)], 11),  # whole turns first
    ],
)
def test_fit(turns, room, kept, cut):
    fitted, lost = truncate_turns(turns, room)
    assert [(len(prompt), len(answer)) for prompt, answer in fitted] == kept
    assert lost == cut


def test_a_cut_prompt_keeps_its_end():
    fitted, _ = truncate_turns([(list(range(50)), [7])], 20)
    assert fitted[0][0] == list(range(32, 50))
