"""Jobs that submitit starts on a Slurm cluster: submissions that fail and jobs that are killed become messages of one line."""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.runtime.atomic_file import write_atomically
from src.runtime.errors import UserError, report_user_errors
from src.runtime.run_folder import FAILURE_FILE

FINAL_STATES = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
UNLISTED = "not known to Slurm any more"
POLL_SECONDS = 60  # at most; Slurm forgets a job 300 s after its end by default (MinJobAge)
# What Slurm writes to the log of a job that exceeds its memory, without and with cgroups.
MEMORY_KILL = re.compile(r"exceeded (job|step )?memory limit|oom.kill", re.IGNORECASE)
REASONS = {
    "OUT_OF_MEMORY": "Slurm killed it for its memory; ask for more, such as SBATCH_MEM_PER_NODE=16G",
    "TIMEOUT": "its time limit was over; ask for more, such as SBATCH_TIMELIMIT=600",
    "CANCELLED": "it was cancelled",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node failed",
}


def watch_with_squeue() -> None:
    """Makes submitit ask `squeue` for the states of jobs.

    Its default, `sacct`, needs an accounting database. On a cluster without one, submitit waits for a killed job forever.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    SlurmInfoWatcher.update = _update_states  # type: ignore[method-assign, assignment]
    SlurmJob.watcher._delay_s = POLL_SECONDS


def _update_states(watcher: Any) -> None:
    """Replaces `SlurmInfoWatcher.update`. While the controller does not answer, the known states remain."""
    command = ["squeue", "--me", "--states=all", "--array", "--noheader", "--format=%i|%T"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        states = dict(line.split("|") for line in lines)
        for job in watcher._registered:
            state = states.get(job, UNLISTED)
            watcher._info_dict[job] = {"JobID": job, "State": state if state in (*FINAL_STATES, UNLISTED) else "RUNNING"}
    watcher._last_status_check = time.time()


def explain_lost_job(job: Any, error: Exception) -> str:
    """One line for the exception of a submitit job: why it ended, what to do, and where its log is."""
    trace = re.search(r"-{10,}\n(.*?)\n-{10,}\n", str(error), re.DOTALL)
    if trace:  # raised by the function of the job
        return f"{trace[1].strip().splitlines()[-1]}; log: {job.paths.stderr}"
    state = "OUT_OF_MEMORY" if MEMORY_KILL.search(str(error)) else job.state
    return f"job {job.job_id} ended without a result: {REASONS.get(state, f'state {state}')}; log: {job.paths.stderr}"


@contextlib.contextmanager
def explained_submission(setting: str, advice: str) -> Iterator[None]:
    """Raises `UserError` if `sbatch` refuses a job, for example because the controller does not answer."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if "sbatch: error:" in line] or str(error).strip().splitlines()[:1]
        reason = lines[-1].removeprefix("sbatch: error: ").removeprefix("Batch job submission failed: ")
        raise UserError(f"{setting}: Slurm did not accept the jobs ({reason}); {advice}") from None


@contextlib.contextmanager
def recorded_lost_jobs(folders: list[Path]) -> Iterator[None]:
    """For a sweep with submitit: the trial of a job that ends without a result gets `failed.json`, and the sweep waits for the others.

    `folders` are those of the trials, in their order.
    """
    import submitit
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

    watch_with_squeue()
    map_array, launch, remaining = submitit.AutoExecutor.map_array, BaseSubmititLauncher.launch, iter(folders)

    def map_array_of_trials(executor, function, *iterables):
        setting, advice = "hydra/launcher=submitit_slurm", "see `sinfo`, or use hydra/launcher=submitit_local"
        with explained_submission(setting, advice):
            return [_TrialJob(job, next(remaining)) for job in map_array(executor, function, *iterables)]

    submitit.AutoExecutor.map_array = map_array_of_trials  # type: ignore[method-assign]
    BaseSubmititLauncher.launch = report_user_errors(launch)  # type: ignore[method-assign]
    try:
        yield
    finally:
        submitit.AutoExecutor.map_array, BaseSubmititLauncher.launch = map_array, launch  # type: ignore[method-assign]


class _TrialJob:
    """A submitit job whose `results` do not raise if the job is lost."""

    def __init__(self, job: Any, folder: Path):
        self.job, self.folder = job, folder

    def results(self) -> list:
        from hydra.core.utils import JobReturn, JobStatus
        from submitit.core.utils import UncompletedJobError

        try:
            return self.job.results()
        except UncompletedJobError as error:
            self.folder.mkdir(parents=True, exist_ok=True)
            failure = {"error": explain_lost_job(self.job, error), "traceback": str(error)}
            write_atomically(self.folder / FAILURE_FILE, json.dumps(failure, indent=1))
            return [JobReturn(status=JobStatus.COMPLETED)]
