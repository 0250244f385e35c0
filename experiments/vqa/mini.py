"""`python -m experiments.vqa.mini`, after `make mini`: stores what the mini run answered to the phantoms of each benchmark."""

import sys
from pathlib import Path

from experiments.tables import keep
from src.runtime.errors import UserError, report_user_errors

REPORT = Path("outputs/mini/report.csv")
TABLE = Path(__file__).with_name("mini.csv")
CONDITIONS = ("real", "shuffled", "blank", "none", "majority", "colour", "real_minus_shuffled", "real_minus_blank")


def kept(metric: str) -> bool:
    """BLEU-1 of all questions, of multiple choice the accuracy too, with each kind of image."""
    verb, _, *rest = metric.split("/")
    return verb == "vqa" and len(rest) == 3 and rest[0] in CONDITIONS and rest[1:] in (["all", "bleu1"], ["all", "accuracy"])


@report_user_errors
def main() -> None:
    if len(sys.argv) > 1:
        raise UserError(f"{sys.argv[1]} is not known; there is nothing to choose")
    if not REPORT.exists():
        raise UserError(f"{REPORT} does not exist; run make mini first")
    keep(REPORT, TABLE, kept)
    print(f"{TABLE.name} is stored; make experiments puts it into the README")


if __name__ == "__main__":
    main()
