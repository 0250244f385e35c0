"""One file per raw layout. `read(raw, split, entry)` streams the rows of one split of one dataset, in file order.

`raw` is the dataset's folder, `entry` its entry in `sources.yaml`. Images stay encoded and nothing is unpacked to disk. A
file that cannot be read at all is a `UserError`; a row that cannot be formed is `Bad`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.readers import hf_parquet, jsonl, pmc_oa, pubmedqa, vqa_med_2019
from data_prep.rows import Row
from data_prep.sources import Source

READERS: dict[str, Callable[[Path, str, Source], Iterator[Row]]] = {
    "hf_parquet": hf_parquet.read,
    "jsonl": jsonl.read,
    "pmc_oa": pmc_oa.read,
    "pubmedqa": pubmedqa.read,
    "vqa_med_2019": vqa_med_2019.read,
}
