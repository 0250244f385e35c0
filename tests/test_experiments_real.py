"""The count of what the readers make of raw files adds up."""

import json

from data_prep import sources
from experiments.real.real import COLUMNS, counted


def test_rows_are_records_or_have_a_reason(tmp_path):
    raw = tmp_path / "slake"
    (raw / "Slake1.0" / "imgs" / "xmlab1").mkdir(parents=True)
    (raw / "Slake1.0" / "imgs" / "xmlab1" / "source.jpg").write_bytes(b"a picture")
    row = {"img_id": 1, "img_name": "xmlab1/source.jpg", "question": "Which organ?", "answer": "Lung", "q_lang": "en"}
    row |= {
        "location": "Lung",
        "modality": "CT",
        "answer_type": "OPEN",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": [],
        "qid": 0,
    }
    rows = [row, row | {"qid": 1, "q_lang": "zh"}, row | {"qid": 2, "img_name": "xmlab2/source.jpg"}]
    (raw / "Slake1.0" / "train.json").write_text(json.dumps(rows))
    (line,) = counted(sources.find_source("slake", tmp_path), raw)
    said = dict(zip(COLUMNS, line, strict=True))
    assert (said["rows"], said["records"], said["left out by a rule"], said["refused"]) == (3, 1, 1, 1)
    assert said["why"] == "language 1; image missing 1"
