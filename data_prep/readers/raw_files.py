"""Helpers of the readers: lines of text files, image files and text fields."""

import errno
import html
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data_prep.readers.rows import InvalidRow

NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def lines(path: Path) -> Iterator[tuple[int, str | InvalidRow]]:
    """Yields (number from 1, text) of every line that is not blank; a line that is not UTF-8 becomes an `InvalidRow`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                yield number, InvalidRow(f"{path.stem}-{number}", f"not UTF-8: line {number} of {path.name}, byte {error.start}")


def json_lines(path: Path) -> Iterator[tuple[int, dict | InvalidRow]]:
    """Yields (number from 1, object) of every line; a line that is not a complete JSON object becomes an `InvalidRow`."""
    for number, line in lines(path):
        if isinstance(line, InvalidRow):
            yield number, line
            continue
        try:
            value = json.loads(line)
            reason = "" if isinstance(value, dict) else f"not a JSON object: line {number} of {path.name}"
        except (ValueError, RecursionError) as error:
            reason = f"not valid JSON: line {number} of {path.name}, {error}"
        yield number, InvalidRow(f"{path.stem}-{number}", reason) if reason else value


def image_file(folder: Path, name: str, key: str) -> bytes | InvalidRow:
    """The bytes of `folder/name`, or an `InvalidRow` with the reason. A name that leads out of `folder` is rejected."""
    if not name:
        return InvalidRow(key, "image missing: the row names no image")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return InvalidRow(key, f"image path is not inside the raw folder: {name!r}")
    try:
        return (folder / name).read_bytes()
    except ValueError:  # a null byte or an unpaired surrogate in the name
        return InvalidRow(key, f"image missing: {name!r}")
    except OSError as error:
        if error.errno not in NO_SUCH_FILE:
            raise
        return InvalidRow(key, f"image missing: {name[:200]}")


def all_images(images: Iterable[bytes | InvalidRow]) -> list[bytes] | InvalidRow:
    """All images of a row, or the first `InvalidRow` among them."""
    valid: list[bytes] = []
    for image in images:
        if isinstance(image, InvalidRow):
            return image
        valid.append(image)
    return valid


def clean_text(value: object) -> str:
    """A field as text: HTML entities decoded, non-breaking and zero-width spaces replaced, stripped; empty for null."""
    text = "" if value is None else html.unescape(str(value))
    return text.replace("\u00a0", " ").replace("\u200b", "").strip()


def group_of(image: bytes) -> str:
    """The group of an image without a name: a hash of its bytes."""
    return xxhash.xxh3_64_hexdigest(image)


def rows_in(path: Path) -> int | None:
    """The approximate number of rows of a table; None if it cannot be counted cheaply."""
    if path.suffix == ".parquet":
        try:
            return pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError):
            return None
    if path.suffix not in (".csv", ".tsv", ".jsonl", ".txt"):
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
