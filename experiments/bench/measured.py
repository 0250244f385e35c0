"""What a benchmark says of one thing: ours and a peer's figure, taken in turn in one run, and their ratio."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """`value` is what the target speaks of, usually ours against the peer; `low` and `high` span the rounds, `n` counts them.

    `ours` and `peer` are in `unit`; `peer` is None where nothing is compared. `target` says what must hold, such as '>= 3.0'.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    ours: float
    peer: float | None
    unit: str
    target: str = ""

    @property
    def met(self) -> bool:
        sign, _, bound = self.target.partition(" ")
        return not self.target or (self.value >= float(bound) if sign == ">=" else self.value <= float(bound))


def single(name: str, value: float, unit: str, *, target: str = "") -> Measured:
    """A figure that is counted or bounded, not compared: it is the same in every round."""
    return Measured(name, value, value, value, 1, value, None, unit, target)


def ratio(name: str, ours: list[float], peer: list[float], unit: str, *, target: str = "", cost: bool = False) -> Measured:
    """How many times better ours is, round by round: ours / peer of rates, and with `cost` peer / ours of seconds or bytes."""
    rounds = sorted(b / a if cost else a / b for a, b in zip(ours, peer, strict=True))
    middle = statistics.median(rounds)
    return Measured(name, middle, rounds[0], rounds[-1], len(rounds), statistics.median(ours), statistics.median(peer), unit, target)


def in_turn(*works: Callable[[], object], rounds: int = ROUNDS, clock: Callable[[], float] = time.process_time) -> list[list[float]]:
    """Seconds of each work in each round, all of them once a round; the default clock counts this process's CPU time."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for spent, work in zip(seconds, works, strict=True):
            begun = clock()
            work()
            spent.append(clock() - begun)
    return seconds
