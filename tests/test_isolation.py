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
# Tests of a suite that is isolated like this one. Each fails if the environment of `cluster_user` reaches it.
SUITE = """
import importlib.util, locale, os, shutil
import huggingface_hub, pytest
from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.release.folder import check_push
from src.runtime.errors import UserError
from src.runtime.run_folder import is_first_rank
from src.tracking.wandb_run import _is_logged_in

def test_worker_has_no_foreign_programs_and_modules():
    assert 'PYTEST_XDIST_WORKER' in os.environ
    assert importlib.util.find_spec('foreign') is None
    assert shutil.which('sbatch') is None
    assert (os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS']) == ('', '1')

def test_missing_cluster_is_an_error(tmp_path):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'train.jsonl').write_text('{"question": "a", "answer": "b"}')
    with pytest.raises(UserError, match='sbatch is not installed'):
        build_all(BuildConfig(sources=['own'], raw=tmp_path, out=tmp_path / 'out', executor='slurm'))

def test_process_is_the_first_rank():
    assert is_first_rank()

def test_nobody_is_logged_in_to_wandb():
    assert not _is_logged_in()

def test_nobody_is_logged_in_to_the_hub():
    assert huggingface_hub.get_token() is None
    with pytest.raises(UserError, match='token'):
        check_push('someone/model')

def test_messages_are_english():
    assert os.strerror(2) == 'No such file or directory'
    assert locale.localeconv()['decimal_point'] == '.'
"""


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
def test_isolated_suite_passes_for_a_cluster_user(tmp_path):
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "conftest.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests import isolation\nisolation.isolate()\n")
    (suite / "test_environment.py").write_text(SUITE)
    assert "6 passed" in run_pytest(suite, cluster_user(tmp_path) | {"TMPDIR": str(tmp_path)}, "-n", "1")


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
