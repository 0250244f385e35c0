"""The page: a picture on the left, questions and answers on the right, and below what the answer rests on."""

import html
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from src.serving.limits import Limits

if TYPE_CHECKING:
    from src.serving.handlers import DemoHandlers

STYLE = Path(__file__).with_name("page.css").read_text()
SANS = ("ui-sans-serif", "system-ui", "sans-serif")  # of the visitor's machine: no font is fetched from elsewhere
MONO = ("ui-monospace", "Consolas", "monospace")
BANNER = "<b>Research only, not for clinical use.</b> Answers can be wrong. Do not upload pictures that could identify a person."
DICOM = [".dcm", ".dicom", ".tif", ".tiff", ".png"]  # .png is what the guard makes of the others


def build(desk: "Future[DemoHandlers]", limits: Limits, *, name: str, examples: list[tuple[str, str]]) -> gr.Blocks:
    """`desk` is there when the model is; who asks before waits. `name` of the model; `examples`: [(picture file, question)]."""
    with gr.Blocks(title="OpenMedQ demo", analytics_enabled=False) as page:
        gr.HTML(f"<div id='banner' role='note'>{BANNER}</div>")
        gr.HTML(f"<div id='title'><h1>OpenMedQ</h1><p>Ask {html.escape(name)} about a medical image.</p></div>")
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
                    label="Which tiles moved the answer",
                    show_label=False,  # it would lie on the tiles
                    interactive=False,
                    visible=False,
                    elem_id="map",
                    buttons=["fullscreen"],
                    alt_text="which tiles moved the answer",
                )
                meaning = gr.HTML(elem_id="meaning")
            with gr.Column(min_width=300):
                blank = gr.Button("Does the image matter?", elem_id="matter")
                compared = gr.HTML(elem_id="compared")
        with gr.Accordion("Answer settings", open=False):
            with gr.Row():
                tokens = gr.Slider(
                    1, limits.max_new_tokens, value=min(32, limits.max_new_tokens), step=1, label="Longest answer", info="tokens"
                )
                temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature", info="0: the likeliest")
                top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", info="1: all tokens")
                seed = gr.Number(value=0, precision=0, minimum=0, label="Seed", info="of the draws")

        def ask(picture, question, history, tokens, temperature, top_p, seed) -> Iterator[tuple]:
            if not desk.done():
                yield history, question, "the model is still being loaded ..."
            yield from desk.result().ask(picture, question, history, tokens, temperature, top_p, seed)

        def look(picture, history) -> tuple:
            return desk.result().look(picture, history)

        def matter(picture, history) -> str:
            return desk.result().matter(picture, history)

        def take(chosen: gr.SelectData) -> tuple[str, str]:
            return examples[chosen.index]

        # Not by a subclass: gradio would write a stub file beside this one.
        picture.preprocess = uploaded  # type: ignore[method-assign]
        chat.preprocess = texts  # type: ignore[method-assign]
        settings = [tokens, temperature, top_p, seed]
        # A mistake is told once; gradio would also cover the conversation and the question with the word "Error".
        asked = {"fn": ask, "inputs": [picture, question, chat, *settings], "outputs": [chat, question, status], "show_progress_on": status}
        one = {"concurrency_id": "model", "concurrency_limit": 1}
        quiet = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        clear = {"fn": _cleared, "outputs": [heat, meaning, compared], **quiet}
        send.click(**clear)
        question.submit(**clear)
        send.click(**asked, **one, api_name="ask")
        question.submit(**asked, **one, api_visibility="private")
        show_map.click(look, [picture, chat], [heat, meaning], **one, api_name="look").success(
            lambda: gr.update(visible=True), None, heat, queue=False, api_visibility="private"
        )
        blank.click(matter, [picture, chat], compared, **one, api_name="matter")
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


def texts(payload: Any) -> list[dict]:
    """The words of a conversation; gradio would also open files in it, and build any component that it names."""
    messages = payload.root if payload else []
    words = [(message.role, [part for part in message.content if part.type == "text"]) for message in messages]
    return [{"role": role, "content": [{"type": "text", "text": part.text} for part in parts]} for role, parts in words]


def _cleared() -> tuple:
    return gr.update(value=None, visible=False), "", ""
