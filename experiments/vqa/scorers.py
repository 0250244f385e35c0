"""Every scorer applied to a perfect model and three constant answers, on the test references of VQA-Med-2019.

    python -m experiments.vqa.scorers file=path/to/VQAMed2019_Test_Questions_w_Ref_Answers.txt

Writes `scorers.csv` and renders it and `published.csv` in the README of this folder.
"""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

from experiments.tables import insert_table, markdown, read_rows
from src.metrics.bleu import bleu4
from src.metrics.protocols import SCORERS
from src.metrics.published import REMOVE_PUNCTUATION, imageclef_words
from src.metrics.vqa import is_closed
from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors
from src.runtime.run_folder import git_commit

FOLDER = Path(__file__).parent
ANSWERERS = ("oracle", "mri", "yes", "no")


def read(path: Path) -> list[list[str]]:
    """The alternative answers of each reference. A line is `image|category|question|answer#answer`."""
    lines = path.read_text().splitlines() if path.is_file() else []
    references = [[answer.strip() for answer in line.split("|")[3].split("#")] for line in lines if line.count("|") == 3]
    if not references or len(references) != len(lines):
        raise UserError(f"{path}: {len(references)} of {len(lines)} lines have the form image|category|question|answer; all must have it")
    return references


def table(references: list[list[str]]) -> list[dict]:
    """One row per scorer that applies: its score in per cent for the first alternative of each reference, and for each constant answer."""
    predictions = {name: [alternatives[0] if name == "oracle" else name for alternatives in references] for name in ANSWERERS}
    items = {
        name: [{"references": one, "prediction": answer} for one, answer in zip(references, answers, strict=True)]
        for name, answers in predictions.items()
    }
    rows = [{"scorer": name, **{by: percent(score(items[by])) for by in ANSWERERS}} for name, score in SCORERS.items()]
    return [row for row in rows if row["oracle"]]


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def facts(references: list[list[str]]) -> str:
    first = [alternatives[0] for alternatives in references]
    old, new = (percent(oracle_bleu4(references, old_nltk=is_old)) for is_old in (True, False))
    return (
        f"{len(references)} references: {sum(map(is_closed, references))} closed, {sum(len(one) > 1 for one in references)} with "
        f"alternatives, {sum('(' in ' '.join(one) for one in references)} with brackets; after the pre-processing of the ImageCLEF "
        f"evaluator {sum(not imageclef_words(one) for one in first)} are empty and {sum(len(imageclef_words(one)) >= 4 for one in first)} "
        "have four words or more. BLEU-4 on lower-cased words without punctuation, nothing else removed, gives the oracle "
        f"{old} under nltk up to 3.2.5 and {new} later."
    )


def oracle_bleu4(references: list[list[str]], *, old_nltk: bool) -> float:
    """Mean BLEU-4 of the first alternatives, without the stop words and stemming of the challenge."""
    tokens = [[answer.lower().translate(REMOVE_PUNCTUATION).split() for answer in alternatives] for alternatives in references]
    return sum(max(bleu4(one[0], answer, old_nltk=old_nltk) for answer in one) for one in tokens) / len(tokens)


@dataclass
class ScorersConfig:
    """Writes scorers.csv and renders the tables in the README.

    python -m experiments.vqa.scorers file=VQAMed2019_Test_Questions_w_Ref_Answers.txt

    file  the test references of VQA-Med-2019 (github.com/abachaa/VQA-Med-2019)
    """

    file: Path


@report_user_errors
def main(args: list[str]) -> None:
    references = read(parse_arguments(ScorersConfig, args).file)
    rows = [{**row, "git": git_commit()} for row in table(references)]
    with (FOLDER / "scorers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    readme = insert_table((FOLDER / "README.md").read_text(), "facts", facts(references))
    readme = insert_table(insert_table(readme, "scorers", markdown(rows)), "published", markdown(read_rows(FOLDER / "published.csv")))
    (FOLDER / "README.md").write_text(readme)
    print(facts(references), markdown(rows), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
