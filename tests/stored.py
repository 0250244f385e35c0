"""Run folders as the commands write them, without a model, for tests of code that reads runs."""

import csv
import json
from pathlib import Path

import yaml

from src.evaluation import summary
from src.runtime import run_folder

ANSWERS = ("yes", "no", "left", "right")


def write_run(outputs: Path, name: str, *, seed: int = 0, right: int = 6, root: str = "none", shards: dict | None = None, **keys) -> Path:
    """A trained and evaluated run. With real images it answers the first `right` of each eight questions correctly, otherwise two.

    `keys` are configuration keys with `__` instead of dots.
    """
    folder = outputs / name
    folder.mkdir(parents=True)
    config = {"name": name, "seed": seed, "data": {"root": root, "global_batch_size": 4}, "optim": {"steps": 20}}
    config |= {"vision": {"path": "", "architecture": "vit"}, "language": {"path": "llama", "lora": {"rank": 8}}}
    config |= {"mix": {"shares": {"alpha": 1.0, "gamma": 0.5}, "decontaminate": True}}
    for key, value in keys.items():
        part, _, leaf = key.rpartition("__")
        (config[part] if part else config)[leaf] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_log(folder)
    files = {condition: items(root, right if condition == "real" else 2) for condition in ("real", "shuffled", "blank", "majority")}
    (folder / "predictions").mkdir()
    for condition, predictions in files.items():
        text = "".join(json.dumps(item) + "\n" for item in predictions)
        (folder / "predictions" / f"alpha.{condition}.jsonl").write_text(text)
    rate = {"value": 10.0, "low": 10.0, "high": 10.0, "n": 80}
    parts = [{"part": "vision", "parameters": 1000, "trainable": 0, "lr": 0.0, "weights": "vit"}]
    train = {"data": f"print-{seed}", "shards": shards or {"alpha": "a"}, "parts": parts, "metrics": {"train/samples_per_second": rate}}
    write_result(folder, "train", train)
    write_result(folder, "evaluate", summary.summarise({"alpha": files}, pooled=["alpha"], resamples=50, seed=0))
    return folder


def items(root: str, right: int) -> list[dict]:
    """Predictions for sixteen questions on eight images, with the ids of the test split of the `shards` fixture."""
    result = []
    for n in range(16):
        answer = ANSWERS[n % 4]
        prediction = answer if n % 8 < right else "?"
        about = {"source": "alpha", "image": f"image {n % 8}", "type": "presence" if n % 4 < 2 else "side", "question": f"<q {n}>"}
        result.append({"id": f"test{n}", **about, "references": [answer], "prediction": prediction})
    return result


def write_log(folder: Path) -> None:
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["step", "seconds", "samples", "tokens", "loss", "val", "grad_norm", "lr/vision", "loss/alpha", "val/alpha"]
        )
        writer.writeheader()
        for step in (10, 20):
            row = {"step": step, "seconds": step / 2, "samples": step * 4, "tokens": step * 100, "loss": 3 / step, "grad_norm": 1.0}
            writer.writerow(row | {"lr/vision": 1e-3, "loss/alpha": 3 / step} | ({"val": 0.2, "val/alpha": 0.2} if step == 20 else {}))


def write_result(folder: Path, command: str, result: dict) -> None:
    about = {"verb": command, "command": f"python -m src.{command}", "git": "0123456789abcdef", "environment": {"cores": 2, "gpus": []}}
    (folder / f"{command}.json").write_text(json.dumps({**about, "seconds": 1.5, "peak_rss_mb": 100.0, **result}))
    run_folder.rebuild_result(folder)
