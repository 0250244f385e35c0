"""Model card and data statement, made from what the run itself recorded; nothing in them is written by hand per model."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.config.train import TrainConfig
from src.data.lineage import lineage, missing_parent
from src.runtime import paths
from src.runtime.errors import UserError

SOURCES = paths.REPOSITORY / "data_prep" / "sources.yaml"
DEFINITIONS = {
    "bleu1": "BLEU-1 of the answer against its references, in 0..1, mean over questions",
    "exact": "share of answers equal to a reference after normalisation",
    "f1": "token F1 against the best reference, mean over questions",
    "accuracy": "share of closed or multiple-choice questions answered rightly",
    "macro_f1": "unweighted mean of the classes' F1",
}
CONDITIONS = {
    "real": "with its image",
    "none": "without an image",
    "real_minus_blank": "gain over a blank image",
    "real_minus_shuffled": "gain over another test image",
}
# library -> (task on the hub, whose scores are shown)
LIBRARIES = {
    "transformers": ("image-text-to-text", "Of this model"),
    "peft": ("text-generation", "Of the whole model that the adapter is a part of, encoder and projector included"),
    "timm": ("image-feature-extraction", "Questions: of the whole model that this encoder is a part of; transfer: of this encoder"),
}
PHANTOM = (
    "**Trained on phantoms.** Images and texts were drawn by a program that imitates the layouts of public datasets; the names below "
    "are those of the imitated datasets, none of which was used. The model knows nothing about medicine.\n"
)
IN_PART = (
    "**Trained in part on phantoms.** Images and texts of {} were drawn by a program that imitates the layouts of these datasets, which "
    "were not used.\n"
)


@dataclass
class CardFacts:
    """What a card tells: the run, its sources and its scores. `sources` include those of the runs whose weights it continued."""

    name: str
    config: TrainConfig
    result: dict[str, Any]
    sources: list[dict[str, Any]] = field(default_factory=list)
    ancestors: list[str] = field(default_factory=list)  # names of the runs whose weights it continued, the parent first

    @property
    def warning(self) -> str:
        phantoms = [f"{source['name']}{_run(source)}" for source in self.sources if source["phantom"]]
        if not phantoms:
            return ""
        return PHANTOM if len(phantoms) == len(self.sources) else IN_PART.format(", ".join(phantoms))


def collect_facts(folder: Path, config: TrainConfig) -> CardFacts:
    """Reads the results of a run, the training records of the run and of its ancestors, and the licences of `sources.yaml`.

    Raises `UserError` where the record of an ancestor is missing: a card without it would omit restrictions of its data.
    """
    records = lineage(folder)
    if missing := missing_parent(records):
        raise UserError(
            f"{folder}: run '{records[-1]['name']}' continued init={missing}, which is gone and left no record of its data, so that "
            "no card can name its licences; put the folder of that run back beside the others"
        )
    trained = json.loads((folder / "train.json").read_text())
    result = {**json.loads((folder / "result.json").read_text()), "git": trained["git"]}
    known = yaml.safe_load(SOURCES.read_text())
    sources = []
    for number, record in enumerate(records):
        for source in record["sources"]:
            entry = known.get(source["name"], {})
            licence = entry.get("licence", {})
            sources.append(
                {
                    "name": source["name"],
                    "ancestor": record["name"] if number else None,
                    "title": entry.get("title", source["name"]),
                    "share": source["share"],
                    "records": source["records"],
                    "licence": source["licence"] or licence.get("name", "unverified"),
                    "from": licence.get("from", "unsourced"),
                    "non_commercial": _word(licence.get("non_commercial", "unverified")),
                    "redistribute": _word(licence.get("redistribute", "unverified")),
                    "citation": entry.get("citation", ""),
                    "phantom": bool(source["phantom"]),
                }
            )
    return CardFacts(folder.name, config, result, sources, [record["name"] for record in records[1:]])


def usage_restrictions(story: CardFacts) -> str:
    """What follows for the use of the weights: every restriction, each with the sources that it comes from."""
    found = []
    for key, value, said in (
        ("non_commercial", "yes", "non-commercial use only"),
        ("redistribute", "no", "the data may not be passed on; whether weights may is unverified"),
        ("non_commercial", "unverified", "research use only until its licence is verified"),
        ("redistribute", "unverified", "whether the data may be passed on is unverified"),
    ):
        strict = list(dict.fromkeys(source["name"] for source in story.sources if source[key] == value))
        if strict:
            found.append(f"{said} (from {', '.join(strict)})")
    return "; ".join(found) or "every source allows commercial use and redistribution"


def model_card(story: CardFacts, *, library: str, usage: str) -> str:
    """README.md with the front matter of the Hugging Face hub."""
    config, result = story.config, story.result
    task, whose = LIBRARIES[library]
    base = config.language.path
    front = {
        "library_name": library,
        "pipeline_tag": task,
        **({"base_model": base} if library != "timm" and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else {}),
        "license": "other",
        "license_name": "see-data-statement",
        "language": ["en"],
        "tags": ["medical", "visual-question-answering", "research-only"],
    }
    encoder = config.vision.path or config.vision.architecture
    origin = ", trained from ".join(f"run `{name}`" for name in story.ancestors)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {story.name}\n",
        "**For research. Not a medical device, not for clinical use, not for advice to patients.**\n",
        *filter(None, [story.warning]),
        f"A vision-language model that answers questions about medical images: image encoder `{encoder}`, "
        f"projector `{config.projector.kind}`, language model `{config.language.path}` with LoRA of rank {config.language.lora.rank}.\n\n"
        f"Trained for {config.optim.steps:,} steps of {config.data.global_batch_size} samples (code {result['git']}, data {result['data']}).\n",
        *([f"Continued from the weights of {origin}.\n"] if origin else []),
        f"## Use\n\n{usage}\n",
        f"## Scores\n\n{scores(result['metrics'], of=whose)}\n",
        "## Intended use and limits\n\n"
        "Intended: research on medical vision-language models and on their evaluation. Out of scope: diagnosis, triage, treatment, any "
        "decision about a person. Answers are short and can be wrong while they sound sure; confidence is a mean token log-probability, "
        "not calibrated. English only. Where an answer does not change with the image (see the gain over a blank image above), it was not "
        "read from it.\n",
        data_statement(story),
    ]
    return "\n".join(parts)


def data_statement(story: CardFacts) -> str:
    """Sources, shares, licences with where they were read, and the strictest."""
    lines = [
        "## Data statement\n",
        f"Strictest licence: {usage_restrictions(story)}. The licences of the base weights hold besides; read their cards.\n",
        "| source | share | training records | licence | read at | non-commercial | may be passed on |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in story.sources:
        records = "not recorded" if source["records"] is None else f"{source['records']:,}"
        lines.append(
            f"| {source['title']} (`{source['name']}`){_run(source)} | {source['share']:.1%} | {records} | {source['licence']} "
            f"| {source['from']} | {source['non_commercial']} | {source['redistribute']} |"
        )
    cited = dict.fromkeys(f"- {source['citation']}" for source in story.sources if source["citation"])
    return "\n".join(lines) + ("\n\n" + "\n".join(cited) if cited else "") + "\n"


def scores(metrics: dict[str, dict], *, of: str) -> str:
    """The scores of all questions, a benchmark's in one row each, and of transfer, with 95% intervals and what they mean."""
    asked: dict[tuple[str, str], dict[str, dict]] = {}
    moved = {}
    for key, found in metrics.items():
        word = key.split("/")
        if word[0] == "vqa" and word[3] == "all" and word[2] in CONDITIONS and word[4] in DEFINITIONS:
            asked.setdefault((word[1], word[4]), {})[word[2]] = found
        elif word[:2] == ["transfer", "mean"] and word[-1] in DEFINITIONS:
            moved[word[4], word[2], word[3]] = found
    if not asked and not moved:
        return "This run has not been evaluated."
    lines = [f"{of}. With 95% intervals; gains are paired.", ""]
    if asked:
        lines += [f"| benchmark | score | n | {' | '.join(CONDITIONS.values())} |", f"|---|---|---|{'---|' * len(CONDITIONS)}"]
        for (name, score), row in asked.items():
            cells = [_interval(row[one]) if one in row else "" for one in CONDITIONS]
            lines.append(f"| {name} | {score} | {next(iter(row.values()))['n']:,} | {' | '.join(cells)} |")
    if moved:
        sets = sorted({key.split("/")[1] for key in metrics if key.startswith("transfer/")} - {"mean"})
        lines += ["", f"Transfer, mean of {', '.join(sets)}:", "", "| encoder | by | score | value | n |", "|---|---|---|---|---|"]
        lines += [f"| {name} | {how} | {score} | {_interval(found)} | {found['n']:,} |" for (score, name, how), found in moved.items()]
    used = {score for _, score in asked} | {score for score, *_ in moved}
    return "\n".join([*lines, "", *(f"- {name}: {DEFINITIONS[name]}" for name in sorted(used))])


def _interval(found: dict) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _run(source: dict[str, Any]) -> str:
    """Which ancestor was trained on the source; empty for a source of the run itself."""
    return f" in run `{source['ancestor']}`" if source["ancestor"] else ""


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
