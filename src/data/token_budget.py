"""What the data of a run comes to: records, images, tokens and epochs per source, disk and shards; of what is not built yet, what
`data_prep/sources.yaml` lets expect."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from rich.table import Column, Table

from src.config.train import DataConfig, MixConfig
from src.data.mixture import BLOCK, Mixture, counts_per_block
from src.data.remote import CacheConfig, RemoteFileNotFound, is_remote, open_shards
from src.data.shards import Shards
from src.data.train_val_split import split_source
from src.runtime import paths

SOURCES_YAML = paths.REPOSITORY / "data_prep" / "sources.yaml"
CHARACTERS_PER_TOKEN = 4.0  # of English in a LLaMA vocabulary; assumed
IMAGE_BYTES, TEXT_BYTES, SHARD_BYTES = 40_000, 2_500, 64 << 20  # of a record before it is built: at 384 pixels and quality 90; assumed


@dataclass
class SourceBudget:
    """One source. `text` is tokens per record, without those of the prompt and special ones: counted by the tokenizer `counted_by`
    when the shards were built, else estimated from characters; None where it is not known before the source is built. It is `exact`
    where that tokenizer is the run's."""

    name: str
    built: bool
    records: int
    images: int
    text: float | None
    disk: int  # bytes of all its splits
    shards: int
    draws: int  # positions of the run's stream
    counted_by: str = ""  # id of a tokenizer
    exact: bool = False

    @property
    def epochs(self) -> float:
        return self.draws / self.records if self.records else float("inf")

    def tokens(self, patches: int) -> float | None:
        """Tokens that the run sees of it."""
        return None if self.text is None else self.draws * (self.text + self.images / max(self.records, 1) * patches)


def source_budgets(mix: MixConfig, data: DataConfig, *, steps: int, tokenizer: dict[str, str]) -> list[SourceBudget]:
    """In the order of the mix, for `steps` optimizer steps. `tokenizer` is the run's: its id and, where it is on this disk, sha256."""
    known = yaml.safe_load(SOURCES_YAML.read_text())
    dealt = counts_per_block(mix.sampling_weights)
    found = []
    for name in mix.sampling_weights:
        draws = round(steps * data.global_batch_size * dealt[name] / BLOCK)
        shards = _shards(name, data)
        expected = _expected(name, known.get(name, {}), draws)
        found.append(_built(shards, mix, data, tokenizer, draws=draws, name=name) if shards else expected)
    return found


def lengths(mix: MixConfig, data: DataConfig, *, patches: int, seed: int) -> list[int] | None:
    """Tokens of the samples of the first window of a run, those of prompts left out; None where a source is not built yet."""
    opened = {name: shards for name in mix.sampling_weights if (shards := _shards(name, data))}
    rows = {name: split_source(shards, decontaminate=mix.decontaminate, validate=data.val_samples)[0] for name, shards in opened.items()}
    if len(rows) < len(mix.sampling_weights) or not all(map(len, rows.values())):
        return None
    mixture = Mixture(mix.sampling_weights, rows, seed=seed)
    numbers_W, rows_W = mixture.take(0, data.packing_window)
    tokens_W = np.zeros(data.packing_window)
    for number, name in enumerate(mixture.sources):
        at_W, shards = numbers_W == number, opened[name]
        images = shards.column("num_images")[rows_W[at_W]] * data.images
        tokens_W[at_W] = _text(shards, rows_W[at_W]) + images * patches
    return tokens_W.clip(1, data.max_seq_len).astype(int).tolist()


def _text(shards: Shards, rows: np.ndarray) -> np.ndarray:
    """Text tokens per record: counted when the shards were built, else estimated from characters."""
    counted = shards.manifest.get("tokenizer")
    return shards.column("tokens")[rows] if counted else shards.column("text_length")[rows] / CHARACTERS_PER_TOKEN


def _shards(name: str, data: DataConfig) -> Shards | None:
    if not is_remote(data.root) and not (Path(data.root) / name / "manifest.json").exists():
        return None
    try:
        return open_shards(data.root, name, cache=CacheConfig(data.cache, data.cache_gb))
    except RemoteFileNotFound:
        return None


def _built(shards: Shards, mix: MixConfig, data: DataConfig, tokenizer: dict[str, str], *, draws: int, name: str) -> SourceBudget:
    rows, _ = split_source(shards, decontaminate=mix.decontaminate, validate=data.val_samples)
    counted, same_by = shards.manifest.get("tokenizer"), "sha256" if "sha256" in tokenizer else "id"
    tokens = _text(shards, rows)
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
        counted["id"] if counted else "",
        bool(counted) and counted[same_by] == tokenizer[same_by],
    )


def _expected(name: str, entry: dict, draws: int) -> SourceBudget:
    counts = [count for split, count in entry.get("counts", {}).items() if split != "from"]
    images = entry.get("images", True)
    size = sum(counts) * ((IMAGE_BYTES if images else 0) + TEXT_BYTES)
    records = entry.get("counts", {}).get("train", 0)
    return SourceBudget(name, False, records, records if images else 0, None, size, -(-size // SHARD_BYTES), draws)


def budget_table(found: list[SourceBudget], *, patches: int) -> Table:
    heads = ("records", "images", "text tokens", "tokens in the run", "epochs", "disk GB", "shards")
    counted = ", ".join(sorted({part.counted_by for part in found} - {""}))
    out = Table("source", *(Column(head, justify="right") for head in heads), box=None, caption=counted and f"tokens counted by {counted}")
    for part in found:
        tokens, about = part.tokens(patches), "" if part.exact else "about "
        out.add_row(
            part.name if part.built else f"{part.name} (not built)",
            f"{part.records:,}",
            f"{part.images:,}",
            "" if part.text is None else f"{about}{part.text:.0f}",
            "" if tokens is None else f"{about}{tokens / 1e6:,.1f} M",
            f"{part.epochs:.2f}",
            f"{part.disk / 1e9:.2f}",
            f"{part.shards:,}",
        )
    sums = [sum(getattr(part, name) for part in found) for name in ("records", "images", "disk", "shards")]
    out.add_row("together", f"{sums[0]:,}", f"{sums[1]:,}", "", "", "", f"{sums[2] / 1e9:.2f}", f"{sums[3]:,}", style="bold")
    return out
