"""Record -> token ids and labels in the chat template of the tokenizer (`prompt.template=chat`).

    <|im_start|>user
    <image>xP ...
    which organ is shown?<|im_end|>
    <|im_start|>assistant
    lung<|im_end|>

A conversation is rendered as one text, whose ids are those of `tokenizer.apply_chat_template(messages, tokenize=True)`. Labels cover each
answer from the end of the generation prompt to its end token, nothing else. `meta["system"]` of a record is its system turn.

While the template is rendered, each text stands between two `MARK`, so that the positions of the texts are known and a template that drops
or changes one is noticed. A special token in a text is replaced by `MASK`, and its characters are tokenised as plain ones.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from jinja2 import TemplateError

from src.data.prompt import IGNORE, IMAGE, MIN_TEXT_TOKENS, EncodedSample, Prompter, options_text, truncate_turns
from src.data.record import Record
from src.runtime.errors import UserError

MARK, MASK = "\U000f0000", "\U000f0001"  # private-use characters
DATE = "26 Jul 2024"  # for templates that write a date (Llama 3): today's date would change the tokens of a run from day to day
CAPTION_REQUEST = "Describe the image."  # the question of a record that is a caption


@dataclass
class RenderedChat:
    """A conversation as text, without `MARK`; spans are positions in it."""

    text: str
    literals: list[str]  # the special tokens that `MASK` replaces, in order
    question: tuple[int, int]  # the first question
    answers: list[tuple[int, int]]  # each with its end token


@dataclass
class TokenisedChat:
    """A conversation as tokens (int32), with P of them per image; spans are positions in `ids`."""

    ids: np.ndarray
    question: tuple[int, int]
    answers: list[tuple[int, int]]


def chat_turns(record: Record) -> list[tuple[str, str]]:
    """(question with its options, answer) per turn; a caption is one turn."""
    return [(question + options_text(record), answer) for question, answer in record.turns] or [(CAPTION_REQUEST, record.caption)]


def system_text(record: Record) -> str:
    return str(record.meta.get("system") or "")


class ChatPrompter(Prompter):
    """Raises `UserError` for a tokenizer without a chat template, and for a template that drops or changes a turn."""

    def __init__(self, tokenizer, *, patches: int, budget: int):
        super().__init__(tokenizer, patches=patches, budget=budget)
        if not tokenizer.chat_template:
            self._refuse("is missing", advice="give an instruction-tuned model")
        if not tokenizer.is_fast:
            self._refuse(f"belongs to a {type(tokenizer).__name__}, which has no fast version")
        template = tokenizer.get_chat_template()
        if "strftime_now" in template and "date_string" not in template:
            self._refuse("writes today's date, so that the tokens of a run would change from day to day")
        added = list(tokenizer.added_tokens_decoder.values())
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self._special = _any_of([*special, MARK, MASK])
        self._end = _any_of([*special, *(token.content for token in added if not token.content.isspace())])
        self._empty_chats: dict[int, TokenisedChat] = {}
        self._check_template()

    def _check_template(self) -> None:
        """Renders two turns, and sets `ends`. The tokens of a prompt must stay the same when an answer follows."""
        turns = [("first question", "first answer"), ("second question", "second answer")]
        answered, asked = self._tokenise([self._render(turns), self._render(turns, answered=False)])
        begin, _ = answered.answers[-1]
        if not np.array_equal(answered.ids[:begin], asked.ids):
            self._refuse("joins the end of the prompt and the begin of the answer in one token")
        ends = sorted({int(answered.ids[end - 1]) for _, end in answered.answers})
        if len(ends) > 1:
            self._refuse(f"ends answers with different tokens ({', '.join(self.tokenizer.convert_ids_to_tokens(ends))})")
        self.ends = sorted({self.eos, *ends})

    def check_system(self) -> None:
        self._render([("question", "answer")], system="system text")

    def prefix(self, num_images: int) -> list[int]:
        chat = self._empty(num_images)
        return chat.ids[: chat.question[0]].tolist()

    def overhead(self, num_images: int) -> int:
        return len(self._empty(num_images).ids)

    def encode(self, records: list[Record], *, num_images: list[int]) -> list[EncodedSample]:
        rendered = (
            self._render(chat_turns(record), num_images=count, system=system_text(record))
            for record, count in zip(records, num_images, strict=True)
        )
        return [
            self._sample(chat, count) if len(chat.ids) <= self.budget else self._truncated(record, count, total=len(chat.ids))
            for record, count, chat in zip(records, num_images, self._tokenise(rendered), strict=True)
        ]

    def question_ids(self, record: Record, num_images: int, *, max_new_tokens: int) -> tuple[list[int], list[int]]:
        """The oldest turns are dropped first, then the beginning of the question."""
        turns, limit = chat_turns(record), self.budget - max_new_tokens - 1
        while len((chat := self._asked(record, turns, num_images)).ids) > limit and len(turns) > 1:
            turns = turns[1:]
        if len(chat.ids) > limit:
            chat, room = self._single(record, turns[0], num_images, answered=False)
            begin, end = chat.question
            ((question, _),), _ = truncate_turns([(chat.ids[begin:end].tolist(), [0] * max_new_tokens)], room)
            chat.ids = np.concatenate([chat.ids[:begin], question, chat.ids[end:]])
        begin = max(chat.question[0], 1)  # a prefix has at least one token
        return chat.ids[:begin].tolist(), chat.ids[begin:].tolist()

    def num_text_tokens(self, record: Record, num_images: int) -> int:
        chat = self._asked(record, chat_turns(record), num_images)
        return len(chat.ids) + 1 - len(self.prefix(num_images))

    def answer_ids(self, texts: list[str]) -> list[list[int]]:
        chats = self._tokenise(self._render([("question", text)]) for text in texts)
        return [chat.ids[slice(*chat.answers[0])].tolist() for chat in chats]

    def _sample(self, chat: TokenisedChat, num_images: int, num_truncated: int = 0) -> EncodedSample:
        labels = np.full(len(chat.ids), IGNORE, np.int32)
        for begin, end in chat.answers:
            labels[begin:end] = chat.ids[begin:end]
        return EncodedSample(chat.ids, labels, num_images, num_truncated)

    def _truncated(self, record: Record, num_images: int, *, total: int) -> EncodedSample:
        """A conversation of `total` tokens in at most `budget`: whole turns first, as `truncate_turns` does."""
        turns = chat_turns(record)
        while len(turns) > 1:
            turns = turns[:-1]
            (chat,) = self._tokenise([self._render(turns, num_images=num_images, system=system_text(record))])
            if len(chat.ids) <= self.budget:
                return self._sample(chat, num_images, total - len(chat.ids))
        chat, room = self._single(record, turns[0], num_images, answered=True)
        (asked_from, asked_to), ((begin, end),) = chat.question, chat.answers
        pair = (chat.ids[asked_from:asked_to].tolist(), chat.ids[begin : end - 1].tolist())
        ((question, answer),), _ = truncate_turns([pair], room)
        head = np.concatenate([chat.ids[:asked_from], question, chat.ids[asked_to:begin]])
        ids = np.concatenate([head, answer, chat.ids[end - 1 :]]).astype(np.int32)
        shortened = TokenisedChat(ids, chat.question, [(len(head), len(head) + len(answer) + 1)])
        return self._sample(shortened, num_images, total - len(ids))

    def _single(self, record: Record, turn: tuple[str, str], num_images: int, *, answered: bool) -> tuple[TokenisedChat, int]:
        """One turn, and the number of tokens for its question and its answer with end token.

        The system text is left out if it leaves fewer than `MIN_TEXT_TOKENS`.
        """
        for system in dict.fromkeys([system_text(record), ""]):
            (chat,) = self._tokenise([self._render([turn], num_images=num_images, system=system, answered=answered)])
            texts = sum(end - begin for begin, end in [chat.question, *chat.answers])
            if self.budget - (len(chat.ids) - texts) >= MIN_TEXT_TOKENS:
                break
        return chat, self.room(num_images, key=record.key, overhead=len(chat.ids) - texts)

    def _asked(self, record: Record, turns: list[tuple[str, str]], num_images: int) -> TokenisedChat:
        return self._tokenise([self._render(turns, num_images=num_images, system=system_text(record), answered=False)])[0]

    def _empty(self, num_images: int) -> TokenisedChat:
        """An empty question with an empty answer."""
        if num_images not in self._empty_chats:
            self._empty_chats[num_images] = self._tokenise([self._render([("", "")], num_images=num_images)])[0]
        return self._empty_chats[num_images]

    def _render(self, turns: list[tuple[str, str]], *, num_images: int = 0, system: str = "", answered: bool = True) -> RenderedChat:
        """With `answered=False` the text ends with the generation prompt after the last question."""
        texts: dict[str, str] = {}
        literals: list[str] = []

        def mask(match: re.Match) -> str:
            literals.append(match[0])
            return MASK

        def marked(name: str, text: str) -> str:
            texts[name] = self._special.sub(mask, text.strip())
            return f"{MARK}{texts[name]}{MARK}"

        messages = [{"role": "system", "content": marked("the system text", system)}] if system else []
        images, prompts = IMAGE * num_images + "\n" * bool(num_images), []
        for number, (question, answer) in enumerate(turns, start=1):
            messages.append({"role": "user", "content": images * (number == 1) + marked(f"question {number}", question)})
            prompts.append(self._apply(messages, generate=True))
            if answered or number < len(turns):
                messages.append({"role": "assistant", "content": marked(f"answer {number}", answer)})
        text = self._apply(messages, generate=False) if answered else prompts[-1]
        parts = text.split(MARK)  # what the template writes, and the texts, in turn
        if parts[1::2] != list(texts.values()):
            lost = [name for name, value in texts.items() if value not in parts[1::2]]
            self._refuse(f"drops or changes {', '.join(lost)}" if lost else "reorders the turns")
        if not all(text.startswith(prompt) for prompt in prompts):
            self._refuse("writes an earlier turn differently when later ones follow")
        if sum(part.count(IMAGE) for part in parts[::2]) != num_images:
            self._refuse(f"drops or repeats {IMAGE}")
        begins = np.cumsum([0, *map(len, parts)]).tolist()
        first = 3 if system else 1
        answers = [
            self._answer_span(parts, begins, first + 4 * n + 2, begin=len(prompt.replace(MARK, "")))
            for n, prompt in enumerate(prompts)
            if first + 4 * n + 2 < len(parts)
        ]
        return RenderedChat("".join(parts), literals, (begins[first], begins[first + 1]), answers)

    def _answer_span(self, parts: list[str], begins: list[int], part: int, *, begin: int) -> tuple[int, int]:
        """From the end of the generation prompt to the end token of the answer that is part number `part`."""
        gap = "".join(parts)[begin : begins[part]]
        if begin > begins[part] or gap.strip():
            self._refuse(f"writes {gap.strip()!r} before an answer, which a generation prompt does not")
        match = self._end.search(parts[part + 1])
        if match is None or parts[part + 1][: match.start()].strip():
            self._refuse("writes no special token after an answer, so that answers would not end")
        return begin, begins[part + 1] + match.end()

    def _apply(self, messages: list[dict], *, generate: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, date_string=DATE)
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            self._refuse(f"rejects a conversation of {roles} ({str(error).splitlines()[0]})")

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

    def _refuse(self, found: str, *, advice: str = "give a model with another template") -> NoReturn:
        raise UserError(
            f"prompt.template=chat: the chat template of {self.tokenizer.name_or_path} {found}; set prompt.template=plain, or {advice}"
        )


def _any_of(words: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True)))
