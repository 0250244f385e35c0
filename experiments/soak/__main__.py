"""`python -m experiments.soak [only=interrupt,uploads,load,readme] [model=run:mini]`: long trials, a table, exit 1 where it breaks."""

import importlib
import sys

from src.inference.query import find_model
from src.runtime.errors import UserError, report_user_errors, suggest

TRIALS = ("interrupt", "uploads", "load", "readme", "vllm", "lmms")


@report_user_errors
def main(words: list[str]) -> None:
    options = dict(word.partition("=")[::2] for word in words)
    unknown = [key for key in options if key not in ("only", "model")]
    if unknown:
        raise UserError(f"soak has no '{unknown[0]}'{suggest(unknown[0], ('only', 'model'))}")
    chosen, model = (options.get("only") or ",".join(TRIALS)).split(","), options.get("model", "run:mini")
    for name in chosen:
        if name not in TRIALS:
            raise UserError(f"only={name}{suggest(name, TRIALS)}")
    if chosen != ["interrupt"]:
        find_model(model)  # there, and trained to its end; `make mini` makes run:mini
    rows = []
    for name in chosen:
        print(f"{name} ...", flush=True)
        rows += importlib.import_module(f"experiments.soak.{name}").trial(model)
        print(*(row.line() for row in rows), sep="\n", flush=True)
    broken = [row.name for row in rows if row.kept is False]
    sys.exit(f"broken: {'; '.join(broken)}" if broken else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
