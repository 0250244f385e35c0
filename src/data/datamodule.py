"""The training stream as a LightningDataModule; its only state is the number of optimizer steps taken.

    Step 1  window w covers positions [w * window, (w + 1) * window) of the mixture
    Step 2  their texts are read and tokenised; images are only counted
    Step 3  the samples are packed, best fit decreasing, into rows of `max_seq_len`; the rows are shuffled
    Step 4  the rows are dealt evenly over window / global_batch_size steps
    Step 5  the rows of a step or, for several ranks, its samples are shared over ranks and accumulation slots
    Step 6  the rows of one slot become a batch: now the images are read and decoded

So a step needs nothing but its window: seeking is O(1), and the samples of a step are the same for any number of workers,
ranks and accumulation slots.
"""

import hashlib
import json
import math
from collections.abc import Iterator

import lightning
import numpy as np
import torch
import xxhash
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from src.config.train import DataConfig, MixConfig
from src.data.image_transform import record_pixels
from src.data.loader import Loader, prepare_worker
from src.data.mixture import VERSION, Mixture
from src.data.packing import Batch, collate, pack, share, split_evenly
from src.data.prompt import EncodedSample, Prompter
from src.data.remote import CacheConfig, is_remote
from src.data.shards import Shards
from src.data.train_val_split import open_sources, split_rows
from src.runtime.errors import UserError
from src.runtime.run_folder import diff_configs, is_first_rank


def data_fingerprint(
    shards: dict[str, Shards], mix: MixConfig, *, seed: int, data: DataConfig, rows: dict[str, np.ndarray] | None = None
) -> dict:
    """What the order of the stream depends on. A run resumes only if all of it is unchanged. `rows`: that may be drawn, where known."""
    drawn = sorted((rows or split_rows(shards, mix, validate=data.val_samples)[0]).items())
    return {
        "version": VERSION,
        "shards": {source: opened.manifest["fingerprint"] for source, opened in sorted(shards.items())},
        "shares": dict(sorted(mix.sampling_weights.items())),
        "decontaminate": mix.decontaminate,
        "records": {source: rows_digest(rows) for source, rows in drawn},  # an audit changes them
        "seed": seed,
        "packing_window": data.packing_window,
        "global_batch_size": data.global_batch_size,
        "max_seq_len": data.max_seq_len,
        "images": data.images,
    }


def rows_digest(rows: np.ndarray) -> str:
    return f"{len(rows):,} ({xxhash.xxh3_64_hexdigest(rows.data)[:8]})"


def fingerprint_id(print_of: dict) -> str:
    """Without the seed: runs over several seeds are on the same data."""
    kept = {key: value for key, value in print_of.items() if key != "seed"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


class PackedStream(IterableDataset):
    """Batches of one rank from micro-batch `start` on, without end."""

    def __init__(
        self, shards, mixture: Mixture, prompter: Prompter, *, data: DataConfig, size: int, seed: int, rank: int, world: int, slots: int
    ):
        self.shards = [shards[source] for source in mixture.sources]
        self.mixture, self.prompter, self.data, self.size, self.seed = mixture, prompter, data, size, seed
        self.rank, self.world, self.slots = rank, world, slots
        self.start = 0
        self._held: tuple[int, list[list[tuple[EncodedSample, int, int]]]] | None = None

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        micro = self.start + number
        while True:
            try:
                yield self.batch(micro // self.slots, slot=micro % self.slots)
            except UserError as mistake:
                if worker is None:
                    raise
                yield mistake  # as a value: an exception of a worker is raised again with the worker's traceback as its text
                return
            micro += count

    def batch(self, step: int, *, slot: int) -> Batch:
        """The rows of accumulation slot `slot` of this rank in optimizer step `step`."""
        rows = share(self.step_rows(step), rank=self.rank, world=self.world, slot=slot, slots=self.slots)
        return self.to_batch(rows)

    def step_rows(self, step: int) -> list[list[tuple[EncodedSample, int, int]]]:
        """Rows of (sample, source number, row in the index) of one optimizer step, over all ranks and slots."""
        steps = self.data.packing_window // self.data.global_batch_size
        rows = self.window(step // steps)
        return [rows[n] for n in split_evenly(len(rows), steps, step % steps)]

    def window(self, number: int) -> list[list[tuple[EncodedSample, int, int]]]:
        if self._held is None or self._held[0] != number:
            self._held = (number, self._pack_window(number))
        return self._held[1]

    def _pack_window(self, number: int) -> list[list[tuple[EncodedSample, int, int]]]:
        sources, index_rows = self._drawn(number)
        samples: list[tuple[EncodedSample, int, int]] = []
        self._expect(number)
        for source in np.unique(sources).tolist():
            mine = index_rows[sources == source].tolist()
            samples += [(sample, source, row) for sample, row in zip(self.encoded(source, mine), mine, strict=True)]
        self._expect(number + 1)
        packed = pack([len(sample.ids) for sample, _, _ in samples], self.data.max_seq_len)
        order = np.random.Generator(np.random.Philox(key=[self.seed + 1, number])).permutation(len(packed))
        return [[samples[item] for item in packed[n]] for n in order]

    def _drawn(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        start = number * self.data.packing_window
        return self.mixture.take(start, start + self.data.packing_window)

    def _expect(self, number: int) -> None:
        """Shards of a window that are not on this disk begin to come, in its order."""
        if is_remote(self.data.root):
            for source, row in zip(*self._drawn(number), strict=True):
                self.shards[source].expect(row)

    def encoded(self, source: int, rows: list[int]) -> list[EncodedSample]:
        """Records as tokens; their images are only counted."""
        opened = self.shards[source]
        counts = opened.column("num_images")[rows] if self.data.images else np.zeros(len(rows), int)
        return self.prompter.encode(opened.texts(rows), num_images=counts.tolist())

    def to_batch(self, rows: list[list[tuple[EncodedSample, int, int]]]) -> Batch:
        images, keys = [], []
        for sample, source, row in (item for items in rows for item in items):
            images += record_pixels(self.shards[source], row, size=self.size, exact=self.data.exact_decode) if sample.num_images else []
            keys.append(f"{self.mixture.sources[source]}:{row}")
        return collate(
            [[sample for sample, _, _ in row] for row in rows],
            sources=[[source for _, source, _ in row] for row in rows],
            images=images,
            size=self.size,
            pad=self.prompter.eos,
            image_id=self.prompter.image_id,
            keys=keys,
        )


class DataModule(lightning.LightningDataModule):
    """Training stream and fixed validation batches."""

    def __init__(self, mix: MixConfig, data: DataConfig, *, prompter: Prompter, size: int, seed: int, slots: int):
        super().__init__()
        self.mix, self.data, self.prompter, self.size, self.seed, self.slots = mix, data, prompter, size, seed, slots
        self.shards = open_sources(data.root, mix, cache=CacheConfig(data.cache, data.cache_gb))
        rows, self.checked = split_rows(self.shards, mix, validate=data.val_samples)
        self.fingerprint = data_fingerprint(self.shards, mix, seed=seed, data=data, rows=rows)
        self.mixture = Mixture(mix.sampling_weights, rows, seed=seed)
        for source, drawn in rows.items() if data.images else ():
            self._check_room(source, np.concatenate([drawn, self.checked[source]]))
        if is_remote(data.root) and is_first_rank():
            self._check_cache(rows)
        self.consumed = 0  # optimizer steps

    def _check_room(self, source: str, rows: np.ndarray) -> None:
        """Before the first step, since what a run cannot hold later would end it at every attempt to resume."""
        counts = self.shards[source].column("num_images")
        fullest = int(rows[counts[rows].argmax()])
        self.prompter.room(int(counts[fullest]), key=f"{source}/{self.shards[source].arrow('key')[fullest]}")

    def _check_cache(self, rows: dict[str, np.ndarray]) -> None:
        """Every window draws from all shards, in an order that a cache cannot foresee."""
        need = 0
        for source, opened in self.shards.items():
            numbers = np.unique(opened.column("shard")[np.concatenate([rows[source], self.checked[source]])])
            need += sum(opened.manifest["shards"][number]["bytes"] for number in numbers)
        if need > self.data.cache_gb * 1e9:
            print(
                f"warning: data.cache_gb={self.data.cache_gb:g} is less than the shards that this mix draws from, so that they are fetched "
                f"again and again; data.cache_gb={math.ceil(need / 1e8) / 10:g} holds them all"
            )

    def stream(self, *, rank: int = 0, world: int = 1) -> PackedStream:
        return PackedStream(
            self.shards,
            self.mixture,
            self.prompter,
            data=self.data,
            size=self.size,
            seed=self.seed,
            rank=rank,
            world=world,
            slots=self.slots,
        )

    def train_dataloader(self) -> Loader:
        stream = self.stream(rank=self.trainer.global_rank, world=self.trainer.world_size)
        stream.start = self.consumed * self.slots
        return self._loader(stream)

    def on_before_batch_transfer(self, batch: Batch | UserError, dataloader_idx: int) -> Batch:
        if isinstance(batch, UserError):
            raise batch
        return batch

    def validation_batches(self, *, rank: int = 0, world: int = 1) -> list[Batch]:
        """The records of each source that are checked, packed once."""
        stream = self.stream()
        rows: list = []
        for number, source in enumerate(self.mixture.sources):
            picked = self.checked[source].tolist()
            encoded = stream.encoded(number, picked)
            packed = pack([len(sample.ids) for sample in encoded], self.data.max_seq_len)
            rows += [[(encoded[item], number, picked[item]) for item in items] for items in packed]
        per_batch = max(1, len(stream.step_rows(0)) // (world * self.slots))
        batches = [rows[at : at + per_batch] for at in range(0, len(rows), per_batch)]
        # DDP synchronises every forward pass, so all ranks need equally many batches; an empty one has no supervised token.
        batches += [[]] * (-len(batches) % world or (not batches) * world)
        return [stream.to_batch(batch) for batch in batches[rank::world]]

    def val_dataloader(self) -> DataLoader:
        """The validation batches of this rank, built once."""
        return DataLoader(self.validation_batches(rank=self.trainer.global_rank, world=self.trainer.world_size), batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict:
        return {"consumed": self.trainer.global_step if self.trainer else self.consumed, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        stored = state["fingerprint"]
        if stored.get("version") != VERSION:
            raise UserError(
                f"cannot resume: the checkpoint has version {stored.get('version', 1)} of the data order, this code {VERSION}; version 1 "
                "depends on the order of mix.shares, so some records would repeat and others be lost; resume with the code that wrote it, "
                "or start a run with another name and init=run:<name> to keep its weights"
            )
        changed = diff_configs(stored, self.fingerprint)
        if changed:
            said = "; ".join(list(changed.values())[:3])
            raise UserError(
                f"cannot resume: the data is not what it was when the checkpoint was written ({said}); "
                "restore it, or start a run with another name"
            )
        self.consumed = state["consumed"]

    def _loader(self, stream: PackedStream) -> Loader:
        workers = self.data.workers
        return Loader(
            stream,
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
            worker_init_fn=prepare_worker,
        )
