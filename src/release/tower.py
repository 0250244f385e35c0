"""Conversion of our image encoder to the vision tower of the transformers Llava. Only names change; the computation stays exact."""

import torch
from timm.layers import GELUTanh, Mlp
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from transformers import PretrainedConfig, SiglipVisionConfig, ViTConfig

from src.model.vision import HfVit, TimmVit, Vision
from src.runtime.errors import UserError


def tower_config(vision: Vision) -> PretrainedConfig:
    """A config of ViT, SigLIP, CLIP or DINOv2 whose hidden state after the last block is the input of our projector.

    Raises `UserError` for encoders that neither class can represent.
    """
    if isinstance(vision, TimmVit):
        _check_plain_vit(vision.trunk)
        trunk, block = vision.trunk, vision.trunk.blocks[0]
        shape = {
            "hidden_size": trunk.embed_dim,
            "num_hidden_layers": len(trunk.blocks),
            "num_attention_heads": block.attn.num_heads,
            "intermediate_size": block.mlp.fc1.out_features,
            "image_size": vision.size,
            "patch_size": trunk.patch_embed.patch_size[0],
            "layer_norm_eps": block.norm1.eps,
            "hidden_act": "gelu" if block.mlp.act.__class__ is nn.GELU and block.mlp.act.approximate == "none" else "gelu_pytorch_tanh",
        }
        if not vision.has_cls:
            return SiglipVisionConfig(**shape, vision_use_head=False)
        bias = block.attn.qkv.bias is not None
        return ViTConfig(**shape, qkv_bias=bias, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if isinstance(vision, HfVit) and vision.size == vision.trunk.config.image_size:
        config = vision.trunk.config.__class__.from_dict(vision.trunk.config.to_dict())
        config.num_hidden_layers = vision.trunk.config.num_hidden_layers
        return config
    raise UserError(
        "parts=hf: the Llava of transformers needs a plain ViT encoder at the image size of its weights, which the encoder of "
        "this run is not; use parts=[adapter,timm]"
    )


def tower_state(vision: Vision) -> dict[str, Tensor]:
    """State dict of the tower with the names of its class in transformers."""
    if isinstance(vision, HfVit):
        state = dict(vision.trunk.state_dict())
        return state | _pooler(vision.width) if vision.kind == "vit" else state
    if not vision.has_cls:
        return _siglip_from_timm(vision.trunk.state_dict())
    return _from_timm(vision.trunk.state_dict()) | _pooler(vision.width)


def _from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
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
    return converted | _blocks(state, names, attention="attention", prefix="layers")


def _siglip_from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The attention pool is left out: Llava does not use it."""
    converted = {
        "embeddings.position_embedding.weight": state["pos_embed"][0],
        "embeddings.patch_embedding.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": state["patch_embed.proj.bias"],
        "post_layernorm.weight": state["norm.weight"],
        "post_layernorm.bias": state["norm.bias"],
    }
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    return converted | _blocks(state, names, attention="self_attn", prefix="encoder.layers")


def _blocks(state: dict[str, Tensor], names: dict[str, str], *, attention: str, prefix: str) -> dict[str, Tensor]:
    converted = {}
    for name, value in state.items():
        if not name.startswith("blocks."):
            continue
        _, index, inner = name.split(".", 2)
        part, kind = inner.rsplit(".", 1)
        if part == "attn.qkv":
            for letter, projection in zip("qkv", value.chunk(3), strict=True):
                converted[f"{prefix}.{index}.{attention}.{letter}_proj.{kind}"] = projection
        else:
            converted[f"{prefix}.{index}.{names[part]}.{kind}"] = value
    return converted


def _pooler(width: int) -> dict[str, Tensor]:
    """`ViTModel` has a pooler that Llava never uses. Zeros make the file deterministic."""
    return {"pooler.dense.weight": torch.zeros(width, width), "pooler.dense.bias": torch.zeros(width)}


def _check_plain_vit(trunk: nn.Module) -> None:
    """Raises `UserError` unless transformers can represent this timm ViT: at most a CLS token, learned positions, plain pre-norm blocks.

    Without a CLS token it is a SigLIP, whose final norm and biases are always there. `ViTModel` has no tanh approximation of GELU.
    """
    block = trunk.blocks[0] if isinstance(trunk, VisionTransformer) else None
    plain = (
        block is not None
        and trunk.num_prefix_tokens == (trunk.cls_token is not None)
        and (not trunk.no_embed_class or trunk.cls_token is None)
        and (block.attn.qkv.bias is not None or trunk.cls_token is not None)
        and isinstance(trunk.norm, nn.LayerNorm)
        and trunk.pos_embed is not None
        and isinstance(trunk.norm_pre, nn.Identity)
        and type(block.attn) is Attention
        and isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(block.attn.norm, nn.Identity)
        and isinstance(block.ls1, nn.Identity)
        and type(block.mlp) is Mlp
        and isinstance(block.mlp.act, (nn.GELU, GELUTanh))
        and isinstance(block.mlp.norm, nn.Identity)
        and trunk.patch_embed.proj.bias is not None
    )
    if not plain:
        raise UserError(
            f"parts=hf: transformers has no vision tower for the {type(trunk).__name__} of this run (it needs learned positions, "
            "no register tokens and plain pre-norm blocks); use parts=[adapter,timm]"
        )
