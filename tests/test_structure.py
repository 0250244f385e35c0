"""Folders import each other in one direction only."""

import ast

from tests.test_repository import PYTHON, read

# A folder may import from the folders above it in this list, and not from those below.
LAYERS = (
    "src.runtime",
    "src.config",
    "src.metrics",
    "src.data",
    "src.model.fast",
    "src.model",
    "src.training",
    "src.training.callbacks",
    "src.evaluation",
    "src.classification",
    "src.inference",
    "src.reporting",
    "src.tracking",
    "src.release",
    "src.serving",
    "src.commands",
    "src",  # the commands: what must run before torch is imported
    "data_prep.sources",
    "data_prep.readers",
    "data_prep.download",
    "data_prep.build",
    "data_prep.audit",
    "data_prep.card",
    "data_prep.phantom.scene",
    "data_prep.phantom.draw",
    "data_prep.phantom.writers",
    "data_prep.phantom.weights",
    "data_prep.phantom",
    "data_prep",  # the command data_prep.shards
    "experiments",
    "tests",
)


def layer_of(module: str) -> int:
    """The index in LAYERS of the most specific entry that contains the module."""
    return max((index for index, name in enumerate(LAYERS) if f"{module}.".startswith(f"{name}.")), key=lambda index: len(LAYERS[index]))


def imported_modules(name: str) -> list[str]:
    """The modules of this repository that a file imports."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in PYTHON}
    imported = []
    for node in ast.walk(ast.parse(read(name))):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported += [f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    return [module for module in imported if module.partition(".")[0] in ("src", "data_prep", "experiments", "tests")]


def test_folders_import_in_one_direction():
    wrong = [
        f"{name} imports {module}"
        for name in PYTHON
        for module in imported_modules(name)
        if layer_of(module) > layer_of(name.removesuffix(".py").replace("/", "."))
    ]
    assert wrong == []


def test_every_folder_has_a_layer():
    """Otherwise a new folder would count as part of its parent."""
    folders = {name.rpartition("/")[0].replace("/", ".") for name in PYTHON if name.startswith(("src/", "data_prep/"))}
    assert folders <= set(LAYERS)
