"""Reads single members of a large zip file without unpacking it.

`zipfile` takes about 700 bytes per member, 1.1 GB for the 1.6 million images of PMC-OA. `ZipMembers` takes 16: a hash of the
name and the position of the directory entry. `ZipDirectory` streams the directory and takes none. Member names are only looked
up, never used as paths.
"""

import struct
import zlib
from array import array
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Self
from zipfile import ZipExtFile, ZipInfo

import numpy as np
import xxhash

from data_prep.readers.rows import InvalidRow
from src.runtime.errors import UserError

END, END64, LOCATOR64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
ENTRY, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.12 and 4.3.7
MAX_MEMBER_BYTES = 256 << 20  # no image is larger; protects against decompression bombs
STORED, DEFLATED = 0, 8


class ZipDirectory:
    """A zip file whose members are read by the position of their directory entry. Use as a context manager."""

    def __init__(self, path: Path):
        """Raises `UserError` if the file is missing."""
        self.path = path
        try:
            self.file = path.open("rb")
        except OSError:
            raise UserError(f"{path}: missing; download it again") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Yields (name, position) of every directory entry, in file order. Raises `UserError` if this is not a complete zip file."""
        try:
            count, position = self._locate_directory()
            for _ in range(count):
                self.file.seek(position)
                fields = ENTRY.unpack(self.file.read(ENTRY.size))
                if fields[0] != b"PK\1\2":
                    raise ValueError
                yield self.file.read(fields[10]), position
                position += ENTRY.size + fields[10] + fields[11] + fields[12]
        except (struct.error, ValueError):
            raise UserError(f"{self.path}: not a complete zip file; download it again") from None

    def read_at(self, position: int, key: str) -> bytes | InvalidRow:
        """The content of the member whose directory entry is at `position`, verified by its checksum, or an `InvalidRow`."""
        name, *fields = self._read_entry(position)
        return self._read_content(name.decode(errors="replace"), key, *fields)

    def _locate_directory(self) -> tuple[int, int]:
        """(number of members, start of the directory), from the end record or the 64-bit end record."""
        size = self.file.seek(0, 2)
        start = max(0, size - (1 << 16) - 22)
        self.file.seek(start)
        tail = self.file.read()
        end = tail.rfind(END)
        if end < 0:
            raise ValueError
        count, _, position = struct.unpack("<HII", tail[end + 10 : end + 20])
        if (count == 0xFFFF or position == 0xFFFFFFFF) and tail[end - 20 : end - 16] == LOCATOR64:
            self.file.seek(struct.unpack("<Q", tail[end - 12 : end - 4])[0])
            record = self.file.read(56)
            if record[:4] != END64:
                raise ValueError
            count, _, position = struct.unpack("<QQQ", record[32:56])
        return count, position

    def _read_entry(self, position: int) -> tuple[bytes, int, int, int, int, int, int]:
        """(name, flags, method, checksum, compressed size, size, start of the local header) of the directory entry at `position`."""
        self.file.seek(position)
        _, _, _, flags, method, _, _, crc, compressed, size, name_length, extra_length, *_, start = ENTRY.unpack(self.file.read(ENTRY.size))
        name = self.file.read(name_length)
        extra = self.file.read(extra_length)
        if 0xFFFFFFFF in (compressed, size, start):
            compressed, size, start = _read_zip64(extra, compressed, size, start)
        return name, flags, method, crc, compressed, size, start

    def _read_content(
        self, name: str, key: str, flags: int, method: int, crc: int, compressed: int, size: int, start: int
    ) -> bytes | InvalidRow:
        if flags & 1 or method not in (STORED, DEFLATED) or max(compressed, size) > MAX_MEMBER_BYTES:
            return InvalidRow(key, f"zip member cannot be read: {name} is encrypted, compressed with method {method} or larger than 256 MB")
        self.file.seek(start)
        header = self.file.read(LOCAL.size)
        if len(header) < LOCAL.size or header[:4] != b"PK\3\4":
            return InvalidRow(key, f"zip member damaged: {name}")
        self.file.seek(sum(LOCAL.unpack(header)[-2:]), 1)
        content = self.file.read(compressed)
        if method == DEFLATED:
            try:
                content = zlib.decompressobj(-15).decompress(content, MAX_MEMBER_BYTES)
            except zlib.error:
                return InvalidRow(key, f"zip member damaged: {name}")
        return content if zlib.crc32(content) == crc else InvalidRow(key, f"zip member damaged: {name}")


class ZipMembers(ZipDirectory):
    """A zip file whose members are read by name. Use as a context manager."""

    def __init__(self, path: Path, *, flat: bool = False):
        """Reads the directory. Raises `UserError` if the file is missing or not a complete zip file.

        `flat` looks members up by the last part of their name, as `unzip -j` unpacks them.
        """
        super().__init__(path)
        self.flat = flat
        hashes, positions = array("Q"), array("Q")
        try:
            for name, position in self.entries():
                hashes.append(xxhash.xxh3_64_intdigest(self._lookup_name(name)))
                positions.append(position)
        except UserError:
            self.file.close()
            raise
        order = np.argsort(np.frombuffer(hashes, np.uint64))
        self.hashes, self.positions = np.frombuffer(hashes, np.uint64)[order], np.frombuffer(positions, np.uint64)[order]

    def __len__(self) -> int:
        return len(self.hashes)

    def read(self, name: str, key: str) -> bytes | InvalidRow:
        """The content of one member, verified by its checksum, or an `InvalidRow` with the reason."""
        entry = self._find_entry(name)
        return self._read_content(name, key, *entry) if entry else InvalidRow(key, f"image missing: {name} is not in {self.path.name}")

    def names(self) -> Iterator[str]:
        """The full names of all members in the order of the directory, without keeping them in memory."""
        return (name.decode(errors="replace") for name, _ in self.entries())

    def open(self, name: str) -> BufferedIOBase:
        """One member as a stream, for members of any size. Raises `UserError` if there is none that can be read.

        A damaged member raises `zipfile.BadZipFile` or `zlib.error` while it is read.
        """
        entry = self._find_entry(name)
        if not entry or entry[0] & 1 or entry[1] not in (STORED, DEFLATED):
            raise UserError(f"{self.path}: holds no {name} that can be read; download it again")
        info = ZipInfo(name)
        _, info.compress_type, info.CRC, info.compress_size, info.file_size, start = entry
        file = self.path.open("rb")  # its own position: other members are read meanwhile
        file.seek(start)
        file.seek(sum(LOCAL.unpack(file.read(LOCAL.size))[-2:]), 1)
        return ZipExtFile(file, "r", info, None, True)

    def _find_entry(self, name: str) -> tuple[int, int, int, int, int, int] | None:
        """`_read_entry` of the member with this name, without the name."""
        encoded = name.encode(errors="surrogatepass")
        target = np.uint64(xxhash.xxh3_64_intdigest(encoded))
        index = int(np.searchsorted(self.hashes, target))
        while index < len(self.hashes) and self.hashes[index] == target:
            entry = self._read_entry(int(self.positions[index]))
            if self._lookup_name(entry[0]) == encoded:
                return entry[1:]
            index += 1
        return None

    def _lookup_name(self, name: bytes) -> bytes:
        return name.rpartition(b"/")[2] if self.flat else name


def _read_zip64(extra: bytes, compressed: int, size: int, start: int) -> list[int]:
    """Replaces values that do not fit into 32 bits. Those that read 0xFFFFFFFF are stored in extra field 1, in the order
    uncompressed size, compressed size, start (APPNOTE 4.5.3)."""
    while len(extra) >= 4:
        tag, length = struct.unpack("<HH", extra[:4])
        if tag == 1:
            values = iter(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
            size = next(values) if size == 0xFFFFFFFF else size
            compressed = next(values) if compressed == 0xFFFFFFFF else compressed
            start = next(values) if start == 0xFFFFFFFF else start
        extra = extra[4 + length :]
    return [compressed, size, start]
