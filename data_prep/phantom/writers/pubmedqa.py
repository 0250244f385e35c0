"""PubMedQA as its repository holds it: `data/ori_pqal.json`, and the ids and answers of the test questions."""

import json
from pathlib import Path

from data_prep.phantom.wording import article
from data_prep.phantom.world import item_rng

SIZES = {"train": 800, "test": 100}


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    articles, truth = {}, {}
    for split, number in num.items():
        for n in range(number):
            rng = item_rng(seed, "pubmedqa", split, n)
            made, pmid = article(rng), str(10_000_000 + n + (5_000_000 if split == "test" else 0))
            articles[pmid] = {
                "QUESTION": made["question"],
                "CONTEXTS": made["contexts"],
                "LABELS": ["METHODS", "RESULTS"],
                "MESHES": made["subjects"],
                "YEAR": str(2000 + int(rng.integers(20))),
                "reasoning_required_pred": made["decision"],
                "reasoning_free_pred": made["decision"],
                "final_decision": made["decision"],
                "LONG_ANSWER": made["conclusion"],
            }
            if split == "test":
                truth[pmid] = made["decision"]
    (out / "data").mkdir()
    (out / "data" / "ori_pqal.json").write_text(json.dumps(articles, indent=1))
    (out / "data" / "test_ground_truth.json").write_text(json.dumps(truth, indent=1))
