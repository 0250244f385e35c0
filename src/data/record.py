"""The contract between data preparation and training: the fields of a sample, and its format in a tar file."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

SPLITS = ("train", "val", "test")
PHANTOM_MARKER = ".phantom.json"  # in a raw folder that `data_prep.phantom` has written

# One vocabulary of question types for all datasets, so that scores can be pooled by type. Readers map the categories of a dataset to it;
# for a dataset without categories, `question_type` derives the type from the question.
QUESTION_TYPES = (
    "modality",
    "plane",
    "organ",
    "specimen",
    "finding",
    "presence",
    "count",
    "side",
    "size",
    "location",
    "choice",
    "text",
    "caption",
    "other",
)


@dataclass
class Record:
    """One sample of one dataset.

    `images` holds the encoded bytes of the dataset (JPEG, PNG, ...); it is empty for text-only records. Either `turns` or `caption`
    is filled. `references` are all accepted answers of the last turn, if a dataset gives several. `group` names the patient, slide,
    figure or image: a group belongs to one split and is one cluster in the statistics.
    """

    key: str  # stable, unique in its source
    source: str
    split: str
    images: list[bytes] = field(default_factory=list)
    turns: list[tuple[str, str]] = field(default_factory=list)
    caption: str = ""
    choices: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    type: str = "other"
    group: str = ""
    licence: str = ""
    meta: dict = field(default_factory=dict)

    @property
    def question(self) -> str:
        return self.turns[-1][0] if self.turns else ""

    @property
    def answer(self) -> str:
        return self.turns[-1][1] if self.turns else self.caption

    @property
    def system(self) -> str:
        """The system text of a conversation; empty if it has none."""
        return str(self.meta.get("system") or "")


def question_type(question: str, answer: str = "") -> str:
    """The type of a question, from its wording (and for yes or no, from its answer)."""
    lowered = question.lower()
    for pattern, name in _PATTERNS:
        if re.search(pattern, lowered):
            return name
    return "presence" if answer.strip().lower() in ("yes", "no") else "other"


_PATTERNS = [
    (r"^(is|are|was|were|does|do|did|has|have|can|could)\b(?!.*\bor\b)", "presence"),
    (r"\bhow many\b|\bnumber of\b|\bcount\b", "count"),
    (r"\b(which|what) side\b|\bleft or right\b|\bright or left\b", "side"),
    (r"\bmodality\b|\bimaging technique\b|\btype of (image|imaging|scan)\b|\bhow was (this|the) image taken\b", "modality"),
    (r"\bplane\b|\bprojection\b|\bview of\b", "plane"),
    (r"\borgan\b|\bbody part\b|\bpart of the body\b", "organ"),
    (r"\bspecimen\b|\bstain\b|\btissue type\b", "specimen"),
    (r"\bhow (large|big)\b|\bsize\b|\blarger\b", "size"),
    (r"\bwhere\b|\blocat", "location"),
    (r"\babnormal|\bfinding\b|\bwrong\b|\blesion is\b|\bdiagnosis\b|\bwhat (is|does) .*\b(seen|shown|present|show)\b", "finding"),
]


def to_json(record: Record) -> bytes:
    """The `key.json` member: every field except images, sorted by key, without empty fields."""
    return encode_json({name: value for name, value in vars(record).items() if value and name != "images"})


def from_members(members: dict[str, bytes]) -> Record:
    """The record of `{"json": ..., "jpg": ..., "1.jpg": ...}`, the members that `tar_bytes` wrote."""
    record = from_json(members["json"])
    names = sorted((name for name in members if name.endswith("jpg")), key=lambda name: int(name.partition(".")[0]) if "." in name else 0)
    record.images = [members[name] for name in names]
    return record


encode_json = msgspec.json.Encoder(order="sorted").encode
from_json = msgspec.json.Decoder(Record).decode  # without images; takes a third of the time of json.loads and Record(**fields)


def tar_bytes(record: Record) -> bytes:
    """The record as consecutive tar members: the joined `tar_parts`."""
    return b"".join(tar_parts(record))


def tar_parts(record: Record) -> list[bytes]:
    """Header, content and padding of each tar member, the json member first, so that text can be read without the images.

    The bytes are deterministic: USTAR, mtime 0, uid 0, mode 0644. `record.images` must be JPEG, and `record.key` must not contain dots
    or slashes (webdataset groups members by the name up to the first dot).
    """
    parts = _member(f"{record.key}.json", to_json(record))
    for n, image in enumerate(record.images):
        parts += _member(f"{record.key}.{n}.jpg" if n else f"{record.key}.jpg", image)
    return parts


def _member(name: str, data: bytes) -> list[bytes]:
    return [_header(name, len(data)), data, bytes(-len(data) % 512)]


def _header(name: str, size: int) -> bytes:
    """The bytes of `tarfile.TarInfo.tobuf(USTAR_FORMAT)` (a test compares them) in a tenth of its time."""
    encoded = name.encode("ascii")
    assert len(encoded) <= 100, name
    octal = b"%011o" % size
    checksum = sum(encoded) + sum(octal) + _FIXED_SUM
    return b"%b%b%b%b%06o\0 %b" % (encoded.ljust(100, b"\0"), _OWNER, octal, _TIME, checksum, _REST)


_OWNER, _TIME = b"0000644\0" + b"0000000\0" * 2, b"\x0000000000000\0"
_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")  # a regular file without owner
_FIXED_SUM = sum(_OWNER + _TIME + _REST) + 8 * ord(" ")  # the checksum counts its own field as blanks


def tar_members(data: memoryview | bytes) -> dict[str, bytes]:
    """The members of one sample by extension, from its bytes in the tar; the inverse of `tar_bytes`."""
    members, at = {}, 0
    while at + 512 <= len(data):
        header = bytes(data[at : at + 512])
        name = header[:100].rstrip(b"\0").decode()
        size = int(header[124:135], 8)
        members[name.partition(".")[2]] = bytes(data[at + 512 : at + 512 + size])
        at += 512 + size + (-size % 512)
    return members


def phantom_notice(names: Iterable[str]) -> str:
    """A sentence that names the synthetic datasets; empty without names."""
    joined = ", ".join(names)
    return joined and f"Phantoms (synthetic records in the file layout of the named dataset, without any of its data): {joined}."
