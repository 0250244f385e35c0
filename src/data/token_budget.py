"""Size of the data of a run per source: records, images, tokens, epochs, disk and shards.

Sources that are not built yet are estimated from `data_prep/sources.yaml`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Column, Table

from src.config.train import DataConfig, MixConfig
from src.data.mixture import BLOCK, counts_per_block, mixture_of
from src.data.remote import CacheConfig, RemoteFileNotFound, is_remote, open_shards
from src.data.shards import Shards
from src.data.source_entries import source_entries
from src.data.subsets import check_subsets, comparable
from src.data.train_val_split import split_source

CHARACTERS_PER_TOKEN = 4.0  # English text in a LLaMA vocabulary; assumed
IMAGE_BYTES, TEXT_BYTES, SHARD_BYTES = 40_000, 2_500, 64 << 20  # per record, at 384 pixels and JPEG quality 90; assumed


@dataclass
class SourceBudget:
    """Size of one source.

    `text`: mean text tokens per record, without prompt and special tokens. If the build counted tokens, `counted_by` names the tokenizer;
    otherwise `text` is estimated from characters. None if the source is not built. `exact`: `counted_by` is the tokenizer of this run.
    """

    name: str
    built: bool
    records: int
    images: int
    text: float | None
    disk: int  # bytes of all its splits
    shards: int
    draws: int  # samples of the stream of the run
    counted_by: str = ""  # id of a tokenizer
    exact: bool = False

    @property
    def epochs(self) -> float:
        return self.draws / self.records if self.records else float("inf")

    def tokens(self, patches: int) -> float | None:
        """Tokens of this source in the whole run."""
        return None if self.text is None else self.draws * (self.text + self.images / max(self.records, 1) * patches)


def source_budgets(mix: MixConfig, data: DataConfig, *, steps: int, tokenizer: dict[str, str]) -> list[SourceBudget]:
    """Budgets in the order of the mix, for `steps` optimizer steps.

    `tokenizer` is the one of the run: its "id" and, for a local tokenizer, "sha256".
    """
    entries = source_entries()
    counts = counts_per_block(mix.sampling_weights)
    budgets = []
    for name in mix.sampling_weights:
        draws = round(steps * data.global_batch_size * counts[name] / BLOCK)
        shards = _open_if_built(name, data)
        if shards:
            check_subsets(shards, mix, name)
        estimate = _estimated_budget(name, entries.get(name, {}), mix, draws)
        budgets.append(_built_budget(shards, mix, data, tokenizer, draws=draws, name=name) if shards else estimate)
    return budgets


def window_lengths(mix: MixConfig, data: DataConfig, *, patches: int, seed: int) -> list[int] | None:
    """Tokens per sample of the first window of a run, without those of prompts; None if a source is not built yet."""
    opened = {name: shards for name in mix.sampling_weights if (shards := _open_if_built(name, data))}
    rows = {name: split_source(shards, **mix.selection(name), val_samples=data.val_samples)[0] for name, shards in opened.items()}
    if len(rows) < len(mix.sampling_weights) or not all(map(len, rows.values())):
        return None
    mixture = mixture_of(opened, mix.sampling_weights, rows, shuffle=data.shuffle, seed=seed)
    numbers_W, rows_W = mixture.take(0, data.packing_window)
    tokens_W = np.zeros(data.packing_window)
    for number, name in enumerate(mixture.sources):
        at_W, shards = numbers_W == number, opened[name]
        images = shards.column("num_images")[rows_W[at_W]] * data.images
        tokens_W[at_W] = _text_tokens(shards, rows_W[at_W]) + images * patches
    return tokens_W.clip(1, data.max_seq_len).astype(int).tolist()


def _text_tokens(shards: Shards, rows: np.ndarray) -> np.ndarray:
    """Text tokens per record: counted when the shards were built, else estimated from characters."""
    return shards.column("tokens")[rows] if shards.manifest.get("tokenizer") else shards.column("text_length")[rows] / CHARACTERS_PER_TOKEN


def _open_if_built(name: str, data: DataConfig) -> Shards | None:
    if not is_remote(data.root) and not (Path(data.root) / name / "manifest.json").exists():
        return None
    try:
        return open_shards(data.root, name, cache=CacheConfig(data.cache, data.cache_gb))
    except RemoteFileNotFound:
        return None


def _built_budget(shards: Shards, mix: MixConfig, data: DataConfig, tokenizer: dict[str, str], *, draws: int, name: str) -> SourceBudget:
    rows, _ = split_source(shards, **mix.selection(name), val_samples=data.val_samples)
    counted_by, identity = shards.manifest.get("tokenizer"), "sha256" if "sha256" in tokenizer else "id"
    tokens = _text_tokens(shards, rows)
    tars = shards.manifest["shards"]
    return SourceBudget(
        name,
        True,
        len(rows),
        int(shards.column("num_images")[rows].sum()),
        float(tokens.mean()) if len(rows) else 0.0,
        sum(tar["bytes"] for tar in tars),
        len(tars),
        draws,
        counted_by["id"] if counted_by else "",
        bool(counted_by) and counted_by[identity] == tokenizer[identity],
    )


def _estimated_budget(name: str, entry: dict, mix: MixConfig, draws: int) -> SourceBudget:
    counts = [count for split, count in entry.get("counts", {}).items() if split != "from"]
    images = entry.get("images", True)
    size = sum(counts) * ((IMAGE_BYTES if images else 0) + TEXT_BYTES)
    records = entry.get("counts", {}).get("train", 0)
    excluded, limit = (mix.selection(name)[key] for key in ("exclude", "max_per_subset"))
    if (excluded or limit) and entry.get("subsets"):
        left_out = set(map(comparable, excluded))
        records = sum(min(count, limit or count) for subset, count in entry["subsets"].items() if comparable(subset) not in left_out)
    return SourceBudget(name, False, records, records if images else 0, None, size, -(-size // SHARD_BYTES), draws)


def bytes_per_sample(budgets: list[SourceBudget]) -> float:
    """Mean size on disk of the samples that the run draws."""
    drawn = [(budget.draws, budget.disk / budget.records) for budget in budgets if budget.records]
    return sum(draws * size for draws, size in drawn) / max(1, sum(draws for draws, _ in drawn))


def budget_table(budgets: list[SourceBudget], *, patches: int) -> Table:
    headers = ("records", "images", "text tokens", "tokens in the run", "epochs", "disk GB", "shards")
    counted_by = ", ".join(sorted({budget.counted_by for budget in budgets} - {""}))
    columns = [Column(header, justify="right") for header in headers]
    table = Table("source", *columns, box=None, caption=counted_by and f"tokens counted by {counted_by}")
    for budget in budgets:
        tokens, about = budget.tokens(patches), "" if budget.exact else "about "
        table.add_row(
            budget.name if budget.built else f"{budget.name} (not built)",
            f"{budget.records:,}",
            f"{budget.images:,}",
            "" if budget.text is None else f"{about}{budget.text:.0f}",
            "" if tokens is None else f"{about}{tokens / 1e6:,.1f} M",
            f"{budget.epochs:.2f}",
            f"{budget.disk / 1e9:.2f}",
            f"{budget.shards:,}",
        )
    sums = [sum(getattr(budget, name) for budget in budgets) for name in ("records", "images", "disk", "shards")]
    table.add_row("total", f"{sums[0]:,}", f"{sums[1]:,}", "", "", "", f"{sums[2] / 1e9:.2f}", f"{sums[3]:,}", style="bold")
    return table
