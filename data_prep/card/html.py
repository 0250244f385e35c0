"""The data card as one self-contained HTML page."""

from html import escape

from data_prep.card.facts import SourceFacts, histogram, phantom_sources, splits_present, usage_restrictions
from data_prep.card.markdown import duplicate_text, excluded_text, licence_text, subset_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dee4 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } td, th { padding: .25rem .6rem; text-align: right }
th { border-bottom: 2px solid #1b1f24 } td:first-child, th:first-child, .words td, .words th { text-align: left }
tr:nth-child(even) td { background: #f6f8fa }
.strip { display: flex; flex-wrap: wrap; gap: .6rem } figure { margin: 0; width: 160px } figure img { height: 112px }
figcaption { font-size: .75rem; color: #57606a; max-height: 4.5em; overflow: hidden } .notes { color: #57606a } .scroll { overflow-x: auto }
svg { display: block } svg rect { fill: #4978a8 } svg text { font-size: 9px; fill: #57606a }
.charts { display: flex; gap: 2rem; flex-wrap: wrap }
"""
WIDTH, HEIGHT = 300, 70  # pixels of a histogram


def render(mix: str, facts: list[SourceFacts]) -> str:
    records, images = sum(one.total["written"] for one in facts), sum(int(one.shards.column("num_images").sum()) for one in facts)
    title = f"Data card of the mix '{escape(mix)}'"
    body = [
        f"<h1>{title}</h1>",
        f"<p>{records:,} records with {images:,} images from {len(facts)} sources; "
        f"{sum(one.num_trainable for one in facts):,} records for training.</p>",
        f"<p><b>{escape(notice)}</b></p>" if (notice := phantom_sources(facts)) else "",
        f"<p><b>Restrictions on the whole mix:</b> {escape(usage_restrictions(facts))}.</p>",
        "<h2>Counts</h2><p>Raw rows (in) = written + quarantined + duplicates + filtered.</p>",
        _counts(facts),
        "<h2>Licences</h2>",
        _licences(facts),
        *map(_source, facts),
    ]
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{title}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>\n"


def _counts(facts: list[SourceFacts]) -> str:
    names = ("in", "written", "quarantined", "duplicates", "filtered")
    rows = []
    for one in facts:
        for split in splits_present(one):
            expected = one.entry.expected.get(split)
            cells = [one.entry.name, split, f"{one.share:.1%}" if split == "train" else ""]
            rows.append([*cells, *(f"{one.counts[split][name]:,}" for name in names), f"{expected:,}" if expected else ""])
    return _table(["source", "split", "share", *names, "expected"], rows)


def _licences(facts: list[SourceFacts]) -> str:
    rows = [
        [one.entry.name, licence_text(one), one.entry.licence.source, one.entry.licence.redistribute, one.entry.licence.non_commercial]
        for one in facts
    ]
    return _table(["source", "licence", "stated at", "redistribution", "non-commercial"], rows, kind="words")


def _table(header: list[str], rows: list[list[str]], *, kind: str = "numbers") -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table class='{kind}'><tr>{cells}</tr>{lines}</table></div>"


def _source(one: SourceFacts) -> str:
    examples = "".join(
        f"<figure>{f'<img src={url!r} alt=example>' if url else ''}<figcaption>{escape(text[:180])}</figcaption></figure>"
        for url, text in one.examples()
    )
    return (
        f"<h2>{escape(one.entry.title or one.entry.name)}</h2>"
        f"<p class='notes'>{escape(one.entry.citation)} {escape(one.entry.notes)}</p>"
        f"<p><b>Excluded:</b> {escape(excluded_text(one))}.</p>"
        f"{f'<p><b>Sub-sets:</b> {escape(subset_text(one))}.</p>' if one.subsets() else ''}"
        f"<p><b>Images:</b> {escape(duplicate_text(one))}.</p>"
        f"<div class='charts'>{_chart('characters of text per record', *histogram(one.lengths()))}"
        f"{_chart('longer side of the image before resizing, pixels', *histogram(one.sides()))}</div>"
        f"<div class='strip'>{examples}</div>"
    )


def _chart(title: str, counts: list[int], edges: list[int]) -> str:
    """A histogram with bars of equal width on a logarithmic scale."""
    if not counts:
        return ""
    width, peak = WIDTH / len(counts), max(counts)
    bars = "".join(
        f"<rect x='{n * width:.1f}' y='{HEIGHT * (1 - count / peak):.1f}' width='{width - 1:.1f}' height='{HEIGHT * count / peak:.1f}'/>"
        for n, count in enumerate(counts)
    )
    labels = f"<text x='0' y='{HEIGHT + 11}'>{edges[0]:,}</text><text x='{WIDTH}' y='{HEIGHT + 11}' text-anchor='end'>{edges[-1]:,}</text>"
    svg = f"<svg width='{WIDTH}' height='{HEIGHT + 14}'>{bars}{labels}</svg>"
    return f"<figure style='width:{WIDTH}px'><figcaption>{title}</figcaption>{svg}</figure>"
