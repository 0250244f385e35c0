"""The table of scorers: what it reads, and what it says."""

import pytest

from experiments.tables import rows_of
from experiments.vqa.scorers import FOLDER, facts, plain, read, table
from src.errors import UserError

LINES = "s1|modality|was contrast given?|no\ns2|organ|what?|lung#heart, great vessels\ns3|plane|which?|axial (oblique)\n"


def test_a_perfect_answerer_and_one_word(tmp_path):
    path = tmp_path / "references.txt"
    path.write_text(LINES)
    references = read(path)
    assert references == [["no"], ["lung", "heart, great vessels"], ["axial (oblique)"]]
    rows = {row["scorer"]: row for row in table(references)}
    assert rows["bleu1"] == {"scorer": "bleu1", "oracle": "100.0", "mri": "0.0", "yes": "0.0", "no": "33.3"}
    assert rows["bleu4_imageclef_new_nltk"]["oracle"] == "33.3"  # only 'no', of which nothing is left
    assert rows["bleu4_imageclef_old_nltk"]["oracle"] == "100.0"
    assert rows["closed_llava_med_bug"]["yes"] == ""
    assert facts(references).startswith("3 references: 1 closed, 1 with alternatives, 1 with brackets; ")
    assert "1 are empty and 0 have four words" in facts(references)
    assert "gives the oracle 100.0 under nltk up to 3.2.5 and 0.0 later" in facts(references)
    assert plain([["a b c d"], ["a"]], old_nltk=False) == pytest.approx(1 / 2)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("s1|was contrast given?\n")
    with pytest.raises(UserError, match=r"has 0 lines of image\|category\|question\|answer among 1"):
        read(path)


def test_every_published_number_says_where_it_was_read():
    for row in rows_of(FOLDER / "published.csv"):
        assert None not in row
        assert None not in row.values()
        assert 0 < float(row["value"]) < 100
        assert row["read"] in ("yes", "second hand", "unsourced")
        assert bool(row["source"]) == (row["read"] != "unsourced")
