"""OpenMedQ. Never installed: commands run from the repository root as `python -m src.<verb>`."""
