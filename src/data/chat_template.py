"""Conversations as text, in the chat template of a tokenizer.

Each text stands between two `MARK` while the template is rendered, so that the positions of the texts are known and a template that drops
or changes one is noticed. A special token in a text is replaced by `MASK`; its characters are to be tokenised as plain ones.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from jinja2 import TemplateError

from src.data.prompt import IMAGE
from src.runtime.errors import UserError

MARK, MASK = "\U000f0000", "\U000f0001"  # private-use characters
DATE = "26 Jul 2024"  # for templates that write a date (Llama 3): today's date would change the tokens of a run from day to day


@dataclass
class RenderedChat:
    """A conversation as text, without `MARK`; spans are positions in it."""

    text: str
    literals: list[str]  # the special tokens that `MASK` replaces, in order
    question: tuple[int, int]  # the first question
    answers: list[tuple[int, int]]  # each with its end token


class ChatTemplate:
    """Raises `UserError` for a tokenizer without a chat template, and for a template that drops or changes a turn."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            self.refuse("is missing", advice="give an instruction-tuned model")
        if not tokenizer.is_fast:
            self.refuse(f"belongs to a {type(tokenizer).__name__}, which has no fast version")
        template = tokenizer.get_chat_template()
        if "strftime_now" in template and "date_string" not in template:
            self.refuse("writes today's date, so that the tokens of a run would change from day to day")
        added = list(tokenizer.added_tokens_decoder.values())
        special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        self._special = _any_of([*special, MARK, MASK])
        self._end = _any_of([*special, *(token.content for token in added if not token.content.isspace())])

    def render(self, turns: list[tuple[str, str]], *, num_images: int = 0, system: str = "", answered: bool = True) -> RenderedChat:
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
            self.refuse(f"drops or changes {', '.join(lost)}" if lost else "reorders the turns")
        if not all(text.startswith(prompt) for prompt in prompts):
            self.refuse("writes an earlier turn differently when later ones follow")
        if sum(part.count(IMAGE) for part in parts[::2]) != num_images:
            self.refuse(f"drops or repeats {IMAGE}")
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
            self.refuse(f"writes {gap.strip()!r} before an answer, which a generation prompt does not")
        match = self._end.search(parts[part + 1])
        if match is None or parts[part + 1][: match.start()].strip():
            self.refuse("writes no special token after an answer, so that answers would not end")
        return begin, begins[part + 1] + match.end()

    def _apply(self, messages: list[dict], *, generate: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, date_string=DATE)
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            self.refuse(f"rejects a conversation of {roles} ({str(error).splitlines()[0]})")

    def refuse(self, problem: str, *, advice: str = "give a model with another template") -> NoReturn:
        raise UserError(
            f"prompt.template=chat: the chat template of {self.tokenizer.name_or_path} {problem}; set prompt.template=plain, or {advice}"
        )


def _any_of(words: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True)))
