"""The contract between data preparation and training: what one sample is, and how it stands in a tar."""

import re
from dataclasses import dataclass, field

import msgspec

SPLITS = ("train", "val", "test")

# One vocabulary of question types over all datasets, so that scores can be pooled by type. A dataset's own
# category maps to it in its reader; where a dataset states none, `question_type` reads it off the question.
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

    `images` holds encoded bytes, as they came (JPEG, PNG, ...); it is empty for text-only records. Either `turns`
    or `caption` is filled. `references` are all accepted answers of the last turn where a dataset gives several.
    `group` names the patient, slide, figure or image that belongs to one side of a split and is one cluster in
    the statistics.
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


def question_type(question: str, answer: str = "") -> str:
    """The type of a question whose dataset does not state it, read off its wording."""
    q = question.lower()
    for pattern, name in _WORDING:
        if re.search(pattern, q):
            return name
    return "presence" if answer.strip().lower() in ("yes", "no") else "other"


_WORDING = [
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
    """The `key.json` member: every field but the images; empty fields are left out, keys are sorted."""
    return encode_json({name: value for name, value in vars(record).items() if value and name != "images"})


def from_members(members: dict[str, bytes]) -> Record:
    """`{"json": ..., "jpg": ..., "1.jpg": ...}` back to a Record; the inverse of what `tar_bytes` wrote."""
    record = from_json(members["json"])
    names = sorted((name for name in members if name.endswith("jpg")), key=lambda name: int(name.partition(".")[0]) if "." in name else 0)
    record.images = [members[name] for name in names]
    return record


encode_json = msgspec.json.Encoder(order="sorted").encode
from_json = msgspec.json.Decoder(Record).decode  # without images; a third of the time of json.loads and Record(**fields)


def tar_bytes(record: Record) -> bytes:
    """The record as consecutive tar members: `tar_parts` in one piece."""
    return b"".join(tar_parts(record))


def tar_parts(record: Record) -> list[bytes]:
    """Header, content and padding of each tar member in turn, json first, so that text can be read without the images.

    Deterministic: USTAR, mtime 0, uid 0, mode 0644. `record.images` must be JPEG already and `record.key` free of
    dots and slashes (webdataset groups members by the name up to the first dot).
    """
    parts = _member(f"{record.key}.json", to_json(record))
    for n, image in enumerate(record.images):
        parts += _member(f"{record.key}.{n}.jpg" if n else f"{record.key}.jpg", image)
    return parts


def _member(name: str, data: bytes) -> list[bytes]:
    return [_header(name, len(data)), data, bytes(-len(data) % 512)]


def _header(name: str, size: int) -> bytes:
    """What `tarfile.TarInfo.tobuf(USTAR_FORMAT)` gives, a test holds it to that, at a tenth of its time."""
    encoded = name.encode("ascii")
    assert len(encoded) <= 100, name
    octal = b"%011o" % size
    checksum = sum(encoded) + sum(octal) + _FIXED_SUM
    return b"%b%b%b%b%06o\0 %b" % (encoded.ljust(100, b"\0"), _OWNER, octal, _TIME, checksum, _REST)


_OWNER, _TIME = b"0000644\0" + b"0000000\0" * 2, b"\x0000000000000\0"
_REST = (b"0" + bytes(100) + b"ustar\x0000").ljust(356, b"\0")  # a regular file of nobody
_FIXED_SUM = sum(_OWNER + _TIME + _REST) + 8 * ord(" ")  # the checksum counts its own field as blanks


def tar_members(data: memoryview | bytes) -> dict[str, bytes]:
    """The members of one sample, by extension, from its span of the tar; the inverse of `tar_bytes`."""
    members, at = {}, 0
    while at + 512 <= len(data):
        header = bytes(data[at : at + 512])
        name = header[:100].rstrip(b"\0").decode()
        size = int(header[124:135], 8)
        members[name.partition(".")[2]] = bytes(data[at + 512 : at + 512 + size])
        at += 512 + size + (-size % 512)
    return members
