"""The data card of a mix as HTML, Markdown and Croissant: `python -m data_prep.card mix=full out=data/shards to=outputs/card`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep import arguments, card_html, card_markdown
from data_prep.atomic import atomic, full_disk_explained
from data_prep.card_facts import gather
from data_prep.croissant import croissant
from src.errors import UserError, command, nearest

CONF = Path(__file__).resolve().parent.parent / "conf" / "mix"


@dataclass
class Card:
    """Writes card.html, card.md and croissant.json of a mix: counts, what was left out and why, licences, pictures.

    python -m data_prep.card mix=full out=data/shards to=outputs/card

    mix  name of a file in conf/mix
    out  folder that holds the shards OUT/<source> of every source of the mix
    to   folder that gets the card
    """

    mix: str
    out: Path
    to: Path


@command
def main(words: list[str]) -> None:
    config = arguments.parse(Card, words)
    write(config.mix, shares(config.mix), config.out, config.to)
    print(f"{config.to / 'card.html'}, card.md and croissant.json")


def shares(mix: str) -> dict[str, float]:
    path = CONF / f"{mix}.yaml"
    known = [one.stem for one in CONF.glob("*.yaml")]
    if not path.exists():
        raise UserError(f"mix='{mix}' names no file in conf/mix{nearest(mix, known)}")
    found = yaml.safe_load(path.read_text())["shares"]
    if not isinstance(found, dict):
        raise UserError(f"mix='{mix}' states no shares of its own; name one of {', '.join(sorted(set(known) - {mix}))}")
    return {name: share for name, share in found.items() if share > 0}


def write(mix: str, parts: dict[str, float], out: Path, to: Path) -> None:
    facts = gather(out, parts)
    files = {
        "card.md": card_markdown.render(mix, facts),
        "card.html": card_html.render(mix, facts),
        "croissant.json": json.dumps(croissant(mix, facts), indent=1),
    }
    for name, text in files.items():
        with full_disk_explained(mix, to), atomic(to / name) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
