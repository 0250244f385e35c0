"""The processes that answer questions together: one, or the ranks that torchrun or Slurm started."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment

from src.runtime.errors import UserError

BARRIER_TIMEOUT = timedelta(days=1)  # how long a rank that is done waits for the others; a launcher ends all when one dies
# Number of processes, rank and rank on the machine, as torchrun and the tasks of an srun step have them. SLURM_NTASKS is no sign of a
# step: the shell of salloc and a batch script have it too, and they are one process.
LAUNCHERS = (("WORLD_SIZE", "RANK", "LOCAL_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"))
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world: int = 1
    local: int = 0  # rank on its machine

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all ranks have come here."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """The team of this process. Only files are shared, so gloo serves on every device."""
    team = launched(os.environ)
    if team.world == 1:
        yield team
        return
    dist.init_process_group("gloo", init_method=rendezvous(os.environ), rank=team.rank, world_size=team.world, timeout=BARRIER_TIMEOUT)
    try:
        yield team
    finally:
        dist.destroy_process_group()


def launched(environment: Mapping[str, str]) -> Ranks:
    """This process among those of its launcher. Processes that cannot tell their rank are refused: each would be a first rank."""
    team = Ranks()
    for world, rank, local in LAUNCHERS:
        if rank in environment and world in environment:
            team = Ranks(int(environment[rank]), int(environment[world]), int(environment.get(local, 0)))
            break
    sizes = {name: environment[name] for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", *MPI_SIZES) if name in environment}
    unknown = {} if "RANK" in environment else {name: size for name, size in sizes.items() if int(size) not in (1, team.world)}
    if unknown:
        name, size = next(iter(unknown.items()))
        raise UserError(
            f"{name}={size}: {size} processes were started, and this one cannot tell which of them it is; start them with torchrun or srun"
        )
    return team


def rendezvous(environment: Mapping[str, str]) -> str:
    """Where ranks meet: as MASTER_ADDR and MASTER_PORT say, else under Slurm on the first node, at the port that Lightning takes."""
    if ("MASTER_ADDR" in environment and "MASTER_PORT" in environment) or "SLURM_JOB_ID" not in environment:
        return "env://"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
    address = environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
    return f"tcp://{address}:{environment.get('MASTER_PORT') or 15000 + int(environment['SLURM_JOB_ID'][-4:])}"
