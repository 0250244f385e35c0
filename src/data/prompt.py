"""Record -> token ids and labels. Training, evaluation, `ask` and the demo all build their prompts here.

This is the format of `prompt.template=plain`; `src/data/chat_prompt.py` has that of `chat`. A system text has no place in it.

    <s> <image>xP ... Question: which organ is shown?\\nAnswer: lung</s>
    <s> <image>xP ... Caption: chest X-ray with a nodule in the left lung</s>

Images come first, so that all questions about one image share a prefix. Pieces are tokenised one by one and their ids are
concatenated, so the boundaries are exact. Labels cover the answer and the end of sequence, nothing else.
"""

from dataclasses import dataclass

import numpy as np

from src.data.record import Record
from src.runtime.errors import UserError

IMAGE = "<image>"
MIN_TEXT_TOKENS = 8  # text tokens that must fit beside the images
SYSTEM_NOTE = "system text stored in meta"  # in a manifest: sources with system texts
IGNORE = -100  # label of a token that is not supervised (convention of torch's cross_entropy)


@dataclass
class EncodedSample:
    """One sample as tokens; `ids` and `labels` are int32 of equal length."""

    ids: np.ndarray
    labels: np.ndarray
    num_images: int
    num_truncated: int = 0  # text tokens that were dropped
    num_answer_truncated: int = 0  # those of answers, with their end of sequence, which would have been supervised


def prompt_answer_pairs(record: Record) -> list[tuple[str, str]]:
    """(prompt, answer) per turn, as text; a caption is one turn."""
    if not record.turns:
        return [("Caption:", record.caption)]
    return [(f"Question: {question}{options_text(record)}\nAnswer:", answer) for question, answer in record.turns]


def options_text(record: Record) -> str:
    return "".join(f"\n{chr(ord('A') + n)}: {choice}" for n, choice in enumerate(record.choices))


class Prompter:
    """Encodes records for one tokenizer and one vision encoder with `patches` tokens per image, in at most `budget` tokens."""

    def __init__(self, tokenizer, *, patches: int, budget: int):
        self.tokenizer, self.patches, self.budget = tokenizer, patches, budget
        self.image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.ends = [self.eos]  # ids that end an answer

    def check_system(self) -> None:
        """Raises `UserError` if system texts cannot be used; this format leaves them out."""

    def prefix(self, num_images: int) -> list[int]:
        """Begin of sequence and the placeholders of the images: the part that all questions on an image share."""
        return [self.bos] + [self.image_id] * (self.patches * num_images)

    def overhead(self, num_images: int) -> int:
        """Tokens of a sample beside its texts and, for each answer, its end of sequence."""
        return 1 + self.patches * num_images

    def room(self, num_images: int, *, key: str, overhead: int | None = None) -> int:
        """Tokens left for text beside the images of record `key`. Raises `UserError` if fewer than `MIN_TEXT_TOKENS` are left."""
        overhead = self.overhead(num_images) if overhead is None else overhead
        if self.budget - overhead < MIN_TEXT_TOKENS:
            raise UserError(
                f"record '{key}': {num_images} image(s) of {self.patches} tokens and {MIN_TEXT_TOKENS} tokens of text do not fit into "
                f"max_seq_len={self.budget}; set it to {overhead + MIN_TEXT_TOKENS} or more"
            )
        return self.budget - overhead

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts. Special tokens in a text, such as "<image>" or "</s>", are tokenised as plain characters."""
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids if texts else []

    def encode(self, records: list[Record], *, num_images: list[int]) -> list[EncodedSample]:
        """Training samples. `num_images` is given separately because the records may have been read without their images."""
        turns = [prompt_answer_pairs(record) for record in records]
        token_ids = iter(self.tokens([text for turn in turns for pair in turn for text in pair]))
        return [
            self._join([(next(token_ids), next(token_ids)) for _ in turn], count, room=self.room(count, key=record.key))
            for record, turn, count in zip(records, turns, num_images, strict=True)
        ]

    def question_ids(self, record: Record, num_images: int, *, max_new_tokens: int) -> tuple[list[int], list[int]]:
        """The last question of a record with the turns before it, as in training, truncated so that an answer fits.

        Returns the tokens that all questions on the same images share, and those after them.
        """
        tokens = self.tokens([text for pair in prompt_answer_pairs(record) for text in pair])
        endings = [[], [self.eos]] * len(tokens)  # an earlier answer ends with eos, as in training
        history = [token for text, ending in zip(tokens[:-2], endings, strict=False) for token in text + ending]
        room = self.room(num_images, key=record.key)
        (prompt, _), *_ = truncate_turns([(history + tokens[-2], [0] * max_new_tokens)], room)[0]
        return self.prefix(num_images), prompt

    def num_text_tokens(self, record: Record, num_images: int) -> int:
        """The number of tokens that the last question and the turns before it take beside `prefix`, without truncation."""
        return sum(len(ids) + 1 for ids in self.tokens([text for pair in prompt_answer_pairs(record) for text in pair]))

    def answer_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of answers after a prompt, each with its end."""
        return [ids + [self.eos] for ids in self.tokens(texts)]

    def _join(self, turns: list[tuple[list[int], list[int]]], num_images: int, *, room: int) -> EncodedSample:
        prefix = self.prefix(num_images)
        num_supervised = sum(len(answer) + 1 for _, answer in turns)
        turns, num_truncated = truncate_turns(turns, room)
        ids, labels = list(prefix), [IGNORE] * len(prefix)
        for prompt, answer in turns:
            answer = answer + [self.eos]
            ids += prompt + answer
            labels += [IGNORE] * len(prompt) + answer
        num_answer_truncated = num_supervised - sum(len(answer) + 1 for _, answer in turns)
        return EncodedSample(np.array(ids, np.int32), np.array(labels, np.int32), num_images, num_truncated, num_answer_truncated)


def truncate_turns(turns: list[tuple[list[int], list[int]]], room: int) -> tuple[list[tuple[list[int], list[int]]], int]:
    """Truncates turns to `room` tokens, one end of sequence per turn included; returns them and the number of dropped tokens.

    Whole turns are dropped from the end while more than one remains. Then the end of the answer is dropped, down to a quarter of
    `room`, and after that the beginning of the prompt, since the question comes last in its context.
    """
    assert room >= MIN_TEXT_TOKENS, room
    length = sum(len(p) + len(a) + 1 for p, a in turns)
    total = length
    while length > room and len(turns) > 1:
        p, a = turns[-1]
        turns, length = turns[:-1], length - len(p) - len(a) - 1
    if length > room:
        prompt, answer = turns[0]
        answer = answer[: max(room - len(prompt) - 1, room // 4)]
        prompt = prompt[-(room - len(answer) - 1) :]
        turns, length = [(prompt, answer)], len(prompt) + len(answer) + 1
    return turns, total - length
