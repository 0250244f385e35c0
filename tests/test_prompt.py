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


def question_record(*turns: tuple[str, str], **fields) -> Record:
    return Record(key="k", source="s", split="train", turns=list(turns), **fields)


def test_encoded_question_has_the_documented_format(tokenizer):
    sample = prompter(tokenizer).encode([question_record(("which organ?", "lung"))], num_images=[1])[0]
    assert tokenizer.decode(sample.ids) == "<s><image><image><image><image>Question: which organ?\nAnswer:lung</s>"
    supervised = sample.labels != IGNORE
    assert tokenizer.decode(sample.ids[supervised]) == "lung</s>"
    assert np.array_equal(sample.ids[supervised], sample.labels[supervised])
    assert sample.num_truncated == 0


def test_choices_captions_and_several_turns_are_encoded(tokenizer):
    assert prompt_answer_pairs(question_record(("which?", "b"), choices=["lung", "liver"])) == [
        ("Question: which?\nA: lung\nB: liver\nAnswer:", "b")
    ]
    caption = Record(key="k", source="s", split="train", caption="a scan")
    samples = prompter(tokenizer).encode([caption, question_record(("a?", "lung"), ("b?", "liver"))], num_images=[2, 0])
    assert tokenizer.decode(samples[0].ids) == "<s>" + "<image>" * 8 + "Caption:a scan</s>"
    assert tokenizer.decode(samples[1].labels[samples[1].labels != IGNORE]) == "lung</s>liver</s>"


def test_batched_encoding_equals_single_encoding(tokenizer):
    records = [question_record((f"which organ is {n}?", "the lung " * n)) for n in range(1, 9)]
    batched = prompter(tokenizer).encode(records, num_images=[0] * 8)
    for record, sample in zip(records, batched, strict=True):
        single = prompter(tokenizer).encode([record], num_images=[0])[0]
        assert np.array_equal(single.ids, sample.ids)
        assert np.array_equal(single.labels, sample.labels)


def test_long_sample_is_truncated_in_its_answer_and_never_in_its_image(tokenizer):
    long = question_record(("which organ?", "the lung " * 100))
    sample = prompter(tokenizer, budget=60).encode([long], num_images=[2])[0]
    assert len(sample.ids) == 60
    assert (sample.ids == prompter(tokenizer).image_id).sum() == 8
    assert sample.num_truncated == len(prompter(tokenizer, budget=999).encode([long], num_images=[2])[0].ids) - 60
    assert sample.num_answer_truncated == sample.num_truncated
    assert sample.ids[-1] == sample.labels[-1] == tokenizer.eos_token_id
    assert "which organ?\nAnswer:the lung the lung" in tokenizer.decode(sample.ids)


def test_special_tokens_in_a_text_are_plain_characters(tokenizer):
    """Questions in LLaVA's format begin with <image>, which would count as one more image."""
    sample = prompter(tokenizer).encode([question_record(("<image>\nwhat is <s>?", "</s> ends it"))], num_images=[1])[0]
    assert (sample.ids == prompter(tokenizer).image_id).sum() == 4
    assert (sample.ids == tokenizer.eos_token_id).sum() == (sample.ids == tokenizer.bos_token_id).sum() == 1
    assert tokenizer.decode(sample.ids).endswith("Question: <image>\nwhat is <s>?\nAnswer:</s> ends it</s>")


def test_images_that_leave_no_room_for_text_raise(tokenizer):
    """In training and in generation; eight tokens of text are enough."""
    record = question_record(("which organ is shown here?", "lung"))
    message = r"record 'k': 3 image\(s\) of 4 tokens and 8 tokens of text do not fit into max_seq_len=20; set it to 21 or more"
    with pytest.raises(UserError, match=message):
        prompter(tokenizer, budget=20).encode([record], num_images=[3])
    with pytest.raises(UserError, match=message):
        make_request(record, images=[torch.zeros(3, 8, 8)] * 3, prefix="", prompter=prompter(tokenizer, budget=20), max_new_tokens=5)
    assert len(prompter(tokenizer, budget=21).encode([record], num_images=[3])[0].ids) == 21


@pytest.mark.parametrize(
    ("turns", "room", "lengths", "num_truncated"),
    [
        ([([1] * 5, [2] * 3)], 9, [(5, 3)], 0),
        ([([1] * 5, [2] * 30)], 20, [(5, 14)], 16),  # the end of the answer is dropped
        ([([1] * 50, [2] * 3)], 20, [(16, 3)], 34),  # then the beginning of the prompt
        ([([1] * 50, [2] * 30)], 20, [(14, 5)], 61),  # the answer keeps a quarter
        ([([1] * 5, [2] * 5), ([3] * 5, [4] * 5)], 15, [(5, 5)], 11),  # whole turns first
    ],
)
def test_truncate_turns_keeps_to_the_room(turns, room, lengths, num_truncated):
    truncated, dropped = truncate_turns(turns, room)
    assert [(len(prompt), len(answer)) for prompt, answer in truncated] == lengths
    assert dropped == num_truncated


def test_truncate_turns_keeps_the_end_of_the_prompt():
    truncated, _ = truncate_turns([(list(range(50)), [7])], 20)
    assert truncated[0][0] == list(range(32, 50))
