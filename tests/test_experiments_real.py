"""experiments/real: the counts of accepted, filtered and refused rows."""

import json

from data_prep import sources
from experiments.real.real import COLUMNS, count_source


def test_every_row_is_a_record_or_has_a_reason(tmp_path):
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
    (line,) = count_source(sources.find_source("slake", tmp_path), raw)
    counts = dict(zip(COLUMNS, line, strict=True))
    assert (counts["rows"], counts["records"], counts["left out by a rule"], counts["refused"]) == (3, 1, 1, 1)
    assert counts["why"] == "language 1; image missing 1"
