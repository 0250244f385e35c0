"""Sections of a chest X-ray report of MIMIC-CXR, by the rules of `txt/section_parser.py` and `create_section_files.py` of
MIT-LCP/mimic-cxr.

The rules are written from a description of these files. Its dictionary of section names (about 70) is known in part, so `NAMES`
holds the entries that the description states; the other names are decided by the substrings and the view words that follow it.
One entry, 'ndication' -> 'impression', is a slip and is left out. The 54 rules for single studies (23 section names, 31 pairs of
character positions) were not readable. `read_rules` reads such rules from a file of the user.
"""

import re
from pathlib import Path

from data_prep.readers.rows import InvalidRow
from data_prep.readers.tables import table_rows
from data_prep.sources import Source
from src.runtime.errors import UserError

HEADER = re.compile(r"\n ([A-Z ()/,-]+):(?=\s)")
NAMES = {
    "conclusion": "impression",
    "findings and impression": "impression",
    "findings/impression": "impression",
    "chest, two views": "findings",
    "indication": "indication",
    "examination": "examination",
    "technique": "technique",
}
MAIN = ("impression", "findings", "history", "comparison", "addendum")
VIEW_WORDS = re.compile(r"chest|portable|pa and lateral|ap and lateral|frontal view|ribs")
PRIORITY = {  # section option -> sections in order; `both` joins those that exist, the others take the first that exists
    "findings": ("findings",),
    "impression": ("impression",),
    "both": ("findings", "impression"),
    "official": ("impression", "findings", "last_paragraph", "comparison"),
}

Rule = str | tuple[int, int]  # the name of a section, or the first and the last character position; (0, 0) uses nothing


def parse_sections(report: str) -> list[tuple[str, str]]:
    """(normalised name, text) of each section in order; empty findings and impressions are dropped.

    The text before the first header is 'preamble'; a report without a header is one section 'full report'. If the report has
    neither findings nor an impression, the text after the last blank line of its last section is added as 'last_paragraph'.
    """
    headers, match = [], HEADER.search(report)
    while match:
        headers.append(match)
        newline = report.find("\n", match.end())
        match = HEADER.search(report, newline) if newline >= 0 else None
    if headers:
        ends = [header.start() for header in headers[1:]] + [len(report)]
        sections = [("preamble", report[: headers[0].start()])]
        sections += [(_normalise(header[1]), report[header.end() : end]) for header, end in zip(headers, ends, strict=True)]
    else:
        sections = [("full report", report)]
    sections = [(name, text) for name, text in sections if text.strip() or name not in ("findings", "impression")]
    if not {"findings", "impression"} & {name for name, _ in sections}:
        _, blank, paragraph = sections[-1][1].rpartition("\n \n")
        sections += [("last_paragraph", paragraph)] if blank else []
    return sections


def _normalise(header: str) -> str:
    name = header.strip().lower()
    if name in NAMES:
        return NAMES[name]
    for section in MAIN:
        if section in name:
            return section
    return "findings" if VIEW_WORDS.search(name) else name


def report_text(report: str, section: str, rule: Rule | None = None) -> str:
    """The text of a report for one choice of the option `section`, empty if the report has no such section.

    Of sections with the same name, the last one with text counts. A rule replaces the choice. White space is collapsed; the token
    `___` of de-identified words and lines of underscores are removed with the spaces before them. A text without a letter or digit
    is empty.
    """
    if isinstance(rule, tuple):
        return _clean(report[slice(*rule)])
    texts = {name: cleaned for name, text in parse_sections(report) if (cleaned := _clean(text))}
    names = PRIORITY[section] if rule is None else (rule,)
    chosen = [texts[name] for name in names if texts.get(name)]
    return " ".join(chosen if section == "both" else chosen[:1])


def _clean(text: str) -> str:
    cleaned = " ".join(re.sub(r"\s*_{3,}", "", text).split())
    return cleaned if re.search(r"\w", cleaned) else ""


def read_rules(path: Path, entry: Source) -> dict[int, Rule]:
    """Study -> rule, from a csv with the columns `study_id, section, start, end`: either a section name or two positions.

    Raises `UserError` for a row that is neither.
    """
    rules: dict[int, Rule] = {}
    columns = ["study_id", "section", "start", "end"]
    for number, row in enumerate(table_rows(path, entry, required=columns), start=2):
        text = "" if isinstance(row, InvalidRow) else ",".join(str(row[column]) for column in columns)
        fields = re.fullmatch(r"s?(\d+),([a-z_ ]*),(\d*),(\d*)", text)
        if not fields or bool(fields[2]) == bool(fields[3] and fields[4]):
            raise UserError(f"{path}: line {number} is not a rule; give study_id and either section or start and end")
        rules[int(fields[1])] = fields[2] or (int(fields[3]), int(fields[4]))
    return rules
