"""The data card of a mix as HTML, Markdown and Croissant: `python -m data_prep.card mix=open out=data/shards to=outputs/card`."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep.card import html, markdown
from data_prep.card.croissant import croissant
from data_prep.card.facts import gather_facts
from src.runtime import arguments, paths
from src.runtime.atomic_file import atomic_file, explain_full_disk
from src.runtime.errors import UserError, report_user_errors, suggest

CONF = paths.CONF / "mix"


@dataclass
class CardConfig:
    """Writes card.html, card.md and croissant.json of a mix: counts, excluded records, licences and examples.

    python -m data_prep.card mix=open out=data/shards to=outputs/card

    mix  name of a file in conf/mix
    out  folder with the shards OUT/<source> of every source of the mix
    to   output folder of the card
    """

    mix: str
    out: Path
    to: Path


@report_user_errors
def main(words: list[str]) -> None:
    config = arguments.parse_arguments(CardConfig, words)
    write_card(config.mix, mix_shares(config.mix), config.out, config.to)
    print(f"wrote {config.to / 'card.html'}, card.md and croissant.json")


def mix_shares(mix: str) -> dict[str, float]:
    path = CONF / f"{mix}.yaml"
    names = [file.stem for file in CONF.glob("*.yaml")]
    if not path.exists():
        raise UserError(f"mix={mix}: no such file in conf/mix{suggest(mix, names)}")
    shares = yaml.safe_load(path.read_text())["shares"]
    if not isinstance(shares, dict):
        raise UserError(f"mix={mix}: the file states no shares; choose one of {', '.join(sorted(set(names) - {mix}))}")
    return {name: share for name, share in shares.items() if share > 0}


def write_card(mix: str, shares: dict[str, float], out: Path, to: Path) -> None:
    facts = gather_facts(out, shares)
    files = {
        "card.md": markdown.render(mix, facts),
        "card.html": html.render(mix, facts),
        "croissant.json": json.dumps(croissant(mix, facts), indent=1),
    }
    for name, text in files.items():
        with explain_full_disk(mix, to), atomic_file(to / name) as file:
            file.write(text.encode())
