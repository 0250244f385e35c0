"""A predictions file: one JSON line per question, appended as answers come, so that a killed evaluation goes on."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from src.runtime.distributed import Ranks
from src.runtime.run_folder import write_atomically


class PredictionsFile:
    """`predictions/<benchmark>.<condition>.jsonl` with, beside it, a digest of what the answers depend on.

    Answers under another digest (another checkpoint, another token budget) are dropped, never mixed with new ones. Of several
    ranks each appends to a part of its own; the first joins the parts, those of a killed evaluation too.
    """

    def __init__(self, path: Path, depends_on: dict, *, team: Ranks = Ranks()):  # noqa: B008
        self.path, self.team = path, team
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        self._mine = path if team.world == 1 else path.with_suffix(f".{digest[:12]}.{team.rank}.part")
        if team.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open(path.with_suffix(".digest"), digest)
        team.barrier()
        self.lines = {line["id"]: line for line in read_predictions(path)}

    def add(self, lines: Iterable[dict]) -> None:
        with self._mine.open("a") as file:
            for line in lines:
                file.write(_text(line))
                self.lines[line["id"]] = line

    def finish(self, items: list[dict]) -> None:
        """The file in the order of `items`, whose lines get what an item says of itself; answers to other questions stand behind them."""
        self.team.barrier()
        if self.team.is_first:
            lines = self.lines | self._parts()
            answered = [{key: value for key, value in lines.pop(item["id"]).items() if key != "seen"} for item in items]
            asked = [{**line, **item} for line, item in zip(answered, items, strict=True)]  # an item may no longer say what it had seen
            write_predictions(self.path, [*asked, *lines.values()])
            self._drop_parts()

    def _open(self, stamp: Path, digest: str) -> None:
        known = stamp.exists() and stamp.read_text() == digest
        if not known:
            self.path.unlink(missing_ok=True)
            self._drop_parts()
        lines = {line["id"]: line for line in read_predictions(self.path)} | self._parts()
        write_predictions(self.path, lines.values())  # without the half line that a kill may have left
        self._drop_parts()
        write_atomically(stamp, digest)

    def _parts(self) -> dict[str, dict]:
        return {line["id"]: line for part in sorted(self.path.parent.glob(f"{self.path.stem}.*.part")) for line in read_predictions(part)}

    def _drop_parts(self) -> None:
        for part in self.path.parent.glob(f"{self.path.stem}.*.part"):
            part.unlink()


def write_predictions(path: Path, lines: Iterable[dict]) -> None:
    write_atomically(path, "".join(map(_text, lines)))


def read_predictions(path: Path) -> list[dict]:
    """The complete lines of a predictions file of ours; a last line that was cut by a kill is left out."""
    lines: list[dict] = []
    for text in path.read_text().split("\n")[:-1] if path.exists() else ():  # splitlines would also split inside of answers
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _text(line: dict) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
