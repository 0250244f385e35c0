"""The parts of the GPU benchmark in their order, as many as a number of minutes allows."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from src.runtime.errors import UserError

# Seconds of the first part of a kind on an H100, until one was measured. Assumed: no GPU has run this.
ASSUMED = {"ours": 60, "transformers": 60, "kernels": 40, "memory": 60, "generate": 60, "resume": 150}


@dataclass(frozen=True)
class Part:
    """A measurement. Parts of one kind have similar costs."""

    name: str
    kind: str
    run: Callable[[], list[Any]]  # returns the rows of a table


@dataclass
class Budget:
    """`seconds` for all parts, of which `used` have passed already."""

    seconds: float
    used: float = 0.0
    clock: Callable[[], float] = time.monotonic
    costs: dict[str, float] = field(default_factory=dict)  # kind -> seconds that its next part is expected to take

    def __post_init__(self) -> None:
        self._end = self.clock() + self.seconds - self.used

    @property
    def left(self) -> float:
        return self._end - self.clock()

    def expected(self, kind: str) -> float:
        return self.costs.get(kind, ASSUMED[kind])

    def add(self, kind: str, seconds: float, *, failed: bool) -> None:
        """Replaces the expected cost, since the first part of a kind may include shards or compilation. A failure can only raise it."""
        self.costs[kind] = max(self.expected(kind), seconds) if failed else seconds


@dataclass
class Outcome:
    """What became of a part: its rows, why it was left out (`skipped`), or why it failed."""

    part: Part
    seconds: float = 0.0
    rows: list[Any] = field(default_factory=list)
    skipped: str = ""
    failed: str = ""


def run_parts(parts: list[Part], budget: Budget) -> Iterator[Outcome]:
    """Runs each part that the budget has room for. A part that fails does not keep the others from running."""
    for part in parts:
        expected, left = budget.expected(part.kind), budget.left
        if expected > left:
            yield Outcome(part, skipped=f"{expected:.0f} s expected, {max(left, 0):.0f} s left")
            continue
        start, outcome = budget.clock(), Outcome(part)
        try:
            outcome.rows = part.run()
        except UserError as error:
            outcome.failed = str(error)
        except Exception as error:  # the time on a GPU is worth more than a clean stop
            traceback.print_exc()
            outcome.failed = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        outcome.seconds = budget.clock() - start
        budget.add(part.kind, outcome.seconds, failed=bool(outcome.failed))
        yield outcome
