"""`python -m experiments.soak only=load model=run:mini`: long trials; exit code 1 if one fails."""

import importlib
import sys
from dataclasses import dataclass, field

from src.inference.query import find_model
from src.runtime.arguments import parse_arguments
from src.runtime.errors import report_user_errors
from src.runtime.schema import check_choice

LOCAL = ("interrupt", "uploads", "load", "readme", "fuzz", "disk", "kernels")
SERVICES = ("slurm", "s3", "vllm", "lmms")  # each installs what it needs, see docs/services.md and docs/export.md
WITHOUT_MODEL = {"interrupt", "fuzz", "disk", "kernels", "slurm", "s3"}  # trials that make what they need


@dataclass
class SoakConfig:
    """Runs long trials and prints a table of values and their bounds.

    python -m experiments.soak only=uploads,load model=run:mini

    only   trials to run: interrupt, uploads, load, readme, fuzz, disk, kernels (default: these), or with services slurm, s3, vllm, lmms
    model  finished run that the trials use (default run:mini)
    raw    folder of raw datasets, one folder each, that interrupt and fuzz use beside phantoms (default: phantoms only)
    """

    only: list[str] = field(default_factory=lambda: list(LOCAL))
    model: str = "run:mini"
    raw: str = ""


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(SoakConfig, args)
    for name in config.only:
        check_choice("only", name, (*LOCAL, *SERVICES))
    if set(config.only) - WITHOUT_MODEL:
        find_model(config.model)  # fails early if it does not exist; `make mini` makes run:mini
    rows = []
    for name in config.only:
        print(f"{name} ...", flush=True)
        options = {"raw": config.raw} if name in ("interrupt", "fuzz") else {}
        rows += importlib.import_module(f"experiments.soak.{name}").trial(config.model, **options)
        print(*(row.line() for row in rows), sep="\n", flush=True)
    failed = [row.name for row in rows if row.passed is False]
    sys.exit(f"failed: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
