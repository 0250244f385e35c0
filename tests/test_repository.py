"""What holds for every file of the repository."""

import ast
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.conftest import core

ROOT = Path(__file__).parent.parent
LISTED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
FILES = [name for name in LISTED if (ROOT / name).is_file()] or [
    str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file() and not {".venv", ".git", "data", "outputs"} & set(path.parts)
]
PYTHON = [name for name in FILES if name.endswith(".py")]
TEXT = [
    name for name in FILES if name.endswith((".py", ".yaml", ".yml", ".md", ".toml", ".txt", ".in", ".lock", ".cff", "Makefile", "run"))
]
CODE = [name for name in PYTHON if name.startswith(("src", "data_prep", "experiments"))]
HERE = "tests/test_repository.py"


def found(pattern: str, names: list[str]) -> list[str]:
    """`file:line` of every match, this file left out."""
    lines = ((name, number, line) for name in names if name != HERE for number, line in enumerate(read(name).splitlines(), 1))
    return [f"{name}:{number}" for name, number, line in lines if re.search(pattern, line)]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        pytest.param(r"(^|[\s\"'=(])/(work|root|home)/", TEXT, id="paths of one machine"),
        pytest.param(r"pypi\.org|pythonhosted|artifactory|:\d{4}/simple", TEXT, id="hosts of a package index"),
        pytest.param(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)\b", PYTHON, id="tests that may not run"),
        pytest.param(r"\.extractall\(|pickle\.loads?\(", CODE, id="archives and pickles that may do anything"),
        pytest.param(r"trust_remote_code=True|weights_only=False|_target_:", TEXT, id="code that travels with weights"),
        pytest.param(r"^(from \.|import \.)", PYTHON, id="relative imports"),
        pytest.param(r"import tqdm|from tqdm", [name for name in CODE if name != "src/runtime/progress.py"], id="progress of another kind"),
        pytest.param(r"\bConsole\(", [name for name in CODE if name != "src/runtime/tables.py"], id="tables printed in another way"),
    ],
)
def test_nowhere(pattern, names):
    assert found(pattern, names) == []


def test_a_file_is_short_enough_to_read():
    assert [name for name in CODE if len(read(name).splitlines()) > 250] == []


def test_every_module_says_what_it_is_for():
    silent = [name for name in CODE if read(name).strip() and not read(name).lstrip().startswith('"""')]
    assert [name for name in silent if not name.endswith("__init__.py")] == []


def test_code_is_ascii():
    assert [name for name in CODE if not read(name).isascii()] == []


def test_what_data_preparation_and_training_share_is_the_record():
    """Training can be read without data_prep."""
    assert found(r"^\s*(from|import) data_prep\b", [name for name in PYTHON if name.startswith("src/")]) == []


def test_fast_tests_are_one_case_of_each_function_that_is_not_slow():
    def item(name: str, *marks: str) -> SimpleNamespace:
        return SimpleNamespace(nodeid=f"tests/test_x.py::{name}", get_closest_marker=dict.fromkeys(marks, True).get)

    items = [item("one[a]"), item("one[b]"), item("two"), item("three", "slow"), item("four[a]", "slow"), item("four[b]")]
    assert core(items) == [items[0], items[2], items[5]]


def test_every_test_file_has_a_fast_test():
    """Nothing of the repository is left out of `make test-fast`."""
    for name in PYTHON:
        if name.startswith("tests/test_") and "mark.browser" not in read(name):
            functions = [node for node in ast.parse(read(name)).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
            slow = [node for node in functions if any("slow" in ast.unparse(mark) for mark in node.decorator_list)]
            assert len(slow) < len(functions), name


def test_every_configuration_is_yaml():
    for name in FILES:
        if name.startswith("conf/"):
            assert isinstance(yaml.safe_load(read(name)), dict), name


def test_links_of_the_readmes_lead_somewhere():
    for name in FILES:
        if name.endswith(".md"):
            for target in re.findall(r"\]\(([^)#\s]+)\)", read(name)):
                assert "://" in target or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_the_licence_is_whole():
    text = read("LICENSE")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
