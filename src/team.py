"""The processes that answer questions together: one, or the ranks that torchrun or Slurm started."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

PATIENCE = timedelta(days=1)  # how long a rank that is done waits for the others; a launcher ends all when one dies


@dataclass(frozen=True)
class Team:
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all ranks have come here."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def joined() -> Iterator[Team]:
    """The team of this process. Only files are shared, so gloo serves on every device."""
    rank, world = (int(os.environ.get(name, usual)) for name, usual in (("RANK", 0), ("WORLD_SIZE", 1)))
    if world == 1:
        yield Team()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Team(rank, world)
    finally:
        dist.destroy_process_group()
