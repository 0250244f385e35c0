"""Help and messages about mistakes do not wait for the import of torch and of the libraries that need it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench.startup import HELP, MISTAKES, write_run

RUN = """
import contextlib, importlib, io, json, sys
for words in json.loads(sys.argv[1]):
    sys.argv = [f"src/{words[0]}.py", *words[1:]]
    errors, code = io.StringIO(), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            importlib.import_module(f"src.{words[0]}").main()
        except SystemExit as end:
            code = end.code
    slow = {"torch", "transformers", "lightning", "timm", "sklearn", "gradio", "huggingface_hub", "pydicom"} & set(sys.modules)
    print(json.dumps([code, errors.getvalue(), sorted(slow)]))
"""


def start(commands: list[tuple[str, ...]], *, path: Path | None = None) -> list[tuple[int | str, str, list[str]]]:
    """Runs the commands one after another in a new process; returns exit code, stderr and the slow modules imported so far.

    `path` is a folder of modules that replace installed ones.
    """
    command = [sys.executable, "-c", (f"import sys; sys.path.insert(0, {str(path)!r})" if path else "") + RUN, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_every_command_is_started_with_help_and_with_a_mistake():
    commands = {path.stem for path in Path("src").glob("*.py")} - {"__init__"}
    assert commands == set(HELP) == {words[0] for words in MISTAKES}


@pytest.mark.slow
def test_help_and_mistakes_do_not_import_torch(tmp_path):
    write_run(tmp_path)
    helps = [(command, "--help") for command in HELP]
    mistakes = [(*words, *([] if words[0] == "plan" else [f"outputs={tmp_path}"])) for words in MISTAKES]
    for words, (code, error, slow) in zip(helps + mistakes, start(helps + mistakes), strict=True):
        assert slow == [], words
        if words in helps:
            assert (code or 0, error) == (0, ""), words
        else:
            assert (code, error[:7], error.count("\n")) == (2, "error: ", 1), (words, error)


@pytest.mark.slow
def test_a_valid_command_imports_torch(tmp_path):
    """Shows that the checks end before the import. The torch of this test only reports that it was imported."""
    write_run(tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    ((code, _, _),) = start([("export", "run=made", f"out={tmp_path}/out", f"outputs={tmp_path}")], path=tmp_path)
    assert code == "torch was imported"
