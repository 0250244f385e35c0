"""Facts for the data card of a mix, from manifests, quarantines, audits, indices and sources.yaml."""

import base64
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep import sources
from data_prep.build.finalize import COUNTS
from data_prep.sources import Source
from src.config.train import MixConfig
from src.data.credentialed import is_credentialed, withheld_record
from src.data.record import SPLITS, Record, phantom_notice
from src.data.shards import Shards
from src.data.subsets import check_subsets, subset_usage, usage_texts, with_default_exclusions
from src.data.train_val_split import split_source

NUM_EXAMPLES, EXAMPLE_SIDE = 6, 112  # per source; pixels
BINS = 24
UNSTATED = "none stated"
CREDENTIALED = "credentialed: records and what is derived from them are sensitive and may be shared only under the agreement of the data"
NON_COMMERCIAL, NO_DERIVATIVES = (
    r"(?<![a-z])nc(?![a-z])|non-?commercial|research",
    r"(?<![a-z])nd(?![a-z])|no-?deriv",
)  # in the licence of a record


@dataclass
class SourceFacts:
    """Facts of one source of a mix."""

    entry: Source
    share: float  # of the mix, 0 to 1
    shards: Shards
    audit: dict[str, Any]  # empty if it was not audited
    selection: dict[str, Any] = field(default_factory=lambda: {"decontaminate": True})  # of the mix, see MixConfig.selection

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        return self.shards.manifest["counts"]

    @property
    def total(self) -> dict[str, int]:
        return {name: sum(counts[name] for counts in self.counts.values()) for name in COUNTS}

    @property
    def credentialed(self) -> bool:
        return is_credentialed(self.entry.name, self.shards.manifest)

    @property
    def num_trainable(self) -> int:
        """Training records that leak into no test set and that the mix does not exclude."""
        return len(self._trainable())

    def _trainable(self) -> np.ndarray:
        return split_source(self.shards, **{**self.selection, "decontaminate": True}, val_samples=0)[0]

    def subsets(self) -> dict[str, str]:
        """Per sub-set of the source, how many of its training records the mix uses; empty for a source without sub-sets."""
        return usage_texts(subset_usage(self.shards, self._trainable(), exclude=self.selection.get("exclude", ())))

    def reasons(self) -> list[tuple[str, int]]:
        """Reasons of quarantined rows with their counts, most frequent first."""
        lines = (self.shards.folder / "quarantine.jsonl").read_text().splitlines()
        return Counter(json.loads(line)["reason"].partition(":")[0] for line in lines).most_common()

    def licences(self) -> dict[str, int]:
        """Records per licence that a record states for itself, most frequent first; empty if no record states one."""
        licences = self.shards.manifest.get("licences", {})
        return {name or UNSTATED: count for name, count in licences.items()} if any(licences) else {}

    def lengths(self) -> np.ndarray:
        """Characters of text per record."""
        return self.shards.column("text_length")

    def sides(self) -> np.ndarray:
        """Longer side of the first image before resizing, in pixels, of records with an image."""
        longer = np.maximum(self.shards.column("width"), self.shards.column("height"))
        return longer[longer > 0]

    def examples(self) -> list[tuple[str, str]]:
        """(image as a data URL, text) of training records spread over the source; the URL is empty for text-only sources.

        Records of a credentialed source are replaced by their keys.
        """
        rows = self.shards.rows("train")
        with_images = rows[self.shards.column("num_images")[rows] > 0]
        candidates = with_images if len(with_images) else rows
        chosen = candidates[np.linspace(0, len(candidates) - 1, min(NUM_EXAMPLES, len(candidates))).astype(int)]
        if self.credentialed:
            return [("", withheld_record(self.shards.arrow("key")[int(row)].as_py())) for row in chosen]
        return [_example(self.shards[int(row)]) for row in chosen]


def gather_facts(out: Path, mix: MixConfig) -> list[SourceFacts]:
    """Facts of every source of a mix, in its order."""
    mix = with_default_exclusions(mix)
    entries, shares = sources.load_sources(), mix.sampling_weights
    total = sum(shares.values())
    facts = []
    for name, share in shares.items():
        shards = Shards(out / name)
        entry = entries.get(name) or Source(name=name, reader="", files={}, title=name, licence=entries["jsonl"].licence)
        check_subsets(shards, mix, name)
        facts.append(SourceFacts(entry, share / total, shards, shards.audit or {}, mix.selection(name)))
    return facts


def phantom_sources(facts: list[SourceFacts]) -> str:
    """A sentence that names the synthetic sources; empty without any."""
    return phantom_notice(one.entry.name for one in facts if one.shards.manifest.get("phantom"))


def usage_restrictions(facts: list[SourceFacts]) -> str:
    """Restrictions on the use of the whole mix, from the licences of its sources and of single records."""
    restrictions = []
    for restriction, limits in (
        (CREDENTIALED, {one.entry.name: one.credentialed for one in facts}),
        (
            "non-commercial use only",
            {one.entry.name: one.entry.licence.non_commercial == "yes" or _any_licence_matches(one, NON_COMMERCIAL) for one in facts},
        ),
        ("no derivatives of some records", {one.entry.name: _any_licence_matches(one, NO_DERIVATIVES) for one in facts}),
        ("some records state no licence", {one.entry.name: UNSTATED in one.licences() for one in facts}),
        ("must not be redistributed", {one.entry.name: one.entry.licence.redistribute == "no" for one in facts}),
        ("redistribution unverified", {one.entry.name: one.entry.licence.redistribute == "unverified" for one in facts}),
        ("commercial use unverified", {one.entry.name: one.entry.licence.non_commercial == "unverified" for one in facts}),
    ):
        names = [name for name, limited in limits.items() if limited]
        if names:
            restrictions.append(f"{restriction} ({', '.join(names)})")
    return "; ".join(restrictions) or "no restriction is known"


def _any_licence_matches(one: SourceFacts, pattern: str) -> bool:
    return any(re.search(pattern, name.lower()) for name in one.licences())


def histogram(values: np.ndarray) -> tuple[list[int], list[int]]:
    """(counts, bin edges) on a logarithmic scale."""
    if not len(values):
        return [], []
    low, high = max(int(values.min()), 1), max(int(values.max()), 2)
    edges = np.unique(np.geomspace(low, high + 1, BINS + 1).astype(int))
    counts, edges = np.histogram(values, edges if len(edges) > 1 else 1)
    return counts.tolist(), edges.astype(int).tolist()


def splits_present(facts: SourceFacts) -> list[str]:
    return [split for split in SPLITS if facts.counts[split]["in"] or split in facts.entry.expected]


def _example(record: Record) -> tuple[str, str]:
    text = record.caption or " ".join(f"{question} {answer}" for question, answer in record.turns[:1])
    if not record.images:
        return "", text
    image = Image.open(io.BytesIO(record.images[0])).convert("RGB")
    image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode(), text
