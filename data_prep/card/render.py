"""The data card of a mix as HTML, Markdown and Croissant: `python -m data_prep.card mix=open out=data/shards to=outputs/card`."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_prep.card import html, markdown
from data_prep.card.croissant import croissant
from data_prep.card.facts import gather_facts
from src.config.train import MixConfig
from src.runtime import paths
from src.runtime.arguments import parse_arguments
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
def main(args: list[str]) -> None:
    config = parse_arguments(CardConfig, args)
    write_card(config.mix, read_mix(config.mix), config.out, config.to)
    print(f"wrote {config.to / 'card.html'}, card.md and croissant.json")


def read_mix(mix: str) -> MixConfig:
    path = CONF / f"{mix}.yaml"
    names = [file.stem for file in CONF.glob("*.yaml")]
    if not path.exists():
        raise UserError(f"mix={mix}: no such file in conf/mix{suggest(mix, names)}")
    content = yaml.safe_load(path.read_text())
    if not isinstance(content["shares"], dict):
        raise UserError(f"mix={mix}: the file states no shares; choose one of {', '.join(sorted(set(names) - {mix}))}")
    return MixConfig(**{key: content[key] for key in ("shares", "decontaminate", "exclude", "max_per_subset") if key in content})


def write_card(mix: str, config: MixConfig, out: Path, to: Path) -> None:
    facts = gather_facts(out, config)
    files = {
        "card.md": markdown.render(mix, facts),
        "card.html": html.render(mix, facts),
        "croissant.json": json.dumps(croissant(mix, facts), indent=1),
    }
    for name, text in files.items():
        with explain_full_disk(mix, to), atomic_file(to / name) as file:
            file.write(text.encode())
