"""src/runtime/slurm_jobs.py: jobs that Slurm refuses or kills are reported in one line, also on a cluster without accounting."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.slurm.slurm import SlurmInfoWatcher

from src.runtime import slurm_jobs
from src.runtime.errors import UserError

KILLED = """Job 7 (task: 0) with path a.pkl
has not produced any output (state: FAILED)
Error stream produced:
----------------------------------------
slurmstepd-vm: error: StepId=7.0 exceeded memory limit (272662528 > 52428800), being killed"""
RAISED = """Job (task=0) failed during processing with trace:
----------------------
Traceback (most recent call last):
  File "a.py", line 1, in work
OSError: no space left
----------------------
You can check full logs"""


def job(state: str = "COMPLETED", results=None) -> SimpleNamespace:
    return SimpleNamespace(job_id="7", state=state, paths=SimpleNamespace(stderr=Path("7_0_log.err")), results=results)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (UncompletedJobError(KILLED), "FAILED", "job 7 ended without a result: Slurm killed it for its memory; ask for more, such as"),
        (UncompletedJobError("slurmstepd: error: Detected 1 oom_kill event"), "FAILED", "Slurm killed it for its memory"),
        (UncompletedJobError("no output"), "OUT_OF_MEMORY", "Slurm killed it for its memory"),
        (UncompletedJobError("no output"), "NODE_FAIL", "job 7 ended without a result: its node failed; log: 7_0_log.err"),
        (UncompletedJobError("no output"), "FAILED", "job 7 ended without a result: state FAILED; log: 7_0_log.err"),
        (FailedJobError(RAISED), "COMPLETED", "OSError: no space left; log: 7_0_log.err"),
    ],
)
def test_a_lost_job_is_explained_in_one_line(error, state, message):
    explained = slurm_jobs.explain_lost_job(job(state), error)
    assert message in explained
    assert "\n" not in explained


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Writes a script with this name and body into PATH."""

    def write(body: str) -> None:
        path = tmp_path / "squeue"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return write


def test_states_come_from_squeue_and_an_unlisted_job_has_ended(squeue):
    watcher = SlurmInfoWatcher()
    watcher._registered = {"7", "8_0", "8_1", "9"}
    squeue("printf '%s\\n' '7|CONFIGURING' '8_0|NODE_FAIL' '8_1|COMPLETED'")
    slurm_jobs._update_states(watcher)
    states = {name: info["State"] for name, info in watcher._info_dict.items()}
    assert states == {"7": "RUNNING", "8_0": "NODE_FAIL", "8_1": "COMPLETED", "9": slurm_jobs.UNLISTED}
    squeue("exit 1")  # the controller does not answer
    slurm_jobs._update_states(watcher)
    assert {name: info["State"] for name, info in watcher._info_dict.items()} == states


def test_a_refused_submission_is_one_error():
    text = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    message = r"^executor=slurm: Slurm did not accept the jobs \(Unable to contact slurm controller \(connect failure\)\); see `sinfo`$"
    with pytest.raises(UserError, match=message), slurm_jobs.explained_submission("executor=slurm", "see `sinfo`"):
        raise FailedJobError(f"Error.\n{text}\n")


def test_the_trial_of_a_lost_job_is_recorded_and_the_others_are_awaited(tmp_path, monkeypatch):
    def fail() -> None:
        raise UncompletedJobError(KILLED)

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", lambda *_: [job("FAILED", fail), job(results=lambda: ["result"])])
    monkeypatch.setattr(SlurmInfoWatcher, "update", SlurmInfoWatcher.update)
    folders = [tmp_path / "a", tmp_path / "b"]
    with slurm_jobs.recorded_lost_jobs(folders):
        lost, finished = submitit.AutoExecutor.map_array(None, None)
        assert lost.results()[0].return_value is None
        assert finished.results() == ["result"]
    assert "Slurm killed it for its memory" in json.loads((tmp_path / "a" / "failed.json").read_text())["error"]
    assert not folders[1].exists()
    assert BaseSubmititLauncher.launch.__module__.startswith("hydra_plugins")
