"""Seeded damage to raw data: to the bytes, encodings and rows of tables, to images and archives, and to the names of files."""

import csv
import gzip
import io
import json
import random
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.soak.images import hostile, picture
from src.data.record import PHANTOM_MARKER

TABLES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
TEXTS = (".json", ".jsonl", ".csv", ".tsv", ".txt")
IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".bmp")
VALUES = (
    *(None, "", " ", 0, -1, 3.5, 10**30, True, [], {}, [None], ["a"], [["a"]], {"bytes": None}, {"a": {"b": 1}}, float("nan")),
    *("x" * 300, "\ud800", "\0", "../../a.jpg", "/etc/hostname", "\u00c9", "line\nbreak", '"', "a|b|c|d|e", "data:image/png;base64,AAAA"),
)
Mutation = Callable[[bytes, random.Random], bytes]


def mutate(folder: Path, rng: random.Random) -> list[tuple[str, Path]]:
    """Damages one to three files below `folder`. Returns (mutation, file) of each."""
    applied = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != PHANTOM_MARKER)
        tables = [path for path in files if _suffix(path.name) in (*TABLES, ".zip", ".npz")]
        if not files:
            break
        path = rng.choice(tables if tables and rng.random() < 0.6 else files)
        if rng.random() < 0.2:
            name = _mutate_file(path, files, rng)
        else:
            data, name = mutate_bytes(path.name, path.read_bytes(), rng)
            path.write_bytes(data)
        applied.append((name, path.relative_to(folder)))
    return applied


def _suffix(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix.lower()


def _mutate_file(path: Path, files: list[Path], rng: random.Random) -> str:
    """Removes, renames or replaces a whole file."""
    name = rng.choice(("deleted", "renamed", "upper case", "folder", "dangling link", "link to itself", "replaced by another", "copied"))
    similar = rng.choice([other for other in files if other.suffix == path.suffix])
    if name == "replaced by another":
        path.write_bytes(similar.read_bytes())
    elif name == "copied":
        shutil.copyfile(path, path.with_name(f"copy_{path.name}"))
    elif name == "renamed":
        path.rename(path.with_name(f"renamed_{path.name}"))
    elif name == "upper case":
        path.rename(path.with_name(path.name.upper()))
    else:
        path.unlink()
        if name == "folder":
            path.mkdir()
        elif name.endswith(("link", "itself")):
            path.symlink_to("nowhere" if name == "dangling link" else path.name)
    return name


def mutate_bytes(name: str, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """(damaged content, mutation) of a file with this name."""
    suffix = _suffix(name)
    if name.endswith(".gz") and rng.random() < 0.7:
        changed, mutation = mutate_bytes(name.removesuffix(".gz"), gzip.decompress(data), rng)
        return gzip.compress(changed, mtime=0), mutation
    groups: list[dict[str, Mutation]] = [BYTES]
    if suffix in TEXTS:
        groups.append(ENCODINGS)
    if suffix in TABLES:
        groups += [{name: lambda data, rng, change=change: _mutate_rows(suffix, data, rng, change) for name, change in ROWS.items()}] * 2
    if suffix in IMAGES:
        groups.append({"other image": lambda data, rng: rng.choice(_images())})
    if suffix in (".zip", ".npz"):
        groups.append({"zip member": _mutate_zip})
    chosen = rng.choice(groups)
    mutation = rng.choice(list(chosen))
    try:
        return chosen[mutation](data, rng), mutation
    except (AttributeError, ValueError, TypeError, LookupError, RecursionError, pa.ArrowException, OSError, zipfile.BadZipFile, zlib.error):
        return _flip_bits(data, rng), "bits flipped"  # an earlier mutation left no rows, or the format cannot hold the new value


def _flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 30)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(data) + 1), rng.choice((1, 16, 500))
    return data[:at] + rng.choice((bytes(size), rng.randbytes(size))) + data[at + size :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((rng.randbytes(9), b"\n", b'"', b"{", b",", b"\0", b"[" * 100_000)) + data[at:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in "ab")
    return data[:end] + data[start:]


BYTES: dict[str, Mutation] = {
    "bits flipped": _flip_bits,
    "truncated": lambda data, rng: data[: rng.randrange(len(data) + 1)],
    "beginning lost": lambda data, rng: data[rng.randrange(len(data) + 1) :],
    "emptied": lambda data, rng: b"",
    "overwritten": _overwrite,
    "inserted": _insert,
    "repeated part": _repeat,
    "appended": lambda data, rng: data + rng.choice((b"\n", b"[]", b"{}\n", rng.randbytes(40))),
    "twice": lambda data, rng: data + data,
}
ENCODINGS: dict[str, Mutation] = {
    "utf-16": lambda data, rng: data.decode().encode("utf-16"),
    "utf-32": lambda data, rng: data.decode().encode("utf-32"),
    "byte order mark": lambda data, rng: b"\xef\xbb\xbf" + data,
    "latin-1 letters": lambda data, rng: data.replace(rng.choice((b"e", b"a", b"the")), b"\xe9"),
    "one latin-1 letter": lambda data, rng: data.replace(b"e", b"\xe9", rng.randrange(1, 30)),
    "carriage returns": lambda data, rng: data.replace(b"\n", rng.choice((b"\r\n", b"\r"))),
    "unicode line separators": lambda data, rng: data.replace(b" ", "\u2028".encode()),
    "other delimiter": lambda data, rng: data.replace(rng.choice((b",", b"|")), rng.choice((b";", b"\t"))),
    "single quotes": lambda data, rng: data.replace(b'"', b"'"),
}


def _images() -> list[bytes]:
    """Intact images of many formats and modes, and files that are no usable image."""
    modes = [("PNG", "1"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "LA"), ("PNG", "RGBA"), ("JPEG", "CMYK"), ("JPEG", "L"), ("TIFF", "F")]
    modes += [("BMP", "RGB"), ("WEBP", "RGB"), ("GIF", "P"), ("PPM", "RGB"), ("ICO", "RGBA"), ("TIFF", "YCbCr")]
    with tempfile.TemporaryDirectory() as folder:
        return [*(picture(kind, mode=mode) for kind, mode in modes), *(data for data, _ in hostile(Path(folder)).values())]


def _mutate_zip(data: bytes, rng: random.Random) -> bytes:
    """Damages, removes, doubles or renames one member; prefers tables."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    tables = [n for n, (name, _) in enumerate(members) if _suffix(name) in TABLES]
    at = rng.choice(tables) if tables and rng.random() < 0.6 else rng.randrange(len(members))
    name, content = members[at]
    action = rng.choice(("content", "content", "content", "removed", "twice", "renamed"))
    if action == "content":
        members[at] = (name, mutate_bytes(name, content, rng)[0])
    elif action == "removed":
        del members[at]
    else:
        members[at] = (name if action == "twice" else rng.choice(("../", "x/", "\u00c9")) + name, content)
        members += [members[at]] if action == "twice" else []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _mutate_rows(suffix: str, data: bytes, rng: random.Random, change: Callable[[list, random.Random], None]) -> bytes:
    """Parses a table, changes its rows and writes it again."""
    if suffix in (".parquet", ".arrow"):
        buffer, file = io.BytesIO(), io.BytesIO(data)
        table = pq.read_table(file) if suffix == ".parquet" else pa.ipc.open_stream(file).read_all()
        change(rows := table.to_pylist(), rng)
        changed = pa.Table.from_pylist(rows)
        if suffix == ".parquet":
            pq.write_table(changed, buffer)
        else:
            with pa.ipc.new_stream(buffer, changed.schema) as writer:
                writer.write_table(changed)
        return buffer.getvalue()
    text = data.decode("utf-8-sig")
    if suffix == ".json":
        content = json.loads(text)
        rows = content if isinstance(content, list) else list(content.values())
        change(rows, rng)
        return json.dumps(rows if isinstance(content, list) else dict(zip(content, rows, strict=False))).encode()
    if suffix == ".jsonl":
        change(rows := [json.loads(line) for line in text.splitlines()], rng)
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    delimiter = "|" if suffix == ".txt" else "\t" if suffix == ".tsv" else ","
    table = list(csv.reader(io.StringIO(text), delimiter=delimiter, quoting=csv.QUOTE_NONE if suffix == ".txt" else csv.QUOTE_MINIMAL))
    names = [str(n) for n in range(len(table[0]))] if suffix == ".txt" else table[0]
    change(rows := [dict(zip(names, row, strict=False)) for row in (table if suffix == ".txt" else table[1:])], rng)
    cells = [list(row.values()) if isinstance(row, dict) else [row] for row in rows]
    output = io.StringIO("".join("|".join(map(str, row)) + "\n" for row in cells) if suffix == ".txt" else "", newline="")
    if suffix != ".txt":
        csv.writer(output, delimiter=delimiter).writerows([list(rows[0]), *cells])
    return output.getvalue().encode(errors="surrogatepass")


def _some(rows: list, rng: random.Random) -> list[dict]:
    """One row, a third of the rows or all of them; sometimes the objects inside them."""
    chosen = rng.choice(([rng.choice(rows)], rows[:: rng.randrange(2, 4)], rows))
    inner = [value for row in chosen for value in row.values() if isinstance(value, dict) and value]
    return inner if inner and rng.random() < 0.3 else chosen


def _change_key(action: str) -> Callable[[list, random.Random], None]:
    def change(rows: list, rng: random.Random) -> None:
        chosen = _some(rows, rng)
        key, other, value = rng.choice(list(chosen[0])), rng.choice(list(chosen[0])), rng.choice(VALUES)
        for row in chosen:
            if action == "set" and key in row:
                row[key] = value
            elif action == "exchange" and key in row and other in row:
                row[key], row[other] = row[other], row[key]
            elif key in row:
                old = row.pop(key)
                row |= {f"{key}_2": old} if action == "rename" else {}

    return change


def _shuffle_keys(rows: list, rng: random.Random) -> None:
    """Exchanges the names of the columns."""
    names = list(rows[0])
    shuffled = rng.sample(names, len(names))
    rows[:] = [dict(zip(shuffled, row.values(), strict=False)) for row in rows]


def _replace_row(rows: list, rng: random.Random) -> None:
    rows[rng.randrange(len(rows))] = rng.choice(VALUES)


ROWS: dict[str, Callable[[list, random.Random], None]] = {
    "key deleted": _change_key("delete"),
    "key renamed": _change_key("rename"),
    "value replaced": _change_key("set"),
    "values exchanged": _change_key("exchange"),
    "columns shuffled": _shuffle_keys,
    "row doubled": lambda rows, rng: rows.insert(rng.randrange(len(rows)), dict(rng.choice(rows))),
    "row deleted": lambda rows, rng: rows.remove(rng.choice(rows)),
    "rows shuffled": lambda rows, rng: rng.shuffle(rows),
    "row replaced": _replace_row,
}
