"""MedICaT: figures of articles with their captions, unpacked from `medicat_release.tar.gz` into `release/`.

`release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl` has one figure per line; its image is
`release/figures/<pdf_hash>_<fig_uri>`. The licence is that of the article.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.raw_files import clean_text, image_file, json_lines
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.sources import Source
from src.data.record import Record


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    for path in entry.tables(raw, split):
        for _, fields in json_lines(path):
            yield fields if isinstance(fields, InvalidRow) else _make_record(path.parent, split, entry, fields)


@row_errors_as_invalid
def _make_record(folder: Path, split: str, entry: Source, fields: dict) -> Row:
    paper, name = clean_text(fields.get("pdf_hash")), f"{fields.get('pdf_hash')}_{fields.get('fig_uri')}"
    image = image_file(folder, f"figures/{name}", Path(name).stem)
    if isinstance(image, InvalidRow):
        return image
    return Record(
        key=Path(name).stem,
        source=entry.name,
        split=split,
        images=[image],
        caption=clean_text(fields.get("s2_caption")) or clean_text(fields.get("s2orc_caption")),
        type="caption",
        group=paper,
        licence=_licence(fields),
        meta={"radiology": True} if fields.get("radiology") else {},
    )


def _licence(fields: dict) -> str:
    """`oa_info.oa.license`; empty if the article states none."""
    open_access = (fields.get("oa_info") or {}).get("oa") or {}
    return clean_text(open_access.get("license"))
