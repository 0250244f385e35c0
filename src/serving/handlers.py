"""What the buttons of the page do, with a model."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from src.data.image_io import read_image
from src.inference.occlusion import blank_request, likelihood, occlude
from src.inference.query import Sampling, VQAQuery, validate_question
from src.inference.vqa_model import VQAModel
from src.runtime.errors import UserError
from src.serving import views
from src.serving.limits import Limits


class DemoHandlers:
    """Nothing is remembered between calls: the page sends picture and conversation each time."""

    def __init__(self, answerer: VQAModel, limits: Limits):
        self.answerer, self.limits = answerer, limits

    def ask(self, picture, question, history, tokens, temperature, top_p, seed) -> Iterator[tuple[list[dict], str, str]]:
        """Streams (conversation, emptied question box, status)."""
        try:
            query = self._query(picture, question, _pairs(history))
            sampling = self._sampling(tokens, temperature, top_p, seed)
            said = [*_messages(query.history), {"role": "user", "content": query.question}]
            yield said, "", "reading the picture ..."
            answer = None
            for answer in self.answerer.stream(query, sampling):
                yield [*said, {"role": "assistant", "content": answer.text}], "", "answering ..."
        except UserError as mistake:
            raise gr.Error(str(mistake), print_exception=False) from None
        assert answer is not None
        text = answer.text or "(empty answer)"
        yield [*said, {"role": "assistant", "content": text}], "", f"confidence {views.certainty(answer.confidence, 1)}, not calibrated"

    def look(self, picture, history) -> tuple[Image.Image, str]:
        """The occlusion map of the last answer and what it means."""
        query, answer = self._last(picture, history)
        try:
            found = occlude(self.answerer, query, answer)
        except UserError as mistake:
            raise gr.Error(str(mistake), print_exception=False) from None
        return views.overlay(query.images[0], found), views.legend(found, answer)

    def matter(self, picture, history) -> str:
        """The last question with the picture and with a blank one, side by side."""
        query, answer = self._last(picture, history)
        try:
            greedy = Sampling(max_new_tokens=self.limits.max_new_tokens)
            asked = blank_request(self.answerer.prepare(query, greedy), self.answerer.blank())
            ((_, without),) = self.answerer.generator(greedy, batch=1).answers([asked])
            seen, hidden = likelihood(self.answerer, query, answer), likelihood(self.answerer, query, answer, blank=True)
        except UserError as mistake:
            raise gr.Error(str(mistake), print_exception=False) from None
        same = without.text.strip().lower() == answer.strip().lower()
        note = "" if same else f"; of <q>{html.escape(answer)}</q> {views.certainty(*hidden)}"
        first = (answer, views.certainty(*seen), "")
        return views.comparison(query.images[0], first, (without.text, views.certainty(without.confidence, 1), note), same=same)

    def _last(self, picture, history) -> tuple[VQAQuery, str]:
        pairs = _pairs(history)
        if not pairs:
            raise gr.Error("ask a question first", print_exception=False)
        *before, (question, answer) = pairs
        return self._query(picture, question, before), answer[: 8 * self.limits.question]

    def _query(self, picture: str | None, question: Any, pairs: list[tuple[str, str]]) -> VQAQuery:
        try:
            text = validate_question(str(question or ""))
            if len(text) > self.limits.question:
                raise UserError(f"the question has {len(text)} characters; at most {self.limits.question} are taken")
            if not picture:
                raise UserError("add a picture first: upload one, paste one, or take an example")
            image = read_image(Path(picture), max_pixels=int(self.limits.megapixels * 1e6))
        except UserError as mistake:
            raise gr.Error(str(mistake), print_exception=False) from None
        most = 2 * self.limits.question
        return VQAQuery(text, [image], [(q[:most], a[:most]) for q, a in pairs[-self.limits.turns :]])

    def _sampling(self, tokens, temperature, top_p, seed) -> Sampling:
        try:
            return Sampling(
                max_new_tokens=max(1, min(int(tokens), self.limits.max_new_tokens)),
                temperature=max(0.0, min(float(temperature), 2.0)),
                top_p=max(0.05, min(float(top_p), 1.0)),
                seed=max(0, min(int(seed), 2**31)),
            )
        except (TypeError, ValueError, OverflowError):
            raise UserError("the answer settings must be numbers") from None


def _messages(pairs: list[tuple[str, str]]) -> list[dict]:
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def _pairs(history: Any) -> list[tuple[str, str]]:
    """(question, answer) of a conversation as the page, or anybody, sends it."""
    pairs, waiting = [], ""
    for message in history if isinstance(history, list) else []:
        role, text = (message.get("role"), _plain(message.get("content"))) if isinstance(message, dict) else ("", "")
        if role == "user":
            waiting = text
        elif role == "assistant" and waiting:
            pairs.append((waiting, text))
            waiting = ""
    return pairs


def _plain(content: Any) -> str:
    if isinstance(content, list):
        content = " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
