"""The version of the code, as in pyproject.toml."""

__version__ = "0.1.0"
