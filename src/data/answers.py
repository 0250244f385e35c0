"""A predictions file: one JSON line per question, appended as answers come, so that a killed evaluation goes on."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from src.run import write_atomically


class Answers:
    """`predictions/<benchmark>.<condition>.jsonl` with, beside it, a digest of what the answers depend on.

    Answers under another digest (another checkpoint, another token budget) are dropped, never mixed with new ones.
    """

    def __init__(self, path: Path, depends_on: dict):
        self.path = path
        self.lines: dict[str, dict] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        stamp = path.with_suffix(".digest")
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        if stamp.exists() and stamp.read_text() == digest:
            self.lines = {line["id"]: line for line in read(path)}
        elif path.exists():
            path.unlink()
        self._write(self.lines.values())  # without the half line that a kill may have left
        write_atomically(stamp, digest)

    def add(self, lines: Iterable[dict]) -> None:
        with self.path.open("a") as file:
            for line in lines:
                file.write(_text(line))
                self.lines[line["id"]] = line

    def finish(self, items: list[dict]) -> list[dict]:
        """The file in the order of `items`, with nothing else in it; what an item says of itself stands in its line."""
        ordered = [{**self.lines[item["id"]], **item} for item in items]
        self._write(ordered)
        return ordered

    def _write(self, lines: Iterable[dict]) -> None:
        write_atomically(self.path, "".join(map(_text, lines)))


def read(path: Path) -> list[dict]:
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
