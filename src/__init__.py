"""OpenMedQ. Nothing is installed: commands run from the repository root as `python -m src.<command>`."""
