"""The gradio page of the demo: image on the left, conversation on the right, explanations of the answer below."""

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
SANS = ("ui-sans-serif", "system-ui", "sans-serif")  # fonts of the visitor's machine, so that none is downloaded
MONO = ("ui-monospace", "Consolas", "monospace")
BANNER = "<b>Research only, not for clinical use.</b> Answers can be wrong. Do not upload images that could identify a person."
DICOM = [".dcm", ".dicom", ".tif", ".tiff", ".png"]  # the upload middleware converts the others to .png


def build(
    handlers: "Future[DemoHandlers]", limits: Limits, *, name: str, examples: list[tuple[str, str]], note: str = "", notice: str = ""
) -> gr.Blocks:
    """Builds the page. Calls wait until `handlers` has a result, which is when the model is loaded.

    `name` is the name of the model, `note` a sentence on its data, `notice` a line above the title about its terms; `examples` is a list of
    (image file, question).
    """
    with gr.Blocks(title="OpenMedQ demo", analytics_enabled=False) as page:
        gr.HTML(f"<div id='banner' role='note'>{BANNER}</div>")
        if notice:
            gr.HTML(f"<div id='notice' role='note'>{html.escape(notice)}</div>")
        gr.HTML(f"<div id='title'><h1>OpenMedQ</h1><p>Ask {html.escape(name)} about a medical image. {html.escape(note)}</p></div>")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                image = gr.Image(
                    label="Image: drop, paste or upload",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    height=360,
                    buttons=["fullscreen"],
                    elem_id="picture",
                    alt_text="the image that the questions are about",
                )
                dicom = gr.UploadButton("Open a DICOM or TIFF file", file_types=DICOM, size="sm", elem_id="dicom")
                if examples:
                    gr.HTML("<div class='hint'>or choose an example</div>")
                gallery = gr.Gallery(
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
                    placeholder="Add an image, then ask a question.",
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
                look_button = gr.Button("Where did it look?", elem_id="look")
                heatmap = gr.Image(
                    label="Tiles that changed the answer",
                    show_label=False,  # it would cover the tiles
                    interactive=False,
                    visible=False,
                    elem_id="map",
                    buttons=["fullscreen"],
                    alt_text="tiles that changed the answer",
                )
                explanation = gr.HTML(elem_id="meaning")
            with gr.Column(min_width=300):
                matter_button = gr.Button("Does the image matter?", elem_id="matter")
                comparison = gr.HTML(elem_id="compared")
        with gr.Accordion("Answer settings", open=False):
            with gr.Row():
                tokens = gr.Slider(
                    1, limits.max_new_tokens, value=min(32, limits.max_new_tokens), step=1, label="Maximum length", info="tokens"
                )
                temperature = gr.Slider(0, 2, value=0, step=0.1, label="Temperature", info="0: greedy decoding")
                top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", info="1: all tokens")
                seed = gr.Number(value=0, precision=0, minimum=0, label="Seed", info="for sampling")

        def ask(image, question, history, tokens, temperature, top_p, seed) -> Iterator[tuple]:
            if not handlers.done():
                yield history, question, "the model is still loading ..."
            yield from handlers.result().ask(image, question, history, tokens, temperature, top_p, seed)

        def look(image, history) -> tuple:
            return handlers.result().look(image, history)

        def matter(image, history) -> str:
            return handlers.result().matter(image, history)

        def select_example(selection: gr.SelectData) -> tuple[str, str]:
            return examples[selection.index]

        # Not in a subclass, because gradio writes a stub file next to the source of each subclass.
        image.preprocess = uploaded_path  # type: ignore[method-assign]
        chat.preprocess = text_messages  # type: ignore[method-assign]
        settings = [tokens, temperature, top_p, seed]
        # With show_progress_on, an error appears once, as a toast; gradio would also cover the conversation and the question with "Error".
        outputs = [chat, question, status]
        ask_event = {"fn": ask, "inputs": [image, question, chat, *settings], "outputs": outputs, "show_progress_on": status}
        one_at_a_time = {"concurrency_id": "model", "concurrency_limit": 1}
        unqueued = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        clear = {"fn": _cleared, "outputs": [heatmap, explanation, comparison], **unqueued}
        send.click(**clear)
        question.submit(**clear)
        send.click(**ask_event, **one_at_a_time, api_name="ask")
        question.submit(**ask_event, **one_at_a_time, api_visibility="private")
        look_button.click(look, [image, chat], [heatmap, explanation], **one_at_a_time, api_name="look").success(
            lambda: gr.update(visible=True), None, heatmap, queue=False, api_visibility="private"
        )
        matter_button.click(matter, [image, chat], comparison, **one_at_a_time, api_name="matter")
        dicom.upload(lambda path: path, dicom, image, api_visibility="private")
        gallery.select(select_example, None, [image, question], **unqueued)
        image.change(lambda: ([], ""), None, [chat, status], **unqueued)
        image.change(**clear)
    return page


def uploaded_path(payload: Any) -> str | None:
    """The path of an uploaded file. Refuses addresses and inline data, which gradio would accept."""
    if payload is None:
        return None
    if payload.path is None or (payload.url or "").startswith("data:"):
        raise gr.Error("upload the image as a file", print_exception=False)
    return str(payload.path)


def text_messages(payload: Any) -> list[dict]:
    """The text of a conversation. Drops files, which gradio would open, and components, which gradio would instantiate."""
    messages = payload.root if payload else []
    return [
        {"role": message.role, "content": [{"type": "text", "text": part.text} for part in message.content if part.type == "text"]}
        for message in messages
    ]


def _cleared() -> tuple:
    return gr.update(value=None, visible=False), "", ""
