"""`make mini`: the whole path on phantom data, every stage a command that a user may type, each within its budget.

A stage that is complete is passed over by its own command, so a run that was interrupted anywhere goes on and ends the same.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

DATA = Path("data/phantom")
MIX = "pmc_oa,pathvqa,vqa_med_2019,pubmedqa"
CLASSIFICATION = "breastmnist"
STAGES = [  # name, seconds on two cores, commands
    (
        "raw data and shards",
        80,
        [
            ["data_prep.phantom", f"out={DATA}/raw", f"sources={MIX},{CLASSIFICATION}"],
            ["data_prep.shards", f"sources={MIX}", f"raw={DATA}/raw", f"out={DATA}/shards"],
        ],
    ),
    ("language model", 40, [["data_prep.phantom.weights", f"out={DATA}/weights", f"shards={DATA}/shards", "parts=language"]]),
    ("vision encoder", 60, [["data_prep.phantom.weights", f"out={DATA}/weights", f"shards={DATA}/shards", "parts=vision"]]),
    ("training", 220, [["src.train", "+experiment=mini"]]),
    ("evaluation", 100, [["src.evaluate", "run=mini"]]),
    ("transfer", 60, [["src.transfer", "encoder=[run:mini,scratch:mini]", f"benchmark={CLASSIFICATION}", f"raw={DATA}/raw"]]),
    ("report", 20, [["src.report", "runs=mini"]]),
]


def main() -> None:
    took = []
    for name, budget, commands in STAGES:
        begun = time.perf_counter()
        for command in commands:
            print(f"\n$ python -m {' '.join(command)}", flush=True)
            done = subprocess.run([sys.executable, "-m", *command])
            if done.returncode:
                print(f"error: the stage '{name}' ended with code {done.returncode}; make mini goes on from there", file=sys.stderr)
                raise SystemExit(done.returncode if done.returncode > 0 else 1)
        took.append((name, time.perf_counter() - begun, budget))
    print(f"\n{'stage':22}{'seconds':>9}{'budget':>9}")
    for name, seconds, budget in [*took, ("all", sum(seconds for _, seconds, _ in took), sum(budget for _, _, budget in STAGES))]:
        print(f"{name:22}{seconds:9.0f}{budget:9d}")
    result = json.loads(Path("outputs/mini/result.json").read_text())
    print(f"peak memory {result['peak_rss_mb'] / 1024:.1f} GiB\n")
    for condition in ("real", "shuffled", "blank", "majority"):
        found = result["metrics"][f"vqa/pooled/{condition}/all/bleu1"]
        print(f"BLEU-1, {condition:9} images {found['value']:.3f}  [{found['low']:.3f}, {found['high']:.3f}]  n={found['n']}")
    for key, found in result["metrics"].items():
        if key.startswith("transfer/") and key.endswith("/macro_f1"):
            print(f"{key} {found['value']:.3f}  [{found['low']:.3f}, {found['high']:.3f}]")
    print("\noutputs/mini/report.html")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; make mini goes on where it stopped", file=sys.stderr)
        raise SystemExit(130) from None
