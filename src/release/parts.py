"""The adapter for PEFT and the encoder for timm."""

import json
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

from src.model.vision import HfVit, Vision
from src.model.vlm import VLM
from src.runtime.errors import UserError


def save_adapter(model: VLM, folder: Path, *, base: str, revision: str) -> None:
    """`PeftModel.from_pretrained(base model, folder)` has the language model's logits; encoder and projector are not in it.

    The tokenizer is: that of PMC-LLaMA cannot be loaded as it is published.
    """
    model.language.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    model.language.tokenizer.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a template with holes
    path = folder / "adapter_config.json"
    described = json.loads(path.read_text()) | {"base_model_name_or_path": base, "inference_mode": True}
    described["revision"] = None if revision in ("", "unverified") else revision
    # peft keeps the targets as a set, whose order changes from process to process.
    described = {key: sorted(value) if key == "target_modules" else value for key, value in sorted(described.items())}
    path.write_text(json.dumps(described, indent=2) + "\n")


def save_timm(vision: Vision, folder: Path) -> None:
    """`timm.create_model("local-dir:<folder>", pretrained=True)` is this encoder, without a classifier."""
    if isinstance(vision, HfVit):
        raise UserError(
            "this run's encoder comes from transformers and has no timm form; leave out the part timm with parts=[hf,adapter,space]"
        )
    trunk, size = vision.trunk, vision.size
    data = {
        "input_size": [3, size, size],
        "mean": vision.mean.flatten().tolist(),
        "std": vision.std.flatten().tolist(),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    arguments = {"img_size": size, "depth": len(trunk.blocks)} if hasattr(trunk, "blocks") else {}
    save_for_hf(trunk, str(folder), safe_serialization=True, data_config=data, model_args=arguments)
    path = folder / "config.json"
    described = json.loads(path.read_text())
    for claim in ("tag", "license"):  # of the weights that timm publishes under this architecture, not of these
        described["pretrained_cfg"].pop(claim, None)
    path.write_text(json.dumps(described, indent=2) + "\n")
    try:
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"timm cannot rebuild this run's encoder ({str(error).splitlines()[0]}); leave out the part timm with parts=[hf,adapter,space]"
        ) from None
    mine = trunk.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in again.state_dict().items())
