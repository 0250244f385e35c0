"""Record -> token ids and labels in the chat template of the tokenizer (`prompt.template=chat`).

    <|im_start|>user
    <image>xP ...
    which organ is shown?<|im_end|>
    <|im_start|>assistant
    lung<|im_end|>

A conversation is rendered as one text, whose ids are those of `tokenizer.apply_chat_template(messages, tokenize=True)`. Labels cover each
answer from the end of the generation prompt to its end token, nothing else. `meta["system"]` of a record is its system turn.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from src.data.chat_template import MASK, ChatTemplate, RenderedChat
from src.data.prompt import IGNORE, MIN_TEXT_TOKENS, EncodedSample, Prompter, options_text, truncate_turns
from src.data.record import Record

CAPTION_REQUEST = "Describe the image."  # the question of a record that is a caption


@dataclass
class TokenisedChat:
    """A conversation as tokens (int32), with P of them per image; spans are positions in `ids`."""

    ids: np.ndarray
    question: tuple[int, int]
    answers: list[tuple[int, int]]

    @property
    def num_supervised(self) -> int:
        return sum(end - begin for begin, end in self.answers)


def chat_turns(record: Record) -> list[tuple[str, str]]:
    """(question with its options, answer) per turn; a caption is one turn."""
    return [(question + options_text(record), answer) for question, answer in record.turns] or [(CAPTION_REQUEST, record.caption)]


class ChatPrompter(Prompter):
    """Raises `UserError` for a tokenizer whose chat template cannot be used."""

    def __init__(self, tokenizer, *, patches: int, budget: int):
        super().__init__(tokenizer, patches=patches, budget=budget)
        self.template = ChatTemplate(tokenizer)
        self._empty_chats: dict[int, TokenisedChat] = {}
        self._check_template()

    def _check_template(self) -> None:
        """Renders two turns, and sets `ends`. The tokens of a prompt must stay the same when an answer follows."""
        turns = [("first question", "first answer"), ("second question", "second answer")]
        answered, unanswered = self._tokenise([self.template.render(turns), self.template.render(turns, answered=False)])
        begin, _ = answered.answers[-1]
        if not np.array_equal(answered.ids[:begin], unanswered.ids):
            self.template.refuse("joins the end of the prompt and the begin of the answer in one token")
        ends = sorted({int(answered.ids[end - 1]) for _, end in answered.answers})
        if len(ends) > 1:
            self.template.refuse(f"ends answers with different tokens ({', '.join(self.tokenizer.convert_ids_to_tokens(ends))})")
        self.ends = sorted({self.eos, *ends})

    def check_system(self) -> None:
        self.template.render([("question", "answer")], system="system text")

    def prefix(self, num_images: int) -> list[int]:
        chat = self._empty(num_images)
        return chat.ids[: chat.question[0]].tolist()

    def overhead(self, num_images: int) -> int:
        return len(self._empty(num_images).ids)

    def encode(self, records: list[Record], *, num_images: list[int]) -> list[EncodedSample]:
        rendered = (
            self.template.render(chat_turns(record), num_images=count, system=record.system)
            for record, count in zip(records, num_images, strict=True)
        )
        return [
            self._sample(chat, count) if len(chat.ids) <= self.budget else self._truncated(record, count, chat)
            for record, count, chat in zip(records, num_images, self._tokenise(rendered), strict=True)
        ]

    def question_ids(self, record: Record, num_images: int, *, max_new_tokens: int) -> tuple[list[int], list[int]]:
        """The oldest turns are dropped first, then the beginning of the question."""
        turns, limit = chat_turns(record), self.budget - max_new_tokens - 1
        while len((chat := self._tokenise_question(record, turns, num_images)).ids) > limit and len(turns) > 1:
            turns = turns[1:]
        if len(chat.ids) > limit:
            chat, room = self._single(record, turns[0], num_images, answered=False)
            begin, end = chat.question
            ((question, _),), _ = truncate_turns([(chat.ids[begin:end].tolist(), [0] * max_new_tokens)], room)
            chat.ids = np.array([*chat.ids[:begin], *question, *chat.ids[end:]], np.int32)
        begin = max(chat.question[0], 1)  # a prefix has at least one token
        return chat.ids[:begin].tolist(), chat.ids[begin:].tolist()

    def num_text_tokens(self, record: Record, num_images: int) -> int:
        chat = self._tokenise_question(record, chat_turns(record), num_images)
        return len(chat.ids) + 1 - len(self.prefix(num_images))

    def answer_ids(self, texts: list[str]) -> list[list[int]]:
        chats = self._tokenise(self.template.render([("question", text)]) for text in texts)
        return [chat.ids[slice(*chat.answers[0])].tolist() for chat in chats]

    def _sample(self, chat: TokenisedChat, num_images: int, *, whole: TokenisedChat | None = None) -> EncodedSample:
        """`whole` is the conversation before it was truncated to `chat`."""
        labels = np.full(len(chat.ids), IGNORE, np.int32)
        for begin, end in chat.answers:
            labels[begin:end] = chat.ids[begin:end]
        num_answer_truncated = whole.num_supervised - chat.num_supervised if whole else 0
        return EncodedSample(chat.ids, labels, num_images, len(whole.ids) - len(chat.ids) if whole else 0, num_answer_truncated)

    def _truncated(self, record: Record, num_images: int, whole: TokenisedChat) -> EncodedSample:
        """The conversation `whole` in at most `budget` tokens: whole turns are dropped first, as `truncate_turns` does."""
        turns = chat_turns(record)
        while len(turns) > 1:
            turns = turns[:-1]
            (chat,) = self._tokenise([self.template.render(turns, num_images=num_images, system=record.system)])
            if len(chat.ids) <= self.budget:
                return self._sample(chat, num_images, whole=whole)
        chat, room = self._single(record, turns[0], num_images, answered=True)
        (question_begin, question_end), ((begin, end),) = chat.question, chat.answers
        pair = (chat.ids[question_begin:question_end].tolist(), chat.ids[begin : end - 1].tolist())
        ((question, answer),), _ = truncate_turns([pair], room)
        head = [*chat.ids[:question_begin], *question, *chat.ids[question_end:begin]]
        ids = np.array([*head, *answer, *chat.ids[end - 1 :]], np.int32)
        shortened = TokenisedChat(ids, chat.question, [(len(head), len(head) + len(answer) + 1)])
        return self._sample(shortened, num_images, whole=whole)

    def _single(self, record: Record, turn: tuple[str, str], num_images: int, *, answered: bool) -> tuple[TokenisedChat, int]:
        """One turn, and the number of tokens for its question and its answer with end token.

        The system text is left out if it leaves fewer than `MIN_TEXT_TOKENS`.
        """
        for system in dict.fromkeys([record.system, ""]):
            (chat,) = self._tokenise([self.template.render([turn], num_images=num_images, system=system, answered=answered)])
            texts = sum(end - begin for begin, end in [chat.question, *chat.answers])
            if self.budget - (len(chat.ids) - texts) >= MIN_TEXT_TOKENS:
                break
        return chat, self.room(num_images, key=record.key, overhead=len(chat.ids) - texts)

    def _tokenise_question(self, record: Record, turns: list[tuple[str, str]], num_images: int) -> TokenisedChat:
        return self._tokenise([self.template.render(turns, num_images=num_images, system=record.system, answered=False)])[0]

    def _empty(self, num_images: int) -> TokenisedChat:
        """An empty question with an empty answer."""
        if num_images not in self._empty_chats:
            self._empty_chats[num_images] = self._tokenise([self.template.render([("", "")], num_images=num_images)])[0]
        return self._empty_chats[num_images]

    def _tokenise(self, chats: Iterable[RenderedChat]) -> list[TokenisedChat]:
        chats = list(chats)
        pieces = [piece for chat in chats for piece in chat.text.split(MASK)]
        if not pieces:
            return []
        encoded = self.tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True)
        parts = iter(zip(pieces, encoded.input_ids, encoded.offset_mapping, strict=True))
        literals = iter(self.tokens([literal for chat in chats for literal in chat.literals]))
        return [self._join_pieces(chat, parts, literals) for chat in chats]

    def _join_pieces(self, chat: RenderedChat, parts, literals) -> TokenisedChat:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for number in range(len(chat.literals) + 1):
            if number:
                plain = next(literals)
                ids += plain
                offsets += [(position, position + 1)] * len(plain)
                position += 1
            text, token_ids, token_offsets = next(parts)
            ids += token_ids
            offsets += [(begin + position, end + position) for begin, end in token_offsets]
            position += len(text)
        ids_T, offsets_T2 = np.array(ids, np.int32), np.array(offsets, int).reshape(-1, 2)
        repeats_T = np.where(ids_T == self.image_id, self.patches, 1)
        begins_T, ends_T = np.repeat(offsets_T2, repeats_T, axis=0).T

        def before(position: int) -> int:
            """The number of tokens that end at `position` or before it."""
            return int(np.searchsorted(ends_T, position, side="right"))

        # An end token may include the whitespace after it, so its span ends before the first token that begins later.
        answers = [(before(begin), int(np.searchsorted(begins_T, end))) for begin, end in chat.answers]
        begin, end = chat.question
        return TokenisedChat(np.repeat(ids_T, repeats_T), (before(begin), max(before(begin), before(end))), answers)
