"""Single members of a large zip file, read without unpacking it.

`zipfile` holds about 700 bytes per member, 1.1 GB for the 1.6 million pictures of PMC-OA; here a member costs 16: the hash
of its name and where its directory entry stands. Member names are only ever looked up, never used as paths.
"""

import struct
import zlib
from array import array
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from data_prep.readers.rows import InvalidRow
from src.runtime.errors import UserError

END, END64, LOCATOR64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
ENTRY, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")  # APPNOTE 4.3.12 and 4.3.7
LARGEST = 256 << 20  # bytes of one member: a picture is smaller, a bomb is not
STORED, DEFLATED = 0, 8


class ZipMembers:
    def __init__(self, path: Path, *, flat: bool = False):
        """Reads the directory; a missing, cut or foreign file is a `UserError`.

        `flat` looks members up by the last part of their name, as `unzip -j` would lay them out.
        """
        self.path, self.flat = path, flat
        try:
            self.file = path.open("rb")
        except OSError:
            raise UserError(f"{path} is missing; fetch it again") from None
        try:
            hashes, places = self._directory()
        except (struct.error, ValueError):
            self.file.close()
            raise UserError(f"{path} is not a complete zip file; fetch it again") from None
        order = np.argsort(hashes)
        self.hashes, self.places = hashes[order], places[order]

    def __len__(self) -> int:
        return len(self.hashes)

    def __enter__(self) -> "ZipMembers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()

    def read(self, name: str, key: str) -> bytes | InvalidRow:
        """The content of one member, checked against its checksum, or why there is none."""
        wanted = name.encode(errors="surrogatepass")
        target = np.uint64(xxhash.xxh3_64_intdigest(wanted))
        at = int(np.searchsorted(self.hashes, target))
        while at < len(self.hashes) and self.hashes[at] == target:
            entry = self._entry(int(self.places[at]))
            if self._name(entry[0]) == wanted:
                return self._content(name, key, *entry[1:])
            at += 1
        return InvalidRow(key, f"image missing: {name} is not in {self.path.name}")

    def _name(self, name: bytes) -> bytes:
        return name.rpartition(b"/")[2] if self.flat else name

    def _directory(self) -> tuple[np.ndarray, np.ndarray]:
        count, at = self._end()
        hashes, places = array("Q"), array("Q")
        self.file.seek(at)
        for _ in range(count):
            fields = ENTRY.unpack(self.file.read(ENTRY.size))
            if fields[0] != b"PK\1\2":
                raise ValueError
            hashes.append(xxhash.xxh3_64_intdigest(self._name(self.file.read(fields[10]))))
            places.append(at)
            self.file.seek(fields[11] + fields[12], 1)
            at += ENTRY.size + fields[10] + fields[11] + fields[12]
        return np.frombuffer(hashes, np.uint64), np.frombuffer(places, np.uint64)

    def _end(self) -> tuple[int, int]:
        """(number of members, where the directory begins); both may stand in the 64-bit record instead."""
        size = self.file.seek(0, 2)
        start = max(0, size - (1 << 16) - 22)
        self.file.seek(start)
        tail = self.file.read()
        at = tail.rfind(END)
        if at < 0:
            raise ValueError
        count, _, place = struct.unpack("<HII", tail[at + 10 : at + 20])
        if (count == 0xFFFF or place == 0xFFFFFFFF) and tail[at - 20 : at - 16] == LOCATOR64:
            self.file.seek(struct.unpack("<Q", tail[at - 12 : at - 4])[0])
            record = self.file.read(56)
            if record[:4] != END64:
                raise ValueError
            count, _, place = struct.unpack("<QQQ", record[32:56])
        return count, place

    def _entry(self, at: int) -> tuple[bytes, int, int, int, int, int]:
        """(name, flags, method, checksum, packed size, place of the content) of the directory entry at `at`."""
        self.file.seek(at)
        _, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, *_, place = ENTRY.unpack(self.file.read(ENTRY.size))
        name = self.file.read(name_length)
        extra = self.file.read(extra_length)
        if 0xFFFFFFFF in (packed, size, place):
            packed, size, place = _wide(extra, packed, size, place)
        return name, flags, method, crc, packed if size <= LARGEST else LARGEST + 1, place

    def _content(self, name: str, key: str, flags: int, method: int, crc: int, packed: int, place: int) -> bytes | InvalidRow:
        if flags & 1 or method not in (STORED, DEFLATED) or packed > LARGEST:
            return InvalidRow(key, f"zip member cannot be read: {name} is encrypted, packed by method {method} or larger than 256 MB")
        self.file.seek(place)
        header = self.file.read(LOCAL.size)
        if len(header) < LOCAL.size or header[:4] != b"PK\3\4":
            return InvalidRow(key, f"zip member damaged: {name}")
        self.file.seek(sum(LOCAL.unpack(header)[-2:]), 1)
        content = self.file.read(packed)
        if method == DEFLATED:
            try:
                content = zlib.decompressobj(-15).decompress(content, LARGEST)
            except zlib.error:
                return InvalidRow(key, f"zip member damaged: {name}")
        return content if zlib.crc32(content) == crc else InvalidRow(key, f"zip member damaged: {name}")


def _wide(extra: bytes, *narrow: int) -> list[int]:
    """Sizes and place where 32 bits do not hold them: the values that read 0xFFFFFFFF stand in extra field 1, in this order
    uncompressed, compressed, place (APPNOTE 4.5.3)."""
    packed, size, place = narrow
    while len(extra) >= 4:
        tag, length = struct.unpack("<HH", extra[:4])
        if tag == 1:
            values = iter(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
            size = next(values) if size == 0xFFFFFFFF else size
            packed = next(values) if packed == 0xFFFFFFFF else packed
            place = next(values) if place == 0xFFFFFFFF else place
        extra = extra[4 + length :]
    return [packed, size, place]
