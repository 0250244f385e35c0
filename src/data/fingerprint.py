"""What the order of the training stream depends on. A run resumes only if it is unchanged."""

import hashlib
import json

import numpy as np
import xxhash

from src.config.train import DataConfig, MixConfig
from src.data.mixture import VERSION
from src.data.shards import Shards
from src.data.train_val_split import split_rows


def data_fingerprint(
    shards: dict[str, Shards], mix: MixConfig, *, seed: int, data: DataConfig, rows: dict[str, np.ndarray] | None = None
) -> dict:
    """Everything that the order of the stream depends on; a run resumes only if it is unchanged. `rows` are the training rows, if known."""
    train_rows = sorted((rows or split_rows(shards, mix, val_samples=data.val_samples)[0]).items())
    return {
        "version": VERSION,
        "shards": {source: opened.manifest["fingerprint"] for source, opened in sorted(shards.items())},
        "shares": dict(sorted(mix.sampling_weights.items())),
        "decontaminate": mix.decontaminate,
        **{key: value for key in ("exclude", "max_per_subset") if (value := getattr(mix, key))},  # absent in runs that do not use them
        "records": {source: rows_digest(rows) for source, rows in train_rows},  # an audit changes them
        "seed": seed,
        "data": {
            **{key: getattr(data, key) for key in ("packing_window", "global_batch_size", "max_seq_len", "images")},
            **({"shuffle": data.shuffle} if data.shuffle != "global" else {}),  # older runs have none and are global
        },
    }


def rows_digest(rows: np.ndarray) -> str:
    return f"{len(rows):,} ({xxhash.xxh3_64_hexdigest(rows.data)[:8]})"


def fingerprint_id(fingerprint: dict) -> str:
    """Short hash of a fingerprint. It leaves out the seed, so that runs over several seeds have the same id."""
    without_seed = {key: value for key, value in fingerprint.items() if key != "seed"}
    return hashlib.sha256(json.dumps(without_seed, sort_keys=True).encode()).hexdigest()[:12]
