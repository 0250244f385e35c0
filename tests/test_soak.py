"""The long trials: what they would run and send, without running it."""

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


def test_200_uploads_hold_every_kind_whole_and_damaged():
    made = uploads.files()
    assert len(made) == uploads.COUNT == 200
    assert made == uploads.files()
    assert {name for name, _ in made} == set(uploads.NAMES)
    assert len({data for _, data in made}) > 150
    assert any(data == b"" for _, data in made)


def test_what_the_trial_calls_readable_is(tmp_path):
    for number, data in enumerate(uploads.readable()):
        path = tmp_path / str(number)
        path.write_bytes(data)
        assert read_image(path).mode == "RGB"


@pytest.fixture
def client():
    """A visitor of a demo whose model is never loaded."""
    with running_demo(Future(), Limits(), name="run:none") as demo, httpx.Client(base_url=demo.url, timeout=60) as client:
        yield client


@pytest.mark.slow
def test_what_no_page_sends_is_refused(client):
    assert uploads.strange(client) == ([], 0)


@pytest.mark.slow
def test_the_trial_sees_what_an_unguarded_demo_keeps(monkeypatch):
    async def unguarded(self, scope, receive, send) -> None:
        await self.app(scope, receive, send)

    monkeypatch.setattr(UploadMiddleware, "__call__", unguarded)
    with running_demo(Future(), Limits(), name="run:none") as demo, httpx.Client(base_url=demo.url, timeout=60) as client:
        heard = uploads.Heard()
        uploads.send(client, "a.png", uploads.readable()[0], heard)
    assert heard.leaked == ["a.png is served as it was sent"]


@pytest.mark.slow
def test_an_upload_is_read_by_nobody_who_was_not_told_its_name(client):
    heard = uploads.Heard()
    uploads.send(client, "a.png", uploads.readable()[0], heard)
    assert (heard.codes, heard.unclear, heard.leaked, len(heard.places)) == ([200], [], [], 2)
    assert uploads.readable_by(client, heard.places) == []


def test_a_row_says_what_was_found_and_whether_it_holds():
    assert Row("errors", "0", "0", True).line().split() == ["errors", "0", "0", "ok"]
    assert Row("errors", "3", "0", False).line().endswith("BROKEN")
    assert Row("answers", "12").line().split() == ["answers", "12"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["only=uplods"], "error: only=uplods; did you mean 'uploads'?"),
        (["onli=load"], "error: soak has no 'onli'; did you mean 'only'?"),
        (["only=load", "model=run:nothing"], "error: no run 'nothing' in outputs/"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        soak.main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(said)
