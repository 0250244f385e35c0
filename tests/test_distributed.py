"""Rank and world size of a process under torchrun, under Slurm and without a launcher."""

import os
import socket

import pytest

from src.runtime.distributed import Ranks, detect_ranks, init_url, join_ranks
from src.runtime.errors import UserError
from tests.processes import server

JOB = {"SLURM_JOB_ID": "4120077", "SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu[07-08]"}
SHELL = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # a batch script also has these variables
TASK = SHELL | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, Ranks()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Ranks(3, 4, 1)),
        (TASK, Ranks(5, 8, 1)),
        (JOB, Ranks()),  # the shell of salloc
        (SHELL, Ranks()),
        (SHELL | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, Ranks()),  # the shell of salloc as a separate step
        (TASK | {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, Ranks(9, 16, 1)),  # torchrun in each task
        (TASK | {"RANK": "0", "WORLD_SIZE": "1"}, Ranks()),
        (TASK | {"PMI_SIZE": "8"}, Ranks(5, 8, 1)),  # srun --mpi=pmi2
    ],
)
def test_rank_is_detected_from_the_environment(environment, ranks):
    assert detect_ranks(environment) == ranks


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
def test_several_processes_without_a_rank_are_refused(environment):
    with pytest.raises(UserError, match=r"processes were started, but this one has no rank; start them with torchrun or srun"):
        detect_ranks(environment)


def test_slurm_tasks_meet_on_the_first_node_of_their_step():
    assert init_url(TASK) == "tcp://gpu07:15077"
    assert init_url(TASK | {"SLURM_STEP_NODELIST": "gpu08"}) == "tcp://gpu08:15077"
    assert init_url(TASK | {"MASTER_PORT": "29500"}) == "tcp://gpu07:29500"
    assert init_url(TASK | {"MASTER_ADDR": "other", "MASTER_PORT": "29500"}) == "env://"
    assert init_url({"RANK": "0", "WORLD_SIZE": "2"}) == "env://"


def join_and_send_ranks(environment: dict[str, str], sender) -> None:
    os.environ.update(environment)
    with join_ranks() as ranks:
        ranks.barrier()
        sender.send(ranks)


@pytest.mark.slow
def test_slurm_tasks_join_one_process_group():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    environment = TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    processes, receivers = [], []
    for rank in ("0", "1"):
        receiver, sender = server.Pipe(duplex=False)
        process = server.Process(target=join_and_send_ranks, args=(environment | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank}, sender))
        process.start()
        sender.close()
        processes.append(process)
        receivers.append(receiver)
    assert [receiver.recv() for receiver in receivers] == [Ranks(0, 2, 0), Ranks(1, 2, 1)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
