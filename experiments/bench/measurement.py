"""The result of one benchmark: a value of ours, a value of a peer from the same alternating run, and their ratio."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 5


@dataclass(frozen=True)
class Measurement:
    """`value` is compared with the target; it is usually the ratio of ours to the peer. `low` and `high` are its range over `n` rounds.

    `ours` and `peer` are in `unit`. `peer` is None if there is no peer. `target` is a condition such as '>= 3.0', or empty.
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


def single(name: str, value: float, unit: str, *, target: str = "") -> Measurement:
    """A measurement without a peer and with one round."""
    return Measurement(name, value, value, value, 1, value, None, unit, target)


def single_ratio(name: str, ours: float, peer: float, unit: str, *, target: str = "") -> Measurement:
    """`ours` / `peer` of one round."""
    return Measurement(name, ours / peer, ours / peer, ours / peer, 1, ours, peer, unit, target)


def ratio(name: str, ours: list[float], peer: list[float], unit: str, *, target: str = "", cost: bool = False) -> Measurement:
    """Median ratio over rounds, above 1 where ours is better: ours / peer of rates, or with `cost` peer / ours of seconds or bytes."""
    ratios = sorted(b / a if cost else a / b for a, b in zip(ours, peer, strict=True))
    median = statistics.median(ratios)
    return Measurement(name, median, ratios[0], ratios[-1], len(ratios), statistics.median(ours), statistics.median(peer), unit, target)


def time_alternately(
    *functions: Callable[[], object], rounds: int = ROUNDS, clock: Callable[[], float] = time.process_time
) -> list[list[float]]:
    """Seconds of each function in each round. Every round runs all functions; the default clock counts CPU time of this process."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for times, function in zip(seconds, functions, strict=True):
            start = clock()
            function()
            times.append(clock() - start)
    return seconds
