"""Names of runs on the command line."""

import shlex
from pathlib import Path

from src.runtime.errors import UserError


def match_runs(outputs: str | Path, pattern: str) -> list[str]:
    """The names of the runs that match a name or a glob such as `sweep/*`; of a glob, those that have finished training.

    Raises `UserError` if a glob matches no such run.
    """
    if (Path(outputs) / pattern / "config.yaml").exists() or not set(pattern) & set("*?"):
        return [pattern]
    folders = [path.parent for path in sorted(Path(outputs).glob(f"{pattern.strip('/')}/config.yaml"))]
    names = [str(folder.relative_to(outputs)) for folder in folders if (folder / "train.json").exists()]
    if not names:
        raise UserError(f"run={pattern}: {len(folders)} runs in {outputs}/ match, none of which has finished training; give another name")
    if len(names) < len(folders):
        print(f"run={pattern}: {len(folders) - len(names)} of {len(folders)} runs have not finished training and are not evaluated")
    return names


def follow_up(command: str, name: str, outputs: str) -> str:
    """The command to run next on a run, as one types it into a shell."""
    words = [f"{'runs' if command == 'report' else 'run'}={name}", *([] if outputs == "outputs" else [f"outputs={outputs}"])]
    return f"python -m src.{command} {shlex.join(words)}"
