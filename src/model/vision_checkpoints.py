"""Checkpoint formats of image encoders. One function per format loads a module with its weights, input size, mean and std."""

import difflib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import transformers
from timm.models.byobnet import checkpoint_filter_fn
from torch import nn

from src.config.train import VisionConfig
from src.model.weight_files import (
    INDEX_FILES,
    UNVERIFIED,
    WEIGHT_FILES,
    find_file,
    load_exactly,
    one_line,
    raise_mismatches,
    read_json,
    read_tensors,
)
from src.runtime.errors import UserError, suggest

# Of OpenAI CLIP; BiomedCLIP, PMC-CLIP and PubMedCLIP use the same (constants.py of open_clip).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PMC_CLIP_FILES = ("image_encoder(resnet50).pth", "checkpoint.pt")
HF_FILES = (*WEIGHT_FILES, *INDEX_FILES)


@dataclass
class LoadedEncoder:
    """A module with its weights; `size` in pixels; `mean` and `std` per RGB channel of pixels in 0..1."""

    module: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_clip(config: VisionConfig) -> LoadedEncoder:
    """A CLIP in the format of open_clip with a timm image tower (BiomedCLIP; arXiv 2303.00915).

    Only `visual.trunk.*` is read, not the text tower and the projection to the common space.
    """
    description = read_json(find_file(config.path, ["open_clip_config.json"], revision=config.revision, key="vision.path"))
    try:
        vision = description["model_cfg"]["vision_cfg"]
        name, size = vision["timm_model_name"], int(vision.get("image_size", 224))
        mean, std = _per_channel(description["preprocess_cfg"], "mean"), _per_channel(description["preprocess_cfg"], "std")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"vision.path={config.path}: open_clip_config.json cannot be used ({one_line(error)}); "
            "give a CLIP model with a timm image tower and a square image"
        ) from None
    file = find_file(config.path, OPEN_CLIP_FILES, revision=config.revision, key="vision.path")
    prefix = "visual.trunk."
    state = {key.removeprefix(prefix): value for key, value in read_tensors(file).items() if key.startswith(prefix)}
    trunk = _create(name, vision.get("timm_model_kwargs", {}))
    load_exactly(trunk, state, origin=str(file))
    return LoadedEncoder(trunk, size, mean, std)


def save_open_clip(
    folder: Path,
    model: nn.Module,
    *,
    timm_model_name: str,
    kwargs: dict[str, int],
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
    safetensors_file: bool = True,
) -> None:
    """Writes a timm model without classifier in format `open_clip`; `kwargs` are those of `timm.create_model`.

    `vision_cfg.timm_model_kwargs` is our addition to the format: open_clip itself builds towers from their name only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = model.patch_embed.img_size[0]
    vision = {
        "timm_model_name": timm_model_name,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": size,
    }
    description = {
        "model_cfg": {"embed_dim": model.num_features, "vision_cfg": {**vision, "image_size": size, "timm_model_kwargs": kwargs}},
        "preprocess_cfg": {"mean": list(mean), "std": list(std)},
    }
    state = {f"visual.trunk.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if safetensors_file:
        safetensors.torch.save_file(state, folder / OPEN_CLIP_FILES[0])
    else:
        torch.save(state, folder / OPEN_CLIP_FILES[1])
    # Written last, because readers look for it first: an incomplete folder is not taken for a complete one.
    (folder / "open_clip_config.json").write_text(json.dumps(description, indent=2) + "\n")


def pmc_clip(config: VisionConfig) -> LoadedEncoder:
    """The image tower of PMC-CLIP (arXiv 2303.07240): CLIP's ModifiedResNet-50 with 32 attention-pool heads and 768 outputs.

    The published code computes the number of heads as width * 32 / 64. With 8 heads the weights load without an error and give other
    features.
    """
    file = find_file(config.path, PMC_CLIP_FILES, revision=config.revision, key="vision.path")
    state = {
        re.sub(r"^(module\.)?(visual\.)?", "visual.", name): value for name, value in read_tensors(file).items() if _is_image_key(name)
    }
    model = timm.create_model("resnet50_clip", num_classes=768, img_size=224)
    load_exactly(model, checkpoint_filter_fn(state, model), origin=str(file))
    return LoadedEncoder(model, 224, CLIP_MEAN, CLIP_STD)


def _is_image_key(name: str) -> bool:
    """A file holds the image tower alone (names without prefix) or the whole model (the tower under `visual.`)."""
    return "visual." in name or re.match(r"(module\.)?(conv|bn|layer|attnpool)", name) is not None


# format -> (class of transformers, model types in config.json, arguments of from_pretrained)
HF_MODELS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "hf_clip": ("CLIPVisionModel", ("clip", "clip_vision_model"), {}),  # PubMedCLIP; arXiv 2112.13906
    "hf_vit": ("ViTModel", ("vit",), {"add_pooling_layer": False}),  # google/vit-base-patch16-224-in21k and models from it
    "hf_siglip": ("SiglipVisionModel", ("siglip", "siglip_vision_model"), {}),  # MedSigLIP; arXiv 2507.05201
    "hf_dinov2": ("Dinov2Model", ("dinov2",), {}),  # RAD-DINO
}


def hf(config: VisionConfig) -> LoadedEncoder:
    """An image encoder of transformers (`HF_MODELS`); mean and std are those of preprocessor_config.json."""
    class_name, types, kwargs = HF_MODELS[config.format]
    model_type = read_json(find_file(config.path, ["config.json"], revision=config.revision, key="vision.path")).get("model_type")
    if model_type not in types:
        raise UserError(
            f"vision.format={config.format} reads models of type {' or '.join(types)}, but {config.path} is of type {model_type!r}"
        )
    preprocessor = read_json(find_file(config.path, ["preprocessor_config.json"], revision=config.revision, key="vision.path"))
    find_file(config.path, HF_FILES, revision=config.revision, key="vision.path")
    settings = {"revision": "main" if config.revision == UNVERIFIED else config.revision, "dtype": torch.float32, **kwargs}
    try:
        mean, std = _per_channel(preprocessor, "image_mean"), _per_channel(preprocessor, "image_std")
        model, info = getattr(transformers, class_name).from_pretrained(
            config.path, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except Exception as error:  # libraries raise different types for a broken folder
        raise UserError(f"vision.path={config.path} cannot be loaded as {config.format}: {one_line(error)}") from None
    raise_mismatches(
        {"lacks": info["missing_keys"], "has wrong shapes:": [str(key[0]) for key in info["mismatched_keys"]]}, origin=config.path
    )
    return LoadedEncoder(model, model.config.image_size, mean, std)


def _per_channel(description: dict, key: str) -> tuple[float, float, float]:
    red, green, blue = map(float, description[key])
    return red, green, blue


def timm_hub(config: VisionConfig) -> LoadedEncoder:
    """A timm model with its published weights, by architecture name, or from a hub repository or folder in the format of timm."""
    name = timm_source(config)
    model = _create(name, config.architecture_kwargs, pretrained=True)
    model.reset_classifier(0)
    data = timm.data.resolve_model_data_config(model)
    return LoadedEncoder(model, data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]))


def timm_source(config: VisionConfig) -> str:
    """The model name for `timm.create_model`."""
    if not config.path:
        return config.architecture
    if Path(config.path).is_dir():
        return f"local-dir:{config.path}"
    return f"hf-hub:{config.path}" + ("" if config.revision == UNVERIFIED else f"@{config.revision}")


def scratch(config: VisionConfig) -> LoadedEncoder:
    """A timm architecture with random weights, which depend on the state of torch's generator.

    It uses the mean and std of CLIP, so that it gets the same input as BiomedCLIP.
    """
    kwargs = dict(config.architecture_kwargs)
    _require_timm_model(config.architecture)
    published = timm.get_pretrained_cfg(config.architecture)
    size = config.image_size or kwargs.get("img_size") or published.input_size[-1]
    if published.fixed_input_size:
        kwargs["img_size"] = size
    return LoadedEncoder(_create(config.architecture, kwargs), size, CLIP_MEAN, CLIP_STD)


FORMATS = {"open_clip": open_clip, **dict.fromkeys(HF_MODELS, hf), "pmc_clip": pmc_clip, "timm": timm_hub, "scratch": scratch}


def load_encoder(config: VisionConfig) -> LoadedEncoder:
    """Loads `config` by its format. Raises `UserError` for an unknown format and for files that do not fit."""
    if config.format not in FORMATS:
        raise UserError(f"vision.format={config.format!r}{suggest(config.format, FORMATS)}")
    return FORMATS[config.format](config)


def _create(name: str, kwargs: dict[str, int], *, pretrained: bool = False) -> nn.Module:
    if ":" not in name:
        _require_timm_model(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **(kwargs if pretrained else {**kwargs, "num_classes": 0}))
    except (TypeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(
            f"{name}: timm cannot build this model with {kwargs} ({reason}); correct vision.architecture_kwargs, "
            "or timm_model_kwargs in the open_clip_config.json of vision.path"
        ) from None
    except (RuntimeError, OSError, KeyError) as error:
        raise UserError(
            f"{name}: timm could not load its weights ({one_line(error)}); check vision.architecture, vision.path and the network"
        ) from None


def _require_timm_model(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(f"vision.architecture={name!r} is not a timm model" + (f"; did you mean '{close[0]}'?" if close else ""))


def untrained_copy(config: VisionConfig) -> VisionConfig:
    """The same architecture and input size with random weights, for comparisons with training from scratch."""
    if config.format == "scratch":
        return config
    if config.format == "open_clip":
        description = read_json(find_file(config.path, ["open_clip_config.json"], revision=config.revision, key="vision.path"))
        vision = description["model_cfg"]["vision_cfg"]
        return VisionConfig(
            architecture=vision["timm_model_name"],
            architecture_kwargs=vision.get("timm_model_kwargs", {}),
            image_size=config.image_size or int(vision.get("image_size", 224)),
            layer=config.layer,
        )
    if config.format == "timm":
        architecture = config.architecture
        if not architecture:
            architecture = read_json(find_file(config.path, ["config.json"], revision=config.revision, key="vision.path"))["architecture"]
        return replace(config, format="scratch", path="", revision=UNVERIFIED, architecture=architecture)
    raise UserError(f"vision.format={config.format} cannot be built with random weights; allowed: open_clip, timm, scratch")
