"""Record -> token ids and labels. The one prompt of this project: training, evaluation, `ask` and the demo all call it.

    <s> <image>xP ... Question: which organ is shown?\\nAnswer: lung</s>
    <s> <image>xP ... Caption: chest X-ray with a nodule in the left lung</s>

Images come first, so that all questions about one image share a prefix. Pieces are tokenised one by one and their ids
concatenated, never re-counted from a rendered string; labels cover exactly the answer and the end of sequence.
"""

from dataclasses import dataclass

import numpy as np

from src.data.record import Record
from src.runtime.errors import UserError

IMAGE = "<image>"
MIN_TEXT_TOKENS = 8  # tokens that images must leave: of a question its end, of an answer a quarter
IGNORE = -100  # label of a token that is not supervised (torch's cross_entropy convention)


@dataclass
class EncodedSample:
    """One sample as tokens: `ids` and `labels` are int32 of equal length; `cut` counts the text tokens that did not fit."""

    ids: np.ndarray
    labels: np.ndarray
    num_images: int
    cut: int = 0


def prompt_answer_pairs(record: Record) -> list[tuple[str, str]]:
    """(prompt, answer) per turn, as text; a caption is one turn."""
    if not record.turns:
        return [("Caption:", record.caption)]
    options = "".join(f"\n{chr(ord('A') + n)}: {choice}" for n, choice in enumerate(record.choices))
    return [(f"Question: {question}{options}\nAnswer:", answer) for question, answer in record.turns]


class Prompter:
    """Encodes records for one tokenizer and one vision encoder (P patch tokens per image)."""

    def __init__(self, tokenizer, *, patches: int, budget: int):
        self.tokenizer, self.patches, self.budget = tokenizer, patches, budget
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def prefix(self, num_images: int) -> list[int]:
        """Begin of sequence and the placeholders of the images: the part that all questions on an image share."""
        return [self.bos] + [self.image_id] * (self.patches * num_images)

    def room(self, num_images: int, *, key: str) -> int:
        """Tokens left for text beside the images of record `key`; raises `UserError` where that is nothing to speak of."""
        taken = 1 + self.patches * num_images
        if self.budget - taken < MIN_TEXT_TOKENS:
            raise UserError(
                f"'{key}': {num_images} image(s) of {self.patches} tokens and {MIN_TEXT_TOKENS} tokens of text do not fit into "
                f"max_seq_len={self.budget}; set it to {taken + MIN_TEXT_TOKENS} or more"
            )
        return self.budget - taken

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Of a text: "<image>" or "</s>" in it are the characters that they are, neither a picture nor an end."""
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids if texts else []

    def encode(self, records: list[Record], *, num_images: list[int]) -> list[EncodedSample]:
        """Training samples. `num_images` counts stand beside the records, which may have been read without their images."""
        turns = [prompt_answer_pairs(record) for record in records]
        flat = iter(self.tokens([text for turn in turns for pair in turn for text in pair]))
        return [
            self._join([(next(flat), next(flat)) for _ in turn], count, room=self.room(count, key=record.key))
            for record, turn, count in zip(records, turns, num_images, strict=True)
        ]

    def _join(self, turns: list[tuple[list[int], list[int]]], num_images: int, *, room: int) -> EncodedSample:
        prefix = self.prefix(num_images)
        turns, cut = truncate_turns(turns, room)
        ids, labels = list(prefix), [IGNORE] * len(prefix)
        for prompt, answer in turns:
            answer = answer + [self.eos]
            ids += prompt + answer
            labels += [IGNORE] * len(prompt) + answer
        return EncodedSample(np.array(ids, np.int32), np.array(labels, np.int32), num_images, cut)


def truncate_turns(turns: list[tuple[list[int], list[int]]], room: int) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Cut turns to `room` tokens (one of each turn is its end of sequence), never touching images.

    Whole turns are left out from the end while more than one remains. Then the answer's end is cut, down to a quarter of the
    room; if that is not enough, the beginning of the prompt goes, since a question stands at the end of its context.
    """
    assert room >= MIN_TEXT_TOKENS, room
    length = sum(len(p) + len(a) + 1 for p, a in turns)
    whole = length
    while length > room and len(turns) > 1:
        p, a = turns[-1]
        turns, length = turns[:-1], length - len(p) - len(a) - 1
    if length > room:
        prompt, answer = turns[0]
        answer = answer[: max(room - len(prompt) - 1, room // 4)]
        prompt = prompt[-(room - len(answer) - 1) :]
        turns, length = [(prompt, answer)], len(prompt) + len(answer) + 1
    return turns, whole - length
