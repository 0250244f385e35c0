"""The functions behind the buttons of the demo page."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from src.data.image_io import read_image
from src.inference.occlusion import blank_request, likelihood, occlude
from src.inference.query import EMPTY_ANSWER, Sampling, VQAQuery, validate_question
from src.inference.vqa_model import VQAModel
from src.runtime.errors import UserError
from src.serving import views
from src.serving.limits import Limits


class DemoHandlers:
    """Stateless: the page sends the image and the conversation with each call."""

    def __init__(self, model: VQAModel, limits: Limits):
        self.model, self.limits = model, limits

    def ask(self, image, question, history, tokens, temperature, top_p, seed) -> Iterator[tuple[list[dict], str, str]]:
        """Streams (conversation, new content of the question box, status)."""
        try:
            query = self._query(image, question, _pairs(history))
            sampling = self._sampling(tokens, temperature, top_p, seed)
            messages = [*_messages(query.history), {"role": "user", "content": query.question}]
            yield messages, "", "encoding the image ..."
            answer = None
            for answer in self.model.stream(query, sampling):
                yield [*messages, {"role": "assistant", "content": answer.text}], "", "answering ..."
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        assert answer is not None
        messages.append({"role": "assistant", "content": answer.text or EMPTY_ANSWER})
        yield messages, "", f"confidence {views.confidence(answer.confidence, 1)}, not calibrated"

    def look(self, image, history) -> tuple[Image.Image, str]:
        """The occlusion map of the last answer and its explanation."""
        query, answer = self._last_turn(image, history)
        try:
            occlusion = occlude(self.model, query, answer)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return views.overlay(query.images[0], occlusion), views.legend(occlusion, answer)

    def matter(self, image, history) -> str:
        """Compares the last answer with the answer for a blank image."""
        query, answer = self._last_turn(image, history)
        try:
            greedy = Sampling(max_new_tokens=self.limits.max_new_tokens)
            request = blank_request(self.model.prepare(query, greedy), self.model.blank())
            ((_, blank_answer),) = self.model.generator(greedy, batch=1).answers([request])
            with_image, with_blank = likelihood(self.model, query, answer), likelihood(self.model, query, answer, blank=True)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        same = blank_answer.text.strip().lower() == answer.strip().lower()
        note = "" if same else f"; of <q>{html.escape(answer)}</q> {views.confidence(*with_blank)}"
        cards = (answer, views.confidence(*with_image), ""), (blank_answer.text, views.confidence(blank_answer.confidence, 1), note)
        return views.comparison(query.images[0], *cards, same=same)

    def _last_turn(self, image, history) -> tuple[VQAQuery, str]:
        pairs = _pairs(history)
        if not pairs:
            raise gr.Error("ask a question first", print_exception=False)
        *earlier, (question, answer) = pairs
        return self._query(image, question, earlier), answer[: 8 * self.limits.question]

    def _query(self, path: str | None, question: Any, pairs: list[tuple[str, str]]) -> VQAQuery:
        try:
            text = validate_question(str(question or ""))
            if len(text) > self.limits.question:
                raise UserError(f"the question has {len(text)} characters; use at most {self.limits.question}")
            if not path:
                raise UserError("there is no image; upload one, paste one, or choose an example")
            image = read_image(Path(path), max_pixels=int(self.limits.megapixels * 1e6))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None
        length = 2 * self.limits.question
        return VQAQuery(text, [image], [(q[:length], a[:length]) for q, a in pairs[-self.limits.turns :]])

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
    """(question, answer) pairs of a conversation. `history` comes from the client and is not trusted."""
    pairs, question = [], ""
    for message in history if isinstance(history, list) else []:
        role, text = (message.get("role"), _text(message.get("content"))) if isinstance(message, dict) else ("", "")
        if role == "user":
            question = text
        elif role == "assistant" and question:
            pairs.append((question, text))
            question = ""
    return pairs


def _text(content: Any) -> str:
    if isinstance(content, list):
        content = " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
