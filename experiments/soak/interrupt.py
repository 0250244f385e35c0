"""Kills the building of shards, a training, an evaluation and a sweep 20 times and compares what they leave with uninterrupted ones.

Kills alternate between SIGKILL, which no process can handle, and SIGTERM, which schedulers send first. All processes of a command get them,
at a moment drawn between its first write and its end. The same command continues after each kill; one that ends earlier starts anew.
"""

import contextlib
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from experiments.soak import forked, small_run
from experiments.soak.trial import Row

KILLS = 20
PATIENCE = 300  # seconds within which a command must end after SIGTERM


def trial(model: str, *, raw: str = "", kills: int = KILLS, seed: int = 0) -> list[Row]:
    """`model` is not used. `raw` is a folder of real raw datasets; without it, phantoms are drawn."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        forked.import_libraries()
        if not raw:
            forked.call(lambda: small_run.write_phantoms(folder / "raw", small_run.PHANTOMS), folder)
        forked.call(lambda: small_run.write_language(folder / "language"), folder)
        data = Path(raw).resolve() if raw else folder / "raw"
        stages = stage_commands(data, sorted(path.name for path in data.iterdir() if path.is_dir()), folder / "language")
        durations = {}
        (folder / "reference").mkdir()
        for stage, (words, outputs) in stages.items():
            durations[stage] = complete(words, folder / "reference", outputs)
            print(f"{stage}: {durations[stage]:.1f} s from its first write to its end", flush=True)
        expected = small_run.snapshot(folder / "reference")
        campaign = Campaign(folder / "interrupted", expected, random.Random(seed))
        for number, (stage, (words, outputs)) in enumerate(stages.items()):
            campaign.interrupt(stage, words, outputs, duration=durations[stage], kills=kills // 4 + (number < kills % 4))
        different = small_run.differences(expected, small_run.snapshot(folder / "interrupted"))
    print(f"files compared: {len(expected)}; different: {', '.join(different) or 'none'}")
    return [
        Row(f"commands that do not end within {PATIENCE} s of SIGTERM", str(campaign.stuck), "0", campaign.stuck == 0),
        Row("tracebacks in the output after a kill", str(campaign.tracebacks), "0", campaign.tracebacks == 0),
        Row("continued commands with an exit code other than 0", str(campaign.failed), "0", campaign.failed == 0),
        Row("kills (half SIGKILL, half SIGTERM)", str(campaign.kills), str(kills), campaign.kills == kills),
        Row(f"files that differ after {kills} kills, of {len(expected)}", str(len(different)), "0", not different),
    ]


def stage_commands(raw: Path, sources: list[str], language: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Stage -> (command, globs of what it writes)."""
    sweep = small_run.train(sources, language, "optim.steps=10", "name=sweep", "seed=0,1")
    return {
        "build": (small_run.build(raw, sources), ["shards"]),
        "training": (small_run.train(sources, language), ["outputs/small"]),
        "evaluation": (small_run.EVALUATE, ["outputs/small/predictions", "outputs/small/evaluate.*", "outputs/small/result.json"]),
        "sweep": ([sweep[0], "-m", *sweep[1:]], ["outputs/sweep"]),
    }


class Campaign:
    """Interrupts the stages one after another in `folder`, and counts what happens."""

    def __init__(self, folder: Path, expected: dict[str, str], rng: random.Random):
        self.folder, self.expected, self.rng = folder, expected, rng
        self.kills = self.stuck = self.tracebacks = self.failed = 0
        folder.mkdir()

    def interrupt(self, stage: str, words: list[str], outputs: list[str], *, duration: float, kills: int) -> None:
        """Kills the command `kills` times, then lets it end."""
        number = 0
        while number < kills:
            sig, moment = (signal.SIGKILL, signal.SIGTERM)[self.kills % 2], self.rng.uniform(0, 1) * duration
            command, code = start(words, self.folder, outputs)
            code = command.wait(moment) if code is None else code
            if code is not None:
                self.failed += code != 0
                duration = min(duration, moment)  # the machine is less busy than at the uninterrupted run
                print(f"{stage}: ended before its kill after {moment:.1f} s, exit code {code}; starts anew", flush=True)
                for path in [path for glob in outputs for path in self.folder.glob(glob)]:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                continue
            command.kill(sig)
            code = command.wait(PATIENCE)
            if code is None:
                self.stuck += 1
                command.kill(signal.SIGKILL)
                code = command.wait(PATIENCE)
            command.kill(signal.SIGKILL)  # what is left of its process group
            number, self.kills = number + 1, self.kills + 1
            output = command.output()
            self.tracebacks += "Traceback" in output
            last = (output.strip().splitlines() or ["no output yet"])[-1]
            print(
                f"{stage}: kill {number} of {kills}, {sig.name} after {moment:.1f} s, exit code {code}; last line: {last[:120]}", flush=True
            )
        try:
            complete(words, self.folder, outputs)
        except AssertionError as error:
            self.failed += 1
            print(f"{stage}: {error}", flush=True)
        present = small_run.snapshot(self.folder)  # without the files of later stages
        different = small_run.differences({name: self.expected.get(name, "") for name in present}, present)
        print(f"{stage}: continued to its end; files that differ: {', '.join(different) or 'none'}", flush=True)


def start(words: list[str], folder: Path, outputs: list[str]) -> tuple[forked.Command, int | None]:
    """A command that has written the first of its `outputs`, and its exit code if it has ended."""
    before = time.time_ns()
    command, code = forked.Command(words, folder, folder.with_suffix(".log")), None
    while code is None and not has_written(folder, outputs, since=before):
        code = command.wait(0.05)
    return command, code


def has_written(folder: Path, outputs: list[str], *, since: int) -> bool:
    """Whether a file of `outputs` has changed since a time in nanoseconds."""
    for path in (path for glob in outputs for match in folder.glob(glob) for path in (match, *match.rglob("*"))):
        with contextlib.suppress(FileNotFoundError):  # a temporary file
            if path.is_file() and path.stat().st_mtime_ns > since:
                return True
    return False


def complete(words: list[str], folder: Path, outputs: list[str]) -> float:
    """Runs a command to its end; returns the seconds from its first write."""
    command, code = start(words, folder, outputs)
    began = time.monotonic()
    code = command.wait(3600) if code is None else code
    assert code == 0, f"{words[0]} ended with exit code {code}: {command.output()[-2000:]}"
    return time.monotonic() - began
