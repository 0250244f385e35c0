"""Folders of the repository. Commands run from a checkout; nothing is installed."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CONF = REPOSITORY / "conf"
