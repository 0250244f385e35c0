"""The training stream as a LightningDataModule. Its only state is the number of optimizer steps taken.

    Step 1  window w covers positions [w * packing_window, (w + 1) * packing_window) of the mixture
    Step 2  the texts of its samples are read and tokenised; images are only counted
    Step 3  the samples are packed (best-fit decreasing) into sequences of at most `max_seq_len` tokens; the sequences are shuffled
    Step 4  the sequences are split evenly over packing_window / global_batch_size optimizer steps
    Step 5  the sequences of a step (for several ranks, its samples) are split over ranks and micro-batches
    Step 6  the sequences of one micro-batch become a batch; only now are the images read and decoded

A step depends on its window alone: seeking is O(1), and the samples of a step are the same for any number of workers, ranks and
micro-batches. `src/data/packing.py` works through an example.
"""

from collections.abc import Iterator
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from src.config.train import DataConfig, MixConfig
from src.data.fingerprint import data_fingerprint
from src.data.image_transform import record_pixels
from src.data.loader import Loader, prepare_worker
from src.data.mixture import BLOCK, VERSION, Mixture, counts_per_block, mixture_of
from src.data.packing import Batch, IndexedSample, collate, micro_batch_sequences, pack, split_evenly
from src.data.prompt import SYSTEM_NOTE, EncodedSample, Prompter
from src.data.remote import CacheConfig, is_remote
from src.data.train_val_split import open_sources, split_rows
from src.data.working_set import cache_warning, source_load
from src.runtime.errors import UserError
from src.runtime.run_folder import diff_configs, is_first_rank


class PackedStream(IterableDataset):
    """Endless batches of one rank, from micro-batch `start` on."""

    def __init__(
        self,
        shards,
        mixture: Mixture,
        prompter: Prompter,
        *,
        data: DataConfig,
        size: int,
        seed: int,
        rank: int,
        world: int,
        accumulate: int,
    ):
        self.shards = [shards[source] for source in mixture.sources]
        self.mixture, self.prompter, self.data, self.size, self.seed = mixture, prompter, data, size, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.start = 0
        self._window_cache: tuple[int, list[list[IndexedSample]]] | None = None

    def __iter__(self) -> Iterator[Batch | UserError]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        micro = self.start + number
        while True:
            try:
                yield self.batch(micro // self.accumulate, micro_batch=micro % self.accumulate)
            except UserError as error:
                if worker is None:
                    raise
                yield error  # as a value: PyTorch would replace the message of an exception by the traceback of the worker
                return
            micro += count

    def batch(self, step: int, *, micro_batch: int) -> Batch:
        """One micro-batch of this rank in optimizer step `step`. `micro_batch` is its number in the step."""
        part = {"rank": self.rank, "world": self.world, "micro_batch": micro_batch, "accumulate": self.accumulate}
        return self.to_batch(micro_batch_sequences(self.step_sequences(step), **part))

    def step_sequences(self, step: int) -> list[list[IndexedSample]]:
        """The sequences of one optimizer step, over all ranks and micro-batches."""
        steps = self.data.packing_window // self.data.global_batch_size
        sequences = self.window(step // steps)
        return [sequences[n] for n in split_evenly(len(sequences), steps, step % steps)]

    def window(self, number: int) -> list[list[IndexedSample]]:
        """The shuffled sequences of one window."""
        if self._window_cache is None or self._window_cache[0] != number:
            self._window_cache = (number, self._pack_window(number))
        return self._window_cache[1]

    def _pack_window(self, number: int) -> list[list[IndexedSample]]:
        sources, index_rows = self._positions(number)
        samples: list[IndexedSample] = []
        self._prefetch(number)
        for source in np.unique(sources).tolist():
            rows = index_rows[sources == source].tolist()
            samples += [IndexedSample(sample, source, row) for sample, row in zip(self.encoded(source, rows), rows, strict=True)]
        self._prefetch(number + 1)
        packed = pack([len(item.sample.ids) for item in samples], self.data.max_seq_len)
        order = np.random.Generator(np.random.Philox(key=[self.seed + 1, number])).permutation(len(packed))
        return [[samples[item] for item in packed[n]] for n in order]

    def _positions(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        start = number * self.data.packing_window
        return self.mixture.take(start, start + self.data.packing_window)

    def _prefetch(self, number: int) -> None:
        """Starts to fetch the remote shards of a window, in its order."""
        if is_remote(self.data.root):
            sources, rows = self._positions(number)
            for source in np.unique(sources):
                self.shards[source].prefetch(rows[sources == source])

    def encoded(self, source: int, rows: list[int]) -> list[EncodedSample]:
        """Records of one source as tokens; their images are only counted."""
        opened = self.shards[source]
        counts = opened.column("num_images")[rows] if self.data.images else np.zeros(len(rows), int)
        return self.prompter.encode(opened.texts(rows), num_images=counts.tolist())

    def to_batch(self, sequences: list[list[IndexedSample]]) -> Batch:
        images, keys = [], []
        for sample, source, row in (item for sequence in sequences for item in sequence):
            images += record_pixels(self.shards[source], row, size=self.size, exact=self.data.exact_decode) if sample.num_images else []
            keys.append(f"{self.mixture.sources[source]}:{row}")
        return collate(
            [[item.sample for item in sequence] for sequence in sequences],
            sources=[[item.source for item in sequence] for sequence in sequences],
            images=images,
            size=self.size,
            pad=self.prompter.eos,
            image_id=self.prompter.image_id,
            keys=keys,
        )


class DataModule(lightning.LightningDataModule):
    """Training stream and fixed validation batches. `size`: side of the image in pixels. `accumulate`: micro-batches per step and rank."""

    def __init__(self, mix: MixConfig, data: DataConfig, *, prompter: Prompter, size: int, seed: int, accumulate: int):
        super().__init__()
        self.mix, self.data, self.prompter, self.size, self.seed, self.accumulate = mix, data, prompter, size, seed, accumulate
        self.shards = open_sources(data.root, mix, cache=CacheConfig(data.cache, data.cache_gb))
        train_rows, self.val_rows = split_rows(self.shards, mix, val_samples=data.val_samples)
        self.fingerprint = data_fingerprint(self.shards, mix, seed=seed, data=data, rows=train_rows)
        self.mixture = mixture_of(self.shards, mix.sampling_weights, train_rows, shuffle=data.shuffle, seed=seed)
        rows = {source: np.concatenate([train_rows[source], self.val_rows[source]]) for source in train_rows}
        if any(SYSTEM_NOTE in opened.manifest.get("notes", {}) for opened in self.shards.values()):
            prompter.check_system()
        if data.images:
            self._check_images_fit(rows)
        if is_remote(data.root) and is_first_rank():
            self._warn_if_cache_is_small(rows)
        self.consumed = 0  # optimizer steps

    def _check_images_fit(self, rows: dict[str, np.ndarray]) -> None:
        """Raises `UserError` before the first step: a record that does not fit would end the run later, and again after each resume."""
        for source, rows_N in rows.items():
            counts = self.shards[source].column("num_images")
            fullest = int(rows_N[counts[rows_N].argmax()])
            self.prompter.room(int(counts[fullest]), key=f"{source}/{self.shards[source].arrow('key')[fullest]}")

    def _warn_if_cache_is_small(self, rows: dict[str, np.ndarray]) -> None:
        counts = counts_per_block(self.mix.sampling_weights)
        loads = [source_load(opened, rows[source], share=counts[source] / BLOCK) for source, opened in self.shards.items()]
        if warning := cache_warning(loads, self.data):
            print(warning)

    def stream(self, *, rank: int = 0, world: int = 1) -> PackedStream:
        inputs = (self.shards, self.mixture, self.prompter)
        return PackedStream(*inputs, data=self.data, size=self.size, seed=self.seed, rank=rank, world=world, accumulate=self.accumulate)

    def train_dataloader(self) -> Loader:
        stream, workers = self.stream(rank=self.trainer.global_rank, world=self.trainer.world_size), self.data.workers
        stream.start = self.consumed * self.accumulate
        return Loader(
            stream,
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
            worker_init_fn=prepare_worker,
        )

    def on_before_batch_transfer(self, batch: Batch | UserError, dataloader_idx: int) -> Batch:
        """Raises the errors that workers send as values (see `PackedStream.__iter__`)."""
        if isinstance(batch, UserError):
            raise batch
        return batch

    def validation_batches(self, *, rank: int = 0, world: int = 1) -> list[Batch]:
        """The validation records of each source, packed once, split over ranks."""
        stream = self.stream()
        sequences: list[list[IndexedSample]] = []
        for source, name in enumerate(self.mixture.sources):
            rows = self.val_rows[name].tolist()
            samples = [IndexedSample(sample, source, row) for sample, row in zip(stream.encoded(source, rows), rows, strict=True)]
            packed = pack([len(item.sample.ids) for item in samples], self.data.max_seq_len)
            sequences += [[samples[item] for item in sequence] for sequence in packed]
        per_batch = max(1, len(stream.step_sequences(0)) // (world * self.accumulate))
        batches = [sequences[at : at + per_batch] for at in range(0, len(sequences), per_batch)]
        # DDP synchronises every forward pass, so all ranks need equally many batches; an empty one has no supervised token.
        batches += [[]] * (-len(batches) % world or (not batches) * world)
        return [stream.to_batch(batch) for batch in batches[rank::world]]

    def val_dataloader(self) -> DataLoader:
        """The validation batches of this rank, built once."""
        batches: Any = self.validation_batches(rank=self.trainer.global_rank, world=self.trainer.world_size)
        return DataLoader(batches, batch_size=None)

    def state_dict(self) -> dict:
        return {"consumed": self.trainer.global_step if self.trainer else self.consumed, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        """Raises `UserError` if the stream of the checkpoint was another one."""
        stored = state["fingerprint"]
        if stored.get("version") != VERSION:
            raise UserError(
                f"cannot resume: the checkpoint has version {stored.get('version', 1)} of the data order, this code {VERSION}; version 1 "
                "depends on the order of mix.shares, so records would repeat or be skipped; resume with the code that wrote it, "
                "or start a run with another name and init=run:<name> to keep its weights"
            )
        if changed := diff_configs(stored, self.fingerprint):
            raise UserError(
                f"cannot resume: the data has changed since the checkpoint was written ({'; '.join(list(changed.values())[:3])}); "
                "restore it, or start a run with another name"
            )
        self.consumed = state["consumed"]
