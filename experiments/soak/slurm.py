"""A Slurm of one node: shards, a sweep, training that is stopped and queued again, evaluation; then a Slurm that fails.

`services/slurm.sh` installs and starts Slurm in `FOLDER` and stops it. Every result is compared with the one without Slurm.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.soak import small_data
from experiments.soak.small_data import FOLDER as DATA
from experiments.soak.small_data import TRAIN, clear_message, differing_tensors, losses, message_row, run_python
from experiments.soak.trial import Row

FOLDER = Path("data/soak/slurm").resolve()
SERVICES = Path(__file__).parent / "services"
OUT = FOLDER / "out"
TOO_SMALL = {"SBATCH_MEM_PER_NODE": "50M"}  # less than Python and its imports need
RUN = [*TRAIN, f"data.root={DATA}/shards"]
RANKS = [*RUN, "trainer.devices=2", "trainer.nodes=1", "trainer.val_every=100"]
SWEEP = ["src.train", "-m", *RUN, "seed=0,1", "name=sweep"]
BY_SLURM = [f"outputs={OUT}/slurm", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30"]
EVALUATE = ["src.evaluate", "run=ranks", "limit=12", "batch=4", "resamples=100", "accelerator=cpu"]


def trial(model: str) -> list[Row]:
    """`model` is not used."""
    small_data.prepare()
    with slurm() as version:
        shutil.rmtree(OUT, ignore_errors=True)
        rows = [Row("Slurm, of Debian's packages", version.split()[-1])]
        for part in (shards, sweep, training, evaluation):
            new = part()
            print(*(row.line() for row in new), sep="\n", flush=True)
            rows += new
    return rows


@contextlib.contextmanager
def slurm() -> Iterator[str]:
    """The version of a running Slurm, which sbatch and srun of this process and its children use."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # so that the daemons are stopped
    try:
        version = service("start")
        os.environ["SLURM_CONF"] = str(FOLDER / "slurm.conf")
        yield version
    finally:
        service("stop")
        os.environ.pop("SLURM_CONF", None)


def service(action: str) -> str:
    # To a file: the daemons keep the descriptor, and a pipe would not end.
    log = FOLDER.parent / "slurm-service.log"
    with log.open("w") as output:
        code = subprocess.run([SERVICES / "slurm.sh", action, FOLDER], stdout=output, stderr=subprocess.STDOUT).returncode
    assert code == 0, f"slurm.sh {action}: {log.read_text()}"
    return log.read_text()


@contextlib.contextmanager
def controller_down() -> Iterator[None]:
    service("controller-down")
    try:
        yield
    finally:
        service("controller-up")


def shards() -> list[Row]:
    def build(name: str, **environment: str) -> tuple[int, str, list[str]]:
        """(exit code, output, files that differ from those of a build without Slurm)."""
        out = OUT / name
        words = ["data_prep.shards", *small_data.BUILD.split(), f"out={out}", "executor=slurm", "jobs=2", "workers=1"]
        code, output = run_python(words, **environment)
        files = [path for pattern in ("*/*.tar", "*/manifest.json") for path in sorted((DATA / "shards").glob(pattern))]
        return code, output, [path.name for path in files if read(path) != read(out / path.relative_to(DATA / "shards"))]

    code, output, differing = build("shards")
    by_jobs = code == 0 and "ended without a result" not in output
    killed_code, killed, killed_differing = build("shards-killed", **TOO_SMALL)
    clear = clear_message(killed, "Slurm killed it for its memory; ask for more", "this process writes its shards")
    with controller_down():
        down_code, down, _ = build("shards-down")
    return [
        Row("shards: both jobs end well", str(by_jobs), "True", by_jobs),
        Row("shards: files that differ with EXECUTOR=slurm", str(len(differing)), "0", not differing),
        message_row("shards: jobs killed for memory", killed_code == 0 and clear, killed),
        Row("shards: files that differ after that", str(len(killed_differing)), "0", not killed_differing),
        message_row("shards: Slurm is down", down_code == 2 and clear_message(down, "error: executor=slurm: Slurm did not accept"), down),
    ]


def sweep() -> list[Row]:
    with controller_down():
        down_code, down = run_python([*SWEEP, *BY_SLURM])
    killed_code, killed = run_python([*SWEEP, *BY_SLURM], **TOO_SMALL)
    clear = clear_message(killed, "2 trials failed", "Slurm killed it for its memory; ask for more")
    code, output = run_python([*SWEEP, *BY_SLURM])
    alone_code, alone = run_python([*SWEEP, f"outputs={OUT}/local"])
    assert (code, alone_code) == (0, 0), output + alone
    differing = []
    for trial_name in ("sweep/seed=0", "sweep/seed=1"):
        left, right = OUT / "local" / trial_name, OUT / "slurm" / trial_name
        differing += differing_tensors(left, right) + [trial_name] * (losses(left) != losses(right))
    return [
        message_row(
            "sweep: Slurm is down", down_code == 2 and clear_message(down, "error: hydra/launcher=submitit_slurm: Slurm did not"), down
        ),
        message_row("sweep: jobs killed for memory", killed_code == 1 and clear, killed),
        Row("sweep, a job per trial, after that: tensors and logs that differ", str(len(differing)), "0", not differing),
    ]


def training() -> list[Row]:
    """Two ranks: stopped by the time limit, then by the loss of the node, against torchrun without a stop."""
    started = time.monotonic()
    code, output = run_torchrun(["src.train", *RANKS, "name=ranks", f"outputs={OUT}/local"])
    assert code == 0, output
    # Slurm looks each 30 s and sends SIGTERM 120 to 150 s before the limit: after the ranks have started, and before the paused steps end.
    minutes = math.ceil((time.monotonic() - started) / 60 + 2.5)
    words = ["experiments.soak.slow_train", *RANKS, "name=ranks", f"outputs={OUT}/slurm"]
    slow, log, run = OUT / "slow", OUT / "job.log", OUT / "slurm" / "ranks"
    slow.write_text(str(5 * minutes))
    options = ["--parsable", f"--output={log}", f"--time={minutes}", "--signal=TERM@120"]
    environment = os.environ | {"SOAK_SLOW": str(slow), "OMP_NUM_THREADS": "1"}
    command = ["sbatch", *options, SERVICES / "train.sbatch", sys.executable, "-m", *words]
    job = subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.strip()
    wait_for(lambda: "resuming from" in read_text(log), job, log)
    stops = read_text(log).count("stopped by SIGTERM at step")
    steps = log_lines(run)
    wait_for(lambda: log_lines(run) > steps, job, log)
    resumes = read_text(log).count("resuming from")
    service("node-down")
    wait_for(lambda: state(job) in ("PENDING", "NODE_FAIL"), job, log)
    slow.unlink()
    subprocess.run(["scontrol", "update", f"job={job}", "TimeLimit=60"], check=True)  # the rest may run at any speed
    service("node-up")
    wait_for(lambda: state(job) == "COMPLETED", job, log)
    again = read_text(log).count("resuming from") - resumes
    differing = differing_tensors(OUT / "local/ranks", run) + ["log.csv"] * (losses(OUT / "local/ranks") != losses(run))
    killed_code, killed = run_python(["src.train", *RANKS, "name=big", f"outputs={OUT}/slurm"], start=("srun", "-n", "2", "--mem=300M"))
    return [
        Row("training on 2 ranks: stops by SIGTERM before the time limit", str(stops), "at least 1", stops >= 1),
        Row("training: resumes after the node was lost", str(again), "at least 1", again >= 1),
        Row("training: tensors and logs that differ", str(len(differing)), "0", not differing),
        message_row("training: killed for memory", killed_code != 0 and "memory limit" in killed and "Traceback" not in killed, killed),
    ]


def evaluation() -> list[Row]:
    """The run of `training`, on two ranks of Slurm and in one process."""
    shutil.copytree(OUT / "slurm/ranks", OUT / "one/ranks")
    code, output = run_python([*EVALUATE, f"outputs={OUT}/slurm"], start=("srun", "-n", "2"))
    one_code, one = run_python([*EVALUATE, f"outputs={OUT}/one"])
    assert (code, one_code) == (0, 0), output + one
    files = sorted(path.name for path in (OUT / "one/ranks/predictions").glob("*.jsonl"))
    differing = [name for name in files if read(OUT / "one/ranks/predictions" / name) != read(OUT / "slurm/ranks/predictions" / name)]
    scores = [json.loads((OUT / side / "ranks/evaluate.json").read_text())["metrics"] for side in ("one", "slurm")]
    assert files, "no predictions"
    return [
        Row("evaluation on 2 ranks: prediction files that differ", f"{len(differing)} of {len(files)}", "0", not differing),
        Row("evaluation on 2 ranks: the scores are equal", str(scores[0] == scores[1]), "True", scores[0] == scores[1]),
    ]


def run_torchrun(words: list[str]) -> tuple[int, str]:
    return run_python(["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", *words])


def state(job: str) -> str:
    return subprocess.run(["squeue", "--states=all", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout.strip()


def wait_for(condition: Callable[[], bool], job: str, log: Path, *, timeout: float = 1200) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        ended = state(job) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") or time.monotonic() > deadline
        assert not ended or condition(), f"job {job} is {state(job)}:\n{read_text(log)}"
        time.sleep(0.5)


def log_lines(run: Path) -> int:
    return read_text(run / "log.csv").count("\n")


def read_text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
