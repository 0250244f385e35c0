"""Scores of my publication: what they measure, and the source of the definition (paper, section, or repository, file and commit)."""

from src.metrics.text import words


def first_word(prediction: str, references: list[str]) -> float:
    """1 if the first word of the prediction is the first word of a reference, else 0. Pure, so that stored predictions can be scored."""
    first = words(prediction)[:1]
    return float(bool(first) and any(first == words(reference)[:1] for reference in references))
