"""`python -m experiments.vqa.mini`, after `make mini`: stores the scores of the mini run on the phantoms of each benchmark."""

import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.tables import store_metrics
from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors

REPORT = Path("outputs/mini/report.csv")
TABLE = Path(__file__).with_name("mini.csv")
CONDITIONS = ("real", "shuffled", "blank", "none", "majority", "colour", "real_minus_shuffled", "real_minus_blank")


def is_stored(metric: str) -> bool:
    """True for BLEU-1 and accuracy on all questions, for each kind of image."""
    task, _, *rest = metric.split("/")
    return task == "vqa" and len(rest) == 3 and rest[0] in CONDITIONS and rest[1:] in (["all", "bleu1"], ["all", "accuracy"])


@dataclass
class VqaMiniConfig:
    """Stores the scores of the mini run in mini.csv. It has no keys.

    python -m experiments.vqa.mini
    """


@report_user_errors
def main(args: list[str]) -> None:
    parse_arguments(VqaMiniConfig, args)
    if not REPORT.exists():
        raise UserError(f"{REPORT} does not exist; run make mini first")
    store_metrics(REPORT, TABLE, is_stored)
    print(f"wrote {TABLE.name}; run make experiments to render it in the README")


if __name__ == "__main__":
    main(sys.argv[1:])
