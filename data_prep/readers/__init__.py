"""Readers, one file per raw layout. `read(raw, split, entry)` yields the rows of one split of one dataset, in file order.

`raw` is the folder of the dataset, `entry` its entry in `sources.yaml`. Images stay encoded and nothing is unpacked to disk.
A reader raises `UserError` for a file that cannot be read, and yields `InvalidRow` for a row that cannot be parsed. A `Note` after a
record states what the reader changed in it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.readers import (
    classification,
    exam,
    hf_parquet,
    iu_xray,
    medicat,
    medmcqa,
    medqa,
    mimic_cxr,
    omnimedvqa,
    own_data,
    pmc_oa,
    pmc_vqa,
    pubmedqa,
    pubmedvision,
    quilt_1m,
    slake,
    ubench,
    vqa_med_2019,
)
from data_prep.readers.rows import Note, Row
from data_prep.sources import Source

READERS: dict[str, Callable[[Path, str, Source], Iterator[Row | Note]]] = {
    "chat": own_data.read,
    "classification": classification.read,
    "exam": exam.read,
    "folder": classification.read,
    "hf_parquet": hf_parquet.read,
    "iu_xray": iu_xray.read,
    "jsonl": own_data.read,
    "medicat": medicat.read,
    "medmcqa": medmcqa.read,
    "medqa": medqa.read,
    "mimic_cxr": mimic_cxr.read,
    "omnimedvqa": omnimedvqa.read,
    "pmc_oa": pmc_oa.read,
    "pmc_vqa": pmc_vqa.read,
    "pubmedqa": pubmedqa.read,
    "pubmedvision": pubmedvision.read,
    "quilt_1m": quilt_1m.read,
    "slake": slake.read,
    "ubench": ubench.read,
    "vqa_med_2019": vqa_med_2019.read,
}

OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {  # reader -> option -> allowed values; none: any text
    "classification": classification.OPTIONS,
    "folder": classification.OPTIONS,
    "mimic_cxr": mimic_cxr.OPTIONS,
    "omnimedvqa": omnimedvqa.OPTIONS,
}
