"""PubMedQA: yes/no/maybe questions on an abstract, as one JSON object `{pmid: {QUESTION, CONTEXTS, final_decision, ...}}`.

`ori_pqal.json` (expert labels) is split by the official test ids. PQA-A (211k artificial labels) is part of the training
split if it exists, as `ori_pqaa.json` or as parquet files of the hub (`pubid, question, context {contexts},
final_decision`). The question text is the abstract, a line break and the question.
"""

from collections.abc import Iterator
from pathlib import Path

from data_prep.readers.json_stream import iter_items
from data_prep.readers.rows import InvalidRow, Row, row_errors_as_invalid
from data_prep.readers.tables import table_rows
from data_prep.sources import Source
from src.data.record import Record
from src.runtime.errors import UserError

TEST_IDS = "data/test_ground_truth.json"


def read(raw: Path, split: str, entry: Source) -> Iterator[Row]:
    tables = entry.tables(raw, split)
    if not tables:
        return
    test_ids = set(_test_ids(raw, entry))
    for path in tables:
        for pmid, fields in _parquet_items(path, entry) if path.suffix == ".parquet" else iter_items(path):
            if (pmid in test_ids) == (split == "test"):
                yield fields if isinstance(fields, InvalidRow) else _make_record(split, entry, pmid, fields)


def _parquet_items(path: Path, entry: Source) -> Iterator[tuple[str, dict | InvalidRow]]:
    """Yields (id, fields) with the field names of the original JSON files."""
    for row in table_rows(path, entry, required=["pubid", "question", "context", "final_decision"]):
        if isinstance(row, InvalidRow):
            yield row.key, row
        else:
            context = row["context"]
            fields = {
                "QUESTION": row["question"],
                "CONTEXTS": context.get("contexts") if isinstance(context, dict) else None,
                "final_decision": row["final_decision"],
            }
            yield str(row["pubid"]), fields


def _test_ids(raw: Path, entry: Source) -> dict[str, str]:
    if not (raw / TEST_IDS).exists():
        raise UserError(f"source '{entry.name}': {raw / TEST_IDS} is missing, which names the test questions; download it again")
    return dict(iter_items(raw / TEST_IDS))


@row_errors_as_invalid
def _make_record(split: str, entry: Source, pmid: str, fields: dict) -> Row:
    if not isinstance(fields, dict) or not isinstance(fields.get("CONTEXTS"), list):
        return InvalidRow(pmid, "no CONTEXTS")
    context, question = " ".join(fields["CONTEXTS"]).strip(), str(fields.get("QUESTION") or "").strip()
    return Record(
        key=pmid,
        source=entry.name,
        split=split,
        turns=[(f"{context}\n{question}" if question else "", str(fields.get("final_decision") or "").strip())],
        type="text",
        group=pmid,
    )
