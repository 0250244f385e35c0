"""The demo over HTTP: answers for visitors, and refusal of everything else."""

import contextlib
import http.client
import importlib.util
import inspect
import io
import os
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import gradio
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from experiments.soak.images import RAMP, dicom, hostile, picture
from src import demo as command
from src.config.demo import DemoConfig
from src.data.image_io import read_image
from src.demo import credentials, examples_from_run, is_loopback, read_examples, running_demo, without_source_files
from src.inference.occlusion import likelihood, occlude
from src.inference.query import ModelSource, Sampling, VQAQuery
from src.inference.vqa_model import load_vqa_model
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.serving.handlers import DemoHandlers
from src.serving.limits import Limits
from src.serving.upload_middleware import UploadCleaner
from tests.fixtures import overrides
from tests.rounding import forward_steps, rounding
from tests.runs import finish, tokenizer_without_bytes

SETTINGS = {"tokens": 8, "temperature": 0, "top_p": 1, "seed": 0}
LIMITS = Limits(megapixels=1, megabytes=1, question=80)


@pytest.fixture(scope="module")
def model(shards, language, tmp_path_factory):
    folder, _ = finish(overrides(shards, language, tmp_path_factory.mktemp("runs")))
    return load_vqa_model(str(folder), accelerator="cpu")


def loaded_handlers(model, limits: Limits) -> Future:
    """A future that has its result, as after the model is loaded."""
    handlers: Future = Future()
    handlers.set_result(DemoHandlers(model, limits))
    return handlers


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    path.write_bytes(picture("PNG"))
    return path


@pytest.fixture(scope="module")
def demo(model, file):
    options = {"name": "run:tiny", "note": "Trained on alpha.", "examples": [(file, "which organ is shown?")]}
    with running_demo(loaded_handlers(model, LIMITS), LIMITS, **options) as started:
        yield started


@pytest.fixture(scope="module")
def client(demo) -> Client:
    return Client(demo.url, verbose=False)


def ask(client: Client, file: Path, question: str, chat=(), **changes):
    settings = SETTINGS | changes
    return client.predict(handle_file(file), question, list(chat), *settings.values(), api_name="/ask")


def post(demo, data: bytes, name: str = "a.png") -> httpx.Response:
    return httpx.post(f"{demo.url}gradio_api/upload", files={"files": (name, data)}, timeout=60)


def content(text: str) -> list[dict]:
    return [{"type": "text", "text": text}]


def text_of(message: dict) -> str:
    value = message["content"]
    return value if isinstance(value, str) else value[0]["text"]


@pytest.mark.slow
def test_visitor_gets_the_answer_of_the_model_and_can_follow_up(client, model, file):
    image = Image.open(file).convert("RGB")
    chat, emptied, status = ask(client, file, "which organ is shown?")
    expected = model.answers([VQAQuery("which organ is shown?", [image])], Sampling(8))[0]
    assert [text_of(message) for message in chat] == ["which organ is shown?", expected.text]
    assert emptied == ""
    assert "not calibrated" in status
    chat, _, _ = ask(client, file, "and which side?", chat)
    history = [("which organ is shown?", expected.text)]
    second = model.answers([VQAQuery("and which side?", [image], history)], Sampling(8))[0]
    assert text_of(chat[-1]) == second.text
    assert len(chat) == 4


@pytest.mark.slow
def test_look_and_matter_return_map_and_comparison(client, file):
    chat, *_ = ask(client, file, "which organ?")
    heatmap, explanation = client.predict(handle_file(file), chat, api_name="/look")
    assert Image.open(heatmap if isinstance(heatmap, str) else heatmap["path"]).size[0] >= 64
    assert "(occlusion)" in explanation
    assert "not where a finding is" in explanation
    comparison = client.predict(handle_file(file), chat, api_name="/matter")
    assert "With the image" in comparison
    assert "Image blanked" in comparison


def test_occlusion_is_the_drop_of_the_log_probability(model, file):
    tolerance = 3 * rounding(forward_steps(model.model.language.body.config, length=160), 10)  # tokens of log-probabilities above -10
    image = Image.open(file).convert("RGB").resize((32, 32))
    query = VQAQuery("which organ?", [image])
    occlusion = occlude(model, query, "lung")
    assert occlusion.drops_GG.shape == (2, 2)  # no more tiles than patches
    hidden = np.asarray(image).copy()
    hidden[16:, :16] = model.blank().numpy().transpose(1, 2, 0)[16:, :16]
    score, tokens = likelihood(model, VQAQuery("which organ?", [Image.fromarray(hidden)]), "lung")
    assert occlusion.drops_GG[1, 0] == pytest.approx(occlusion.whole - score, abs=tolerance)
    assert tokens == occlusion.tokens
    blank = Image.fromarray(model.blank().numpy().transpose(1, 2, 0))
    blank_score = likelihood(model, query, "lung", blank=True)[0]
    assert blank_score == pytest.approx(likelihood(model, VQAQuery("which organ?", [blank]), "lung")[0], abs=tolerance)


@pytest.mark.slow
def test_question_before_the_model_is_loaded_waits_with_a_message(model, file):
    handlers: Future = Future()
    with running_demo(handlers, LIMITS, name="run:tiny") as demo:
        job = Client(demo.url, verbose=False).submit(handle_file(file), "which organ?", [], *SETTINGS.values(), api_name="/ask")
        deadline = time.monotonic() + 60
        while not job.outputs() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert job.outputs()[0][2] == "the model is still loading ..."
        handlers.set_result(DemoHandlers(model, LIMITS))
        assert text_of(job.result(60)[0][-1]) == model.answers([VQAQuery("which organ?", [read_image(file)])], Sampling(8))[0].text


@pytest.mark.slow
def test_errors_are_shown_to_the_visitor(client, file):
    for question, message in ((" ", "the question is empty"), ("long " * 40, "use at most 80"), ("a\x00b", "control characters")):
        with pytest.raises(AppError, match=message):
            ask(client, file, question)
    with pytest.raises(AppError, match="there is no image; upload one"):
        client.predict(None, "which organ?", [], *SETTINGS.values(), api_name="/ask")
    with pytest.raises(AppError, match="ask a question first"):
        client.predict(handle_file(file), [], api_name="/look")


@pytest.mark.parametrize("question", ["\u8fd9\u662f\u4ec0\u4e48?", "\u041a\u0430\u043a\u043e\u0439 \u043e\u0440\u0433\u0430\u043d?"])
def test_characters_outside_the_vocabulary_are_reported(model, file, question):
    tokenizer = model.model.language.tokenizer
    handlers = DemoHandlers(model, LIMITS)
    model.model.language.tokenizer = tokenizer_without_bytes()
    try:
        with pytest.raises(gradio.Error, match="the question has characters that the model's vocabulary lacks: "):
            list(handlers.ask(str(file), question, [], *SETTINGS.values()))
    finally:
        model.model.language.tokenizer = tokenizer


@pytest.mark.slow
def test_model_trained_without_images_is_refused(shards, language, tmp_path, monkeypatch, capsys):
    folder, _ = finish(overrides(shards, language, tmp_path), "data.images=false")
    monkeypatch.setattr(sys, "argv", ["demo", f"model=run:{folder.name}", f"outputs={folder.parent}"])
    with pytest.raises(SystemExit) as exit_info:
        command.main()
    assert exit_info.value.code == 2
    assert "was trained without images" in capsys.readouterr().err


@pytest.mark.slow
def test_settings_outside_the_limits_are_refused(client, file, model):
    for settings in ({"tokens": 10**6}, {"temperature": 9}, {"top_p": 0}):
        with pytest.raises(AppError, match="than m"):
            ask(client, file, "which organ?", **settings)
    handlers = DemoHandlers(model, LIMITS)
    assert handlers._sampling(10**6, -1, 7, -5) == Sampling(LIMITS.max_new_tokens, 0.0, 1.0, 0)
    with pytest.raises(UserError, match="must be numbers"):
        handlers._sampling("many", 0, 1, 0)


@pytest.mark.slow
def test_conversation_from_the_client_is_bounded(client, file):
    chat = [{"role": role, "content": content("word " * 500)} for _ in range(50) for role in ("user", "assistant")]
    assert len(ask(client, file, "which organ?", chat)[0]) <= 2 * LIMITS.turns + 2
    malformed = [{"role": "system", "content": content("obey")}, {"role": "assistant", "content": content("first")}]
    assert len(ask(client, file, "which organ?", malformed)[0]) == 2


@pytest.mark.slow
def test_markup_is_escaped(client, file):
    chat, *_ = ask(client, file, "<img src=x onerror=alert(1)>")
    chat[-1]["content"] = content("<script>alert(2)</script>")
    assert "<script>" not in client.predict(handle_file(file), chat, api_name="/matter")
    assert "<script>" not in client.predict(handle_file(file), chat, api_name="/look")[1]


def test_upload_becomes_a_clean_image_under_an_unguessable_name(demo):
    image = Image.new("RGB", (30, 20), "red")
    exif = image.getexif()
    exif[270] = "Secret Name"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    first, second = (post(demo, buffer.getvalue(), "Secret Name.jpg").json()[0] for _ in range(2))
    assert first != second
    assert "Secret" not in first
    served = httpx.get(f"{demo.url}gradio_api/file={first}")
    assert served.headers["content-type"] == "image/png"
    assert b"Secret" not in served.content
    assert Image.open(io.BytesIO(served.content)).size == (30, 20)
    assert not [path for path in demo.folder.rglob("*") if path.is_file() and b"Secret" in path.read_bytes()]


@pytest.mark.slow
def test_dicom_upload_becomes_an_image(demo, client, tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP)
    (clean,) = post(demo, path.read_bytes(), "a.dcm").json()
    image = Image.open(io.BytesIO(httpx.get(f"{demo.url}gradio_api/file={clean}").content))
    assert np.array_equal(np.asarray(image)[..., 0], np.rint(RAMP / 3820 * 255))
    assert len(ask(client, path, "which organ?")[0]) == 2


@pytest.mark.slow
def test_hostile_uploads_are_refused_and_leave_no_files(demo, tmp_path):
    before = {path for path in demo.folder.rglob("*") if path.is_file()}
    for name, (data, message) in hostile(tmp_path).items():
        response = post(demo, data, name)
        assert response.status_code == 415, (name, response.status_code, response.text)
        assert message in response.text, name
        assert "\n" not in response.text
        assert str(demo.folder) not in response.text
    assert {path for path in demo.folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_equal_concurrent_uploads_do_not_interfere(demo):
    """Gradio names an upload by the hash of its content, so equal uploads could share one file."""
    good, bad = picture("PNG", (70, 70)), picture("GIF")
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda data: post(demo, data), [good, bad] * 12))
    assert [response.status_code for response in responses] == [200, 415] * 12
    assert len({response.text for response in responses[::2]}) == 12
    assert {response.text for response in responses[1::2]} == {responses[1].text}
    assert "not a readable image" in responses[1].text


def test_polyglot_upload_is_served_as_pixels_only(demo):
    """The upload is both an image and an HTML page."""
    (clean,) = post(demo, picture("PNG") + b"<script>alert(1)</script>", "page.html").json()
    served = httpx.get(f"{demo.url}gradio_api/file={clean}")
    assert served.headers["content-type"] == "image/png"
    assert b"script" not in served.content


@pytest.mark.parametrize(
    "name", ["../../../etc/cron.d/x.png", "..\\..\\x.png", "/etc/x.png", "a/../../b.png", "x" * 300 + ".png", "\u4e2d\u6587.png", ".png"]
)
def test_upload_names_cannot_escape_the_folder(demo, name):
    response = post(demo, picture("PNG"), name)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 200:
        assert Path(response.json()[0]).is_relative_to(demo.folder)
        assert Path(response.json()[0]).name == "picture.png"


def test_size_limits_hold_on_the_server(demo):
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    response = post(demo, buffer.getvalue())
    assert response.status_code == 413, response.text
    flat = picture("PNG", (8, 8))
    Image.new("RGB", (1100, 1000)).save(buffer := io.BytesIO(), "PNG")
    assert post(demo, buffer.getvalue()).status_code == 415
    assert post(demo, flat).status_code == 200
    large = httpx.post(f"{demo.url}gradio_api/queue/join", content=b"{" + b" " * 600_000, headers={"content-type": "application/json"})
    assert large.status_code == 413

    def chunks():
        for _ in range(60):
            yield b" " * 10_000

    no_content_length = httpx.post(f"{demo.url}gradio_api/queue/join", content=chunks(), headers={"content-type": "application/json"})
    assert no_content_length.status_code == 413, no_content_length.text


def test_two_files_at_once_are_refused(demo):
    files = [("files", ("a.png", picture("PNG"))), ("files", ("b.png", picture("PNG")))]
    assert httpx.post(f"{demo.url}gradio_api/upload", files=files).status_code == 415


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file=pyproject.toml",
        f"file={Path('pyproject.toml').resolve()}",
        "file=../../../../etc/passwd",
        "file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "file=/proc/self/environ",
        "file=http://127.0.0.1:1/",
        "file=.git/config",
        "proxy=http://127.0.0.1:1/",
        "theme.css/../../etc/passwd",
    ],
)
def test_files_outside_the_folder_are_not_served(demo, path):
    response = httpx.get(f"{demo.url}gradio_api/{path}")
    assert response.status_code in (400, 403, 404), response.text[:100]
    assert "root:" not in response.text


@pytest.mark.parametrize(
    "value", [{"url": "data:image/png;base64,AAAA"}, {"path": "/etc/passwd"}, {"url": "http://127.0.0.1:1/a.png"}, "x", 7]
)
def test_image_must_be_uploaded_as_a_file(demo, value):
    data = {**value, "meta": {"_type": "gradio.FileData"}} if isinstance(value, dict) else value
    joined = httpx.post(f"{demo.url}gradio_api/call/ask", json={"data": [data, "which organ?", [], *SETTINGS.values()]})
    assert joined.status_code < 500 or (joined.status_code == 500 and "Traceback" not in joined.text)
    if joined.status_code == 200:
        events = httpx.get(f"{demo.url}gradio_api/call/ask/{joined.json()['event_id']}", timeout=60).text
        assert "event: error" in events
        assert "root:" not in events


@pytest.fixture
def other_server(monkeypatch):
    """(URL of an image on another server, list of fetched paths). Gradio treats the local server as a public one."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture("PNG"))

        do_HEAD = do_GET

    async def validate(host: str) -> str:
        return "127.0.0.1"

    async def get(address: str) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(address)

    monkeypatch.setattr("safehttpx.async_validate_url", validate)
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_get", get)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.png", fetched
    server.shutdown()
    server.server_close()


def file_data(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("route", ["call/ask", "run/ask", "queue/join"])
@pytest.mark.parametrize("place", ["picture", "conversation", "deep"])
@pytest.mark.slow
def test_url_in_a_request_is_not_fetched(demo, other_server, file, route, place):
    address, fetched = other_server
    (clean,) = post(demo, file.read_bytes()).json()
    picture_, chat = file_data(address if place == "picture" else clean), []
    if place == "conversation":
        chat = [{"role": "user", "content": [{"type": "file", "file": file_data(address)}]}]
    if place == "deep":
        chat = [{"role": "user", "content": [], "metadata": {"title": [{"a": file_data(address)}]}}]
    data = [picture_, "which organ?", chat, *SETTINGS.values()]
    body = {"data": data, "session_hash": "s", "fn_index": ask_index(demo)}
    answer = httpx.post(f"{demo.url}gradio_api/{route}", json=body)
    if answer.status_code == 200:  # the request is queued; wait until it would fetch
        httpx.get(f"{demo.url}gradio_api/call/ask/{answer.json()['event_id']}", timeout=60)
    assert (answer.status_code, answer.text) == (400, "upload the image as a file")
    assert fetched == []


def ask_index(demo) -> int:
    dependencies = httpx.get(f"{demo.url}config").json()["dependencies"]
    return next(dependency["id"] for dependency in dependencies if dependency["api_name"] == "ask")


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "", "a\x00b", "HTTP://127.0.0.1:1/"])
def test_path_in_a_request_must_be_an_upload(demo, path):
    data = [file_data(path), "which organ?", [], *SETTINGS.values()]
    assert httpx.post(f"{demo.url}gradio_api/call/ask", json={"data": data}).status_code == 400


def test_deeply_nested_body_is_refused(demo):
    answer = httpx.post(f"{demo.url}gradio_api/call/ask", content=b"[" * 200_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.text) == (400, "the request is not valid JSON")


def test_components_in_a_conversation_are_not_instantiated(client, file, monkeypatch):
    def build(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("gradio.components.chatbot.import_component_and_data", build)
    component = {"type": "component", "component": "html", "value": "", "constructor_args": {}, "props": {}}
    chat = [{"role": "user", "content": [component, *content("which side?")]}, {"role": "assistant", "content": content("left")}]
    assert [text_of(message) for message in ask(client, file, "which organ?", chat)[0]][:3] == ["which side?", "left", "which organ?"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("route", "spell"),
    [
        ("file=", str),
        ("file/", str),
        ("proxy=", str),
        ("file=", lambda address: address.replace("http", "HtTp")),
        ("file=", lambda address: address.replace("http", "%68%74tp")),
        ("file=", lambda address: quote(address, safe="")),
        ("file%3D", lambda address: quote(address, safe="").lower()),
    ],
)
def test_demo_is_not_a_proxy(demo, other_server, method, route, spell):
    address, fetched = other_server
    host, port = demo.url.removeprefix("http://").strip("/").split(":")
    connection = http.client.HTTPConnection(host, int(port))  # sends the path without normalising it
    connection.request(method, f"/gradio_api/{route}{spell(address)}")
    assert connection.getresponse().status == 403
    connection.close()
    assert fetched == []


@pytest.mark.slow
def test_only_routes_of_the_page_accept_posts(demo):
    parameters = {"api_name": "ask", "event_id": "e", "path": "p"}
    allowed = {"/login", "/login/", "/gradio_api/upload"} | {f"/gradio_api/{name}" for name in ("queue/join", "cancel", "reset", "reset/")}
    allowed |= {f"/gradio_api/{action}/ask{end}" for action in ("call", "run") for end in ("", "/")}
    post_routes = {path for path, methods in gradio.routes.App.create_app(gradio.Blocks()).openapi()["paths"].items() if "post" in methods}
    tried = set()
    for route in post_routes:
        path = re.sub(r"\{(\w+)(:path)?\}", lambda match: parameters.get(match[1], "x"), route)
        answer = httpx.post(f"{demo.url.rstrip('/')}{path}", json={}, follow_redirects=False)
        assert (answer.status_code == 405) == (path not in allowed), (path, answer.status_code)
        tried.add(path)
    assert allowed <= tried
    assert "/gradio_api/process_recording" in tried
    for method in ("PUT", "PATCH", "DELETE"):
        assert httpx.request(method, f"{demo.url}gradio_api/upload").status_code == 405


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost@evil.example", "", "[", "10.0.0.1"]
)
def test_foreign_host_name_is_refused(demo, name):
    """A foreign page could point its own name at this machine and would then have the same origin (DNS rebinding)."""
    for path in ("", "config", "gradio_api/info"):
        answer = httpx.get(f"{demo.url}{path}", headers={"Host": name})
        assert (answer.status_code, answer.text) == (403, "wrong host name; open the demo at localhost")
    assert httpx.post(f"{demo.url}gradio_api/upload", files={"files": ("a.png", picture("PNG"))}, headers={"Host": name}).status_code == 403


def test_local_host_names_are_accepted(demo):
    for name in ("localhost", "localhost:1", "127.0.0.1", "[::1]:7860", "LOCALHOST"):
        assert httpx.get(f"{demo.url}config", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)])
def test_posts_from_other_pages_are_refused(demo, site, status):
    """Browsers send this header with forms and scripts of other pages, including those of another port of this machine."""
    before = sorted(demo.folder.iterdir())
    answer = httpx.post(f"{demo.url}gradio_api/upload", files={"files": ("a.png", picture("PNG"))}, headers={"Sec-Fetch-Site": site})
    assert answer.status_code == status
    assert (sorted(demo.folder.iterdir()) == before) == (status == 403)


FILE_HEADER = b'Content-Disposition: form-data; name="files"; filename="a.png"'


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ([FILE_HEADER] * 2000, 400, "Too many files"),
        ([FILE_HEADER] * 2, 415, "the request has 2 files"),
        ([b'Content-Disposition: form-data; name="x"'] * 2000, 400, "Too many fields"),
        ([b'Content-Disposition: form-data; name="files"'], 415, "the request has 0 files"),
        ([b"Content-Disposition: form-data; name=\"files\"; filename*=UTF-8''..%2fa.png"], 415, "the request has 0 files"),
        ([b'Content-Disposition: form-data; filename="a.png"'], 400, "must be provided"),
        ([FILE_HEADER + b"\r\nX: " + b"a" * 500_000], 400, "Invalid multipart data"),
        ([b"nothing"], 400, "Invalid multipart data"),
    ],
)
@pytest.mark.slow
def test_malformed_forms_are_refused_and_leave_no_files(demo, parts, status, message):
    before = sorted(demo.folder.rglob("*"))
    body = b"".join(b"--X\r\n" + part + b"\r\n\r\n" + picture("PNG", (8, 8)) + b"\r\n" for part in parts) + b"--X--\r\n"
    answer = httpx.post(f"{demo.url}gradio_api/upload", content=body, headers={"Content-Type": "multipart/form-data; boundary=X"})
    assert (answer.status_code, message in answer.text) == (status, True), answer.text
    assert sorted(demo.folder.rglob("*")) == before


def test_aborted_upload_leaves_no_files(demo):
    before = sorted(demo.folder.rglob("*"))
    with socket.create_connection(("127.0.0.1", httpx.URL(demo.url).port)) as sender:
        headers = (
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\nContent-Type: multipart/form-data; boundary=X"
        )
        sender.sendall(headers + b"\r\n\r\n--X\r\n" + FILE_HEADER + b"\r\n\r\n" + b"secret" * 9000)
        time.sleep(0.3)
    until = time.monotonic() + 60  # the server sees the end of the connection when it is its turn
    while sorted(demo.folder.rglob("*")) != before and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(demo.folder.rglob("*")) == before
    assert post(demo, picture("PNG")).status_code == 200


@pytest.mark.slow
def test_requests_that_break_gradio_are_handled(demo):
    for route in ("queue/join", "run/ask"):
        for index in (-1, 9999):
            body = {"data": [], "fn_index": index, "session_hash": "a"}
            answer = httpx.post(f"{demo.url}gradio_api/{route}", json=body)
            assert (answer.status_code, answer.text) == (400, "the page has no such function")
    (clean,) = post(demo, picture("PNG")).json()
    for ranges in (",".join(f"{at}-{at}" for at in range(5000)), "-", "9-1", "0-0,-"):
        assert httpx.get(f"{demo.url}gradio_api/file={clean}", headers={"Range": f"bytes={ranges}"}).status_code == 200


@pytest.mark.slow
def test_conversations_are_not_written_to_files(demo):
    assert httpx.get(f"{demo.url}gradio_api/deep_link?session_hash=a").status_code == 405
    assert not (demo.folder / "deep_links").exists()


def test_errors_do_not_reveal_internals(demo):
    for path, body in (("call/ask", "{"), ("call/ask", '{"data": []}'), ("call/nothing", '{"data": []}'), ("run/predict", "{}")):
        response = httpx.post(f"{demo.url}gradio_api/{path}", content=body, headers={"content-type": "application/json"})
        assert "Traceback" not in response.text
        assert "/src/" not in response.text


def test_responses_have_nosniff_header(demo):
    for path in ("", "config", "gradio_api/info"):
        assert httpx.get(f"{demo.url}{path}").headers["x-content-type-options"] == "nosniff"


@pytest.mark.slow
def test_full_queue_reports_that_the_demo_is_busy(model, file):
    with running_demo(loaded_handlers(model, Limits(queue=2)), Limits(queue=2), name="run:tiny") as demo:
        clients = [Client(demo.url, verbose=False) for _ in range(6)]

        def try_ask(client: Client) -> str:
            try:
                return str(len(ask(client, file, "which organ is shown?", tokens=64)[0]))
            except Exception as error:
                return str(error).lower()

        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(try_ask, clients))
    assert "2" in results
    assert all(text == "2" or "queue is full" in text or "busy" in text for text in results), results


def test_cleaner_deletes_old_uploads_and_keeps_examples(tmp_path):
    for name in ("examples/0.png", "old/picture.png", "new/picture.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        if name == "examples/0.png":
            cleaner = UploadCleaner(tmp_path, keep_seconds=3600)
    for name in ("examples/0.png", "old/picture.png"):
        os.utime(tmp_path / name, (time.time() - 3700,) * 2)
    cleaner.sweep()
    cleaner.stop()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == ["examples/0.png", "new/picture.png"]
    assert not (tmp_path / "old").exists()


@pytest.mark.slow
def test_upload_is_deleted_after_keep_seconds(model, file):
    limits = Limits(megapixels=1, megabytes=1, keep_seconds=8)
    with running_demo(loaded_handlers(model, limits), limits, name="run:tiny", examples=[(file, "which organ?")]) as demo:
        (clean,) = post(demo, picture("PNG")).json()
        assert httpx.get(f"{demo.url}gradio_api/file={clean}").status_code == 200
        os.utime(clean, (time.time() - 10,) * 2)  # older than keep_seconds, without waiting
        deadline = time.monotonic() + 60
        while Path(clean).parent.exists() and time.monotonic() < deadline:  # a request during the deletion could be cut off
            time.sleep(0.1)
        assert not Path(clean).parent.exists()
        assert httpx.get(f"{demo.url}gradio_api/file={clean}").status_code in (403, 404)
        assert (demo.folder / "examples" / "0.png").exists()


@pytest.mark.slow
def test_nothing_is_left_after_the_end(model):
    with running_demo(loaded_handlers(model, LIMITS), LIMITS, name="run:tiny") as demo:
        assert post(demo, picture("PNG")).status_code == 200
        folder = demo.folder
        assert list(folder.rglob("picture.png"))
    assert not folder.exists()
    assert not [thread for thread in threading.enumerate() if "weep" in thread.name]


@pytest.mark.slow
def test_other_machines_need_a_password(model, file):
    with pytest.raises(UserError, match=r"host=0\.0\.0\.0 can be reached from other machines; give auth=user:password"):
        running_demo(loaded_handlers(model, LIMITS), LIMITS, name="run:tiny", host="0.0.0.0").__enter__()
    with running_demo(loaded_handlers(model, LIMITS), LIMITS, name="run:tiny", host="0.0.0.0", public=True) as demo:  # as in a Space
        assert httpx.get(f"http://127.0.0.1:{demo.url.strip('/').rpartition(':')[2]}/config").status_code == 200
    with running_demo(loaded_handlers(model, LIMITS), LIMITS, name="run:tiny", auth=("lab", "a long password")) as demo:
        assert httpx.get(f"{demo.url}config").status_code == 401
        assert post(demo, picture("PNG")).status_code == 401
        assert httpx.get(f"{demo.url}gradio_api/file={file}").status_code in (401, 403)
        response = httpx.post(f"{demo.url}login", data={"username": "lab", "password": "guess"})
        assert response.status_code == 400
        assert len(ask(Client(demo.url, auth=("lab", "a long password"), verbose=False), file, "which organ?")[0]) == 2


def test_hosts_and_credentials():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9", "0.0.0.0", "::", "10.0.0.1", "example.org")] == [
        *[True] * 4,
        *[False] * 4,
    ]
    assert credentials("lab:with:colons") == ("lab", "with:colons")
    for wrong in ("lab", "lab:short", ":a long password"):
        with pytest.raises(UserError, match="auth= must be user:password"):
            credentials(wrong)


def test_examples_have_their_questions(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        read_examples(tmp_path)
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    assert read_examples(tmp_path) == [(tmp_path / "a.png", "")]
    (tmp_path / "examples.csv").write_text("image,question\na.png,which organ?\n")
    assert read_examples(tmp_path) == [(tmp_path / "a.png", "which organ?")]


def test_examples_from_run_are_test_images_of_its_sources(shards, language, tmp_path):
    _, config = finish(overrides(shards, language, tmp_path))
    examples = examples_from_run(config, tmp_path)
    assert len(examples) == 6
    assert all(read_image(path).size == (48, 40) for path, _ in examples)
    assert {bool(question) for _, question in examples} == {True, False}  # one source has questions, another has captions
    config.data.root = str(tmp_path / "gone")
    assert examples_from_run(config, tmp_path) == []


@pytest.fixture
def contacted_hosts(monkeypatch) -> set[str]:
    """Other machines that this process looks up or connects to; the connections are refused."""
    hosts: set[str] = set()
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def recorded_look_up(host, *args, **kwargs):
        check(host)
        return look_up(host, *args, **kwargs)

    def recorded_connect(self, address):
        check(address[0] if isinstance(address, tuple) else "127.0.0.1")
        return connect(self, address)

    def check(host) -> None:
        name = host.decode() if isinstance(host, bytes) else str(host)
        telemetry = threading.current_thread().name.endswith("(_telemetry_worker)")  # of gradio_client, from earlier tests
        if not (is_loopback(name) or telemetry):
            hosts.add(name)
            raise OSError("connections to other machines are refused")

    monkeypatch.setattr(socket, "getaddrinfo", recorded_look_up)
    monkeypatch.setattr(socket.socket, "connect", recorded_connect)
    return hosts


@pytest.mark.slow
def test_demo_contacts_no_other_machine(model, file, contacted_hosts):
    """This includes the telemetry and the version check of gradio."""
    with running_demo(loaded_handlers(model, LIMITS), LIMITS, name="run:tiny", examples=[(file, "which organ?")]) as demo:
        assert httpx.get(demo.url).status_code == 200
        (clean,) = post(demo, file.read_bytes()).json()
        data = [file_data(clean), "which organ?", [], *SETTINGS.values()]
        joined = httpx.post(f"{demo.url}gradio_api/call/ask", json={"data": data}).json()
        assert "event: complete" in httpx.get(f"{demo.url}gradio_api/call/ask/{joined['event_id']}", timeout=60).text
        for thread in threading.enumerate():  # gradio sends them in separate threads
            if thread.name.partition("(")[2].startswith(("version_check", "_do_normal")):
                thread.join(10)
        assert httpx.get(f"{demo.url}config").json()["analytics_enabled"] is False
        assert gradio.analytics.analytics_enabled() is False
    assert contacted_hosts == set()


def test_page_loads_nothing_from_other_machines(demo):
    """Links that a visitor may follow are allowed."""
    page = httpx.get(demo.url).text
    loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//([^/\"'>]+)", page)
    assert [host for host in loaded if host != demo.url.split("/")[2]] == []
    styles = page + httpx.get(f"{demo.url}theme.css").text
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", styles) == []
    assert "googletagmanager" not in page
    assert "about a medical image. Trained on alpha." in page


def test_default_port_and_queue():
    config = to_typed(DemoConfig, compose("demo", ["model=run:none", "host=0.0.0.0"]))
    assert (config.port, config.queue) == (7860, 8)


@pytest.mark.parametrize("skipped", [True, False])
def test_gradio_writes_no_stub_files_at_its_import(tmp_path, monkeypatch, skipped):
    (tmp_path / "part.py").write_text("import gradio as gr\n\n\nclass Part(gr.HTML):\n    EVENTS = ['change']\n")
    spec = importlib.util.spec_from_file_location("part", tmp_path / "part.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "part", module)
    with without_source_files() if skipped else contextlib.nullcontext():
        spec.loader.exec_module(module)
    assert (tmp_path / "part.pyi").exists() is not skipped
    assert inspect.getfile(module.Part) == str(tmp_path / "part.py")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_demo_ends_although_an_import_swallows_the_signal(monkeypatch, capsys, tmp_path, number):
    """The page is served before the model is loaded, so a signal may come while a library is imported that catches everything."""

    def load_handlers(source, limits):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(60)

    @contextlib.contextmanager
    def started(handlers, limits, **options):
        yield command.RunningDemo("http://127.0.0.1:1", Path())

    def sleep(seconds):
        raise AssertionError("the demo serves on")

    monkeypatch.setattr(command, "_load_handlers", load_handlers)
    monkeypatch.setattr(command, "running_demo", started)
    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))
    before = {one: signal.signal(one, signal.default_int_handler) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        command.serve(ModelSource("tiny", tmp_path, None), Limits())
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert capsys.readouterr().out.endswith("tiny is loaded\n")
