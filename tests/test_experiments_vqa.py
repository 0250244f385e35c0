"""experiments/vqa: the table of scorers, the published numbers, and the stored scores of the mini run."""

import csv

import pytest

from experiments.tables import read_rows
from experiments.vqa import mini
from experiments.vqa.scorers import FOLDER, facts, oracle_bleu4, read, table
from src.runtime.errors import UserError

LINES = "s1|modality|was contrast given?|no\ns2|organ|what?|lung#heart, great vessels\ns3|plane|which?|axial (oblique)\n"


def test_scorers_of_perfect_and_constant_answers(tmp_path):
    path = tmp_path / "references.txt"
    path.write_text(LINES)
    references = read(path)
    assert references == [["no"], ["lung", "heart, great vessels"], ["axial (oblique)"]]
    rows = {row["scorer"]: row for row in table(references)}
    assert rows["bleu1"] == {"scorer": "bleu1", "oracle": "100.0", "mri": "0.0", "yes": "0.0", "no": "33.3"}
    assert rows["bleu4_imageclef_new_nltk"]["oracle"] == "33.3"  # only 'no', which pre-processing makes empty
    assert rows["bleu4_imageclef_old_nltk"]["oracle"] == "100.0"
    assert rows["closed_llava_med_bug"]["yes"] == ""
    assert facts(references).startswith("3 references: 1 closed, 1 with alternatives, 1 with brackets; ")
    assert "1 are empty and 0 have four words" in facts(references)
    assert "gives the oracle 100.0 under nltk up to 3.2.5 and 0.0 later" in facts(references)
    assert oracle_bleu4([["a b c d"], ["a"]], old_nltk=False) == pytest.approx(1 / 2)


def test_file_of_other_format_is_refused(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text("s1|was contrast given?\n")
    with pytest.raises(UserError, match=r"0 of 1 lines have the form image\|category\|question\|answer"):
        read(path)


def test_every_published_number_has_source_or_is_unsourced():
    for row in read_rows(FOLDER / "published.csv"):
        assert None not in row
        assert None not in row.values()
        assert 0 < float(row["value"]) < 100
        assert row["read"] in ("yes", "second hand", "unsourced")
        assert bool(row["source"]) == (row["read"] != "unsourced")


def test_mini_stores_the_rows_of_the_readme_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mini, "REPORT", tmp_path / "report.csv")
    monkeypatch.setattr(mini, "TABLE", tmp_path / "mini.csv")
    with pytest.raises(SystemExit):
        mini.main([])
    assert capsys.readouterr().err == f"error: {tmp_path}/report.csv does not exist; run make mini first\n"
    scores = ["real/all/bleu1", "real/open/bleu1", "real/all/exact", "real/type=organ/bleu1", "real_minus_blank/all/bleu1"]
    rows = [{"run": "mini", "git": "g", "data": "d", "metric": f"vqa/alpha/{key}", "value": "0.5"} for key in scores]
    with mini.REPORT.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, rows[0] | {"metric": "train/fill"}])
    mini.main([])
    assert read_rows(mini.TABLE) == [rows[0], rows[4]]
