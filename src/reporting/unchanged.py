"""The table of answers that need no image."""

from src.reporting.blocks import Table
from src.reporting.run_data import Scores, interval

CONDITIONS = {"blank": "blank image", "shuffled": "another test image", "other_modality": "image of another modality", "none": "no image"}


def unchanged_blocks(scores: Scores) -> list[Table]:
    """One row per kind of question, one column per condition: the share of answers that stay the same. Empty without such answers."""
    shares = {
        condition: {part: metrics["unchanged"] for part, metrics in scores.get(condition, {}).items() if "unchanged" in metrics}
        for condition in CONDITIONS
    }
    shares = {condition: parts for condition, parts in shares.items() if parts}
    parts = dict.fromkeys(part for one in shares.values() for part in one if part not in ("seen", "unseen"))
    rows = []
    for part in parts:
        metrics = [one.get(part) for one in shares.values()]
        count = next(metric["n"] for metric in metrics if metric)
        rows.append([part.removeprefix("type="), count, *(interval(metric) for metric in metrics)])
    caption = (
        "Answers that need no image: the share of answers that stay the same if the question's own image is replaced. Brackets: 95% "
        "intervals by bootstrap over images. Near 1 the model does not use the image, whatever its score."
    )
    columns = ["questions on", "n", *(f"same with {CONDITIONS[condition]}" for condition in shares)]
    return [Table(columns, rows, caption=caption)] if rows else []
