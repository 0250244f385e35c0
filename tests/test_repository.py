"""Rules for all files of the repository."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from src.runtime.version import __version__
from tests.conftest import core

ROOT = Path(__file__).parent.parent
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
FILES = [name for name in TRACKED if (ROOT / name).is_file()] or [
    str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file() and not {".venv", ".git", "data", "outputs"} & set(path.parts)
]
PYTHON = [name for name in FILES if name.endswith(".py")]
TEXT = [
    name for name in FILES if name.endswith((".py", ".yaml", ".yml", ".md", ".toml", ".txt", ".in", ".lock", ".cff", "Makefile", "run"))
]
CODE = [name for name in PYTHON if name.startswith(("src", "data_prep", "experiments"))]
THIS_FILE = "tests/test_repository.py"


def find(pattern: str, names: list[str]) -> list[str]:
    """`file:line` of every match outside this file."""
    lines = ((name, number, line) for name in names if name != THIS_FILE for number, line in enumerate(read(name).splitlines(), 1))
    return [f"{name}:{number}" for name, number, line in lines if re.search(pattern, line)]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        pytest.param(r"(^|[\s\"'=(])/(work|root|home)/", TEXT, id="paths of one machine"),
        pytest.param(r"pypi\.org|pythonhosted|artifactory|:\d{4}/simple", TEXT, id="hosts of a package index"),
        pytest.param(r"pytest\.(mark\.)?(skip|skipif|xfail|importorskip)\b", PYTHON, id="tests that may not run"),
        pytest.param(r"\.extractall\(|pickle\.loads?\(", CODE, id="unsafe archives and pickles"),
        pytest.param(r"trust_remote_code=True|weights_only=False|_target_:", TEXT, id="code from weights or configurations"),
        pytest.param(r"^(from \.|import \.)", PYTHON, id="relative imports"),
        pytest.param(r"import tqdm|from tqdm", [name for name in CODE if name != "src/runtime/progress.py"], id="other progress bars"),
        pytest.param(r"\bConsole\(", [name for name in CODE if name != "src/runtime/tables.py"], id="other ways to print tables"),
    ],
)
def test_pattern_is_absent(pattern, names):
    assert find(pattern, names) == []


def test_code_files_have_at_most_250_lines():
    assert [name for name in CODE if len(read(name).splitlines()) > 250] == []


VAGUE_NAMES = {"asked", "beside", "found", "kept", "mine", "said", "shown", "told"}


def test_vague_names_are_absent():
    names = {
        (name, getattr(node, key))
        for name in PYTHON
        for node in ast.walk(ast.parse(read(name)))
        for key in ("id", "arg", "attr", "name")
        if str(getattr(node, key, "")).lower().strip("_") in VAGUE_NAMES
    }
    assert names == set()


def test_every_module_has_a_docstring():
    missing = [name for name in CODE if read(name).strip() and not read(name).lstrip().startswith('"""')]
    assert [name for name in missing if not name.endswith("__init__.py")] == []


def test_code_is_ascii():
    assert [name for name in CODE if not read(name).isascii()] == []


def test_src_does_not_import_data_prep():
    """A reader can understand training without data_prep."""
    assert find(r"^\s*(from|import) data_prep\b", [name for name in PYTHON if name.startswith("src/")]) == []


def test_fast_tests_are_the_first_case_of_each_function_not_marked_slow():
    def item(name: str, *marks: str) -> SimpleNamespace:
        return SimpleNamespace(nodeid=f"tests/test_x.py::{name}", get_closest_marker=dict.fromkeys(marks, True).get)

    items = [item("one[a]"), item("one[b]"), item("two"), item("three", "slow"), item("four[a]", "slow"), item("four[b]")]
    assert core(items) == [items[0], items[2], items[5]]


def test_every_test_file_has_a_fast_test():
    """`make test-fast` then covers all parts of the repository."""
    for name in PYTHON:
        if name.startswith("tests/test_") and "mark.browser" not in read(name):
            functions = [node for node in ast.parse(read(name)).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
            slow = [node for node in functions if any("slow" in ast.unparse(mark) for mark in node.decorator_list)]
            assert len(slow) < len(functions), name


def test_every_configuration_is_a_yaml_mapping():
    for name in FILES:
        if name.startswith("conf/"):
            assert isinstance(yaml.safe_load(read(name)), dict), name


def test_relative_links_of_markdown_files_exist():
    for name in FILES:
        if name.endswith(".md"):
            for target in re.findall(r"\]\(([^)#\s]+)\)", read(name)):
                assert "://" in target or (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def test_licence_is_complete():
    text = read("LICENSE")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def imported_packages() -> dict[str, str]:
    """Top-level packages outside the standard library and this repository that CODE imports, each with one file that does."""
    packages = {}
    for name in CODE:
        for node in ast.walk(ast.parse(read(name))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            packages |= {module.partition(".")[0]: name for module in modules}
    own = ("src", "data_prep", "experiments", "tests")
    return {package: name for package, name in packages.items() if package not in (*sys.stdlib_module_names, *own)}


def distribution_names(text: str) -> set[str]:
    """Normalised names of the distributions in a requirements file (PEP 503)."""
    return {re.sub(r"[-_.]+", "-", match).lower() for match in re.findall(r"^[a-z0-9][a-z0-9._-]*", text, re.MULTILINE | re.IGNORECASE)}


def test_every_imported_package_is_declared_in_requirements():
    """requirements.in, or those of an environment of its own, whose packages are not installed here."""
    files = ["requirements.in", *(name for name in FILES if name.startswith("experiments/soak/envs/"))]
    declared, provided_by = distribution_names("\n".join(map(read, files))), packages_distributions()
    undeclared = {
        package: name
        for package, name in imported_packages().items()
        if not distribution_names("\n".join(provided_by.get(package, [package]))) & declared
    }
    assert undeclared == {}


def test_lock_contains_every_requirement():
    assert distribution_names(read("requirements.in")) <= distribution_names(read("requirements.lock"))


def test_version_of_the_code_is_that_of_the_project():
    assert tomllib.loads(read("pyproject.toml"))["project"]["version"] == __version__
