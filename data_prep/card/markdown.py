"""The data card as Markdown."""

from data_prep.card.facts import SourceFacts, phantom_sources, splits_present, usage_restrictions

HEADER = "| source | split | share | in | written | quarantined | duplicates | filtered | expected |\n|---|---|---|---|---|---|---|---|---|"


def render(mix: str, facts: list[SourceFacts]) -> str:
    images = sum(int(one.shards.column("num_images").sum()) for one in facts)
    records, trainable = sum(one.total["written"] for one in facts), sum(one.num_trainable for one in facts)
    parts = [
        f"# Data card of the mix '{mix}'",
        f"{records:,} records with {images:,} images from {len(facts)} sources; {trainable:,} records for training.",
        *filter(None, [phantom_sources(facts)]),
        f"Restrictions on the whole mix: {usage_restrictions(facts)}.",
        "## Counts\n\nRaw rows (in) = written + quarantined + duplicates + filtered.",
        "\n".join([HEADER, *(row for one in facts for row in count_rows(one))]),
        "## Excluded",
        "\n".join(f"- {one.entry.name}: {excluded_text(one)}" for one in facts),
        *(f"Sub-sets of {one.entry.name}: {subset_text(one)}." for one in facts if one.subsets()),
        "## Images\n\nA repeated image has another text or is in another split; with the same text it counts as a duplicate.",
        "\n".join(f"- {one.entry.name}: {duplicate_text(one)}" for one in facts),
        "## Licences",
        "\n".join(["| source | licence | stated at | redistribution | non-commercial |\n|---|---|---|---|---|", *map(_licence, facts)]),
        "## Sources",
        "\n".join(map(_citation, facts)),
    ]
    return "\n\n".join(parts) + "\n"


def count_rows(one: SourceFacts) -> list[str]:
    rows = []
    for number, split in enumerate(splits_present(one)):
        counts, expected = one.counts[split], one.entry.expected.get(split)
        share = f"{one.share:.1%}" if not number else ""
        cells = [f"{counts[name]:,}" for name in ("in", "written", "quarantined", "duplicates", "filtered")]
        rows.append("| " + " | ".join([one.entry.name, split, share, *cells, f"{expected:,}" if expected else ""]) + " |")
    return rows


def excluded_text(one: SourceFacts) -> str:
    """Excluded records in one line: quarantined, filtered and leaking ones, with the reasons."""
    parts = [f"{count:,} {reason}" for reason, count in one.reasons()]
    parts += [f"{count:,} filtered: {reason}" for reason, count in one.shards.manifest.get("filtered", {}).items()]
    if not one.audit:
        parts.append("not audited")
    elif one.audit["leaks"]:
        parts.append("in a test set: " + ", ".join(f"{name} {count:,}" for name, count in one.audit["leaks"].items()))
    if one.audit.get("groups_on_two_sides"):
        parts.append(f"{one.audit['groups_on_two_sides']:,} groups are in test and another split")
    return "; ".join(parts) or "nothing"


def subset_text(one: SourceFacts) -> str:
    return "; ".join(f"{name} {text}" for name, text in one.subsets().items())


def duplicate_text(one: SourceFacts) -> str:
    """Number of images, and number of distinct ones by the perceptual hash of the audit."""
    images = one.audit.get("images")
    if not images:
        return "not audited"
    return f"{images['all']:,} images, {images['different']:,} distinct by perceptual hash" if images["all"] else "no images"


def licence_text(one: SourceFacts) -> str:
    """The licence of the source and those of its records."""
    counts = ", ".join(f"{name} {count:,}" for name, count in one.licences().items())
    return f"{one.entry.licence.name}; records: {counts}" if counts else one.entry.licence.name


def _licence(one: SourceFacts) -> str:
    licence = one.entry.licence
    return f"| {one.entry.name} | {licence_text(one)} | {licence.source or '-'} | {licence.redistribute} | {licence.non_commercial} |"


def _citation(one: SourceFacts) -> str:
    return f"- **{one.entry.title or one.entry.name}**: {one.entry.citation or 'own data'}. {one.entry.notes}".rstrip()
