"""One file per raw layout. `read(raw, split, entry)` streams the rows of one split of one dataset, in file order.

`raw` is the dataset's folder, `entry` its entry in `sources.yaml`. Images stay encoded and nothing is unpacked to disk. A
file that cannot be read at all is a `UserError`; a row that cannot be formed is `Bad`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.readers import (
    classification,
    hf_parquet,
    iu_xray,
    jsonl,
    medicat,
    medmcqa,
    medqa,
    pmc_oa,
    pmc_vqa,
    pubmedqa,
    pubmedvision,
    quilt_1m,
    slake,
    ubench,
    vqa_med_2019,
)
from data_prep.readers.rows import Row
from data_prep.sources import Source

READERS: dict[str, Callable[[Path, str, Source], Iterator[Row]]] = {
    "classification": classification.read,
    "hf_parquet": hf_parquet.read,
    "iu_xray": iu_xray.read,
    "jsonl": jsonl.read,
    "medicat": medicat.read,
    "medmcqa": medmcqa.read,
    "medqa": medqa.read,
    "pmc_oa": pmc_oa.read,
    "pmc_vqa": pmc_vqa.read,
    "pubmedqa": pubmedqa.read,
    "pubmedvision": pubmedvision.read,
    "quilt_1m": quilt_1m.read,
    "slake": slake.read,
    "ubench": ubench.read,
    "vqa_med_2019": vqa_med_2019.read,
}
