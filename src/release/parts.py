"""Export of the LoRA adapter for PEFT and of the image encoder for timm."""

import copy
import json
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

from src.model.vision import HfVit, Vision
from src.model.vlm import VLM
from src.release.llava import chat_template, generation_config
from src.runtime.errors import UserError


def save_adapter(model: VLM, folder: Path, *, base: str, revision: str) -> None:
    """Writes a folder for `PeftModel.from_pretrained(base_model, folder)`, which has the logits of the run's language model.

    The tokenizer is included, because that of PMC-LLaMA cannot be loaded as published. A chat template of the base model is replaced by
    that of the run.
    """
    model.language.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    tokenizer, prompter = copy.deepcopy(model.language.tokenizer), model.prompter(budget=4096)
    if tokenizer.chat_template:
        tokenizer.chat_template = chat_template(prompter)
    tokenizer.save_pretrained(folder)
    if model.template == "chat":
        generation_config(model, prompter).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # a template with unfilled fields
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": base, "inference_mode": True}
    settings["revision"] = None if revision in ("", "unverified") else revision
    # peft stores target_modules as a set, whose order differs between processes.
    settings = {key: sorted(value) if key == "target_modules" else value for key, value in sorted(settings.items())}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def save_timm(vision: Vision, folder: Path) -> None:
    """Writes a folder for `timm.create_model("local-dir:<folder>", pretrained=True)`, without a classifier.

    Raises `UserError` for an encoder that timm cannot rebuild.
    """
    if isinstance(vision, HfVit):
        raise UserError(
            "parts=timm: the encoder of this run comes from transformers and has no timm equivalent; use parts=[hf,adapter,space]"
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
    settings = json.loads(path.read_text())
    for key in ("tag", "license"):  # these describe the weights that timm publishes for the architecture
        settings["pretrained_cfg"].pop(key, None)
    path.write_text(json.dumps(settings, indent=2) + "\n")
    try:
        rebuilt = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"parts=timm: timm cannot rebuild the encoder of this run ({str(error).splitlines()[0]}); use parts=[hf,adapter,space]"
        ) from None
    state = trunk.state_dict()
    assert all(torch.equal(state[name], value) for name, value in rebuilt.state_dict().items())
