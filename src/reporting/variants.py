"""The tables of questions that were asked in several ways: orders of the options, wordings."""

from src.reporting.blocks import Table
from src.reporting.run_data import Scores, interval

ENDS = ("lowest", "highest")


def variant_blocks(scores: Scores, match: str) -> list[Table]:
    """One row per kind of question. `match` is the score for a correct answer. Empty without variants."""
    given = scores.get("real") or scores.get("none") or {}
    tables = []
    if orders := scores.get("orders"):
        rows = [[_label(part), row["accuracy"]["n"], *(interval(metric) for metric in row.values())] for part, row in orders.items()]
        caption = (
            "Questions with options, asked in every cyclic order of these. The mean over the orders does not depend on where the dataset "
            "puts the right option. If it is far above the share that is right in every order, answers follow the position. Brackets: 95% "
            "intervals."
        )
        tables.append(
            Table(["questions on", "n", "accuracy, given order", "mean over orders", "right in every order"], rows, caption=caption)
        )
    if prompts := scores.get("prompts"):
        rows = [
            [_label(part), row[match]["n"], interval(given[part].get(match)), interval(row[match]), *(row[match][key] for key in ENDS)]
            for part, row in prompts.items()
            if match in row
        ]
        caption = "The same questions in the standard and three other wordings (src/evaluation/variants.py). Brackets: 95% intervals."
        columns = ["questions on", "n", f"{match}, standard wording", "mean over wordings", "lowest", "highest"]
        tables.append(Table(columns, rows, caption=caption))
    return tables


def _label(part: str) -> str:
    return part.removeprefix("type=")
