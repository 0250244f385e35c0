"""PubMedVision: conversations on one or several images, `PubMedVision_Alignment_VQA.json` with images in `images_*.zip`.

An item is `{id, image: [names], conversations: [{from: human, value}, {from: gpt, value}, ...], modality, body_part}`. The
authors unpack with `unzip -j`, so images are looked up by the last part of their name.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from data_prep.readers.json_stream import iter_items
from data_prep.readers.raw_files import all_images, clean_text
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.zip_members import ZipMembers
from data_prep.sources import Source
from src.data.record import Record, question_type
from src.runtime.errors import UserError


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        with ExitStack() as stack:
            archives = [stack.enter_context(ZipMembers(archive, flat=True)) for archive in sorted(raw.glob("images_*.zip"))]
            if not archives:
                raise UserError(f"source '{entry.name}': {raw / 'images_0.zip'} and the other archives are missing; download them again")
            for position, fields in iter_items(path):
                yield _make_record(split, entry, fields, f"{path.stem}-{position}", archives)


@row_errors_as_invalid
def _make_record(split: str, entry: Source, fields: dict, default_key: str, archives: list[ZipMembers]) -> Row:
    if not isinstance(fields, dict):
        return InvalidRow(default_key, "not a JSON object")
    key = clean_text(fields.get("id")) or default_key
    names = [Path(name).name for name in fields.get("image") or []]
    if not names:
        return InvalidRow(key, "image missing: the row names no image")
    images = all_images(_read_image(name, key, archives) for name in names)
    if isinstance(images, InvalidRow):
        return images
    texts = [clean_text(turn.get("value")) for turn in fields.get("conversations") or []]
    turns = list(zip(texts[::2], texts[1::2], strict=False))
    return Record(
        key=key,
        source=entry.name,
        split=split,
        images=images,
        turns=turns,
        type=question_type(*turns[0]) if turns else "other",
        group=names[0].rpartition("_")[0],  # pmc_<figure>_<part>.jpg
        meta={name: fields[name] for name in ("modality", "body_part") if fields.get(name)},
    )


def _read_image(name: str, key: str, archives: list[ZipMembers]) -> bytes | InvalidRow:
    for archive in archives:
        image = archive.read(name, key)
        if not isinstance(image, InvalidRow) or not image.reason.startswith("image missing"):
            return image
    return InvalidRow(key, f"image missing: {name} is in none of the {len(archives)} archives")
