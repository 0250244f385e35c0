"""The shards of one source: which samples there are (a memory-mapped index), and any one of them by its row number.

A folder holds webdataset tars, `index.arrow` with a row per sample, and `manifest.json`, which was written last. Rows are in
the order of the tars. Opening costs the same for any number of rows; a sample costs one read of its span.
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
        (
            "tokens",
            pa.int32(),
        ),  # of the same, as `data_prep.build.token_counts.count_tokens` has it, by the manifest's tokenizer; -1: not counted
        ("width", pa.int32()),  # of the first image as it came, pixels; 0 where there is none
        ("height", pa.int32()),
        ("image_hash", pa.uint64()),  # perceptual hash of the first image; 0 where there is none
        ("more_hashes", pa.binary()),  # perceptual hashes of the images after the first, 8 bytes each, little-endian
        ("text_hash", pa.uint64()),  # hash of the normalised text
        ("leaks_into", pa.string()),  # benchmarks, joined by commas, whose test split holds this sample
    ]
)
OPEN_FILES = 64
SAME_IMAGE = 7  # bits by which the perceptual hashes of copies of an image differ at most, as in the audit


class Shards:
    """`shards[row]` is a Record. Pickles as its path; each process opens its own files."""

    open_files = OPEN_FILES

    def __init__(self, folder: str | Path):
        """Opens in constant time; raises `UserError` where the folder holds no finished build."""
        self.folder = Path(folder)
        try:
            self.manifest = json.loads((self.folder / "manifest.json").read_bytes())
            self._index = pa.ipc.open_file(pa.memory_map(str(self.folder / "index.arrow"))).get_batch(0)
        except FileNotFoundError as error:
            name = Path(error.filename or "index.arrow").name
            raise UserError(f"{self.folder} holds no {name}, so no finished shards; build them with `make shards`") from None
        except (ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.folder} has a broken index or manifest ({str(error).splitlines()[0]}); build it again") from None
        missing = set(SCHEMA.names) - set(self._index.schema.names)
        if missing:
            raise UserError(f"{self.where}/index.arrow has no column {', '.join(sorted(missing))}; build it again with `make shards`")
        self._files: OrderedDict[int, int] = OrderedDict()  # shard -> descriptor, least recently used first

    @property
    def audit(self) -> dict | None:
        """What `make audit` recorded of this build; None where it has not checked it, but perhaps an earlier one."""
        try:
            found = json.loads((self.folder / "audit.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return found if found.get("manifest") == self.manifest["fingerprint"] else None

    @property
    def where(self) -> str:
        """Where the build stands, for messages."""
        return str(self.folder)

    def __reduce__(self):
        return Shards, (self.folder,)

    def __del__(self):
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def __len__(self) -> int:
        return self._index.num_rows

    def column(self, name: str) -> np.ndarray:
        """One column of the index, by row; numbers are a view of the file, strings become objects."""
        column = self._index.column(name)
        return np.array(column.to_pylist(), object) if pa.types.is_string(column.type) else numpy_view(column)

    def arrow(self, name: str) -> pa.Array:
        """One column of the index as it stands in the file."""
        return self._index.column(name)

    def image_hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, perceptual hash) of every image, int64 and uint64; those of a row stand in its order, rows in none."""
        first_N, more = self.column("image_hash"), self._index.column("more_hashes")
        shown = np.flatnonzero(first_N)
        counts_N = numpy_view(pc.binary_length(more)) // 8
        start, size = more.offset, int(counts_N.sum()) * 8
        begin = int(np.frombuffer(more.buffers()[1], np.int32)[start]) if len(more) else 0
        rest = np.frombuffer(more.buffers()[2], "<u8", size // 8, begin) if size else np.empty(0, np.uint64)
        return np.concatenate([shown, np.repeat(np.arange(len(self)), counts_N)]), np.concatenate([first_N[shown], rest])

    def rows(self, split: str, *, decontaminate: bool = False) -> np.ndarray:
        """Row numbers (int64) of a split, without those that leak into a benchmark if `decontaminate`."""
        wanted = self.column("split") == SPLITS.index(split)
        if decontaminate:
            wanted &= numpy_view(pc.binary_length(self._index.column("leaks_into"))) == 0
        return np.flatnonzero(wanted)

    def shows_again(self, rows: np.ndarray, of: np.ndarray) -> np.ndarray:
        """Which of `rows` (bool, by position) show an image of the rows `of`, however it was encoded: by their perceptual hashes."""
        row_N, hash_N = self.image_hashes()
        known, asked = np.unique(hash_N[np.isin(row_N, of)]), np.isin(row_N, rows)
        again = [bool((np.bitwise_count(known ^ one) <= SAME_IMAGE).any()) for one in hash_N[asked]]
        return np.isin(rows, row_N[asked][again])

    def __getitem__(self, row: int) -> Record:
        """The whole sample."""
        number, offset, length, _ = self._place(row)
        return self._checked(row, number, lambda: tar_members(self._read(number, offset, length)))

    def text(self, row: int) -> Record:
        """The sample without its images, which are not read."""
        number, offset, _, json_length = self._place(row)
        return self._checked(row, number, lambda: {"json": self._read(number, offset + 512, json_length)})

    def texts(self, rows: list[int]) -> list[Record]:
        """`text` of many rows, in a third of the time that it takes one by one, shard by shard."""
        numbers, offsets, _, lengths = (column[rows] for column in self._places)
        spans = np.empty(len(rows), object)
        for number in np.unique(numbers).tolist():
            (at,) = np.nonzero(numbers == number)
            file, places = self._open(number), zip(lengths[at].tolist(), (offsets[at] + 512).tolist(), strict=True)
            spans[at] = [os.pread(file, length, offset) for length, offset in places]
        index = pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.asarray(rows, np.int64))])
        try:
            records = [from_json(span) for span in spans]
            if [record.key for record in records] == self._keys.take(index).to_pylist():
                return records
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        return [self.text(row) for row in rows]  # one of them tells which shard has changed

    @cached_property
    def _keys(self) -> pa.StringArray:
        return self._index.column("key")

    @cached_property
    def _places(self) -> list[np.ndarray]:
        return [self.column(name) for name in ("shard", "offset", "length", "json_length")]

    def _place(self, row: int) -> list[int]:
        return [int(column[row]) for column in self._places]

    def _checked(self, row: int, number: int, members: Callable[[], dict[str, bytes]]) -> Record:
        """The record, if the shard still holds at this place what the index says."""
        try:
            record = from_members(members())
        except (ValueError, TypeError, KeyError):
            raise self._changed(number) from None
        if record.key != self._keys[int(row)].as_py():
            raise self._changed(number)
        return record

    def _read(self, number: int, offset: int, length: int) -> bytes:
        data = os.pread(self._open(number), length, offset)
        if len(data) != length:
            raise self._changed(number)
        return data

    def expect(self, row: int) -> None:
        """Says that this row will be read; shards that are not on this disk begin to come."""

    def _open(self, number: int) -> int:
        if number not in self._files:
            descriptor = self._descriptor(number)
            if len(self._files) >= self.open_files:
                os.close(self._files.popitem(last=False)[1])
            self._files[number] = descriptor
        self._files.move_to_end(number)
        return self._files[number]

    def _descriptor(self, number: int) -> int:
        try:
            return os.open(self._path(number), os.O_RDONLY)
        except FileNotFoundError:
            raise UserError(f"{self._path(number)} is named in the manifest but is not there; build it again with `make shards`") from None

    def _path(self, number: int) -> Path:
        return self.folder / self.manifest["shards"][number]["name"]

    def changed(self, row: int) -> UserError:
        """For who finds that an image of this row is none."""
        return self._changed(self._place(row)[0])

    def _changed(self, number: int) -> UserError:
        return UserError(f"{self._path(number)} is not the file that the index was made of; build it again with `make shards`")


def numpy_view(column: pa.Array) -> np.ndarray:
    """The numbers of a column without nulls. `to_numpy` does the same and imports pandas, half a second and 40 MB."""
    return np.frombuffer(column.buffers()[1], str(column.type), count=column.offset + len(column))[column.offset :]
