"""What the choice of scorer does: a perfect answerer and two constants through every scorer, on VQA-Med-2019's test references.

    python -m experiments.vqa.scorers path/to/VQAMed2019_Test_Questions_w_Ref_Answers.txt

writes `scorers.csv` and puts it, and `published.csv`, into this folder's README.
"""

import csv
import sys
from pathlib import Path

from experiments.tables import markdown, put, rows_of
from src.metrics.bleu import bleu4
from src.metrics.published import REMOVE_PUNCTUATION, imageclef_words
from src.metrics.vqa import SCORERS, is_closed
from src.runtime.errors import UserError, report_user_errors
from src.runtime.run_folder import git_commit

FOLDER = Path(__file__).parent
ANSWERERS = ("oracle", "mri", "yes", "no")


def read(path: Path) -> list[list[str]]:
    """The alternatives of each reference: `image|category|question|answer#answer` per line."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [[answer.strip() for answer in line.split("|")[3].split("#")] for line in lines if line.count("|") == 3]
    if not found or len(found) != len(lines):
        raise UserError(f"{path} has {len(found)} lines of image|category|question|answer among {len(lines)}; allowed is nothing else")
    return found


def table(references: list[list[str]]) -> list[dict]:
    """One row per scorer: its value for the first alternative of each reference, and for each constant answer."""
    said = {name: [alternatives[0] if name == "oracle" else name for alternatives in references] for name in ANSWERERS}
    items = {
        name: [{"references": right, "prediction": answer} for right, answer in zip(references, answers, strict=True)]
        for name, answers in said.items()
    }
    return [{"scorer": name, **{by: _percent(score(items[by])) for by in ANSWERERS}} for name, score in SCORERS.items()]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def facts(references: list[list[str]]) -> str:
    first = [alternatives[0] for alternatives in references]
    return (
        f"{len(references)} references: {sum(map(is_closed, references))} closed, {sum(len(one) > 1 for one in references)} with "
        f"alternatives, {sum('(' in ' '.join(one) for one in references)} with brackets; after the pre-processing of the ImageCLEF "
        f"evaluator {sum(not imageclef_words(one) for one in first)} are empty and {sum(len(imageclef_words(one)) >= 4 for one in first)} "
        "have four words or more. BLEU-4 on lower-cased words without punctuation, nothing else removed, gives the oracle "
        f"{_percent(plain(references, old_nltk=True))} under nltk up to 3.2.5 and {_percent(plain(references, old_nltk=False))} later."
    )


def plain(references: list[list[str]], *, old_nltk: bool) -> float:
    """Mean BLEU-4 of the first alternatives without the challenge's stop words and stems."""
    tokens = [[answer.lower().translate(REMOVE_PUNCTUATION).split() for answer in alternatives] for alternatives in references]
    return sum(max(bleu4(one[0], answer, old_nltk=old_nltk) for answer in one) for one in tokens) / len(tokens)


@report_user_errors
def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("give one file, the VQAMed2019_Test_Questions_w_Ref_Answers.txt of github.com/abachaa/VQA-Med-2019")
    references = read(Path(sys.argv[1]))
    rows = [{**row, "git": git_commit()} for row in table(references)]
    with (FOLDER / "scorers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    readme = put((FOLDER / "README.md").read_text(), "facts", facts(references))
    readme = put(put(readme, "scorers", markdown(rows)), "published", markdown(rows_of(FOLDER / "published.csv")))
    (FOLDER / "README.md").write_text(readme)
    print(facts(references), markdown(rows), sep="\n\n")


if __name__ == "__main__":
    main()
