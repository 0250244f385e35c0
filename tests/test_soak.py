"""Parts of the long trials (`make soak`)."""

import re
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

    make shards SOURCES=a && python -m src.train -m seed=0,1     # comment
    {"no": "command"}
    torchrun --nnodes=4 \\
        -m src.train

A paragraph with `make everything` runs nothing.

    $ python -m src.train sed=1
    error: unknown config key 'sed'

```
srun python -m src.evaluate run=a
```
"""


def test_every_command_of_a_page_is_read_with_its_expected_error():
    assert readme.find_commands(TEXT) == [
        ("make shards SOURCES=a", ""),
        ("python -m src.train -m seed=0,1", ""),
        ("torchrun --nnodes=4 -m src.train", ""),
        ("python -m src.train sed=1", "error: unknown config key 'sed'"),
        ("srun python -m src.evaluate run=a", ""),
    ]


def test_every_pattern_of_the_documentation_trial_matches_a_command():
    """A pattern without a command is out of date: the documentation has changed."""
    pages = [Path("README.md"), *Path("docs").glob("*.md")]
    commands = [command for page in pages for command, _ in readme.find_commands(page.read_text())]
    assert len(commands) > 60
    for pattern in (*readme.NOT_RUN, *readme.REPLACEMENTS, *readme.OVERRIDES):
        assert any(re.search(pattern, command) for command in commands), pattern


def test_overrides_are_appended_as_arguments():
    assert readme.shorten("make ablation ARGS=sweep=recipes") == ["make", "-o", ".venv/.ready", "ablation", "ARGS=sweep=recipes small=true"]
    assert readme.shorten("python -m src.report runs='a/*'") == ["python", "-m", "src.report", "runs=a/*"]
    assert "trainer=cpu" in readme.shorten("python -m src.train +experiment=full_mix")


def test_command_that_cannot_run_here_is_a_row_with_the_reason(tmp_path):
    row = readme.run_command("make download MIX=small", "", tmp_path)
    assert (row.value, row.bound, row.passed) == ("not run:", "needs the network", None)


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
