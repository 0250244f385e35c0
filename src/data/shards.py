"""The shards of one source: random access to its samples through a memory-mapped index.

A folder holds webdataset tars, `index.arrow` with a row per sample, and `manifest.json`, which is written last. Index rows are in the
order of the tars. Opening takes the same time for any number of rows; a sample costs one read.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from src.data.record import SPLITS, Record, from_json, from_members, tar_members
from src.runtime.errors import UserError

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),  # position in manifest["shards"]
        ("offset", pa.int64()),  # of the sample's first tar header, bytes
        ("length", pa.int32()),  # of all its members, headers and padding, bytes
        ("json_length", pa.int32()),  # of the json member's content, bytes; it comes first
        ("num_images", pa.int16()),
        ("split", pa.int8()),  # position in SPLITS
        ("type", pa.int8()),  # position in QUESTION_TYPES
        ("group", pa.int64()),  # hash of the record's group
        ("text_length", pa.int32()),  # of all turns or the caption, characters
        ("tokens", pa.int32()),  # of the same text, by the tokenizer of the manifest (data_prep.build.token_counts); -1: not counted
        ("width", pa.int32()),  # of the first image before resizing, pixels; 0 without an image
        ("height", pa.int32()),
        ("image_hash", pa.uint64()),  # perceptual hash of the first image; 0 without an image
        ("more_hashes", pa.binary()),  # perceptual hashes of the images after the first, 8 bytes each, little-endian
        ("text_hash", pa.uint64()),  # hash of the normalised text
        ("leaks_into", pa.string()),  # benchmarks whose test split holds this sample, joined by commas
    ]
)
SUBSETS = "subsets.arrow"  # of a source whose records have `meta.dataset`: one dictionary-encoded column, a value per row of the index
OPEN_FILES = 64  # per source
MAX_HASH_DISTANCE = 7  # bits by which the perceptual hashes of copies of an image differ at most, as in the audit


class Shards:
    """`shards[row]` is a Record. It is pickled as its path; each process opens its own files."""

    def __init__(self, folder: str | Path):
        """Raises `UserError` if the folder holds no finished build."""
        self.folder = Path(folder)
        try:
            self.manifest = json.loads((self.folder / "manifest.json").read_bytes())
            self._index = pa.ipc.open_file(pa.memory_map(str(self.folder / "index.arrow"))).get_batch(0)
        except FileNotFoundError as error:
            name = Path(error.filename or "index.arrow").name
            raise UserError(f"{self.folder}: no {name}, so no finished shards; build them with `make shards`") from None
        except (ValueError, pa.ArrowException) as error:
            raise UserError(
                f"{self.folder}: broken index or manifest ({str(error).splitlines()[0]}); build it again with `make shards`"
            ) from None
        missing = set(SCHEMA.names) - set(self._index.schema.names)
        if missing:
            raise UserError(f"{self.location}/index.arrow: no column {', '.join(sorted(missing))}; build it again with `make shards`")
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, least recently used first

    @property
    def audit(self) -> dict | None:
        """The result of `make audit` for this build; None if only another build, or none, was audited."""
        try:
            audit = json.loads((self.folder / "audit.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return audit if audit.get("manifest") == self.manifest["fingerprint"] else None

    @property
    def location(self) -> str:
        """Folder or address of the build, for messages."""
        return str(self.folder)

    def __reduce__(self):
        return Shards, (self.folder,)

    def __del__(self):
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def __len__(self) -> int:
        return self._index.num_rows

    def column(self, name: str) -> np.ndarray:
        """One column of the index by row: a view of the file for numbers, an array of objects for strings."""
        column = self._index.column(name)
        return np.array(column.to_pylist(), object) if pa.types.is_string(column.type) else numpy_view(column)

    def arrow(self, name: str) -> pa.Array:
        """One column of the index as an Arrow array."""
        return self._index.column(name)

    @cached_property
    def subsets(self) -> tuple[list[str], np.ndarray]:
        """(names, number of the name of each row) of the datasets that the source was compiled from; a source without them has no names."""
        if "subsets" not in self.manifest:
            return [], np.empty(0, np.int32)
        try:
            column = pa.ipc.open_file(pa.memory_map(str(self.folder / SUBSETS))).get_batch(0).column(0)
        except (OSError, pa.ArrowException):
            column = []
        if len(column) != len(self):
            raise UserError(f"{self.location}/{SUBSETS}: missing or does not match its index; build it again with `make shards`")
        return column.dictionary.to_pylist(), numpy_view(column.indices)

    def image_hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, perceptual hash) of every image, int64 and uint64. Rows are unordered; the images of one row are in its order."""
        first_N, more = self.column("image_hash"), self._index.column("more_hashes")
        with_image = np.flatnonzero(first_N)
        counts_N = numpy_view(pc.binary_length(more)) // 8
        start, size = more.offset, int(counts_N.sum()) * 8
        begin = int(np.frombuffer(more.buffers()[1], np.int32)[start]) if len(more) else 0
        rest = np.frombuffer(more.buffers()[2], "<u8", size // 8, begin) if size else np.empty(0, np.uint64)
        rows = np.concatenate([with_image, np.repeat(np.arange(len(self)), counts_N)])
        return rows, np.concatenate([first_N[with_image], rest])

    def rows(self, split: str, *, decontaminate: bool = False) -> np.ndarray:
        """Row numbers (int64) of a split; `decontaminate` drops those that leak into a benchmark."""
        selected = self.column("split") == SPLITS.index(split)
        if decontaminate:
            selected &= numpy_view(pc.binary_length(self._index.column("leaks_into"))) == 0
        return np.flatnonzero(selected)

    def repeats_image(self, rows: np.ndarray, of: np.ndarray) -> np.ndarray:
        """For each of `rows` (bool): whether one of its images is also an image of a row in `of`.

        Two images are the same if their perceptual hashes differ in at most `MAX_HASH_DISTANCE` bits, so the encoding may differ.
        """
        row_N, hash_N = self.image_hashes()
        known, in_rows = np.unique(hash_N[np.isin(row_N, of)]), np.isin(row_N, rows)
        repeated = [bool((np.bitwise_count(known ^ image_hash) <= MAX_HASH_DISTANCE).any()) for image_hash in hash_N[in_rows]]
        return np.isin(rows, row_N[in_rows][repeated])

    def __getitem__(self, row: int) -> Record:
        """The whole sample."""
        number, offset, length, _ = self._span(row)
        return self._parse(row, number, lambda: tar_members(self._read(number, offset, length)))

    def text(self, row: int) -> Record:
        """The sample without its images, which are not read."""
        number, offset, _, json_length = self._span(row)
        return self._parse(row, number, lambda: {"json": self._read(number, offset + 512, json_length)})

    def texts(self, rows: list[int]) -> list[Record]:
        """`text` of many rows. Reading shard by shard takes a third of the time of single calls."""
        numbers, offsets, _, lengths = (column[rows] for column in self._spans)
        texts = np.empty(len(rows), object)
        for number in np.unique(numbers).tolist():
            (at,) = np.nonzero(numbers == number)
            file, spans = self._open(number), zip(lengths[at].tolist(), (offsets[at] + 512).tolist(), strict=True)
            texts[at] = [os.pread(file, length, offset) for length, offset in spans]
        index = pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.asarray(rows, np.int64))])
        try:
            records = [from_json(text) for text in texts]
            if [record.key for record in records] == self._keys.take(index).to_pylist():
                return records
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        return [self.text(row) for row in rows]  # raises for the shard that has changed

    @cached_property
    def _keys(self) -> pa.StringArray:
        return self._index.column("key")

    @cached_property
    def _spans(self) -> list[np.ndarray]:
        return [self.column(name) for name in ("shard", "offset", "length", "json_length")]

    def _span(self, row: int) -> list[int]:
        """[shard, offset, length, json_length] of a row."""
        return [int(column[row]) for column in self._spans]

    def _parse(self, row: int, number: int, members: Callable[[], dict[str, bytes]]) -> Record:
        """The record. Raises `UserError` if the shard holds another one here than the index states."""
        try:
            record = from_members(members())
        except (ValueError, TypeError, KeyError):
            raise self._mismatch_error(number) from None
        if record.key != self._keys[int(row)].as_py():
            raise self._mismatch_error(number)
        return record

    def _read(self, number: int, offset: int, length: int) -> bytes:
        data = os.pread(self._open(number), length, offset)
        if len(data) != length:
            raise self._mismatch_error(number)
        return data

    def prefetch(self, rows: np.ndarray) -> None:
        """Announces that these rows will be read; remote shards are fetched in the background."""

    def _open(self, number: int) -> int:
        if number not in self._files:
            descriptor = self._descriptor(number)
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[number] = descriptor
        self._files.move_to_end(number)
        return self._files[number]

    def _descriptor(self, number: int) -> int:
        try:
            return os.open(self._path(number), os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{self._path(number)}: listed in the manifest but missing; build it again with `make shards`") from None

    def _path(self, number: int) -> Path:
        return self.folder / self.manifest["shards"][number]["name"]

    def mismatch_error(self, row: int) -> UserError:
        """The error to raise when an image of this row cannot be decoded."""
        return self._mismatch_error(self._span(row)[0])

    def _mismatch_error(self, number: int) -> UserError:
        return UserError(f"{self._path(number)}: does not match its index; build it again with `make shards`")


def numpy_view(column: pa.Array) -> np.ndarray:
    """The numbers of a column without nulls. `to_numpy` would import pandas, which costs half a second and 40 MB."""
    return np.frombuffer(column.buffers()[1], str(column.type), count=column.offset + len(column))[column.offset :]
