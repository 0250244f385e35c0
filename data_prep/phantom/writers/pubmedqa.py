"""PubMedQA: PQA-L as in its repository, `data/ori_pqal.json` with the ids and answers of the test questions, and PQA-A as on the hub,
`pqa_artificial/train-*.parquet`.

Reproduced fault: no answer of PQA-A is maybe.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.phantom.scene.wording import article
from data_prep.phantom.scene.world import item_rng

SIZES = {"train": 800, "test": 100}
ARTIFICIAL = 4  # every ARTIFICIAL-th training question belongs to PQA-A, unless its answer is maybe
LABELS = ["METHODS", "RESULTS"]
COLUMNS = {
    "pubid": pa.int32(),
    "question": pa.string(),
    "context": pa.struct([(name, pa.list_(pa.string())) for name in ("contexts", "labels", "meshes")]),
    "long_answer": pa.string(),
    "final_decision": pa.string(),
}


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    articles, truth, artificial = {}, {}, []
    for split, number in num.items():
        for n in range(number):
            rng = item_rng(seed, "pubmedqa", split, n)
            made, pmid = article(rng), str(10_000_000 + n + (5_000_000 if split == "test" else 0))
            if split == "train" and n % ARTIFICIAL == 0 and made["decision"] != "maybe":
                artificial.append(_as_on_the_hub(pmid, made))
                continue
            articles[pmid] = {
                "QUESTION": made["question"],
                "CONTEXTS": made["contexts"],
                "LABELS": LABELS,
                "MESHES": made["subjects"],
                "YEAR": str(2000 + int(rng.integers(20))),
                "reasoning_required_pred": made["decision"],
                "reasoning_free_pred": made["decision"],
                "final_decision": made["decision"],
                "LONG_ANSWER": made["conclusion"],
            }
            if split == "test":
                truth[pmid] = made["decision"]
    for folder in ("data", "pqa_artificial"):
        (out / folder).mkdir()
    pq.write_table(pa.Table.from_pylist(artificial, pa.schema(COLUMNS)), out / "pqa_artificial" / "train-00000-of-00001.parquet")
    (out / "data" / "ori_pqal.json").write_text(json.dumps(articles, indent=1))
    (out / "data" / "test_ground_truth.json").write_text(json.dumps(truth, indent=1))


def _as_on_the_hub(pmid: str, made: dict) -> dict:
    return {
        "pubid": int(pmid),
        "question": made["question"],
        "context": {"contexts": made["contexts"], "labels": LABELS, "meshes": made["subjects"]},
        "long_answer": made["conclusion"],
        "final_decision": made["decision"],
    }
