"""experiments/paper/README.md: its tables state what the configuration holds."""

import re

import pytest
import yaml

from src.runtime.cli import compose
from src.runtime.paths import REPOSITORY

README = (REPOSITORY / "experiments" / "paper" / "README.md").read_text()
COMMANDS = {
    "Architecture": ("train", ["+experiment=full_mix"]),
    "Data": ("train", ["+experiment=full_mix"]),
    "Training": ("train", ["+experiment=full_mix"]),
    "Transfer": ("transfer", []),
    "Evaluation": ("evaluate", []),
}


def rows(section: str) -> list[list[str]]:
    """The cells of the rows of the table below a heading: the paper, ours, the difference."""
    text = re.split(r"^#{2,3} ", README.partition(f"\n### {section}\n")[2], flags=re.M)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("section", COMMANDS)
def test_table_states_existing_files_and_values_of_the_configuration(section):
    command, overrides = COMMANDS[section]
    config = compose(command, overrides)
    table = rows(section)
    assert len(table) > 2
    for row in table:
        assert len(row) == 3, row
        spans = re.findall(r"`([^`]+)`", row[1])
        settings = dict(span.split("=", 1) for span in spans if "=" in span)
        files = [span for span in spans if "=" not in span]
        assert files, row
        for file in files:
            assert (REPOSITORY / file).is_file(), row
        for key, text in settings.items():
            value = config
            for name in key.split("."):
                assert name in value, key
                value = value[name]
            expected = [parse(item) for item in text.strip("[]").split(",")] if text.startswith("[") else parse(text)
            assert (list(value) if text.startswith("[") else value) == expected, key


def parse(text: str):
    """A value as in YAML, where 5e-5 is a number, too."""
    text = text.strip()
    return float(text) if re.fullmatch(r"[\d.]+e-?\d+", text) else yaml.safe_load(text)


def test_every_value_of_the_recipe_stands_in_the_table():
    """A value that full_mix sets and the table does not explain would have no stated source."""
    stated = {span.split("=")[0] for section in COMMANDS for row in rows(section) for span in re.findall(r"`([^`]+)`", row[1])}
    own = yaml.safe_load((REPOSITORY / "conf/experiment/full_mix.yaml").read_text())
    keys = {f"{part}.{key}" for part in ("data", "trainer", "optim") for key in own[part]} - {"optim.lr"}
    assert keys | {f"optim.lr.{part}" for part in own["optim"]["lr"]} <= stated
