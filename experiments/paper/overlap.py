"""`python -m experiments.paper.overlap`: overlap.md from data_prep/overlaps.yaml and the exclusions of `full_mix_clean`."""

from pathlib import Path

import yaml

from experiments.tables import markdown
from src.data.source_entries import source_entries
from src.data.subsets import comparable, release_overlaps
from src.runtime import paths

FILE = Path(__file__).with_name("overlap.md")
CLEAN = paths.CONF / "experiment" / "full_mix_clean.yaml"
TEXT = """# Transfer sets and pretraining data

<!-- rendered by `python -m experiments.paper.overlap`; edit data_prep/overlaps.yaml instead -->

The paper calls its transfer sets unseen. That holds for their names: the pretraining data contains copies of some under other names. The
table lists, for each transfer set, the sources and sub-sets that hold the same source release. `certain`: the same release; `likely`:
strong signs that no document we read states; `unknown`: only a name suggests it, or its source is not readable. The counts are the
published questions of the sub-set (`data_prep/sources.yaml`).

The report of a run shows the rows of its own mix beside what `make audit` found by image, so a reader sees both.
`+experiment=full_mix_clean` is `full_mix` without the sub-sets marked `left out`, {records:,} of {total:,} published questions of
OmniMedVQA among them. A row without sub-set is left to the audit, which removes the images that it finds (`mix.decontaminate=true`). The
names of the 31 restricted sub-sets of OmniMedVQA could not be read.

{table}
"""


def render() -> str:
    excluded = {source: set(map(comparable, names)) for source, names in yaml.safe_load(CLEAN.read_text())["mix"]["exclude"].items()}
    published = source_entries()
    rows = []
    for benchmark, overlaps in release_overlaps().items():
        if not overlaps:
            rows.append(dict.fromkeys(("transfer set", "overlaps with", "questions", "strength", "evidence", "from", "full_mix_clean"), ""))
            rows[-1] |= {"transfer set": benchmark, "overlaps with": "none seen"}
        for overlap in overlaps:
            source, _, subset = overlap["with"].partition("/")
            left_out = comparable(subset) in excluded.get(source, ())
            rows.append(
                {
                    "transfer set": benchmark,
                    "overlaps with": overlap["with"],
                    "questions": f"{published[source]['subsets'][subset]:,}" if subset else "",
                    **{key: overlap[key] for key in ("strength", "evidence", "from")},
                    "full_mix_clean": "left out" if left_out else "audit",
                }
            )
    counts = published["omnimedvqa"]["subsets"]
    records = sum(count for name, count in counts.items() if comparable(name) in excluded["omnimedvqa"])
    return TEXT.format(table=markdown(rows), records=records, total=sum(counts.values()))


def main() -> None:
    FILE.write_text(render())
    print(FILE)


if __name__ == "__main__":
    main()
