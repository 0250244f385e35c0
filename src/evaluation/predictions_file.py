"""Predictions files of a run: one JSON line per question, appended after each answer, so that an interrupted evaluation can resume."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from src.runtime.atomic_file import write_atomically
from src.runtime.distributed import Ranks


class PredictionsFile:
    """`predictions/<benchmark>.<condition>.jsonl` with a `.digest` file of everything that the answers depend on.

    Answers under another digest (another checkpoint, another token budget) are deleted, so that a file never mixes settings. Each of
    several ranks appends to its own part file; the first rank merges the parts, including those of an evaluation that was killed.
    """

    def __init__(self, path: Path, depends_on: dict, *, ranks: Ranks = Ranks()):  # noqa: B008
        self.path, self.ranks = path, ranks
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        self._rank_path = path if ranks.world == 1 else path.with_suffix(f".{digest[:12]}.{ranks.rank}.part")
        if ranks.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open(path.with_suffix(".digest"), digest)
        ranks.barrier()
        self.lines = {line["id"]: line for line in read_predictions(path)}

    def add(self, lines: Iterable[dict]) -> None:
        with self._rank_path.open("a") as file:
            for line in lines:
                file.write(_to_json(line))
                self.lines[line["id"]] = line

    def finish(self, items: list[dict]) -> None:
        """Writes the file in the order of `items`, with the fields of each item; answers to other questions follow at the end."""
        self.ranks.barrier()
        if self.ranks.is_first:
            lines = self.lines | self._read_parts()
            # `seen` is removed first: an audit that no longer exists must leave no mark.
            answered = [{key: value for key, value in lines.pop(item["id"]).items() if key != "seen"} for item in items]
            updated = [{**line, **item} for line, item in zip(answered, items, strict=True)]
            write_predictions(self.path, [*updated, *lines.values()])
            self._remove_parts()

    def _open(self, digest_path: Path, digest: str) -> None:
        if not (digest_path.exists() and digest_path.read_text() == digest):
            self.path.unlink(missing_ok=True)
            self._remove_parts()
        lines = {line["id"]: line for line in read_predictions(self.path)} | self._read_parts()
        write_predictions(self.path, lines.values())  # removes an incomplete last line, which a kill may have left
        self._remove_parts()
        write_atomically(digest_path, digest)

    def _read_parts(self) -> dict[str, dict]:
        return {line["id"]: line for part in sorted(self._part_paths()) for line in read_predictions(part)}

    def _remove_parts(self) -> None:
        for part in self._part_paths():
            part.unlink()

    def _part_paths(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.path.stem}.*.part"))


def write_predictions(path: Path, lines: Iterable[dict]) -> None:
    write_atomically(path, "".join(map(_to_json, lines)))


def read_predictions(path: Path) -> list[dict]:
    """The complete lines of a predictions file of a run; an incomplete last line is ignored."""
    lines: list[dict] = []
    for text in path.read_text().split("\n")[:-1] if path.exists() else ():  # splitlines() would also split at U+2028 within an answer
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _to_json(line: dict) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
