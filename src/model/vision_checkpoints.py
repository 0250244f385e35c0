"""Stored image encoders, one function per format: config -> a bare module with its weights, its input size, mean and std."""

import difflib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
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

# OpenAI CLIP's, which BiomedCLIP, PMC-CLIP and PubMedCLIP kept (open_clip's constants.py).
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
    """A CLIP whose image tower is a timm model, as open_clip stores it (BiomedCLIP; arXiv 2303.00915).

    Reads `visual.trunk.*`; the text tower and the projection to the common space are left out.
    """
    described = read_json(find_file(config.path, ["open_clip_config.json"], revision=config.revision, key="vision.path"))
    try:
        vision = described["model_cfg"]["vision_cfg"]
        name, size = vision["timm_model_name"], int(vision.get("image_size", 224))
        mean, std = _per_channel(described["preprocess_cfg"], "mean"), _per_channel(described["preprocess_cfg"], "std")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"open_clip_config.json of {config.path} is none that can be read ({one_line(error)}); "
            "only CLIP models with a timm image tower and a square image can be"
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
    """Writes a timm model (without classifier) so that format `open_clip` reads it back; `kwargs` went to `timm.create_model`.

    `vision_cfg.timm_model_kwargs` is our addition to the format: open_clip itself builds towers by name alone.
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
    described = {
        "model_cfg": {"embed_dim": model.num_features, "vision_cfg": {**vision, "image_size": size, "timm_model_kwargs": kwargs}},
        "preprocess_cfg": {"mean": list(mean), "std": list(std)},
    }
    state = {f"visual.trunk.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if safetensors_file:
        safetensors.torch.save_file(state, folder / OPEN_CLIP_FILES[0])
    else:
        torch.save(state, folder / OPEN_CLIP_FILES[1])
    # Last, because it is what a reader looks for first.
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")


def pmc_clip(config: VisionConfig) -> LoadedEncoder:
    """PMC-CLIP's image tower (arXiv 2303.07240): CLIP's ModifiedResNet-50 with 32 attention-pool heads and 768 outputs.

    Its published code derives the heads as width * 32 / 64; 8 heads load without an error and give other features.
    """
    file = find_file(config.path, PMC_CLIP_FILES, revision=config.revision, key="vision.path")
    state = {
        re.sub(r"^(module\.)?(visual\.)?", "visual.", name): value for name, value in read_tensors(file).items() if _is_image_key(name)
    }
    model = timm.create_model("resnet50_clip", num_classes=768, img_size=224)
    load_exactly(model, checkpoint_filter_fn(state, model), origin=str(file))
    return LoadedEncoder(model, 224, CLIP_MEAN, CLIP_STD)


def _is_image_key(name: str) -> bool:
    """The file is the image tower alone (bare names) or the whole model (the tower under `visual.`)."""
    return "visual." in name or re.match(r"(module\.)?(conv|bn|layer|attnpool)", name) is not None


def hf_clip(config: VisionConfig) -> LoadedEncoder:
    """The image half of a transformers CLIP folder (PubMedCLIP; arXiv 2112.13906), mean and std from its preprocessor_config.json."""
    from transformers import CLIPVisionModel

    return _hf(config, CLIPVisionModel, types=("clip", "clip_vision_model"))


def hf_vit(config: VisionConfig) -> LoadedEncoder:
    """A transformers ViT folder (`google/vit-base-patch16-224-in21k` and its fine-tuned kin)."""
    from transformers import ViTModel

    return _hf(config, ViTModel, types=("vit",), add_pooling_layer=False)


def _hf(config: VisionConfig, kind: Any, *, types: tuple[str, ...], **kwargs: Any) -> LoadedEncoder:
    found = read_json(find_file(config.path, ["config.json"], revision=config.revision, key="vision.path")).get("model_type")
    if found not in types:
        raise UserError(f"vision.format={config.format} reads models of type {' or '.join(types)}, but {config.path} is of type {found!r}")
    look = read_json(find_file(config.path, ["preprocessor_config.json"], revision=config.revision, key="vision.path"))
    find_file(config.path, HF_FILES, revision=config.revision, key="vision.path")
    settings = {"revision": "main" if config.revision == UNVERIFIED else config.revision, "dtype": torch.float32, **kwargs}
    try:
        mean, std = _per_channel(look, "image_mean"), _per_channel(look, "image_std")
        model, info = kind.from_pretrained(config.path, output_loading_info=True, ignore_mismatched_sizes=True, **settings)
    except Exception as error:  # each library raises what it likes
        raise UserError(f"vision.path={config.path} cannot be loaded as {config.format}: {one_line(error)}") from None
    raise_mismatches(
        {"lacks": info["missing_keys"], "has wrong shapes:": [str(key[0]) for key in info["mismatched_keys"]]}, origin=config.path
    )
    return LoadedEncoder(model, model.config.image_size, mean, std)


def _per_channel(described: dict, key: str) -> tuple[float, float, float]:
    red, green, blue = map(float, described[key])
    return red, green, blue


def timm_hub(config: VisionConfig) -> LoadedEncoder:
    """Any timm model with its published weights: by architecture name, or from a hub repository or folder that timm wrote."""
    name = timm_source(config)
    model = _create(name, config.architecture_kwargs, pretrained=True)
    model.reset_classifier(0)
    data = timm.data.resolve_model_data_config(model)
    return LoadedEncoder(model, data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]))


def timm_source(config: VisionConfig) -> str:
    """The name by which `timm.create_model` knows the weights."""
    if not config.path:
        return config.architecture
    if Path(config.path).is_dir():
        return f"local-dir:{config.path}"
    return f"hf-hub:{config.path}" + ("" if config.revision == UNVERIFIED else f"@{config.revision}")


def scratch(config: VisionConfig) -> LoadedEncoder:
    """A timm architecture as timm initialises it, drawn from torch's generator: seed that first.

    It has no mean and std of its own and takes CLIP's, so that it sees the same pixels as BiomedCLIP does.
    """
    kwargs = dict(config.architecture_kwargs)
    _known(config.architecture)
    published = timm.get_pretrained_cfg(config.architecture)
    size = config.image_size or kwargs.get("img_size") or published.input_size[-1]
    if published.fixed_input_size:
        kwargs["img_size"] = size
    return LoadedEncoder(_create(config.architecture, kwargs), size, CLIP_MEAN, CLIP_STD)


FORMATS = {"open_clip": open_clip, "hf_clip": hf_clip, "hf_vit": hf_vit, "pmc_clip": pmc_clip, "timm": timm_hub, "scratch": scratch}


def load_encoder(config: VisionConfig) -> LoadedEncoder:
    if config.format not in FORMATS:
        raise UserError(f"vision.format={config.format!r}{suggest(config.format, FORMATS)}")
    return FORMATS[config.format](config)


def _create(name: str, kwargs: dict[str, int], *, pretrained: bool = False) -> nn.Module:
    if ":" not in name:
        _known(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **(kwargs if pretrained else {**kwargs, "num_classes": 0}))
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"timm cannot build {name} with {kwargs}: {str(error).splitlines()[0] if str(error) else error!r}") from None
    except (RuntimeError, OSError, KeyError) as error:
        raise UserError(f"timm could not load the weights of {name}: {one_line(error)}") from None


def _known(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(f"vision.architecture={name!r} is not a timm model" + (f"; did you mean '{close[0]}'?" if close else ""))


def untrained_copy(config: VisionConfig) -> VisionConfig:
    """The same architecture and input size without its weights: what a from-scratch comparison trains."""
    if config.format == "scratch":
        return config
    if config.format == "open_clip":
        described = read_json(find_file(config.path, ["open_clip_config.json"], revision=config.revision, key="vision.path"))
        vision = described["model_cfg"]["vision_cfg"]
        return VisionConfig(
            architecture=vision["timm_model_name"],
            architecture_kwargs=vision.get("timm_model_kwargs", {}),
            image_size=config.image_size or int(vision.get("image_size", 224)),
            layer=config.layer,
        )
    if config.format == "timm" and config.architecture:
        return replace(config, format="scratch", path="", revision=UNVERIFIED)
    raise UserError(f"an encoder of format {config.format} has no from-scratch twin; allowed: open_clip, timm (by name), scratch")
