"""Reads large JSON files one item at a time."""

import io
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

from src.runtime.errors import UserError

CHUNK = 1 << 16  # characters; an item that does not fit doubles the buffer
MAX_ITEM = 64 << 20  # characters of one item; a longer one is taken for a damaged file


def iter_items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of the object in the file, or (position, value) of the array.

    Memory is bounded by the size of one item. Bytes that are not UTF-8 become surrogates, which the build rejects row by row.
    Raises `UserError` if the file is not one complete object or array.
    """
    with path.open("rb") as file:
        yield from iter_stream(file, path.name)


def iter_stream(file: io.BufferedIOBase, name: str) -> Iterator[tuple[str, Any]]:
    """`iter_items` of an open file, which may be a member of an archive."""
    try:
        yield from _items(_Text(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")))  # type: ignore[type-var]  # ZipExtFile has no `raw`
    except (ValueError, EOFError, RecursionError, BadZipFile, zlib.error) as error:
        raise UserError(f"{name}: not complete, valid JSON: {error}; download it again") from None


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
        raise ValueError(f"more text follows its end, starting with '{text.peek()}'")  # JSON lines, or two concatenated files


class _Text:
    """A file with a buffer of unread text."""

    def __init__(self, file: IO[str]):
        self.file, self.buffer, self.position = file, "", 0
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space."""
        while True:
            while self.position < len(self.buffer):
                if not self.buffer[self.position].isspace():
                    return self.buffer[self.position]
                self.position += 1
            self._read_more()

    def skip(self, expected: str) -> str:
        """Consumes the expected character; with an empty string, only returns the next character."""
        character = self.peek()
        if expected and character != expected:
            raise ValueError(f"expected '{expected}', found '{character}'")
        self.position += len(expected)
        return character

    def value(self) -> Any:
        """The next value. A value is complete only if text follows it; otherwise the first half of a number would be accepted."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.position)
                if end < len(self.buffer):
                    self.position = end
                    return value
            except json.JSONDecodeError:
                if len(self.buffer) - self.position > MAX_ITEM:
                    raise
            self._read_more()

    def _read_more(self) -> None:
        rest = self.buffer[self.position :]
        text = self.file.read(max(CHUNK, len(rest)))  # doubles, so that a long item is not parsed again per chunk
        if not text:
            raise EOFError("the file ends too early")
        self.buffer, self.position = rest + text, 0
