"""Model card and data statement, generated from the records of the run."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.config.train import TrainConfig
from src.data.credentialed import TERMS, is_credentialed
from src.data.lineage import credentialed, lineage, missing_parent
from src.data.source_entries import source_entries
from src.data.subsets import usage_texts
from src.inference.query import describe_training_data
from src.runtime.errors import UserError
from src.runtime.run_folder import run_name

DEFINITIONS = {
    "bleu1": "BLEU-1 of the answer against its references, from 0 to 1, mean over questions",
    "exact": "fraction of answers that equal a reference after normalisation",
    "f1": "token F1 against the best reference, mean over questions",
    "accuracy": "fraction of closed or multiple-choice questions that were answered correctly",
    "macro_f1": "unweighted mean of the F1 of the classes; of the labels of a multi-label set at thresholds chosen on validation",
}
CONDITIONS = {
    "real": "with the image",
    "none": "without an image",
    "real_minus_blank": "gain over a blank image",
    "real_minus_shuffled": "gain over another test image",
}
# library -> (task on the hub, sentence on what the scores belong to)
LIBRARIES = {
    "transformers": ("image-text-to-text", "Scores of this model"),
    "peft": ("text-generation", "Scores of the full model, with the image encoder and the projector"),
    "timm": ("image-feature-extraction", "Scores on questions belong to the full model; transfer scores belong to this encoder"),
}
PHANTOM = (
    "**Trained on phantoms.** A program generated all images and texts in the file layout of public datasets. The names below are those "
    "of the imitated datasets; their data was not used. The model has learned nothing about medicine.\n"
)
IN_PART = (
    "**Trained in part on phantoms.** A program generated the images and texts of {} in the file layout of these datasets; their data "
    "was not used.\n"
)
CREDENTIALED = (
    "**Credentialed.** Trained on {}: only credentialed users have access to this data, each under a data use agreement. "
    f"{TERMS} Sources, not read in full here: the PhysioNet guidelines of 2024-04-24 on derived datasets and models, from an indexed "
    "abstract; DataUseAgreement-v1.5.0.md of MIT-LCP/license-and-dua.\n"
)


@dataclass
class CardFacts:
    """The facts on a card: the run, its sources and its scores. `sources` includes those of the runs whose weights it continued."""

    name: str
    config: TrainConfig
    result: dict[str, Any]
    sources: list[dict[str, Any]] = field(default_factory=list)
    ancestors: list[str] = field(default_factory=list)  # names of the runs whose weights it continued, the parent first
    credentialed: list[str] = field(default_factory=list)  # credentialed sources of the run, its ancestors and its pretrained parts
    push_reason: str = ""  # why the upload of a credentialed model is permitted, as its user states it

    @property
    def warnings(self) -> list[str]:
        """The paragraphs that stand at the top of every card. `ask` and the demo show the first, on the training data."""
        only_phantoms = all(source["phantom"] for source in self.sources)  # phantom_warning says it
        training_data = "" if only_phantoms else f"**{describe_training_data(self.sources)}**\n"
        return list(filter(None, [training_data, self.phantom_warning, self.credentialed_warning]))

    @property
    def credentialed_warning(self) -> str:
        if not self.credentialed:
            return ""
        reason = f"\nReason for this upload, as stated by its user: {self.push_reason}\n" if self.push_reason else ""
        return CREDENTIALED.format(", ".join(f"`{name}`" for name in self.credentialed)) + reason

    @property
    def phantom_warning(self) -> str:
        phantoms = [f"{source['name']}{_ancestor(source)}" for source in self.sources if source["phantom"]]
        if not phantoms:
            return ""
        return PHANTOM if len(phantoms) == len(self.sources) else IN_PART.format(", ".join(phantoms))


def collect_facts(folder: Path, config: TrainConfig) -> CardFacts:
    """Reads the results of a run, the training records of the run and its ancestors, and the licences in `sources.yaml`.

    Raises `UserError` if the record of an ancestor is missing, because the card would omit the restrictions on its data.
    """
    records = lineage(folder)
    if missing := missing_parent(records):
        raise UserError(
            f"{folder}: run '{records[-1]['name']}' continued init={missing}, whose folder is missing, so the licences of its data are "
            "unknown; restore the folder of that run next to the others"
        )
    trained = json.loads((folder / "train.json").read_text())
    result = {**json.loads((folder / "result.json").read_text()), "git": trained["git"], "version": trained.get("version", "unknown")}
    known = source_entries()
    sources = []
    for generation, record in enumerate(records):
        for source in record["sources"]:
            entry = known.get(source["name"], {})
            licence = entry.get("licence", {})
            sources.append(
                {
                    "name": source["name"],
                    "ancestor": record["name"] if generation else None,
                    "title": entry.get("title", source["name"]),
                    "share": source["share"],
                    "records": source["records"],
                    "subsets": source.get("subsets", {}),
                    "licence": source["licence"] or licence.get("name", "unverified"),
                    "from": licence.get("from", "unsourced"),
                    "non_commercial": _yes_no(licence.get("non_commercial", "unverified")),
                    "redistribute": _yes_no(licence.get("redistribute", "unverified")),
                    "credentialed": "yes" if is_credentialed(source["name"], source) else "no",
                    "citation": entry.get("citation", ""),
                    "phantom": bool(source["phantom"]),
                }
            )
    return CardFacts(run_name(folder), config, result, sources, [record["name"] for record in records[1:]], credentialed(records))


def card_front(facts: CardFacts, front: dict[str, Any]) -> str:
    """The front matter of a card. `credentialed` lets `ask`, the demo and a training recognise an exported model."""
    return f"---\n{yaml.safe_dump(front | ({'credentialed': facts.credentialed} if facts.credentialed else {}), sort_keys=False)}---\n\n"


def usage_restrictions(facts: CardFacts) -> str:
    """All restrictions on the use of the weights, each with the sources that it comes from."""
    restrictions = []
    for key, value, text in (
        ("credentialed", "yes", "credentialed: to be treated as sensitive and shared only under the agreement of the data"),
        ("non_commercial", "yes", "non-commercial use only"),
        ("redistribute", "no", "the data may not be redistributed; whether the weights may be is unverified"),
        ("non_commercial", "unverified", "research use only until the licence is verified"),
        ("redistribute", "unverified", "whether the data may be redistributed is unverified"),
    ):
        names = list(dict.fromkeys(source["name"] for source in facts.sources if source.get(key) == value))
        if names:
            restrictions.append(f"{text} (from {', '.join(names)})")
    return "; ".join(restrictions) or "every source allows commercial use and redistribution"


def model_card(facts: CardFacts, *, library: str, usage: str) -> str:
    """The README.md of a part, with front matter for the Hugging Face Hub."""
    config, result = facts.config, facts.result
    task, scope = LIBRARIES[library]
    base = config.language.path
    front = {
        "library_name": library,
        "pipeline_tag": task,
        **({"base_model": base} if library != "timm" and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else {}),
        "license": "other",
        "license_name": "see-data-statement",
        "language": ["en"],
        "tags": ["medical", "visual-question-answering", "research-only", *(["credentialed"] if facts.credentialed else [])],
    }
    encoder = config.vision.path or config.vision.architecture
    origin = ", which was trained from ".join(f"run `{name}`" for name in facts.ancestors)
    parts = [
        f"{card_front(facts, front)}# {facts.name}\n",
        "**For research only. Not a medical device. Not for clinical use or for advice to patients.**\n",
        *facts.warnings,
        f"A vision-language model that answers questions about medical images: image encoder `{encoder}`, "
        f"projector `{config.projector.kind}`, language model `{config.language.path}` with LoRA rank {config.language.lora.rank}.\n\n"
        f"Trained for {config.optim.steps:,} steps of {config.data.global_batch_size} samples "
        f"(OpenMedQ {result['version']}, code {result['git']}, data {result['data']}).\n",
        *([f"Continued from the weights of {origin}.\n"] if origin else []),
        f"## Use\n\n{usage}\n",
        f"## Scores\n\n{scores(result['metrics'], scope=scope)}\n",
        "## Intended use and limits\n\n"
        "Intended use: research on medical vision-language models and their evaluation. Out of scope: diagnosis, triage, treatment and any "
        "other decision about a person. Answers are short and can be wrong while they sound certain. The confidence of an answer is its "
        "mean token log-probability and is not calibrated. The model knows English only. If the gain over a blank image (see the scores) "
        "is close to zero, the model does not use the image.\n",
        data_statement(facts),
    ]
    return "\n".join(parts)


def data_statement(facts: CardFacts) -> str:
    """The sources with their shares, their licences and where these were read, and the combined restrictions."""
    lines = [
        "## Data statement\n",
        f"Combined restrictions: {usage_restrictions(facts)}. The licences of the base weights apply, too; see their cards.\n",
        "| source | share | training records | licence | licence read at | non-commercial | redistribution allowed |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in facts.sources:
        records = "not recorded" if source["records"] is None else f"{source['records']:,}"
        lines.append(
            f"| {source['title']} (`{source['name']}`){_ancestor(source)} | {source['share']:.1%} | {records} | {source['licence']} "
            f"| {source['from']} | {source['non_commercial']} | {source['redistribute']} |"
        )
    for source in facts.sources:
        if source["subsets"]:
            used = "; ".join(f"{name} {text}" for name, text in usage_texts(source["subsets"]).items())
            lines += ["", f"Sub-sets of {source['name']}{_ancestor(source)}: {used}."]
    citations = dict.fromkeys(f"- {source['citation']}" for source in facts.sources if source["citation"])
    return "\n".join(lines) + ("\n\n" + "\n".join(citations) if citations else "") + "\n"


def scores(metrics: dict[str, dict], *, scope: str) -> str:
    """Tables of the scores on all questions (one row per benchmark and score) and of mean transfer, with 95% intervals and definitions."""
    by_benchmark: dict[tuple[str, str], dict[str, dict]] = {}
    transfer = {}
    for key, metric in metrics.items():
        parts = key.split("/")
        if parts[0] == "vqa" and parts[3] == "all" and parts[2] in CONDITIONS and parts[4] in DEFINITIONS:
            by_benchmark.setdefault((parts[1], parts[4]), {})[parts[2]] = metric
        elif parts[:2] == ["transfer", "mean"] and parts[-1] in DEFINITIONS:
            transfer[parts[4], parts[2], parts[3]] = metric
    if not by_benchmark and not transfer:
        return "This run has not been evaluated."
    lines = [f"{scope}. Brackets are 95% intervals; gains are paired differences.", ""]
    if by_benchmark:
        lines += [f"| benchmark | score | n | {' | '.join(CONDITIONS.values())} |", f"|---|---|---|{'---|' * len(CONDITIONS)}"]
        for (benchmark, score), row in by_benchmark.items():
            cells = [_interval(row[condition]) if condition in row else "" for condition in CONDITIONS]
            lines.append(f"| {benchmark} | {score} | {next(iter(row.values()))['n']:,} | {' | '.join(cells)} |")
    if transfer:
        benchmarks = sorted({key.split("/")[1] for key in metrics if key.startswith("transfer/")} - {"mean"})
        lines += [
            "",
            f"Transfer, mean of {', '.join(benchmarks)}:",
            "",
            "| encoder | protocol | score | value | n |",
            "|---|---|---|---|---|",
        ]
        for (score, encoder, protocol), metric in transfer.items():
            lines.append(f"| {encoder} | {protocol} | {score} | {_interval(metric)} | {metric['n']:,} |")
    used = {score for _, score in by_benchmark} | {score for score, *_ in transfer}
    return "\n".join([*lines, "", *(f"- {name}: {DEFINITIONS[name]}" for name in sorted(used))])


def _interval(metric: dict) -> str:
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _ancestor(source: dict[str, Any]) -> str:
    """Names the ancestor that was trained on the source; empty for a source of the run itself."""
    return f" in run `{source['ancestor']}`" if source["ancestor"] else ""


def _yes_no(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
