"""The processes that evaluate a run together: one, or the ranks that torchrun or Slurm started.

Imports torch and Lightning only where there are several.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from src.runtime.errors import UserError

BARRIER_TIMEOUT = timedelta(days=1)  # how long a finished rank waits for the others; a launcher ends all ranks when one dies
# Variables with the number of processes, the rank and the local rank, as torchrun and the tasks of an srun step have them. SLURM_NTASKS
# does not indicate a step: the shell of salloc and a batch script also have it, and each is a single process.
LAUNCHERS = (("WORLD_SIZE", "RANK", "LOCAL_RANK"), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"))
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    world: int = 1
    local: int = 0  # rank on its machine

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until all ranks have called this method."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Joins the process group of this process, if it has one. Ranks exchange files only, so gloo is sufficient on every device."""
    ranks = detect_ranks(os.environ)
    if ranks.world == 1:
        yield ranks
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=init_url(os.environ), rank=ranks.rank, world_size=ranks.world, timeout=BARRIER_TIMEOUT)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def detect_ranks(environment: Mapping[str, str]) -> Ranks:
    """Rank and world size from the variables of the launcher.

    Raises `UserError` if several processes were started and this one cannot determine its rank: each would act as the first rank.
    """
    ranks = Ranks()
    for world, rank, local in LAUNCHERS:
        if rank in environment and world in environment:
            ranks = Ranks(int(environment[rank]), int(environment[world]), int(environment.get(local, 0)))
            break
    sizes = {name: environment[name] for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", *MPI_SIZES) if name in environment}
    unexplained = {} if "RANK" in environment else {name: size for name, size in sizes.items() if int(size) not in (1, ranks.world)}
    if unexplained:
        name, size = next(iter(unexplained.items()))
        raise UserError(f"{name}={size}: {size} processes were started, but this one has no rank; start them with torchrun or srun")
    return ranks


def init_url(environment: Mapping[str, str]) -> str:
    """`init_method` of the process group: MASTER_ADDR and MASTER_PORT; under Slurm by default the first node and Lightning's port."""
    if ("MASTER_ADDR" in environment and "MASTER_PORT" in environment) or "SLURM_JOB_ID" not in environment:
        return "env://"
    from lightning.fabric.plugins.environments import SLURMEnvironment

    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
    address = environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
    return f"tcp://{address}:{environment.get('MASTER_PORT') or 15000 + int(environment['SLURM_JOB_ID'][-4:])}"
