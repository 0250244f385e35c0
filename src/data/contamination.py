"""Which test questions a run may have seen, because it trained on records that stand in test sets (mix.decontaminate=false)."""

from pathlib import Path

import numpy as np

from src.config import Mix
from src.data.benchmark import Questions
from src.data.shards import Shards

RADIUS = 7  # bits of the perceptual hash, as the audit looks for copies
BLOCK = 8 << 20  # pairs of hashes compared at once; bounds the memory


def mark(test: Questions, mix: Mix, root: str | Path) -> bool:
    """Gives each item `seen`: whether its image, or its text where the benchmark shows none, stands in the training data.

    The training data are the records that `decontaminate` would have left out: those in which the audit found a test image or text.
    Gives False, and marks nothing, where a source of the mix was never audited. A copy that is cut or mirrored further than `RADIUS`
    is known to the audit and left out by `decontaminate`, but cannot be told from its hash here.
    """
    folders = [Path(root) / source for source in mix.drawn]
    if not all((folder / "audit.json").exists() for folder in folders):
        return False
    images, texts = zip(*(_leaking(Shards(folder)) for folder in folders), strict=True)
    row_N, hash_N = test.shards.image_hashes()
    here_N = np.isin(row_N, test.rows)
    if here_N.any():
        hash_U, place_N = np.unique(hash_N[here_N], return_inverse=True)
        rows = set(row_N[here_N][_near(hash_U, np.unique(np.concatenate(images)))[place_N]].tolist())
    else:
        rows = set(np.flatnonzero(np.isin(test.shards.column("text_hash"), np.concatenate(texts))).tolist())
    for row, item in zip(test.rows, test.items, strict=True):
        item["seen"] = row in rows
    return True


def _leaking(shards: Shards) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the images and of the texts of the training records that leak into a benchmark."""
    rows = np.setdiff1d(shards.rows("train"), shards.rows("train", decontaminate=True))
    row_N, hash_N = shards.image_hashes()
    return hash_N[np.isin(row_N, rows)], shards.column("text_hash")[rows]


def _near(hash_U: np.ndarray, leaked_L: np.ndarray) -> np.ndarray:
    """Whether each hash is at most `RADIUS` bits from any of the leaked ones, (U,)."""
    found_U = np.zeros(len(hash_U), dtype=bool)
    step = max(1, BLOCK // max(1, len(leaked_L)))
    for at in range(0, len(hash_U) if len(leaked_L) else 0, step):
        found_U[at : at + step] = (np.bitwise_count(hash_U[at : at + step, None] ^ leaked_L) <= RADIUS).any(axis=1)
    return found_U
