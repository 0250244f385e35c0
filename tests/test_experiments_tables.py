"""A table in a README and the CSV beside it say the same, and neither can be edited alone."""

import re
import shutil

import pytest

from experiments.tables import FOLDER, TABLES, ablation, put, rendered
from src.errors import UserError

CSVS = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.csv")}


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_shows_the_stored_table(name):
    path, text = rendered(name)
    assert path.read_text() == text, "make experiments renders it anew"


@pytest.mark.parametrize("name", TABLES)
def test_an_edit_of_one_alone_is_noticed(name, tmp_path):
    source, file = FOLDER / name.partition("/")[0], TABLES[name][0]
    copy = tmp_path / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    readme, table = copy / "README.md", copy / file
    mark = f"<!-- {name.partition('/')[2]} -->\n"
    edited = readme.read_text().replace(mark, f"{mark}| a number that nobody measured |\n")
    readme.write_text(edited)
    assert rendered(name, tmp_path)[1] != edited

    shutil.copy(source / "README.md", readme)
    header, *lines = table.read_text().splitlines(keepends=True)
    digits = str.maketrans("123456789", "234567891")
    table.write_text(header + "".join(edit(line, digits) for line in lines))
    assert rendered(name, tmp_path)[1] != readme.read_text()


def edit(line: str, digits: dict) -> str:
    """Other decimals and large counts: numbers that nobody measured."""
    return re.sub(r"\.\d+|\d{3,}", lambda found: found[0].translate(digits), line)


def test_every_stored_result_is_shown():
    assert {f"{name.partition('/')[0]}/{file}" for name, (file, _) in TABLES.items()} == CSVS


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
