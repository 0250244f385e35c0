"""What a run prints about its data before it trains."""

import re

from src.config.train import TrainConfig
from src.data.datamodule import DataModule
from src.data.packing import low_utilization_warning
from src.data.prompt import IGNORE, prompt_answer_pairs
from src.data.shards import Shards
from src.runtime import run_folder

MAX_CUT = 0.01  # share of supervised tokens that may be cut without a warning
# Share of the distinct words that the tokenizer may not know without a warning. The tokenizer of the phantoms knew 52% of those of SLAKE,
# 15% of those of PubMedQA and 98% or more of its own; SmolLM2's knew 98% or more everywhere (512 training records each).
MAX_UNKNOWN = 0.3
WORD = re.compile(r"[^\W\d_]{4,}")


def audits(shards: dict[str, Shards], config: TrainConfig) -> dict[str, str | None]:
    """The fingerprint of each source's audit, by which an evaluation recognises a later audit. Prints a warning for sources without one."""
    fingerprints = {source: opened.audit["fingerprint"] if opened.audit else None for source, opened in shards.items()}
    absent = ", ".join(source for source, fingerprint in fingerprints.items() if fingerprint is None)
    if absent and run_folder.is_first_rank():
        root = config.data.root
        print(
            f"warning: no audit has compared the present build of {absent} with the test sets, so mix.decontaminate cannot keep their test "
            f"records out of training; run `python -m data_prep.audit out={root} raw=data/raw` "
            f"(or `make audit OUT={root} RAW=data/raw`) before training"
        )
    return fingerprints


def held_out_counts(data: DataModule) -> list[str]:
    """`source N` for each source without a validation split, from which N training records choose the best checkpoint instead."""
    rows = {source: data.val_rows[source] for source, shards in data.shards.items() if not len(shards.rows("val"))}
    return [f"{source} {len(held):,}" for source, held in rows.items() if len(held)]


def warn_if_ranks_wait(config: TrainConfig, data: DataModule) -> None:
    """Prints a warning if the samples of the first window cannot keep the ranks busy."""
    world = config.trainer.devices * config.trainer.nodes
    if world > 1 and run_folder.is_first_rank():
        lengths = [len(sample.ids) for sequence in data.stream().window(0) for sample, _, _ in sequence]
        if warning := low_utilization_warning(lengths, world, data=config.data, accumulate=config.trainer.accumulate):
            print(warning)


def text_warnings(config: TrainConfig, data: DataModule) -> list[str]:
    """What training would lose without an error: answers that are cut, and words that the tokenizer does not know. Of the first window."""
    items = [item for sequence in data.stream().window(0) for item in sequence]
    samples = [item.sample for item in items]
    supervised = sum(int((sample.labels != IGNORE).sum()) for sample in samples)
    cut = sum(sample.num_answer_truncated for sample in samples)
    records = (data.shards[data.mixture.sources[item.source]].text(item.row) for item in items)
    words = sorted({word for record in records for pair in prompt_answer_pairs(record) for text in pair for word in WORD.findall(text)})
    tokenizer, ids = data.prompter.tokenizer, data.prompter.tokens([f" {word}" for word in words])
    unknown = sum(is_unknown(word, word_ids, tokenizer.unk_token_id) for word, word_ids in zip(words, ids, strict=True))
    warnings, scope = [], f"of the first {len(samples):,} samples"
    if cut > MAX_CUT * (supervised + cut):
        warnings.append(
            f"{cut / (supervised + cut):.1%} of the supervised tokens {scope} are cut, because a sample, its images included, has at most "
            f"data.max_seq_len={config.data.max_seq_len} tokens; raise it, or split long texts"
        )
    if unknown > MAX_UNKNOWN * len(words):
        warnings.append(
            f"the tokenizer of language.path={config.language.path} does not know {unknown / len(words):.0%} of the {len(words):,} words "
            f"{scope} (it cuts them into letters), so the model learns them badly or not at all; choose another language=, such as smollm2"
        )
    return warnings


def is_unknown(word: str, ids: list[int], unknown_id: int | None) -> bool:
    """Whether a tokenizer has no token for a word or a large part of it: fewer than two bytes per token."""
    return unknown_id in ids or 2 * len(ids) > len(word.encode())
