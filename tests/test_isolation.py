"""The tests are independent of the user's account, of the machine and of earlier tests."""

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.tracking import wandb_run
from tests import isolation

ROOT = Path(__file__).parent.parent
SLURM = ("sbatch", "srun", "sinfo", "squeue", "scontrol", "scancel")
# Tests that would fail in the environment of `cluster_user` without isolation.
SENSITIVE = (
    "test_isolation.py::test_environment_of_the_user_is_hidden",
    "test_shards.py::test_missing_or_unknown_executor_is_an_error",
    "test_run_folder.py::test_only_the_first_rank_writes",
    "test_makefile.py::test_browser_tests_fail_without_a_browser",
    "test_push.py::test_check_push_refuses_bad_names_and_missing_tokens",
    "test_sweep_files.py::test_run_id_of_the_sweep_agent_is_used",
    "test_sweep_files.py::test_mistake_of_the_dashboard_command_gives_error",
    "test_wandb.py::test_later_commands_add_the_result_and_a_table_to_the_run",
    "test_wandb.py::test_online_without_login_is_refused_before_the_run_starts",
    "test_wandb.py::test_malformed_api_key_is_refused",
)


def cluster_user(folder: Path) -> dict[str, str]:
    """The environment of a user with Slurm, logins, a GPU job, a library path and a German locale."""
    programs, home, libraries = folder / "programs", folder / "user", folder / "libraries"
    for path in (programs, home, libraries):
        path.mkdir()
    for name in SLURM:
        (programs / name).write_text("#!/bin/sh\nexit 0\n")
        (programs / name).chmod(0o755)
    (libraries / "foreign.py").touch()
    (libraries / "simplejpeg.py").write_text("raise ImportError('library of the user')\n")
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {40 * 'a'}\nmachine huggingface.co login user password b\n")
    (home / ".netrc").chmod(0o600)
    return {
        "PATH": f"{programs}{os.pathsep}{os.defpath}",
        "HOME": str(home),
        "NETRC": str(home / ".netrc"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "PYTHONPATH": str(libraries),
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "de_DE.UTF-8",
        "WANDB_API_KEY": 40 * "c",
        "WANDB_MODE": "online",
        "HF_TOKEN": "hf_token",
        "HF_HOME": str(home / "hub"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "CUDA_VISIBLE_DEVICES": "3",
        "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "MASTER_ADDR": "node1",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "8",
    }


def run_pytest(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """The output of a pytest run, which must pass."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-1000:]
    return process.stdout


def test_environment_of_the_user_is_hidden():
    names = {"HF_TOKEN", "LANG", "MASTER_ADDR", "NETRC", "PYTHONPATH", "RANK", "WANDB_API_KEY", "WORLD_SIZE"}
    assert not names & set(os.environ)
    assert not [name for name in os.environ if name.startswith(("SLURM_", "XDG_"))]
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], os.environ["LC_ALL"]) == ("", "1", "C.UTF-8")
    assert not list(Path.home().glob(".netrc"))
    assert [name for name in SLURM if shutil.which(name)] == []
    assert importlib.util.find_spec("foreign") is None


@pytest.mark.slow
def test_environment_of_the_user_is_hidden_from_xdist_workers(tmp_path):
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests import isolation\nisolation.isolate()\n")
    code = (
        "import importlib.util, os, shutil\n\n"
        "def test_environment():\n"
        "    assert importlib.util.find_spec('foreign') is None\n"
        "    assert shutil.which('sbatch') is None\n"
        "    assert 'WANDB_API_KEY' not in os.environ\n"
        "    assert 'PYTEST_XDIST_WORKER' in os.environ\n"
    )
    (suite / "test_environment.py").write_text(code)
    environment = cluster_user(tmp_path) | {"TMPDIR": str(tmp_path)}
    assert "1 passed" in run_pytest(suite, environment, "-n", "1")


@pytest.mark.slow
def test_sensitive_tests_pass_for_a_cluster_user(tmp_path):
    environment = cluster_user(tmp_path) | {"TMPDIR": str(tmp_path)}
    arguments = ["-n", "0", "-vv", *(f"tests/{name}" for name in SENSITIVE)]
    assert "SKIPPED" not in run_pytest(ROOT, environment, *arguments)


def test_process_state_is_restored(tmp_path):
    before = dict(os.environ), Path.cwd(), list(logging.root.handlers), logging.root.level, signal.getsignal(signal.SIGTERM)
    with isolation.restored():
        os.environ["HOME"] = os.environ["OPENMEDQ_LEFT_BEHIND"] = "x"
        del os.environ["PATH"]
        os.chdir(tmp_path)
        logging.root.handlers[:] = [logging.NullHandler()]
        logging.root.setLevel(logging.CRITICAL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert before == (dict(os.environ), Path.cwd(), logging.root.handlers, logging.root.level, signal.getsignal(signal.SIGTERM))


@pytest.mark.slow
def test_wandb_login_ends_with_its_test(monkeypatch):
    with isolation.restored():
        monkeypatch.setenv("WANDB_API_KEY", 40 * "k")
        assert wandb_run._is_logged_in()
    assert "WANDB_API_KEY" not in os.environ
    assert not wandb_run._is_logged_in()
