"""Parts of the long trials (`make soak`)."""

from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest

from experiments.soak import __main__ as soak
from experiments.soak import readme, uploads
from experiments.soak.trial import Row
from src.data.image_io import read_image
from src.demo import running_demo
from src.serving.limits import Limits
from src.serving.upload_middleware import UploadMiddleware

TEXT = """# Title

## Ask

    python -m src.ask model=run:mini question="Which organ?"
    {"no": "command"}
    make demo MODEL=run:mini        # in the browser

## Elsewhere

    make everything

## Demo

    make demo MODEL=run:mini
"""


def test_commands_are_those_of_the_given_sections():
    first = 'python -m src.ask model=run:mini question="Which organ?"'
    assert readme.commands(TEXT, ("Ask", "Demo")) == [first, "make demo MODEL=run:mini", "make demo MODEL=run:mini"]


def test_every_documented_section_has_commands():
    commands = {}
    for page, sections in readme.PAGES.items():
        for section in sections:
            commands[page, section] = readme.commands(Path(page).read_text(), (section,))
    assert all(commands.values()), commands
    assert [line for lines in commands.values() for line in lines if readme.ELSEWHERE.search(line)] == [
        "python -m src.export run=mini out=exports/mini push=user/name"
    ]


def test_uploads_include_every_kind_intact_and_damaged():
    files = uploads.make_files()
    assert len(files) == uploads.COUNT == 200
    assert files == uploads.make_files()
    assert {name for name, _ in files} == set(uploads.NAMES)
    assert len({data for _, data in files}) > 150
    assert any(data == b"" for _, data in files)


def test_valid_images_are_readable(tmp_path):
    for number, data in enumerate(uploads.valid_images()):
        path = tmp_path / str(number)
        path.write_bytes(data)
        assert read_image(path).mode == "RGB"


@pytest.fixture
def client():
    """An HTTP client of a demo whose model is never loaded."""
    with running_demo(Future(), Limits(), name="run:none") as demo, httpx.Client(base_url=demo.url, timeout=60) as client:
        yield client


@pytest.mark.slow
def test_forged_requests_are_refused(client):
    assert uploads.send_forged_requests(client) == ([], 0)


@pytest.mark.slow
def test_upload_of_an_unprotected_demo_is_reported_as_leak(monkeypatch):
    async def unguarded(self, scope, receive, send) -> None:
        await self.app(scope, receive, send)

    monkeypatch.setattr(UploadMiddleware, "__call__", unguarded)
    with running_demo(Future(), Limits(), name="run:none") as demo, httpx.Client(base_url=demo.url, timeout=60) as client:
        responses = uploads.Responses()
        uploads.send(client, "a.png", uploads.valid_images()[0], responses)
    assert responses.leaks == ["a.png is served as it was sent"]


@pytest.mark.slow
def test_uploads_are_not_readable_by_folder(client):
    responses = uploads.Responses()
    uploads.send(client, "a.png", uploads.valid_images()[0], responses)
    assert (responses.codes, responses.unclear, responses.leaks, len(responses.folders)) == ([200], [], [], 2)
    assert uploads.readable_paths(client, responses.folders) == []


def test_row_line_shows_value_bound_and_verdict():
    assert Row("errors", "0", "0", True).line().split() == ["errors", "0", "0", "ok"]
    assert Row("errors", "3", "0", False).line().endswith("FAILED")
    assert Row("answers", "12").line().split() == ["answers", "12"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["only=uplods"], "error: only='uplods'; did you mean 'uploads'?"),
        (["onli=load"], "error: unknown key 'onli'; did you mean 'only'?"),
        (["only=load", "model=run:nothing"], "error: no run 'nothing' in outputs/"),
    ],
)
def test_wrong_arguments_are_refused_before_a_trial_starts(args, message, capsys):
    with pytest.raises(SystemExit) as ended:
        soak.main(args)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(message)
