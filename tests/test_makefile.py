"""The Makefile, the lock file, and the commands of the mini run."""

import importlib.util
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from experiments.mini import run
from src.runtime.cli import compose

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
COMMANDS = [command for _, commands in run.STAGES.values() for command in commands]


def test_help_lists_every_target_on_one_line():
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.M))
    help_lines = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {line.split()[0] for line in help_lines} == targets
    assert all(len(line.split()) > 2 for line in help_lines)
    phony = MAKEFILE.partition(".PHONY:")[2].split()
    assert set(phony) == targets


def test_browser_tests_fail_without_a_browser(tmp_path):
    command = [shutil.which("make"), "-s", "-o", ".venv/.ready", "test-browser"]
    process = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert process.returncode != 0
    assert process.stderr.startswith("no Chromium found; install Debian's package chromium and run make test-browser again\n")


FIRST_LINE = "installing the packages of requirements.lock into .venv: 6 to 7 GB on disk, several minutes\n"
# Fake programs that print their arguments; the real uv and pip show their progress unless --quiet is given.
UV = '#!/bin/sh\necho "uv $*"\n'
PIP = '#!/bin/sh\n[ "$*" = "-m venv .venv" ] && mkdir -p .venv/bin && cp "$0" .venv/bin/python\necho "python $*"\n'


def make_setup(folder: Path, *, has_uv: bool, terminal: bool, pip: str = PIP) -> tuple[int, str]:
    """Exit code and output of `make setup` with fake programs."""
    programs = folder / "programs"
    programs.mkdir()
    for name, script in {"uv": UV if has_uv else "#!/bin/sh\nexit 1\n", "python": pip}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "requirements.lock").touch()
    (folder / ".venv").mkdir()
    path = os.pathsep.join((str(programs), os.environ["PATH"], os.defpath))
    command = ["make", "setup", f"PYTHON={programs / 'python'}"]
    reading_end, stdout = pty.openpty() if terminal else (None, subprocess.PIPE)
    process = subprocess.Popen(command, cwd=folder, env={"PATH": path}, stdout=stdout, stderr=subprocess.STDOUT, text=True)
    if not terminal:
        output = process.communicate()[0]
    else:
        os.close(stdout)
        output = "".join(iter(lambda: read_terminal(reading_end), ""))
        os.close(reading_end)
    return process.wait(), output.replace("\r\n", "\n")


def read_terminal(descriptor: int) -> str:
    try:
        return os.read(descriptor, 4096).decode()
    except OSError:  # Linux raises this at the end of the output
        return ""


@pytest.mark.parametrize("has_uv", [True, False], ids=["uv", "pip"])
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_setup_prints_what_it_installs_and_shows_progress_on_a_terminal(tmp_path, has_uv, terminal):
    code, output = make_setup(tmp_path, has_uv=has_uv, terminal=terminal)
    assert code == 0, output
    assert FIRST_LINE in output
    assert re.search(r"^installed in \d+ seconds$", output, re.M)
    (install,) = (line for line in output.splitlines() if "pip install" in line)
    assert install.startswith("uv" if has_uv else "python")
    assert ("--quiet" in install) == (not terminal)
    assert (tmp_path / ".venv" / ".ready").exists()


def test_failed_setup_is_not_marked_as_ready(tmp_path):
    pip = PIP.replace('echo "python $*"', 'case "$*" in *install*) exit 3;; esac')
    code, output = make_setup(tmp_path, has_uv=False, terminal=False, pip=pip)
    assert code != 0
    assert "installed" not in output
    assert not (tmp_path / ".venv" / ".ready").exists()


def test_every_target_that_runs_python_depends_on_setup():
    for target, prerequisites, recipe in re.findall(r"^([a-z][a-z-]*):(.*?)##.*\n((?:\t.*\n)*)", MAKEFILE, re.M):
        if "$(RUN)" in recipe or "$(TEST)" in recipe or ".venv" in recipe:
            assert "$(READY)" in prerequisites, target


@pytest.mark.parametrize(("words", "mix"), [([], "open"), (["MIX=full"], "full")])
def test_default_sources_are_those_of_the_mix(words, mix):
    command = [shutil.which("make"), "-n", "-o", ".venv/.ready", "download", *words]
    output = subprocess.run(command, cwd=ROOT, env={"PATH": os.defpath}, capture_output=True, text=True, check=True).stdout
    shares = yaml.safe_load((ROOT / f"conf/mix/{mix}.yaml").read_text())["shares"]
    assert f" sources={','.join(shares)} " in output


def test_lock_has_a_hash_for_every_package_and_no_address():
    packages = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.M)[1:]
    assert len(packages) > 100
    for package in packages:
        assert re.match(r"[a-z0-9._-]+==\S+", package), package[:60]
        assert "--hash=sha256:" in package, package[:60]
    assert "://" not in LOCK
    assert "index-url" not in LOCK.replace("--no-emit-index-url", "")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("=")[0])
def test_mini_run_calls_existing_commands(command):
    module, *overrides = command.split()
    assert importlib.util.find_spec(module) is not None
    if module.startswith("src.") and module != "src.transfer":
        compose(module.removeprefix("src."), overrides)


def test_time_budgets_of_the_mini_run_sum_to_at_most_ten_minutes():
    assert sum(budget for budget, _ in run.STAGES.values()) <= 600


def test_failed_stage_stops_the_mini_run_and_is_named(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(run, "run_command", lambda command: called.append(command) or (-9 if "language" in command else 0))
    assert run.main([]) == 137
    assert "language model: failed with exit code -9" in capsys.readouterr().err
    assert called == COMMANDS[: len(called)]
    assert "language" in called[-1]
