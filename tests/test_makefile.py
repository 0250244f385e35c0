"""`make help` tells of every target, the lock is complete and names no address, and the mini run is a list of commands that exist."""

import importlib.util
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.mini import run
from src.runtime.cli import compose

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
COMMANDS = [command for _, commands in run.STAGES.values() for command in commands]


def test_help_lists_every_target_with_one_line():
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {line.split()[0] for line in listed} == targets
    assert all(len(line.split()) > 2 for line in listed)
    phony = MAKEFILE.partition(".PHONY:")[2].split()
    assert set(phony) == targets


def test_the_browser_tests_fail_where_there_is_no_browser(tmp_path):
    make = shutil.which("make")
    words = [make, "-s", "-o", ".venv/.ready", "test-browser"]
    found = subprocess.run(words, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert found.returncode != 0
    assert found.stderr.startswith("no Chromium found; install Debian's package chromium and run make test-browser again\n")


STARTS = "installing the packages of requirements.lock into .venv: 6 to 7 GB on disk, several minutes\n"
# They print their arguments instead of installing; a real uv or pip shows its progress unless it is told --quiet.
UV = '#!/bin/sh\necho "uv $*"\n'
PIP = '#!/bin/sh\n[ "$*" = "-m venv .venv" ] && mkdir -p .venv/bin && cp "$0" .venv/bin/python\necho "python $*"\n'


def setup(folder: Path, *, uv: bool, terminal: bool, pip: str = PIP) -> tuple[int, str]:
    """Exit code and output of `make setup` with programs that only print what they were asked to do."""
    programs = folder / "programs"
    programs.mkdir()
    for name, script in {"uv": UV, "python": pip}.items():
        (programs / name).write_text(script if name != "uv" or uv else "#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "requirements.lock").touch()
    (folder / ".venv").mkdir()
    path = os.pathsep.join((str(programs), os.environ["PATH"], os.defpath))
    words = ["make", "setup", f"PYTHON={programs / 'python'}"]
    inside, outside = pty.openpty() if terminal else (None, subprocess.PIPE)
    done = subprocess.Popen(words, cwd=folder, env={"PATH": path}, stdout=outside, stderr=subprocess.STDOUT, text=True)
    if not terminal:
        output = done.communicate()[0]
    else:
        os.close(outside)
        output = "".join(iter(lambda: read(inside), ""))
        os.close(inside)
    return done.wait(), output.replace("\r\n", "\n")


def read(terminal: int) -> str:
    try:
        return os.read(terminal, 4096).decode()
    except OSError:  # Linux: the other end is closed
        return ""


@pytest.mark.parametrize("uv", [True, False], ids=["uv", "pip"])
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_setup_says_what_it_installs_and_shows_progress_on_a_terminal(tmp_path, uv, terminal):
    code, output = setup(tmp_path, uv=uv, terminal=terminal)
    assert code == 0, output
    assert STARTS in output
    assert re.search(r"^installed in \d+ seconds$", output, re.M)
    (install,) = (line for line in output.splitlines() if "pip install" in line)
    assert install.startswith("uv" if uv else "python")
    assert ("--quiet" in install) == (not terminal)
    assert (tmp_path / ".venv" / ".ready").exists()


def test_setup_that_fails_is_not_taken_for_done(tmp_path):
    code, output = setup(tmp_path, uv=False, terminal=False, pip=PIP.replace('echo "python $*"', 'case "$*" in *install*) exit 3;; esac'))
    assert code != 0
    assert "installed" not in output
    assert not (tmp_path / ".venv" / ".ready").exists()


def test_every_target_that_runs_python_sets_it_up_first():
    for target, needs, recipe in re.findall(r"^([a-z][a-z-]*):(.*?)##.*\n((?:\t.*\n)*)", MAKEFILE, re.M):
        if "$(RUN)" in recipe or "$(TEST)" in recipe or ".venv" in recipe:
            assert "$(READY)" in needs, target


def test_the_lock_has_a_hash_for_every_package_and_no_address():
    packages = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.M)[1:]
    assert len(packages) > 100
    for package in packages:
        assert re.match(r"[a-z0-9._-]+==\S+", package), package[:60]
        assert "--hash=sha256:" in package, package[:60]
    assert "://" not in LOCK
    assert "index-url" not in LOCK.replace("--no-emit-index-url", "")


def test_the_lock_holds_all_that_is_required():
    def names(text: str) -> set[str]:
        return {
            re.split(r"[^a-z0-9_.-]", line.lower())[0].replace("_", "-") for line in text.splitlines() if re.match(r"[a-z0-9]", line, re.I)
        }

    assert names((ROOT / "requirements.in").read_text()) <= names(LOCK)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("=")[0])
def test_the_mini_run_calls_commands_that_exist(command):
    module, *words = command.split()
    assert importlib.util.find_spec(module) is not None
    if module.startswith("src.") and module != "src.transfer":
        compose(module.removeprefix("src."), words)


def test_the_budgets_add_up_to_ten_minutes():
    assert sum(budget for budget, _ in run.STAGES.values()) <= 600


def test_a_stage_that_fails_ends_the_run_and_is_named(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(run, "run_command", lambda command: called.append(command) or (-9 if "language" in command else 0))
    assert run.main([]) == 137
    assert "language model: failed with exit code -9" in capsys.readouterr().err
    assert called == COMMANDS[: len(called)]
    assert "language" in called[-1]
