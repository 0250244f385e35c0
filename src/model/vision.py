"""Image encoders: uint8 pixels -> patch features, the same face whatever the weights.

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
    """An image encoder that normalises by its own mean and std.

    `size`: side of the square input in pixels; `num_patches`: P; `width`: D. Every constructor ends with `freeze_unreached`;
    whoever trains on pooled features turns the frozen parameters on with `requires_grad_(True)`.
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

    def freeze_unreached(self) -> None:
        """Freezes parameters that `forward` does not use (final norm, attention pool): DDP waits for a gradient of every trainable one.

        The autograd graph of a forward pass on the meta device names the used ones, which takes no memory and no arithmetic.
        """
        named = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        meta = {name: torch.empty_like(t, device="meta", requires_grad=t.requires_grad) for name, t in named.items()}
        image = torch.empty(1, 3, self.size, self.size, dtype=torch.uint8, device="meta")
        with torch.enable_grad():
            found = {torch.func.functional_call(self, meta, image).grad_fn} - {None}
        nodes, used = list(found), set()
        while nodes:
            node = nodes.pop()
            used.add(id(getattr(node, "variable", None)))
            following = {following for following, _ in node.next_functions} - found - {None}
            found |= following
            nodes += following
        for name, parameter in self.named_parameters():
            if id(meta[name]) not in used:
                parameter.requires_grad_(False)

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """uint8 pixels -> v_NPD, the features of the patches before the final norm (what transformers' Llava selects)."""
        return self.encode(self.normalise(x_N3HW))[1]

    def pooled(self, x_N3HW: Tensor, how: str) -> Tensor:
        """uint8 pixels -> f_NF, one feature per image: CLS token or mean of the patches, before or after the final norm."""
        if how not in self.poolings():
            raise UserError(f"this encoder has no pooling {how!r}{suggest(how, self.poolings())}")
        return self.features(x_N3HW)[how]

    def features(self, x_N3HW: Tensor) -> dict[str, Tensor]:
        """Every pooling that `poolings()` lists, from one forward pass."""
        cls_NF, v_NPD = self.encode(self.normalise(x_N3HW))
        found = {"cls": cls_NF, "mean": v_NPD.mean(1)}
        if self.norm is not None:
            found |= {"cls_norm": None if cls_NF is None else self.norm(cls_NF), "mean_norm": self.norm(v_NPD).mean(1)}
        return {how: found[how] for how in self.poolings()}

    def normalise(self, x_N3HW: Tensor) -> Tensor:
        return (x_N3HW.to(self.mean.dtype) / 255 - self.mean) / self.std

    def poolings(self) -> tuple[str, ...]:
        raise NotImplementedError

    def encode(self, x_N3HW: Tensor) -> tuple[Tensor | None, Tensor]:
        """Normalised pixels -> (cls_NF or None, v_NPD), both before the final norm."""
        raise NotImplementedError

    @property
    def norm(self) -> nn.Module | None:
        """The final norm; None where the encoder has none that applies to single features."""
        return None

    def recompute(self, enabled: bool) -> None:
        """Gradient checkpointing: activations inside a block are computed again in the backward pass."""
        self.trunk.set_grad_checkpointing(enabled)


class TimmVit(Vision):
    """timm's transformer family: VisionTransformer and whatever shares `blocks` and prefix tokens."""

    def __init__(self, tower: LoadedEncoder, *, size: int, layer: int):
        trunk = tower.module
        super().__init__(trunk, size=size, mean=tower.mean, std=tower.std)
        if size != tower.size:
            trunk.set_input_size(img_size=size)
        trunk.blocks = trunk.blocks[: _kept(layer, len(trunk.blocks))]
        self.width, self.num_patches = trunk.embed_dim, trunk.patch_embed.num_patches
        self.has_cls = getattr(trunk, "cls_token", None) is not None
        self.freeze_unreached()

    def encode(self, x_N3HW: Tensor) -> tuple[Tensor | None, Tensor]:
        found = self.trunk.forward_intermediates(
            x_N3HW, indices=[-1], norm=False, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=self.has_cls
        )[0]
        return (found[1][:, 0], found[0]) if self.has_cls else (None, found)

    @property
    def norm(self) -> nn.Module:
        return self.trunk.norm

    def poolings(self) -> tuple[str, ...]:
        return POOLINGS if self.has_cls else ("mean", "mean_norm")


class HfVit(Vision):
    """transformers' CLIPVisionModel and ViTModel."""

    def __init__(self, tower: LoadedEncoder, *, size: int, layer: int):
        trunk = getattr(tower.module, "vision_model", tower.module)
        super().__init__(trunk, size=size, mean=tower.mean, std=tower.std)
        encoder = trunk.encoder if hasattr(trunk, "encoder") else trunk
        blocks = "layers" if hasattr(encoder, "layers") else "layer"
        kept = getattr(encoder, blocks)[: _kept(layer, trunk.config.num_hidden_layers)]
        setattr(encoder, blocks, kept)
        trunk.config.num_hidden_layers = len(kept)
        self.interpolates = size != trunk.config.image_size
        self.width, self.num_patches = trunk.config.hidden_size, (size // trunk.config.patch_size) ** 2
        self.freeze_unreached()

    def encode(self, x_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        clip = hasattr(self.trunk, "post_layernorm")
        found = self.trunk(pixel_values=x_N3HW, interpolate_pos_encoding=self.interpolates, output_hidden_states=not clip)
        # CLIP's last hidden state is before its final norm, ViT's after it.
        tokens = found.last_hidden_state if clip else found.hidden_states[-1]
        return tokens[:, 0], tokens[:, 1:]

    @property
    def norm(self) -> nn.Module:
        return self.trunk.post_layernorm if hasattr(self.trunk, "post_layernorm") else self.trunk.layernorm

    def poolings(self) -> tuple[str, ...]:
        return POOLINGS

    def recompute(self, enabled: bool) -> None:
        if enabled:
            self.trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.trunk.gradient_checkpointing_disable()


class Grid(Vision):
    """timm's convolutional and hierarchical models: the cells of the last stage are the patches.

    Pooling `cls` is the attention pool's output where the model has one (PMC-CLIP: 768 wide, the patches 2048). Batch-norm
    statistics stay those of the weights: packed rows and blank images would spoil them.
    """

    def __init__(self, tower: LoadedEncoder, *, size: int, layer: int):
        trunk = tower.module
        super().__init__(trunk, size=size, mean=tower.mean, std=tower.std)
        if size != tower.size and hasattr(trunk, "set_input_size"):
            trunk.set_input_size(img_size=size)
        self.layer = _kept(layer, len(trunk.feature_info)) - 1
        stage = trunk.feature_info[self.layer]
        self.width, self.num_patches = stage["num_chs"], math.ceil(size / stage["reduction"]) ** 2
        self.has_pool = hasattr(getattr(trunk, "head", None), "pos_embed")
        trunk.prune_intermediate_layers(indices=[self.layer], prune_norm=True, prune_head=not self.has_pool)
        self.train()
        self.freeze_unreached()

    def encode(self, x_N3HW: Tensor) -> tuple[Tensor | None, Tensor]:
        v_NDhw = self.trunk.forward_intermediates(x_N3HW, indices=[self.layer], intermediates_only=True, stop_early=True)[0]
        return self.trunk.head(v_NDhw) if self.has_pool else None, v_NDhw.flatten(2).transpose(1, 2)

    def poolings(self) -> tuple[str, ...]:
        return ("cls", "mean") if self.has_pool else ("mean",)

    def train(self, mode: bool = True) -> "Grid":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def load_vision(config: VisionConfig) -> Vision:
    """The encoder that `config` describes, in float32; errors in its files or keys are `UserError`s."""
    tower = load_encoder(config)
    if isinstance(tower.module, PreTrainedModel):
        kind: type = HfVit
    else:
        kind = TimmVit if hasattr(tower.module, "num_prefix_tokens") and hasattr(tower.module, "blocks") else Grid
    size = config.image_size or tower.size
    fault = "an image would have no patch"
    try:
        vision = kind(tower, size=size, layer=config.layer)
    except (RuntimeError, AssertionError, ValueError) as error:
        vision, fault = None, one_line(error)
    if vision is None or vision.num_patches == 0:
        raise UserError(f"vision.image_size={size} does not fit this encoder: {fault}")
    return vision


def identity(config: VisionConfig) -> dict[str, str]:
    """{id, revision, sha256}: which weights an encoder starts from, for checkpoints that leave frozen ones out."""
    if config.format == "scratch":
        return {"id": f"scratch:{config.architecture}", "revision": "", "sha256": ""}
    path = config.path
    if config.format == "timm" and not path:
        path = timm.get_pretrained_cfg(config.architecture).hf_hub_id
        if not path:
            raise UserError(
                f"vision.architecture={config.architecture} has weights in no hub repository, so a checkpoint could not name them; "
                "take another of timm's, or a folder as vision.path"
            )
    names = {"open_clip": OPEN_CLIP_FILES, "pmc_clip": PMC_CLIP_FILES}.get(config.format, HF_FILES)
    return identity_of(path, weight_files(path, names, revision=config.revision, key="vision.path"), revision=config.revision)


def _kept(layer: int, depth: int) -> int:
    """How many layers stand up to and including `layer` (0-based, or negative from the end)."""
    if not -depth <= layer < depth:
        raise UserError(f"vision.layer={layer} is out of range: the encoder has {depth} layers (-1 is the last)")
    return layer % depth + 1
