"""The demo over HTTP: what a visitor gets, and what nobody gets."""

import http.client
import io
import os
import re
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import gradio
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from src import demo as command
from src.config.demo import DemoConfig
from src.data.image_io import read_image
from src.demo import credentials, examples_from_run, is_loopback, read_examples, running_demo
from src.inference.occlusion import likelihood, occlude
from src.inference.query import Sampling, VQAQuery
from src.inference.vqa_model import load_vqa_model
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.serving.handlers import DemoHandlers
from src.serving.limits import Limits
from src.serving.upload_middleware import UploadCleaner
from tests.conftest import overrides
from tests.rounding import forward_steps, rounding
from tests.runs import finish, tokenizer_without_bytes
from tests.test_image_io import RAMP, dicom, hostile, picture

SETTINGS = {"tokens": 8, "temperature": 0, "top_p": 1, "seed": 0}
LIMITS = Limits(megapixels=1, megabytes=1, question=80)


@pytest.fixture(scope="module")
def answerer(shards, language, tmp_path_factory):
    folder, _ = finish(overrides(shards, language, tmp_path_factory.mktemp("runs")))
    return load_vqa_model(str(folder), accelerator="cpu")


def seated(answerer, limits: Limits) -> Future:
    """A desk whose model is there from the start."""
    desk: Future = Future()
    desk.set_result(DemoHandlers(answerer, limits))
    return desk


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    path.write_bytes(picture("PNG"))
    return path


@pytest.fixture(scope="module")
def demo(answerer, file):
    with running_demo(seated(answerer, LIMITS), LIMITS, name="run:tiny", examples=[(file, "which organ is shown?")]) as started:
        yield started


@pytest.fixture(scope="module")
def client(demo) -> Client:
    return Client(demo.url, verbose=False)


def ask(client: Client, file: Path, question: str, chat=(), **changes):
    given = SETTINGS | changes
    return client.predict(handle_file(file), question, list(chat), *given.values(), api_name="/ask")


def post(demo, data: bytes, name: str = "a.png") -> httpx.Response:
    return httpx.post(f"{demo.url}gradio_api/upload", files={"files": (name, data)}, timeout=60)


def said(text: str) -> list[dict]:
    return [{"type": "text", "text": text}]


def text_of(message: dict) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]


@pytest.mark.slow
def test_a_visitor_gets_the_model_s_answer_and_asks_on(client, answerer, file):
    image = Image.open(file).convert("RGB")
    chat, emptied, status = ask(client, file, "which organ is shown?")
    expected = answerer.answers([VQAQuery("which organ is shown?", [image])], Sampling(8))[0]
    assert [text_of(message) for message in chat] == ["which organ is shown?", expected.text]
    assert emptied == ""
    assert "not calibrated" in status
    chat, _, _ = ask(client, file, "and which side?", chat)
    history = [("which organ is shown?", expected.text)]
    second = answerer.answers([VQAQuery("and which side?", [image], history)], Sampling(8))[0]
    assert text_of(chat[-1]) == second.text
    assert len(chat) == 4


@pytest.mark.slow
def test_the_map_and_the_comparison_come_back(client, file):
    chat, *_ = ask(client, file, "which organ?")
    heat, meaning = client.predict(handle_file(file), chat, api_name="/look")
    assert Image.open(heat if isinstance(heat, str) else heat["path"]).size[0] >= 64
    assert "(occlusion)" in meaning
    assert "not where a finding is" in meaning
    compared = client.predict(handle_file(file), chat, api_name="/matter")
    assert "With the image" in compared
    assert "Image blanked" in compared


def test_occlusion_is_the_fall_of_the_answer_s_log_probability(answerer, file):
    apart = 3 * rounding(forward_steps(answerer.model.language.body.config, length=160), 10)  # tokens of log-probabilities above -10
    image = Image.open(file).convert("RGB").resize((32, 32))
    query = VQAQuery("which organ?", [image])
    found = occlude(answerer, query, "lung")
    assert found.drops_GG.shape == (2, 2)  # no more tiles than patches
    hidden = np.asarray(image).copy()
    hidden[16:, :16] = answerer.blank().numpy().transpose(1, 2, 0)[16:, :16]
    score, tokens = likelihood(answerer, VQAQuery("which organ?", [Image.fromarray(hidden)]), "lung")
    assert found.drops_GG[1, 0] == pytest.approx(found.whole - score, abs=apart)
    assert tokens == found.tokens
    blank = Image.fromarray(answerer.blank().numpy().transpose(1, 2, 0))
    without = likelihood(answerer, query, "lung", blank=True)[0]
    assert without == pytest.approx(likelihood(answerer, VQAQuery("which organ?", [blank]), "lung")[0], abs=apart)


@pytest.mark.slow
def test_who_asks_before_the_model_is_loaded_is_told_and_waits(answerer, file):
    desk: Future = Future()
    with running_demo(desk, LIMITS, name="run:tiny") as demo:
        job = Client(demo.url, verbose=False).submit(handle_file(file), "which organ?", [], *SETTINGS.values(), api_name="/ask")
        until = time.monotonic() + 60
        while not job.outputs() and time.monotonic() < until:
            time.sleep(0.01)
        assert job.outputs()[0][2] == "the model is still being loaded ..."
        desk.set_result(DemoHandlers(answerer, LIMITS))
        assert text_of(job.result(60)[0][-1]) == answerer.answers([VQAQuery("which organ?", [read_image(file)])], Sampling(8))[0].text


@pytest.mark.slow
def test_mistakes_are_told_to_the_visitor(client, file):
    for question, said in ((" ", "the question is empty"), ("long " * 40, "at most 80 are taken"), ("a\x00b", "control characters")):
        with pytest.raises(AppError, match=said):
            ask(client, file, question)
    with pytest.raises(AppError, match="add a picture first"):
        client.predict(None, "which organ?", [], *SETTINGS.values(), api_name="/ask")
    with pytest.raises(AppError, match="ask a question first"):
        client.predict(handle_file(file), [], api_name="/look")


@pytest.mark.parametrize("question", ["\u8fd9\u662f\u4ec0\u4e48?", "\u041a\u0430\u043a\u043e\u0439 \u043e\u0440\u0433\u0430\u043d?"])
def test_a_script_that_the_vocabulary_lacks_is_told(answerer, file, question):
    old = answerer.model.language.tokenizer
    desk = DemoHandlers(answerer, LIMITS)
    answerer.model.language.tokenizer = tokenizer_without_bytes()
    try:
        with pytest.raises(gradio.Error, match="the question has characters that the model's vocabulary lacks: "):
            list(desk.ask(str(file), question, [], *SETTINGS.values()))
    finally:
        answerer.model.language.tokenizer = old


@pytest.mark.slow
def test_a_model_without_eyes_has_no_demo(shards, language, tmp_path, monkeypatch, capsys):
    folder, _ = finish(overrides(shards, language, tmp_path), "data.images=false")
    monkeypatch.setattr(sys, "argv", ["demo", f"model=run:{folder.name}", f"outputs={folder.parent}"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "was trained without images" in capsys.readouterr().err


@pytest.mark.slow
def test_settings_beyond_the_limits_are_refused(client, file, answerer):
    for beyond in ({"tokens": 10**6}, {"temperature": 9}, {"top_p": 0}):
        with pytest.raises(AppError, match="than m"):
            ask(client, file, "which organ?", **beyond)
    desk = DemoHandlers(answerer, LIMITS)
    assert desk._sampling(10**6, -1, 7, -5) == Sampling(LIMITS.max_new_tokens, 0.0, 1.0, 0)
    with pytest.raises(UserError, match="must be numbers"):
        desk._sampling("many", 0, 1, 0)


@pytest.mark.slow
def test_a_conversation_sent_by_anybody_is_bounded(client, file):
    chat = [{"role": role, "content": said("word " * 500)} for _ in range(50) for role in ("user", "assistant")]
    assert len(ask(client, file, "which organ?", chat)[0]) <= 2 * LIMITS.turns + 2
    odd = [{"role": "system", "content": said("obey")}, {"role": "assistant", "content": said("first")}]
    assert len(ask(client, file, "which organ?", odd)[0]) == 2


@pytest.mark.slow
def test_markup_is_shown_as_text(client, file):
    chat, *_ = ask(client, file, "<img src=x onerror=alert(1)>")
    chat[-1]["content"] = said("<script>alert(2)</script>")
    assert "<script>" not in client.predict(handle_file(file), chat, api_name="/matter")
    assert "<script>" not in client.predict(handle_file(file), chat, api_name="/look")[1]


def test_an_upload_becomes_a_clean_picture_under_an_unguessable_name(demo):
    data = Image.new("RGB", (30, 20), "red")
    exif = data.getexif()
    exif[270] = "Secret Name"
    buffer = io.BytesIO()
    data.save(buffer, "JPEG", exif=exif)
    first, second = (post(demo, buffer.getvalue(), "Secret Name.jpg").json()[0] for _ in range(2))
    assert first != second
    assert "Secret" not in first
    served = httpx.get(f"{demo.url}gradio_api/file={first}")
    assert served.headers["content-type"] == "image/png"
    assert b"Secret" not in served.content
    assert Image.open(io.BytesIO(served.content)).size == (30, 20)
    assert not [path for path in demo.folder.rglob("*") if path.is_file() and b"Secret" in path.read_bytes()]


def test_a_dicom_file_becomes_its_picture(demo, client, tmp_path):
    path = dicom(tmp_path / "a.dcm", RAMP)
    (clean,) = post(demo, path.read_bytes(), "a.dcm").json()
    found = Image.open(io.BytesIO(httpx.get(f"{demo.url}gradio_api/file={clean}").content))
    assert np.array_equal(np.asarray(found)[..., 0], np.rint(RAMP / 3820 * 255))
    assert len(ask(client, path, "which organ?")[0]) == 2


@pytest.mark.slow
def test_hostile_uploads_are_refused_with_one_sentence_and_leave_nothing(demo, tmp_path):
    before = {path for path in demo.folder.rglob("*") if path.is_file()}
    for name, (data, said) in hostile(tmp_path).items():
        response = post(demo, data, name)
        assert response.status_code == 415, (name, response.status_code, response.text)
        assert said in response.text, name
        assert "\n" not in response.text
        assert str(demo.folder) not in response.text
    assert {path for path in demo.folder.rglob("*") if path.is_file()} == before


def test_equal_uploads_at_one_time_do_not_take_each_other_away(demo):
    """Gradio names an upload by its content, so that both are one file for a moment."""
    good, bad = picture("PNG", (70, 70)), picture("GIF")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda data: post(demo, data), [good, bad] * 12))
    assert [response.status_code for response in found] == [200, 415] * 12
    assert len({response.text for response in found[::2]}) == 12
    assert {response.text for response in found[1::2]} == {found[1].text}
    assert "not a readable image" in found[1].text


def test_polyglots_lose_what_else_they_are(demo):
    """A picture that is also a page: what is served back is pixels only."""
    (clean,) = post(demo, picture("PNG") + b"<script>alert(1)</script>", "page.html").json()
    served = httpx.get(f"{demo.url}gradio_api/file={clean}")
    assert served.headers["content-type"] == "image/png"
    assert b"script" not in served.content


@pytest.mark.parametrize(
    "name", ["../../../etc/cron.d/x.png", "..\\..\\x.png", "/etc/x.png", "a/../../b.png", "x" * 300 + ".png", "\u4e2d\u6587.png", ".png"]
)
def test_names_of_uploads_lead_nowhere(demo, name):
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

    unannounced = httpx.post(f"{demo.url}gradio_api/queue/join", content=chunks(), headers={"content-type": "application/json"})
    assert unannounced.status_code == 413, unannounced.text


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
def test_no_file_outside_is_served(demo, path):
    response = httpx.get(f"{demo.url}gradio_api/{path}")
    assert response.status_code in (400, 403, 404), response.text[:100]
    assert "root:" not in response.text


@pytest.mark.parametrize(
    "value", [{"url": "data:image/png;base64,AAAA"}, {"path": "/etc/passwd"}, {"url": "http://127.0.0.1:1/a.png"}, "x", 7]
)
def test_a_picture_must_come_through_the_upload(demo, value):
    data = {**value, "meta": {"_type": "gradio.FileData"}} if isinstance(value, dict) else value
    joined = httpx.post(f"{demo.url}gradio_api/call/ask", json={"data": [data, "which organ?", [], *SETTINGS.values()]})
    assert joined.status_code < 500 or (joined.status_code == 500 and "Traceback" not in joined.text)
    if joined.status_code == 200:
        said = httpx.get(f"{demo.url}gradio_api/call/ask/{joined.json()['event_id']}", timeout=60).text
        assert "event: error" in said
        assert "root:" not in said


@pytest.fixture
def elsewhere(monkeypatch):
    """(address of another machine's picture, what was fetched from it); gradio takes it for public, though it stands here."""
    fetched: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture("PNG"))

        do_HEAD = do_GET

    async def public(host: str) -> str:
        return "127.0.0.1"

    async def get(address: str) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(address)

    monkeypatch.setattr("safehttpx.async_validate_url", public)
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_get", get)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/a.png", fetched
    server.shutdown()
    server.server_close()


def file_data(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("route", ["call/ask", "run/ask", "queue/join"])
@pytest.mark.parametrize("place", ["picture", "conversation", "deep"])
def test_an_address_in_a_request_is_not_fetched(demo, elsewhere, file, route, place):
    address, fetched = elsewhere
    (clean,) = post(demo, file.read_bytes()).json()
    picture_, chat = file_data(address if place == "picture" else clean), []
    if place == "conversation":
        chat = [{"role": "user", "content": [{"type": "file", "file": file_data(address)}]}]
    if place == "deep":
        chat = [{"role": "user", "content": [], "metadata": {"title": [{"a": file_data(address)}]}}]
    data = [picture_, "which organ?", chat, *SETTINGS.values()]
    body = {"data": data, "session_hash": "s", "fn_index": asking(demo)}
    answer = httpx.post(f"{demo.url}gradio_api/{route}", json=body)
    if answer.status_code == 200:  # it waits; let it come to the fetching
        httpx.get(f"{demo.url}gradio_api/call/ask/{answer.json()['event_id']}", timeout=60)
    assert (answer.status_code, answer.text) == (400, "upload the picture as a file")
    assert fetched == []


def asking(demo) -> int:
    return next(one["id"] for one in httpx.get(f"{demo.url}config").json()["dependencies"] if one["api_name"] == "ask")


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "", "a\x00b", "HTTP://127.0.0.1:1/"])
def test_a_path_in_a_request_leads_to_an_upload_or_nowhere(demo, path):
    data = [file_data(path), "which organ?", [], *SETTINGS.values()]
    assert httpx.post(f"{demo.url}gradio_api/call/ask", json={"data": data}).status_code == 400


def test_a_body_that_only_nests_is_refused(demo):
    answer = httpx.post(f"{demo.url}gradio_api/call/ask", content=b"[" * 200_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.text) == (400, "the request cannot be read")


def test_components_in_a_conversation_are_not_built(client, file, monkeypatch):
    def build(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("gradio.components.chatbot.import_component_and_data", build)
    component = {"type": "component", "component": "html", "value": "", "constructor_args": {}, "props": {}}
    chat = [{"role": "user", "content": [component, *said("which side?")]}, {"role": "assistant", "content": said("left")}]
    assert [text_of(message) for message in ask(client, file, "which organ?", chat)[0]][:3] == ["which side?", "left", "which organ?"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("route", "spelt"),
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
def test_the_demo_is_no_proxy(demo, elsewhere, method, route, spelt):
    address, fetched = elsewhere
    host, port = demo.url.removeprefix("http://").strip("/").split(":")
    connection = http.client.HTTPConnection(host, int(port))  # sends the path as it is written
    connection.request(method, f"/gradio_api/{route}{spelt(address)}")
    assert connection.getresponse().status == 403
    connection.close()
    assert fetched == []


@pytest.mark.slow
def test_only_what_the_page_needs_can_be_posted(demo):
    named = {"api_name": "ask", "event_id": "e", "path": "p"}
    open_ = {"/login", "/login/", "/gradio_api/upload"} | {f"/gradio_api/{name}" for name in ("queue/join", "cancel", "reset", "reset/")}
    open_ |= {f"/gradio_api/{verb}/ask{end}" for verb in ("call", "run") for end in ("", "/")}
    posted = {path for path, methods in gradio.routes.App.create_app(gradio.Blocks()).openapi()["paths"].items() if "post" in methods}
    tried = set()
    for route in posted:
        path = re.sub(r"\{(\w+)(:path)?\}", lambda found: named.get(found[1], "x"), route)
        answer = httpx.post(f"{demo.url.rstrip('/')}{path}", json={}, follow_redirects=False)
        assert (answer.status_code == 405) == (path not in open_), (path, answer.status_code)
        tried.add(path)
    assert open_ <= tried
    assert "/gradio_api/process_recording" in tried
    for method in ("PUT", "PATCH", "DELETE"):
        assert httpx.request(method, f"{demo.url}gradio_api/upload").status_code == 405


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost@evil.example", "", "[", "10.0.0.1"]
)
def test_another_name_of_this_machine_is_not_answered(demo, name):
    """A page elsewhere may point its own name at this machine, and would then be the same origin."""
    for path in ("", "config", "gradio_api/info"):
        answer = httpx.get(f"{demo.url}{path}", headers={"Host": name})
        assert (answer.status_code, answer.text) == (403, "the demo answers at localhost only")
    assert httpx.post(f"{demo.url}gradio_api/upload", files={"files": ("a.png", picture("PNG"))}, headers={"Host": name}).status_code == 403


def test_the_names_of_this_machine_are_answered(demo):
    for name in ("localhost", "localhost:1", "127.0.0.1", "[::1]:7860", "LOCALHOST"):
        assert httpx.get(f"{demo.url}config", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)])
def test_other_pages_send_nothing(demo, site, status):
    """As browsers mark a form or a script of another page, also one of another port of this machine."""
    before = sorted(demo.folder.iterdir())
    answer = httpx.post(f"{demo.url}gradio_api/upload", files={"files": ("a.png", picture("PNG"))}, headers={"Sec-Fetch-Site": site})
    assert answer.status_code == status
    assert (sorted(demo.folder.iterdir()) == before) == (status == 403)


NAMED = b'Content-Disposition: form-data; name="files"; filename="a.png"'


@pytest.mark.parametrize(
    ("parts", "status", "said"),
    [
        ([NAMED] * 2000, 400, "Too many files"),
        ([NAMED] * 2, 415, "2 files were sent"),
        ([b'Content-Disposition: form-data; name="x"'] * 2000, 400, "Too many fields"),
        ([b'Content-Disposition: form-data; name="files"'], 415, "0 files were sent"),
        ([b"Content-Disposition: form-data; name=\"files\"; filename*=UTF-8''..%2fa.png"], 415, "0 files were sent"),
        ([b'Content-Disposition: form-data; filename="a.png"'], 400, "must be provided"),
        ([NAMED + b"\r\nX: " + b"a" * 500_000], 400, "Invalid multipart data"),
        ([b"nothing"], 400, "Invalid multipart data"),
    ],
)
def test_odd_forms_are_refused_and_leave_nothing(demo, parts, status, said):
    before = sorted(demo.folder.rglob("*"))
    body = b"".join(b"--X\r\n" + part + b"\r\n\r\n" + picture("PNG", (8, 8)) + b"\r\n" for part in parts) + b"--X--\r\n"
    answer = httpx.post(f"{demo.url}gradio_api/upload", content=body, headers={"Content-Type": "multipart/form-data; boundary=X"})
    assert (answer.status_code, said in answer.text) == (status, True), answer.text
    assert sorted(demo.folder.rglob("*")) == before


def test_an_upload_that_breaks_off_leaves_nothing(demo):
    before = sorted(demo.folder.rglob("*"))
    with socket.create_connection(("127.0.0.1", httpx.URL(demo.url).port)) as sender:
        head = (
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\nContent-Type: multipart/form-data; boundary=X"
        )
        sender.sendall(head + b"\r\n\r\n--X\r\n" + NAMED + b"\r\n\r\n" + b"secret" * 9000)
        time.sleep(0.3)
    until = time.monotonic() + 60  # the server sees the end of the connection when it is its turn
    while sorted(demo.folder.rglob("*")) != before and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(demo.folder.rglob("*")) == before
    assert post(demo, picture("PNG")).status_code == 200


def test_requests_that_gradio_would_break_on(demo):
    for route in ("queue/join", "run/ask"):
        for number in (-1, 9999):
            body = {"data": [], "fn_index": number, "session_hash": "a"}
            answer = httpx.post(f"{demo.url}gradio_api/{route}", json=body)
            assert (answer.status_code, answer.text) == (400, "the page has no such function")
    (clean,) = post(demo, picture("PNG")).json()
    for ranges in (",".join(f"{at}-{at}" for at in range(5000)), "-", "9-1", "0-0,-"):
        assert httpx.get(f"{demo.url}gradio_api/file={clean}", headers={"Range": f"bytes={ranges}"}).status_code == 200


@pytest.mark.slow
def test_a_conversation_is_not_written_into_a_file(demo):
    assert httpx.get(f"{demo.url}gradio_api/deep_link?session_hash=a").status_code == 405
    assert not (demo.folder / "deep_links").exists()


def test_errors_do_not_tell_what_is_inside(demo):
    for path, body in (("call/ask", "{"), ("call/ask", '{"data": []}'), ("call/nothing", '{"data": []}'), ("run/predict", "{}")):
        response = httpx.post(f"{demo.url}gradio_api/{path}", content=body, headers={"content-type": "application/json"})
        assert "Traceback" not in response.text
        assert "/src/" not in response.text


def test_responses_forbid_sniffing(demo):
    for path in ("", "config", "gradio_api/info"):
        assert httpx.get(f"{demo.url}{path}").headers["x-content-type-options"] == "nosniff"


@pytest.mark.slow
def test_a_full_queue_says_that_it_is_busy(answerer, file):
    with running_demo(seated(answerer, Limits(queue=2)), Limits(queue=2), name="run:tiny") as demo:
        clients = [Client(demo.url, verbose=False) for _ in range(6)]

        def one(client: Client) -> str:
            try:
                return str(len(ask(client, file, "which organ is shown?", tokens=64)[0]))
            except Exception as error:
                return str(error).lower()

        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(one, clients))
    assert "2" in found
    assert all(text == "2" or "queue is full" in text or "busy" in text for text in found), found


def test_old_pictures_go_and_examples_stay(tmp_path):
    for name in ("examples/0.png", "old/picture.png", "new/picture.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
        if name == "examples/0.png":
            sweeper = UploadCleaner(tmp_path, keep_seconds=3600)
    for name in ("examples/0.png", "old/picture.png"):
        os.utime(tmp_path / name, (time.time() - 3700,) * 2)
    sweeper.sweep()
    sweeper.stop()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == ["examples/0.png", "new/picture.png"]
    assert not (tmp_path / "old").exists()


@pytest.mark.slow
def test_a_visitor_s_picture_is_gone_after_its_time(answerer, file):
    limits = Limits(megapixels=1, megabytes=1, keep_seconds=8)
    with running_demo(seated(answerer, limits), limits, name="run:tiny", examples=[(file, "which organ?")]) as demo:
        (clean,) = post(demo, picture("PNG")).json()
        assert httpx.get(f"{demo.url}gradio_api/file={clean}").status_code == 200
        os.utime(clean, (time.time() - 10,) * 2)  # sooner than 8 seconds would pass, but not before it was asked for
        until = time.monotonic() + 60
        while Path(clean).parent.exists() and time.monotonic() < until:  # asked for while it goes, the answer may be cut off
            time.sleep(0.1)
        assert not Path(clean).parent.exists()
        assert httpx.get(f"{demo.url}gradio_api/file={clean}").status_code in (403, 404)
        assert (demo.folder / "examples" / "0.png").exists()


@pytest.mark.slow
def test_nothing_is_kept_after_the_end(answerer):
    with running_demo(seated(answerer, LIMITS), LIMITS, name="run:tiny") as demo:
        assert post(demo, picture("PNG")).status_code == 200
        folder = demo.folder
        assert list(folder.rglob("picture.png"))
    assert not folder.exists()
    assert not [thread for thread in threading.enumerate() if "weep" in thread.name]


@pytest.mark.slow
def test_other_machines_need_a_password(answerer, file):
    with pytest.raises(UserError, match=r"host=0\.0\.0\.0 can be reached from other machines; give auth=user:password"):
        running_demo(seated(answerer, LIMITS), LIMITS, name="run:tiny", host="0.0.0.0").__enter__()
    with running_demo(seated(answerer, LIMITS), LIMITS, name="run:tiny", host="0.0.0.0", public=True) as demo:  # as a Space asks for it
        assert httpx.get(f"http://127.0.0.1:{demo.url.strip('/').rpartition(':')[2]}/config").status_code == 200
    with running_demo(seated(answerer, LIMITS), LIMITS, name="run:tiny", auth=("lab", "a long password")) as demo:
        assert httpx.get(f"{demo.url}config").status_code == 401
        assert post(demo, picture("PNG")).status_code == 401
        assert httpx.get(f"{demo.url}gradio_api/file={file}").status_code in (401, 403)
        wrong = httpx.post(f"{demo.url}login", data={"username": "lab", "password": "guess"})
        assert wrong.status_code == 400
        assert len(ask(Client(demo.url, auth=("lab", "a long password"), verbose=False), file, "which organ?")[0]) == 2


def test_hosts_and_credentials():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9", "0.0.0.0", "::", "10.0.0.1", "example.org")] == [
        *[True] * 4,
        *[False] * 4,
    ]
    assert credentials("lab:with:colons") == ("lab", "with:colons")
    for wrong in ("lab", "lab:short", ":a long password"):
        with pytest.raises(UserError, match="auth must be user:password"):
            credentials(wrong)


def test_examples_come_with_their_questions(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        read_examples(tmp_path)
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    assert read_examples(tmp_path) == [(tmp_path / "a.png", "")]
    (tmp_path / "examples.csv").write_text("image,question\na.png,which organ?\n")
    assert read_examples(tmp_path) == [(tmp_path / "a.png", "which organ?")]


def test_a_run_brings_test_images_of_its_sources(shards, language, tmp_path):
    _, config = finish(overrides(shards, language, tmp_path))
    found = examples_from_run(config, tmp_path)
    assert len(found) == 6
    assert all(read_image(path).size == (48, 40) for path, _ in found)
    assert {bool(question) for _, question in found} == {True, False}  # questions of one source, captions of another
    config.data.root = str(tmp_path / "gone")
    assert examples_from_run(config, tmp_path) == []


@pytest.fixture
def asked_for(monkeypatch) -> set[str]:
    """Every other machine that this process looks up or connects to; none is reached."""
    hosts: set[str] = set()
    look_up, connect = socket.getaddrinfo, socket.socket.connect

    def looking_up(host, *more, **options):
        note(host)
        return look_up(host, *more, **options)

    def connecting(self, address):
        note(address[0] if isinstance(address, tuple) else "127.0.0.1")
        return connect(self, address)

    def note(host) -> None:
        name = host.decode() if isinstance(host, bytes) else str(host)
        statistics = threading.current_thread().name.endswith("(_telemetry_worker)")  # of gradio_client, in the tests before
        if not (is_loopback(name) or statistics):
            hosts.add(name)
            raise OSError("no other machine is asked")

    monkeypatch.setattr(socket, "getaddrinfo", looking_up)
    monkeypatch.setattr(socket.socket, "connect", connecting)
    return hosts


@pytest.mark.slow
def test_the_demo_tells_nobody_anything(answerer, file, asked_for):
    """Neither gradio's statistics nor its look for a newer version."""
    with running_demo(seated(answerer, LIMITS), LIMITS, name="run:tiny", examples=[(file, "which organ?")]) as demo:
        assert httpx.get(demo.url).status_code == 200
        (clean,) = post(demo, file.read_bytes()).json()
        data = [file_data(clean), "which organ?", [], *SETTINGS.values()]
        joined = httpx.post(f"{demo.url}gradio_api/call/ask", json={"data": data}).json()
        assert "event: complete" in httpx.get(f"{demo.url}gradio_api/call/ask/{joined['event_id']}", timeout=60).text
        for thread in threading.enumerate():  # gradio sends in threads of its own
            if thread.name.partition("(")[2].startswith(("version_check", "_do_normal")):
                thread.join(10)
        assert httpx.get(f"{demo.url}config").json()["analytics_enabled"] is False
        assert gradio.analytics.analytics_enabled() is False
    assert asked_for == set()


def test_the_page_asks_no_other_machine(demo):
    """Every address that the page loads by itself is the demo's own; links that a visitor may follow are none of these."""
    page = httpx.get(demo.url).text
    loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//([^/\"'>]+)", page)
    assert [host for host in loaded if host != demo.url.split("/")[2]] == []
    styles = page + httpx.get(f"{demo.url}theme.css").text
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", styles) == []
    assert "googletagmanager" not in page


def test_the_command_checks_before_it_loads():
    config = to_typed(DemoConfig, compose("demo", ["model=run:none", "host=0.0.0.0"]))
    assert (config.port, config.queue) == (7860, 8)
