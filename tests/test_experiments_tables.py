"""experiments/tables: the README tables match their CSV files, and an edit of only one of them is detected."""

import re
import shutil

import pytest
from rich.table import Table

from experiments.tables import FOLDER, TABLES, ablation, insert_table, mini, read_rows, render_readme
from src import plan
from src.runtime.errors import UserError

CSVS = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.csv")}


each_table = pytest.mark.parametrize("table", TABLES, ids=[f"{table.readme} {table.name}" for table in TABLES])


@each_table
def test_readme_shows_stored_table(table):
    path, text = render_readme(table)
    assert path.read_text() == text, "run make experiments to render it"


@each_table
def test_edit_of_only_readme_or_csv_is_detected(table, tmp_path):
    folder = tmp_path / "experiments"
    readme, file = folder / table.readme, folder / table.file
    for path in (readme, file):
        path.parent.mkdir(parents=True, exist_ok=True)
    original = (FOLDER / table.readme).read_text()
    shutil.copy(FOLDER / table.file, file)
    mark = f"<!-- {table.name} -->\n"
    edited = original.replace(mark, f"{mark}| a number that nobody measured |\n")
    readme.write_text(edited)
    assert render_readme(table, folder)[1] != edited

    readme.write_text(original)
    header, *lines = file.read_text().splitlines(keepends=True)
    digits = str.maketrans("123456789", "234567891")
    file.write_text(header + "".join(change_numbers(line, digits) for line in lines))
    assert render_readme(table, folder)[1] != original


def change_numbers(line: str, digits: dict) -> str:
    """Changes the digits of decimals and of large counts."""
    return re.sub(r"\.\d+|\d{3,}", lambda match: match[0].translate(digits), line)


def test_every_csv_file_has_a_table():
    assert {table.file for table in TABLES} == CSVS


@pytest.mark.parametrize("file", sorted(CSVS - {"vqa/published.csv"}))
def test_every_stored_row_has_commit_and_data_fingerprint(file):
    for row in read_rows(FOLDER / file):
        assert re.fullmatch(r"[0-9a-f]{40}\+?", row["git"])
        assert re.fullmatch(r"[0-9a-f]{12}", row.get("data") or 12 * "0")
        assert row.get("data") or "seed" not in row or not row["seed"]  # a row of a training run has a fingerprint


def test_table_is_inserted_between_its_marks():
    assert insert_table("a <!-- x -->\nold\n<!-- /x --> b", "x", "new") == "a <!-- x -->\nnew\n<!-- /x --> b"


def test_missing_mark_is_reported():
    with pytest.raises(UserError, match=r"^README.md: table 'x' has no unique marks; write <!-- x --> and <!-- /x --> once each$"):
        insert_table("no marks here", "x", "text")


def test_ablation_has_one_line_per_trial():
    common = {"run": "a/1", "seed": "0", "mix.leave_out": "alpha", "git": "g", "data": "d", "low": "0.25", "high": "0.75", "n": "9"}
    keys = ["train/fill", "train/samples_per_second"]
    keys += [f"vqa/pooled/{condition}/all/bleu1" for condition in ("real", "shuffled", "blank", "real_minus_shuffled")]
    table = ablation([common | {"metric": key, "value": "0.5"} for key in keys])
    assert table.splitlines()[0] == "| mix.leave_out | real | shuffled | blank | real - shuffled |"
    assert table.splitlines()[2].startswith("| alpha | 0.500 [0.250, 0.750] |")


def test_mini_has_one_line_per_benchmark_with_the_score_of_its_questions():
    conditions = {"a": ("real", "shuffled", "majority", "real_minus_shuffled"), "b": ("none", "majority")}
    common = {"value": "0.5", "low": "0.25", "high": "0.75", "n": "1300"}
    rows = [common | {"metric": f"vqa/{name}/{one}/all/bleu1"} for name, kinds in conditions.items() for one in kinds]
    rows += [row | {"metric": row["metric"].replace("bleu1", "accuracy"), "value": "0.3"} for row in rows[4:]]
    assert [line.split(" | ")[:7] for line in mini(rows).splitlines()[2:]] == [
        ["| a", "1,300", "bleu1", "0.500 [0.250, 0.750]", "0.500", "", ""],
        ["| b", "1,300", "accuracy", "", "", "", "0.300"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "readmes"), [("recommended", ("ablations", "breadth")), ("full_mix", ("transfer",))])
def test_readmes_state_the_hours_of_plan(monkeypatch, capsys, experiment, readmes):
    monkeypatch.setattr("sys.argv", ["src/plan.py", f"+experiment={experiment}"])
    monkeypatch.setattr("src.commands.plan.scale_table", lambda *args, **options: Table())  # takes seconds
    plan.main()
    samples, hours, tflops = re.search(
        r"([\d,]+) samples take ([\d.]+) h on 1 x H200 at (\d+)", " ".join(capsys.readouterr().out.split())
    ).groups()
    for name in readmes:
        text = " ".join((FOLDER / name / "README.md").read_text().split())
        assert f"`python -m src.plan +experiment={experiment}` estimates {hours} h" in text, name
        assert f"{tflops} TFLOP/s" in text
    assert f"| `python -m src.train +experiment={experiment}` | {hours} |" in (FOLDER / "vqa" / "README.md").read_text()
    costs = [line for line in (FOLDER / "paper" / "README.md").read_text().splitlines() if line.startswith(f"| `{experiment}`, ")]
    assert any(f"1 x H100 at {tflops} TFLOP/s | {samples} | {hours} |" in line for line in costs)
