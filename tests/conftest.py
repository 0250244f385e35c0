"""Replaces the environment of the tests before any library reads it, and adds `--fast`."""

import gc
import shutil

import pytest

from tests import isolation

FOLDER = isolation.isolate()


def pytest_configure(config):
    """Loads the fixtures where tests run. The controller of pytest-xdist runs none, and importing torch takes it seconds."""
    controller = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not controller:
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="run one case of each test function that is not marked slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if config.getoption("fast"):
        chosen = core(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


def core(items: list[pytest.Item]) -> list[pytest.Item]:
    """The first case of every test function that is not marked slow."""
    chosen: dict[str, pytest.Item] = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            chosen.setdefault(item.nodeid.partition("[")[0], item)
    return list(chosen.values())


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()  # later collections skip the imported modules and the collected tests
    if any(hasattr(item.module, "processes") or hasattr(item.module, "server") for item in session.items):
        from tests.processes import start_server

        start_server()


def pytest_unconfigure():
    gc.unfreeze()  # some libraries count their objects at exit
    shutil.rmtree(FOLDER, ignore_errors=True)
