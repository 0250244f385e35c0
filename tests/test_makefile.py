"""`make help` tells of every target, the lock is complete and names no address, and the mini run is a list of commands that exist."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.mini import run
from src.cli import compose

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
    monkeypatch.setattr(run, "attempt", lambda command: called.append(command) or (-9 if "language" in command else 0))
    assert run.main([]) == 137
    assert "stopped in 'language model'" in capsys.readouterr().err
    assert called == COMMANDS[: len(called)]
    assert "language" in called[-1]
