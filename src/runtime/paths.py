"""Folders of the repository. Commands run from a checkout; the project is not an installed package."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
