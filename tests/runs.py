"""Finished runs without training: random weights, a checkpoint, a configuration and the result files of the commands."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from data_prep.phantom.weights.language import train_tokenizer
from src.config.train import TrainConfig
from src.model.vlm import VLM, build_vlm
from src.runtime.atomic_file import write_atomically
from src.runtime.cli import compose
from src.runtime.run_folder import open_run
from src.runtime.schema import to_plain, to_typed
from src.training.checkpoint import trained_state

SCORES = {
    "vqa/pathvqa/real/all/bleu1": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 200},
    "vqa/pathvqa/real_minus_blank/all/bleu1": {"value": 0.125, "low": 0.05, "high": 0.2, "n": 200},
    "vqa/pathvqa/real/type=organ/bleu1": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 20},
}


def finish(words: list[str], *changes: str) -> tuple[Path, TrainConfig]:
    """A run folder as `train` and `evaluate` write it, and its configuration."""
    config = to_typed(TrainConfig, compose("train", [*words, *changes]))
    folder = Path(config.outputs) / config.name
    open_run(folder, to_plain(config))
    (folder / "checkpoints").mkdir()
    model = perturb(build_vlm(config))
    torch.save({"state_dict": trained_state(model), "weights": model.weights}, folder / "checkpoints" / "best.ckpt")
    for verb, metrics in (("train", {}), ("evaluate", SCORES)):
        result = {"verb": verb, "command": f"python -m src.{verb}", "git": "0" * 40, "seconds": 1.0, "peak_rss_mb": 1.0, "metrics": metrics}
        write_atomically(folder / f"{verb}.json", json.dumps(result | ({"data": "abc"} if verb == "train" else {})))
    write_atomically(folder / "result.json", json.dumps({"name": config.name, "git": "0" * 40, "data": "abc", "metrics": SCORES}))
    return folder, config


def randomise_adapters(module: torch.nn.Module) -> None:
    """Replaces the zeros with which LoRA starts, so that adapters change the outputs."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)


def perturb(model: VLM) -> VLM:
    """Adds noise to every trainable tensor, so that a tensor that is not loaded changes the outputs, and answers differ."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator) * (0.1 if "lora_B" in name else 0.02))
    return model.eval()


def tokenizer_without_bytes() -> PreTrainedTokenizerBase:
    """A tokenizer without byte fallback for unknown characters, as the phantom one; the LLaMA tokenizer has it."""
    return train_tokenizer(["which organ is shown? question answer caption"] * 3)
