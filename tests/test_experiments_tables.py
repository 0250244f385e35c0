"""A table in a README and the CSV beside it say the same, and neither can be edited alone."""

import re
import shutil

import pytest

from experiments.tables import FOLDER, TABLES, ablation, mini, put, rendered, rows_of
from src import plan
from src.runtime.errors import UserError

CSVS = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.csv")}


each_table = pytest.mark.parametrize("table", TABLES, ids=[f"{table.readme} {table.name}" for table in TABLES])


@each_table
def test_the_readme_shows_the_stored_table(table):
    path, text = rendered(table)
    assert path.read_text() == text, "make experiments renders it anew"


@each_table
def test_an_edit_of_one_alone_is_noticed(table, tmp_path):
    folder = tmp_path / "experiments"
    readme, file = folder / table.readme, folder / table.file
    for path in (readme, file):
        path.parent.mkdir(parents=True, exist_ok=True)
    original = (FOLDER / table.readme).read_text()
    shutil.copy(FOLDER / table.file, file)
    mark = f"<!-- {table.name} -->\n"
    edited = original.replace(mark, f"{mark}| a number that nobody measured |\n")
    readme.write_text(edited)
    assert rendered(table, folder)[1] != edited

    readme.write_text(original)
    header, *lines = file.read_text().splitlines(keepends=True)
    digits = str.maketrans("123456789", "234567891")
    file.write_text(header + "".join(edit(line, digits) for line in lines))
    assert rendered(table, folder)[1] != original


def edit(line: str, digits: dict) -> str:
    """Other decimals and large counts: numbers that nobody measured."""
    return re.sub(r"\.\d+|\d{3,}", lambda found: found[0].translate(digits), line)


def test_every_stored_result_is_shown():
    assert {table.file for table in TABLES} == CSVS


@pytest.mark.parametrize("file", sorted(CSVS - {"vqa/published.csv"}))
def test_every_stored_result_says_of_which_commit_and_data_it_is(file):
    for row in rows_of(FOLDER / file):
        assert re.fullmatch(r"[0-9a-f]{40}\+?", row["git"])
        assert re.fullmatch(r"[0-9a-f]{12}", row.get("data") or 12 * "0")
        assert row.get("data") or "seed" not in row or not row["seed"]  # what was trained with a seed was trained on data


def test_a_table_is_put_between_its_marks():
    assert put("a <!-- x -->\nold\n<!-- /x --> b", "x", "new") == "a <!-- x -->\nnew\n<!-- /x --> b"


def test_a_missing_mark_is_told():
    with pytest.raises(UserError, match=r"^the README must have <!-- x --> and <!-- /x --> once each$"):
        put("no marks here", "x", "text")


def test_an_ablation_is_one_line_per_trial():
    about = {"run": "a/1", "seed": "0", "mix.leave_out": "alpha", "git": "g", "data": "d", "low": "0.25", "high": "0.75", "n": "9"}
    keys = ["train/fill", "train/samples_per_second"]
    keys += [f"vqa/pooled/{condition}/all/bleu1" for condition in ("real", "shuffled", "blank", "real_minus_shuffled")]
    table = ablation([about | {"metric": key, "value": "0.5"} for key in keys])
    assert table.splitlines()[0] == "| mix.leave_out | real | shuffled | blank | real - shuffled |"
    assert table.splitlines()[2].startswith("| alpha | 0.500 [0.250, 0.750] |")


def test_the_mini_run_is_one_line_per_benchmark_with_the_score_that_its_questions_have():
    found = {"a": ("real", "shuffled", "majority", "real_minus_shuffled"), "b": ("none", "majority")}
    about = {"value": "0.5", "low": "0.25", "high": "0.75", "n": "1300"}
    rows = [about | {"metric": f"vqa/{name}/{one}/all/bleu1"} for name, kinds in found.items() for one in kinds]
    rows += [row | {"metric": row["metric"].replace("bleu1", "accuracy"), "value": "0.3"} for row in rows[4:]]
    assert [line.split(" | ")[:7] for line in mini(rows).splitlines()[2:]] == [
        ["| a", "1,300", "bleu1", "0.500 [0.250, 0.750]", "0.500", "", ""],
        ["| b", "1,300", "accuracy", "", "", "", "0.300"],
    ]


@pytest.mark.slow
def test_what_the_full_mix_is_said_to_cost_is_what_the_plan_says(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["src/plan.py", "+experiment=full_mix"])
    plan.main()
    hours = re.search(r"take ([\d.]+ h) on 1 x H200 at (\d+)", " ".join(capsys.readouterr().out.split()))
    for name in ("ablations", "breadth", "transfer"):
        text = " ".join((FOLDER / name / "README.md").read_text().split())
        assert f"`python -m src.plan +experiment=full_mix` estimates {hours[1]}" in text, name
        assert f"{hours[2]} TFLOP/s" in text
