"""Conversion of our image encoder to the vision tower of the transformers Llava. Only names change; the computation stays exact."""

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from transformers import CLIPVisionConfig, PretrainedConfig, ViTConfig

from src.model.vision import HfVit, TimmVit, Vision
from src.runtime.errors import UserError


def tower_config(vision: Vision) -> PretrainedConfig:
    """A `ViTConfig` or `CLIPVisionConfig` whose hidden state after the last block is the input of our projector.

    Raises `UserError` for encoders that neither class can represent.
    """
    if isinstance(vision, TimmVit):
        _check_plain_vit(vision.trunk)
        trunk, block = vision.trunk, vision.trunk.blocks[0]
        return ViTConfig(
            hidden_size=trunk.embed_dim,
            num_hidden_layers=len(trunk.blocks),
            num_attention_heads=block.attn.num_heads,
            intermediate_size=block.mlp.fc1.out_features,
            image_size=vision.size,
            patch_size=trunk.patch_embed.patch_size[0],
            layer_norm_eps=block.norm1.eps,
            qkv_bias=block.attn.qkv.bias is not None,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    if isinstance(vision, HfVit) and not vision.interpolates:
        config = vision.trunk.config.__class__.from_dict(vision.trunk.config.to_dict())
        config.num_hidden_layers = vision.trunk.config.num_hidden_layers
        return config
    raise UserError(
        "parts=hf: the Llava of transformers needs a ViT encoder with a CLS token at the image size of its weights, which the encoder of "
        "this run is not; use parts=[adapter,timm]"
    )


def tower_state(vision: Vision) -> dict[str, Tensor]:
    """State dict of the tower with the names of `ViTModel` or `CLIPVisionModel`."""
    if isinstance(vision, HfVit):
        state = dict(vision.trunk.state_dict())
        return state if isinstance(vision.trunk.config, CLIPVisionConfig) else state | _pooler(vision.width)
    return _from_timm(vision.trunk.state_dict(), width=vision.width) | _pooler(vision.width)


def _from_timm(state: dict[str, Tensor], *, width: int) -> dict[str, Tensor]:
    converted = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1"}
    names |= {"mlp.fc2": "mlp.fc2"}
    for name, value in state.items():
        if not name.startswith("blocks."):
            continue
        _, index, inner = name.split(".", 2)
        part, kind = inner.rsplit(".", 1)
        if part == "attn.qkv":
            for letter, projection in zip("qkv", value.chunk(3), strict=True):
                converted[f"layers.{index}.attention.{letter}_proj.{kind}"] = projection
        else:
            converted[f"layers.{index}.{names[part]}.{kind}"] = value
    return converted


def _pooler(width: int) -> dict[str, Tensor]:
    """`ViTModel` has a pooler that Llava never uses. Zeros make the file deterministic."""
    return {"pooler.dense.weight": torch.zeros(width, width), "pooler.dense.bias": torch.zeros(width)}


def _check_plain_vit(trunk: nn.Module) -> None:
    """Raises `UserError` unless `ViTModel` can represent this timm ViT: one CLS token, learned positions, plain pre-norm blocks."""
    block = trunk.blocks[0] if isinstance(trunk, VisionTransformer) else None
    plain = (
        block is not None
        and trunk.cls_token is not None
        and trunk.num_prefix_tokens == 1
        and not trunk.no_embed_class
        and trunk.pos_embed is not None
        and isinstance(trunk.norm_pre, nn.Identity)
        and type(block.attn) is Attention
        and isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(block.attn.norm, nn.Identity)
        and isinstance(block.ls1, nn.Identity)
        and type(block.mlp) is Mlp
        and isinstance(block.mlp.act, nn.GELU)
        and isinstance(block.mlp.norm, nn.Identity)
        and trunk.patch_embed.proj.bias is not None
    )
    if not plain:
        raise UserError(
            f"parts=hf: transformers has no vision tower for the {type(trunk).__name__} of this run (it needs a CLS token, learned "
            "positions and plain pre-norm blocks); use parts=[adapter,timm]"
        )
