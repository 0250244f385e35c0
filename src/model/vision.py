"""Image encoders of timm and transformers with one interface: uint8 pixels -> patch features.

Legend: N images, 3HW channels and pixels (H = W = size), P patches, D width of a patch feature, F width of a pooled feature.
"""

import math
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.config.train import VisionConfig
from src.model.vision_checkpoints import HF_FILES, OPEN_CLIP_FILES, PMC_CLIP_FILES, LoadedEncoder, load_encoder
from src.model.weight_files import identity_of, one_line, weight_files
from src.runtime.errors import UserError, suggest

POOLINGS = ("cls", "cls_norm", "mean", "mean_norm")


class Vision(nn.Module):
    """Base class of image encoders, which normalise pixels by their own mean and std.

    `size`: side of the square input in pixels; `num_patches`: P; `width`: D. Every constructor ends with `freeze_unused`. To train on
    pooled features, enable the frozen parameters again with `requires_grad_(True)`.
    """

    trunk: Any  # a module of timm or transformers, whose attributes differ
    size: int
    width: int
    num_patches: int
    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, *, size: int, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.trunk, self.size = trunk, size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def freeze_unused(self) -> None:
        """Freezes parameters that `forward` does not use (final norm, attention pool), because DDP waits for a gradient of each
        trainable parameter.

        The used parameters are found in the autograd graph of a forward pass on the meta device, which needs no memory and computes
        nothing.
        """
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        meta = {name: torch.empty_like(t, device="meta", requires_grad=t.requires_grad) for name, t in named.items()}
        image = torch.empty(1, 3, self.size, self.size, dtype=torch.uint8, device="meta")
        with torch.enable_grad():
            visited = {torch.func.functional_call(self, meta, image).grad_fn} - {None}
        stack, used = list(visited), set()
        while stack:
            node = stack.pop()
            used.add(id(getattr(node, "variable", None)))
            inputs = {function for function, _ in node.next_functions} - visited - {None}
            visited |= inputs
            stack += inputs
        for name, parameter in self.named_parameters():
            if id(meta[name]) not in used:
                parameter.requires_grad_(False)

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """uint8 pixels -> v_NPD, the patch features before the final norm (as in transformers' Llava)."""
        return self.encode(self.normalise(x_N3HW))[1]

    def pooled(self, x_N3HW: Tensor, pooling: str) -> Tensor:
        """uint8 pixels -> f_NF, one feature per image: CLS token or mean of the patches, before or after the final norm.

        `cls+mean` is the concatenation of two poolings. Raises `UserError` where the encoder lacks a pooling.
        """
        parts = pooling.split("+")
        for part in parts:
            if part not in self.poolings():
                raise UserError(f"this encoder has no pooling {part!r}{suggest(part, self.poolings())}")
        features = self.features(x_N3HW)
        return torch.cat([features[part] for part in parts], dim=1)

    def features(self, x_N3HW: Tensor) -> dict[str, Tensor]:
        """All poolings of `poolings()`, from one forward pass: {pooling: f_NF}."""
        cls_NF, v_NPD = self.encode(self.normalise(x_N3HW))
        features = {"cls": cls_NF, "mean": v_NPD.mean(1)}
        if self.norm is not None:
            features |= {"cls_norm": None if cls_NF is None else self.norm(cls_NF), "mean_norm": self.norm(v_NPD).mean(1)}
        return {pooling: features[pooling] for pooling in self.poolings()}

    def normalise(self, x_N3HW: Tensor) -> Tensor:
        return (x_N3HW.to(self.mean.dtype) / 255 - self.mean) / self.std

    def poolings(self) -> tuple[str, ...]:
        raise NotImplementedError

    def encode(self, x_N3HW: Tensor) -> tuple[Tensor | None, Tensor]:
        """Normalised pixels -> (cls_NF or None, v_NPD), both before the final norm."""
        raise NotImplementedError

    @property
    def norm(self) -> nn.Module | None:
        """The final norm, or None if the encoder has none that applies to single features."""
        return None

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """If enabled, the backward pass computes the activations of each block again instead of saving them."""
        self.trunk.set_grad_checkpointing(enabled)


class TimmVit(Vision):
    """Transformers of timm: VisionTransformer and other models with `blocks` and prefix tokens."""

    def __init__(self, encoder: LoadedEncoder, *, size: int, layer: int):
        trunk = encoder.module
        super().__init__(trunk, size=size, mean=encoder.mean, std=encoder.std)
        if size != encoder.size:
            trunk.set_input_size(img_size=size)
        trunk.blocks = trunk.blocks[: _num_layers(layer, len(trunk.blocks))]
        self.width, self.num_patches = trunk.embed_dim, trunk.patch_embed.num_patches
        self.has_cls = getattr(trunk, "cls_token", None) is not None
        self.freeze_unused()

    def encode(self, x_N3HW: Tensor) -> tuple[Tensor | None, Tensor]:
        output = self.trunk.forward_intermediates(
            x_N3HW, indices=[-1], norm=False, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=self.has_cls
        )[0]
        return (output[1][:, 0], output[0]) if self.has_cls else (None, output)

    @property
    def norm(self) -> nn.Module:
        return self.trunk.norm

    def poolings(self) -> tuple[str, ...]:
        return POOLINGS if self.has_cls else ("mean", "mean_norm")


class HfVit(Vision):
    """transformers' CLIPVisionModel, ViTModel, SiglipVisionModel (without a CLS token) and Dinov2Model."""

    def __init__(self, encoder: LoadedEncoder, *, size: int, layer: int):
        trunk = getattr(encoder.module, "vision_model", encoder.module)
        super().__init__(trunk, size=size, mean=encoder.mean, std=encoder.std)
        parent = trunk.encoder if hasattr(trunk, "encoder") else trunk
        attribute = "layers" if hasattr(parent, "layers") else "layer"
        layers = getattr(parent, attribute)[: _num_layers(layer, trunk.config.num_hidden_layers)]
        setattr(parent, attribute, layers)
        trunk.config.num_hidden_layers = len(layers)
        self.kind = trunk.config.model_type
        self.has_cls = not self.kind.startswith("siglip")
        trunk.use_head = False  # SigLIP's attention pool, which `encode` does not need
        self.interpolates = size != trunk.config.image_size and self.kind != "dinov2"  # which interpolates without an argument
        self.width, self.num_patches = trunk.config.hidden_size, (size // trunk.config.patch_size) ** 2
        self.freeze_unused()

    def encode(self, x_N3HW: Tensor) -> tuple[Tensor | None, Tensor]:
        is_clip = self.kind.startswith("clip")
        kwargs = {"interpolate_pos_encoding": True} if self.interpolates else {}
        output = self.trunk(pixel_values=x_N3HW, output_hidden_states=not is_clip, **kwargs)
        # The last hidden state of CLIP is before the final norm, those of the others after it.
        tokens = output.last_hidden_state if is_clip else output.hidden_states[-1]
        return (tokens[:, 0], tokens[:, 1:]) if self.has_cls else (None, tokens)

    @property
    def norm(self) -> nn.Module:
        return self.trunk.post_layernorm if hasattr(self.trunk, "post_layernorm") else self.trunk.layernorm

    def poolings(self) -> tuple[str, ...]:
        return POOLINGS if self.has_cls else ("mean", "mean_norm")

    def set_activation_checkpointing(self, enabled: bool) -> None:
        if enabled:
            self.trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.trunk.gradient_checkpointing_disable()


class TimmFeatureMap(Vision):
    """Convolutional and hierarchical models of timm: each cell of the last feature map is a patch.

    Pooling `cls` is the output of the attention pool, if the model has one (PMC-CLIP: 768 wide; patches are 2048 wide). Batch norm
    always uses the stored statistics, because the batches of packed sequences and blank images would distort them.
    """

    def __init__(self, encoder: LoadedEncoder, *, size: int, layer: int):
        trunk = encoder.module
        super().__init__(trunk, size=size, mean=encoder.mean, std=encoder.std)
        if size != encoder.size and hasattr(trunk, "set_input_size"):
            trunk.set_input_size(img_size=size)
        self.layer = _num_layers(layer, len(trunk.feature_info)) - 1
        stage = trunk.feature_info[self.layer]
        self.width, self.num_patches = stage["num_chs"], math.ceil(size / stage["reduction"]) ** 2
        self.has_pool = hasattr(getattr(trunk, "head", None), "pos_embed")
        trunk.prune_intermediate_layers(indices=[self.layer], prune_norm=True, prune_head=not self.has_pool)
        self.train()
        self.freeze_unused()

    def encode(self, x_N3HW: Tensor) -> tuple[Tensor | None, Tensor]:
        v_NDhw = self.trunk.forward_intermediates(x_N3HW, indices=[self.layer], intermediates_only=True, stop_early=True)[0]
        return self.trunk.head(v_NDhw) if self.has_pool else None, v_NDhw.flatten(2).transpose(1, 2)

    def poolings(self) -> tuple[str, ...]:
        return ("cls", "mean") if self.has_pool else ("mean",)

    def train(self, mode: bool = True) -> "TimmFeatureMap":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def load_vision(config: VisionConfig) -> Vision:
    """The encoder of a configuration, in float32. Raises `UserError` for wrong keys and for files that cannot be loaded."""
    encoder = load_encoder(config)
    if isinstance(encoder.module, PreTrainedModel):
        vision_class: type = HfVit
    else:
        is_vit = hasattr(encoder.module, "num_prefix_tokens") and hasattr(encoder.module, "blocks")
        vision_class = TimmVit if is_vit else TimmFeatureMap
    size = config.image_size or encoder.size
    reason = "an image would have no patch"
    try:
        vision = vision_class(encoder, size=size, layer=config.layer)
    except (RuntimeError, AssertionError, ValueError) as error:
        vision, reason = None, one_line(error)
    if vision is None or vision.num_patches == 0:
        raise UserError(f"vision.image_size={size} does not fit this encoder: {reason}")
    return vision


def identity(config: VisionConfig) -> dict[str, str]:
    """{id, revision, sha256} of the weights that an encoder starts from, for checkpoints without the frozen parts."""
    if config.format == "scratch":
        return {"id": f"scratch:{config.architecture}", "revision": "", "sha256": ""}
    path = config.path
    if config.format == "timm" and not path:
        path = timm.get_pretrained_cfg(config.architecture).hf_hub_id
        if not path:
            raise UserError(
                f"vision.architecture={config.architecture} has weights in no hub repository, so a checkpoint could not identify them; "
                "choose another timm model, or set vision.path to a folder"
            )
    names = {"open_clip": OPEN_CLIP_FILES, "pmc_clip": PMC_CLIP_FILES}.get(config.format, HF_FILES)
    return identity_of(path, weight_files(path, names, revision=config.revision, key="vision.path"), revision=config.revision)


def _num_layers(layer: int, depth: int) -> int:
    """Number of layers up to and including `layer` (counted from 0, or negative from the end)."""
    if not -depth <= layer < depth:
        raise UserError(f"vision.layer={layer} is out of range: the encoder has {depth} layers (-1 is the last)")
    return layer % depth + 1
