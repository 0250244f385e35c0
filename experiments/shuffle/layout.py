"""`python -m experiments.shuffle.layout full`: what one epoch of a mix fetches, and how well it is mixed, with each `data.shuffle`.

Shards have the sizes that `src.plan` assumes. No data are read. The cache is simulated; it drops the least recently used shard.
"""

import sys
from collections import OrderedDict

import numpy as np
import yaml
from rich.table import Table

from src.data.mixture import BLOCK, Mixture
from src.data.source_entries import source_entries
from src.data.token_budget import IMAGE_BYTES, SHARD_BYTES, TEXT_BYTES
from src.runtime.paths import REPOSITORY
from src.runtime.tables import print_table

SHARD_ROWS, WINDOW, BATCH = 4096, 2048, 128  # data_prep/build/chunking.py, conf/train.yaml
CACHES = (0.05, 0.045, 0.04)  # of the bytes of the mix


def main(name: str) -> None:
    shares = yaml.safe_load((REPOSITORY / "conf" / "mix" / f"{name}.yaml").read_text())["shares"]
    entries = {source: source_entries()[source] for source in shares}
    record_bytes = {source: TEXT_BYTES + IMAGE_BYTES * entry.get("images", True) for source, entry in entries.items()}
    rows = {source: np.arange(entry["counts"]["train"]) for source, entry in entries.items()}
    shards = {source: some // min(SHARD_ROWS, SHARD_BYTES // record_bytes[source]) for source, some in rows.items()}
    sizes = {source: np.bincount(numbers) for source, numbers in shards.items()}
    first = dict(zip(sorted(shares), np.cumsum([0, *(len(sizes[source]) for source in sorted(shares))]).tolist(), strict=False))
    bytes_S = np.concatenate([sizes[source] * record_bytes[source] for source in sorted(shares)])
    table = Table(f"{name}: {len(bytes_S):,} shards, {bytes_S.sum() / 1e9:.1f} GB", box=None)
    for header in ("distance", f"shards in {BATCH}", *(f"fetched, cache {cache:.1%}" for cache in CACHES)):
        table.add_column(header, justify="right")
    epoch = sum(map(len, rows.values())) // BLOCK * BLOCK
    for shuffle in ("global", "blocks"):
        mixture = Mixture(shares, rows, seed=0, shard_sizes=sizes if shuffle == "blocks" else None)
        sources, taken = mixture.take(0, epoch)
        shard_N = np.empty(epoch, np.int64)
        for number, source in enumerate(mixture.sources):
            at = sources == number
            shard_N[at] = first[source] + shards[source][taken[at]]
        by_shard = np.argsort(shard_N, kind="stable")
        distances = np.diff(by_shard)[np.diff(shard_N[by_shard]) == 0]
        distinct = np.mean([len(np.unique(batch)) for batch in shard_N[: epoch // BATCH * BATCH].reshape(-1, BATCH)])
        # A global order is the same in every part of an epoch, and slow to simulate.
        fetched = [fetches(shard_N if shuffle == "blocks" else shard_N[: epoch // 20], bytes_S, share) for share in CACHES]
        scale = 1 if shuffle == "blocks" else 20
        table.add_row(shuffle, f"{np.median(distances):.0f}", f"{distinct:.0f}", *(f"{scale * n / len(bytes_S):.3f}" for n in fetched))
    print_table(table)


def fetches(shard_N: np.ndarray, bytes_S: np.ndarray, share: float) -> int:
    """Shards that are fetched if windows of `shard_N` are read in order with a cache of `share` of all bytes."""
    cache: OrderedDict[int, int] = OrderedDict()
    room, count = share * int(bytes_S.sum()), 0
    for start in range(0, len(shard_N), WINDOW):
        for shard in dict.fromkeys(shard_N[start : start + WINDOW].tolist()):
            if shard not in cache:
                count, room = count + 1, room - int(bytes_S[shard])
            cache[shard] = cache.pop(shard, int(bytes_S[shard]))
            while room < 0:
                room += cache.popitem(last=False)[1]
    return count


if __name__ == "__main__":
    for mix in sys.argv[1:] or ["full"]:
        main(mix)
