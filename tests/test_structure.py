"""The direction of imports between folders."""

import ast

from tests.test_repository import PYTHON, read

# A folder imports from folders further up, never from those below.
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
    "src",  # the commands
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


def layer(module: str) -> int:
    """The position in LAYERS of the folder (or of the file, where it is listed) of a module."""
    return max((LAYERS.index(one) for one in LAYERS if f"{module}.".startswith(f"{one}.")), key=lambda number: len(LAYERS[number]))


def imported_modules(name: str) -> list[str]:
    modules = {other.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for other in PYTHON}
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
        if layer(module) > layer(name.removesuffix(".py").replace("/", "."))
    ]
    assert wrong == []


def test_every_folder_has_a_layer():
    """A new folder would else count as one of the commands."""
    folders = {name.rpartition("/")[0].replace("/", ".") for name in PYTHON if name.startswith(("src/", "data_prep/"))}
    assert folders <= set(LAYERS)
