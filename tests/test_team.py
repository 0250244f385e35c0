"""src/runtime/distributed.py: which rank of how many a process is, under torchrun, Slurm and what is neither."""

import os
import socket

import pytest

from src.runtime.distributed import Ranks, join_ranks, launched, rendezvous
from src.runtime.errors import UserError
from tests.processes import server

JOB = {"SLURM_JOB_ID": "4120077", "SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu[07-08]"}
SHELL = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # a batch script has these as well
TASK = SHELL | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "team"),
    [
        ({}, Ranks()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Ranks(3, 4, 1)),
        (TASK, Ranks(5, 8, 1)),
        (JOB, Ranks()),  # the shell of salloc
        (SHELL, Ranks()),
        (SHELL | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, Ranks()),  # that of salloc as a step of its own
        (TASK | {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, Ranks(9, 16, 1)),  # torchrun in each task
        (TASK | {"RANK": "0", "WORLD_SIZE": "1"}, Ranks()),
        (TASK | {"PMI_SIZE": "8"}, Ranks(5, 8, 1)),  # srun --mpi=pmi2
    ],
)
def test_a_process_knows_its_rank(environment, team):
    assert launched(environment) == team


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "4"},
        {"OMPI_COMM_WORLD_SIZE": "8"},
        SHELL | {"PMI_SIZE": "8"},
        TASK | {"OMPI_COMM_WORLD_SIZE": "64"},  # mpirun that starts its daemons with srun
        JOB | {"SLURM_STEP_NUM_TASKS": "8"},
    ],
)
def test_processes_without_a_rank_are_refused(environment):
    with pytest.raises(UserError, match=r"this one cannot tell which of them it is; start them with torchrun or srun"):
        launched(environment)


def test_tasks_of_slurm_meet_on_the_first_node_of_their_step():
    assert rendezvous(TASK) == "tcp://gpu07:15077"
    assert rendezvous(TASK | {"SLURM_STEP_NODELIST": "gpu08"}) == "tcp://gpu08:15077"
    assert rendezvous(TASK | {"MASTER_PORT": "29500"}) == "tcp://gpu07:29500"
    assert rendezvous(TASK | {"MASTER_ADDR": "other", "MASTER_PORT": "29500"}) == "env://"
    assert rendezvous({"RANK": "0", "WORLD_SIZE": "2"}) == "env://"


def join(environment: dict[str, str], answer) -> None:
    os.environ.update(environment)
    with join_ranks() as team:
        team.wait()
        answer.send(team)


@pytest.mark.slow
def test_tasks_of_slurm_are_one_team():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    found = []
    for rank in ("0", "1"):
        ours, theirs = server.Pipe(duplex=False)
        process = server.Process(target=join, args=(shared | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}, theirs))
        process.start()
        theirs.close()
        found.append((process, ours))
    assert [ours.recv() for _, ours in found] == [Ranks(0, 2, 0), Ranks(1, 2, 1)]
    for process, _ in found:
        process.join()
        assert process.exitcode == 0
