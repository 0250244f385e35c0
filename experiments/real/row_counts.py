"""Counts the rows that the readers accept in published files, before any image is encoded.

    python -m experiments.real.row_counts raw=FOLDER sources=pubmedqa,slake

Reads RAW/<source> in its upstream layout, prints the table and writes row_counts.csv.
"""

import csv
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep import sources
from data_prep.readers import READERS
from data_prep.readers.rows import FilteredRow, InvalidRow, Row
from src.data.record import SPLITS
from src.runtime.arguments import parse_arguments
from src.runtime.errors import report_user_errors
from src.runtime.run_folder import git_commit

COLUMNS = ["source", "split", "rows", "records", "left out by a rule", "refused", "why", "published rows", "git"]


@dataclass
class RowCountsConfig:
    """Counts accepted, filtered and refused rows of raw datasets.

    python -m experiments.real.row_counts raw=data/raw sources=pubmedqa,slake

    raw      folder that holds RAW/<source>
    sources  names from data_prep/sources.yaml, separated by commas
    """

    raw: Path
    sources: list[str]


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(RowCountsConfig, args)
    lines = [line for name in config.sources for line in count_source(sources.find_source(name, config.raw), config.raw / name)]
    with Path(__file__).with_name("row_counts.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
    for line in lines:
        print(*line[:-1], sep="  ")


def count_source(entry: sources.Source, raw: Path) -> list[list]:
    """One table row (see `COLUMNS`) per split with a raw table."""
    result = []
    for split in SPLITS:
        if entry.tables(raw, split):
            kinds, reasons = count_rows(READERS[entry.reader](raw, split, entry))
            why = "; ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            total, filtered, invalid = kinds.total(), kinds[FilteredRow], kinds[InvalidRow]
            counts = [total, total - filtered - invalid, filtered, invalid]
            result.append([entry.name, split, *counts, why, entry.expected.get(split, ""), git_commit()])
    return result


def count_rows(rows) -> tuple[Counter[type[Row]], Counter[str]]:
    """Numbers of rows by type, and numbers of filtered and invalid rows by reason."""
    kinds: Counter[type[Row]] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows:
        kinds[type(row)] += 1
        if isinstance(row, InvalidRow | FilteredRow):
            reasons[row.reason.partition(":")[0]] += 1
    return kinds, reasons


if __name__ == "__main__":
    main(sys.argv[1:])
