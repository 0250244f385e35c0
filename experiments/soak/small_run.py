"""A pipeline of commands that takes seconds per command, for trials that interrupt it, and what its folder holds, for comparisons."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data_prep.phantom.weights.language import train_tokenizer
from data_prep.phantom.writers import WRITERS

PHANTOMS = ("slake", "vqa_med_2019", "pubmedqa")
NUM = {"train": 60, "val": 10, "test": 12}  # images or texts of a phantom
CLASSIFICATION = "breastmnist"
VARYING = ("seconds", "peak_rss_mb", "train/samples_per_second", "train/tokens_per_second")  # depend on the speed of the machine
VARYING += ("epoch_loop.val_loop.batch_progress",)  # Lightning's count of validation batches includes those of a repeated validation


def write_phantoms(raw: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (raw / name).mkdir(parents=True)
        WRITERS[name].write(raw / name, seed=0, num={split: NUM[split] for split in WRITERS[name].SIZES})


def write_language(folder: Path) -> None:
    """A LLaMA of two layers with random weights."""
    tokenizer = train_tokenizer(["question answer caption which organ is shown? the lung is shown on a chest x-ray"] * 3)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, initializer_range=0.2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build(raw: Path, sources: list[str]) -> list[str]:
    return ["data_prep.shards", f"sources={','.join(sources)}", f"raw={raw}", "out=shards", "quarantine_limit=0.2"]


def train(sources: list[str], language: Path, *changes: str) -> list[str]:
    shares = ", ".join(f"{name}: 1" for name in sources)
    return [
        "src.train",
        *("+experiment=own_data", "name=small", f"mix.shares={{{shares}}}", "mix.decontaminate=false", f"language.path={language}"),
        *("vision=scratch", "vision.architecture=vit_tiny_patch16_224", "vision.image_size=32"),
        "+vision.architecture_kwargs={embed_dim: 32, depth: 1, num_heads: 2}",
        *("data.root=shards", "data.packing_window=64", "data.global_batch_size=16", "data.val_samples=8", "data.val_generations=2"),
        *("trainer.log_every=1", "trainer.val_every=5", "optim.steps=30", "optim.warmup=2", *changes),
    ]


EVALUATE = ["src.evaluate", "run=small", "limit=24", "batch=4", "max_new_tokens=8", "resamples=100"]


def snapshot(folder: Path) -> dict[str, str]:
    """Path -> digest of the content of every file below `folder`, without what depends on the speed of the machine."""
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def differences(left: dict[str, str], right: dict[str, str]) -> list[str]:
    return sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))


def _digest(path: Path) -> str:
    if path.suffix == ".ckpt":
        checkpoint = torch.load(path, weights_only=True)
        return _hash(json.dumps(_plain(checkpoint), sort_keys=True).encode())
    if path.name == "log.csv":
        with path.open(newline="") as file:
            rows = [{key: value for key, value in row.items() if key not in ("seconds", "data_wait")} for row in csv.DictReader(file)]
        return _hash(json.dumps(rows).encode())
    if path.suffix == ".digest" or path.name == "multirun.yaml":  # the seconds in the checkpoint, and the working folder
        return "not compared"
    if path.suffix == ".json" and "outputs" in path.parts:
        return _hash(json.dumps(_plain(json.loads(path.read_text())), sort_keys=True).encode())
    return _hash(path.read_bytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    """The value with tensors as hashes and without the entries in `VARYING`."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {_hash(value.contiguous().numpy().tobytes())}"
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key not in VARYING}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
