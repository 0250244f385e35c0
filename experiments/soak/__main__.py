"""`python -m experiments.soak [only=interrupt,uploads,load,readme] [model=run:mini]`: long trials; exit code 1 if one fails."""

import importlib
import sys

from src.inference.query import find_model
from src.runtime.errors import UserError, report_user_errors, suggest

TRIALS = ("interrupt", "uploads", "load", "readme")


@report_user_errors
def main(args: list[str]) -> None:
    options = dict(arg.partition("=")[::2] for arg in args)
    unknown = [key for key in options if key not in ("only", "model")]
    if unknown:
        raise UserError(f"soak has no '{unknown[0]}'{suggest(unknown[0], ('only', 'model'))}")
    chosen, model = (options.get("only") or ",".join(TRIALS)).split(","), options.get("model", "run:mini")
    for name in chosen:
        if name not in TRIALS:
            raise UserError(f"only={name}{suggest(name, TRIALS)}")
    if chosen != ["interrupt"]:
        find_model(model)  # fails early if it does not exist; `make mini` makes run:mini
    rows = []
    for name in chosen:
        print(f"{name} ...", flush=True)
        rows += importlib.import_module(f"experiments.soak.{name}").trial(model)
        print(*(row.line() for row in rows), sep="\n", flush=True)
    failed = [row.name for row in rows if row.passed is False]
    sys.exit(f"failed: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
