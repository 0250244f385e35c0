"""JSON files that are larger than memory should be: one item at a time."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from src.runtime.errors import UserError

CHUNK = 1 << 20
MAX_ITEM = 64 << 20  # characters of one item; beyond, the text is broken rather than long


def iter_items(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of the one object in the file, or (position, value) of the one array; memory is bounded by an item. Letters that
    are not UTF-8 come as surrogates, which the build refuses row by row."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        try:
            yield from _items(_Text(file))
        except (ValueError, EOFError, RecursionError) as error:
            raise UserError(f"{path.name} is not complete, valid JSON: {error}; fetch it again") from None


def _items(text: "_Text") -> Iterator[tuple[str, Any]]:
    opening = text.skip("")
    if opening not in "{[":
        raise ValueError("expected one object or one array")
    text.skip(opening)
    position = 0
    while text.peek() not in "}]":
        key = str(position)
        if opening == "{":
            key = text.value()
            text.skip(":")
        yield key, text.value()
        position += 1
        if text.peek() == ",":
            text.skip(",")
    text.skip(text.peek())
    with suppress(EOFError):
        raise ValueError(f"'{text.peek()}' follows where it ends")  # JSON lines, or two files in one


class _Text:
    """The unread part of a file, as far as it has been fetched."""

    def __init__(self, file: IO[str]):
        self.file, self.held, self.at = file, "", 0
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not blank."""
        while True:
            while self.at < len(self.held):
                if not self.held[self.at].isspace():
                    return self.held[self.at]
                self.at += 1
            self._fetch()

    def skip(self, expected: str) -> str:
        found = self.peek()
        if expected and found != expected:
            raise ValueError(f"expected '{expected}', found '{found}'")
        self.at += len(expected)
        return found

    def value(self) -> Any:
        """The next value; a value is taken for complete only when something follows it, or 12 of 123 would pass."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.held, self.at)
                if end < len(self.held):
                    self.at = end
                    return value
            except json.JSONDecodeError:
                if len(self.held) - self.at > MAX_ITEM:
                    raise
            self._fetch()

    def _fetch(self) -> None:
        more = self.file.read(CHUNK)
        if not more:
            raise EOFError("it ends in the middle")
        self.held, self.at = self.held[self.at :] + more, 0
