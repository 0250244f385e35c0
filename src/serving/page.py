"""The page: a picture on the left, questions and answers on the right, and below what the answer rests on."""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from src.data.read_image import read_image
from src.errors import UserError
from src.model.answer import Answerer, Query, Sampling, spoken
from src.model.occlusion import blanked, likelihood, occlude
from src.serving import views
from src.serving.limits import Limits

STYLE = Path(__file__).with_name("page.css").read_text()
SANS = ("ui-sans-serif", "system-ui", "sans-serif")  # of the visitor's machine: no font is fetched from elsewhere
MONO = ("ui-monospace", "Consolas", "monospace")
BANNER = "<b>Research only, not for clinical use.</b> Answers can be wrong. Do not upload pictures that could identify a person."
DICOM = [".dcm", ".dicom", ".tif", ".tiff", ".png"]  # .png is what the guard makes of the others


class Desk:
    """What the buttons do. Nothing is remembered between calls: the page sends picture and conversation each time."""

    def __init__(self, answerer: Answerer, limits: Limits):
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
            asked = blanked(self.answerer.prepare(query, greedy), self.answerer.blank())
            ((_, without),) = self.answerer.generator(greedy, batch=1).answers([asked])
            seen, hidden = likelihood(self.answerer, query, answer), likelihood(self.answerer, query, answer, blank=True)
        except UserError as mistake:
            raise gr.Error(str(mistake), print_exception=False) from None
        same = without.text.strip().lower() == answer.strip().lower()
        note = "" if same else f"; of <q>{html.escape(answer)}</q> {views.certainty(*hidden)}"
        first = (answer, views.certainty(*seen), "")
        return views.comparison(query.images[0], first, (without.text, views.certainty(without.confidence, 1), note), same=same)

    def _last(self, picture, history) -> tuple[Query, str]:
        pairs = _pairs(history)
        if not pairs:
            raise gr.Error("ask a question first", print_exception=False)
        *before, (question, answer) = pairs
        return self._query(picture, question, before), answer[: 8 * self.limits.question]

    def _query(self, picture: str | None, question: Any, pairs: list[tuple[str, str]]) -> Query:
        try:
            text = spoken(str(question or ""))
            if len(text) > self.limits.question:
                raise UserError(f"the question has {len(text)} characters; at most {self.limits.question} are taken")
            if not picture:
                raise UserError("add a picture first: upload one, paste one, or take an example")
            image = read_image(Path(picture), max_pixels=int(self.limits.megapixels * 1e6))
        except UserError as mistake:
            raise gr.Error(str(mistake), print_exception=False) from None
        most = 2 * self.limits.question
        return Query(text, [image], [(q[:most], a[:most]) for q, a in pairs[-self.limits.turns :]])

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


def build(answerer: Answerer, limits: Limits, *, examples: list[tuple[str, str]]) -> gr.Blocks:
    """`examples`: [(picture file, question)]."""
    desk = Desk(answerer, limits)
    with gr.Blocks(title="OpenMedQ demo", analytics_enabled=False) as page:
        gr.HTML(f"<div id='banner' role='note'>{BANNER}</div>")
        gr.HTML(f"<div id='title'><h1>OpenMedQ</h1><p>Ask {html.escape(answerer.name)} about a medical image.</p></div>")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                picture = gr.Image(
                    label="Image: drop, paste or upload",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=360,
                    buttons=["fullscreen"],
                    elem_id="picture",
                    alt_text="the picture that the questions are about",
                )
                dicom = gr.UploadButton("Open a DICOM or TIFF file", file_types=DICOM, size="sm", elem_id="dicom")
                if examples:
                    gr.HTML("<div class='hint'>or take an example</div>")
                strip = gr.Gallery(
                    value=[path for path, _ in examples],
                    label="Examples",
                    show_label=False,
                    columns=min(6, max(len(examples), 1)),
                    height="auto",
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    visible=bool(examples),
                    elem_id="examples",
                    buttons=[],
                )
            with gr.Column(scale=6, min_width=300):
                chat = gr.Chatbot(
                    label="Questions and answers",
                    height=316,
                    elem_id="chat",
                    buttons=["copy"],
                    render_markdown=False,
                    allow_tags=False,
                    allow_file_downloads=False,
                    feedback_options=None,
                    placeholder="Add an image, then ask.",
                )
                with gr.Row(equal_height=True):
                    question = gr.Textbox(
                        label="Your question",
                        placeholder="Which organ is shown?",
                        lines=1,
                        max_lines=3,
                        max_length=limits.question,
                        scale=5,
                        min_width=200,
                        elem_id="question",
                    )
                    send = gr.Button("Ask", variant="primary", scale=1, min_width=90, elem_id="ask")
                status = gr.HTML("", elem_id="status")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                show_map = gr.Button("Where did it look?", elem_id="look")
                heat = gr.Image(
                    label="Which tiles moved the answer", interactive=False, visible=False, elem_id="map", buttons=["fullscreen"]
                )
                meaning = gr.HTML(elem_id="meaning")
            with gr.Column(min_width=300):
                blank = gr.Button("Does the image matter?", elem_id="matter")
                compared = gr.HTML(elem_id="compared")
        with gr.Accordion("Answer settings", open=False):
            with gr.Row():
                tokens = gr.Slider(1, limits.max_new_tokens, value=min(32, limits.max_new_tokens), step=1, label="Longest answer (tokens)")
                temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature (0: the likeliest answer)")
                top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p")
                seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")

        def take(chosen: gr.SelectData) -> tuple[str, str]:
            return examples[chosen.index]

        # Not by a subclass: gradio would write a stub file beside this one.
        picture.preprocess = uploaded  # type: ignore[method-assign]
        settings = [tokens, temperature, top_p, seed]
        asked = {"fn": desk.ask, "inputs": [picture, question, chat, *settings], "outputs": [chat, question, status]}
        one = {"concurrency_id": "model", "concurrency_limit": 1}
        quiet = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        clear = {"fn": _cleared, "outputs": [heat, meaning, compared], **quiet}
        send.click(**clear)
        question.submit(**clear)
        send.click(**asked, **one, api_name="ask")
        question.submit(**asked, **one, api_visibility="private")
        show_map.click(desk.look, [picture, chat], [heat, meaning], **one, api_name="look").success(
            lambda: gr.update(visible=True), None, heat, queue=False, api_visibility="private"
        )
        blank.click(desk.matter, [picture, chat], compared, **one, api_name="matter")
        dicom.upload(lambda path: path, dicom, picture, api_visibility="private")
        strip.select(take, None, [picture, question], **quiet)
        picture.change(lambda: ([], ""), None, [chat, status], **quiet)
        picture.change(**clear)
    return page


def uploaded(payload: Any) -> str | None:
    """The file that came through the upload; neither an address nor data in the request itself, which gradio would take too."""
    if payload is None:
        return None
    if payload.path is None or (payload.url or "").startswith("data:"):
        raise gr.Error("upload the picture as a file", print_exception=False)
    return str(payload.path)


def _cleared() -> tuple:
    return gr.update(value=None, visible=False), "", ""


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
