"""Cost of a training step: FLOPs and saved bytes, counted on a full-size model on torch's meta device (shapes without numbers).

Legend: B packed sequences, T tokens.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from src.config.train import TrainConfig
from src.data.packing import Batch, collate
from src.data.prompt import IGNORE, EncodedSample
from src.model.vision import TimmFeatureMap, TimmVit, Vision, load_vision
from src.model.vision_checkpoints import LoadedEncoder
from src.model.vlm import VLM, assemble_vlm
from src.runtime.errors import UserError

# Architectures of weights on a hub, so that planning needs no network and no download.
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32064}
SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49216,
    "tie_word_embeddings": True,
}
LLAMA_160M = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 32064}
LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128320,
}
QWEN3_8B = LLAMA_3_8B | {"intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128, "vocab_size": 151936}
QWEN2_5_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
# By hub id; any other id is planned as the 7B. The vocabularies have the rows of `<image>` and of the padding to a multiple of 64.
SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "HuggingFaceTB/SmolLM2-135M": (LlamaConfig, SMOLLM2_135M),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (LlamaConfig, SMOLLM2_135M),
    "JackFram/llama-160m": (LlamaConfig, LLAMA_160M),
    "meta-llama/Llama-3.1-8B": (LlamaConfig, LLAMA_3_8B),
    "Qwen/Qwen2.5-7B": (Qwen2Config, QWEN2_5_7B),
    "Qwen/Qwen2.5-7B-Instruct": (Qwen2Config, QWEN2_5_7B),
    "Qwen/Qwen3-8B": (Qwen3Config, QWEN3_8B),
    "Qwen/Qwen3-8B-Base": (Qwen3Config, QWEN3_8B),
}
VIT_B_16 = "vit_base_patch16_224"
# By hub id: a timm architecture of the same shape, and the input side of the weights.
VISION_SHAPES = {"google/medsiglip-448": ("vit_so400m_patch14_siglip_384", 448), "microsoft/rad-dino": ("vit_base_patch14_dinov2", 518)}
IMAGE_ID = 1


@dataclass
class AverageSample:
    """Number of images, text tokens, and supervised text tokens of an average sample."""

    images: int
    text: int
    supervised: int


@dataclass
class StepCost:
    """Cost of one forward and backward pass over a batch of packed sequences."""

    tokens: int  # image tokens included, padding excluded
    samples: int
    flops: int  # of matrix products
    saved: int  # bytes that autograd saves for the backward pass


def build_on_meta(config: TrainConfig, *, device: str = "meta", shape: dict[str, int] | None = None, layers: int | None = None) -> VLM:
    """The model of a configuration on the meta device, or with random weights on another device.

    Stored weights are read only for their shapes, and only if they are on this disk. `shape` replaces the shape of the language model;
    `layers` limits the number of its layers.
    """
    with torch.device(device):
        vision = _vision(config).to(device)
        architecture = LlamaConfig(**shape) if shape else _language(config)
        architecture.num_hidden_layers = layers or architecture.num_hidden_layers
        base = AutoModelForCausalLM.from_config(architecture, dtype=getattr(torch, config.language.dtype))
        tokenizer: Any = SimpleNamespace(convert_tokens_to_ids=lambda token: IMAGE_ID)
        return assemble_vlm(vision, base, tokenizer, config)


def _vision(config: TrainConfig) -> Vision:
    vision = config.vision
    if vision.format == "scratch" or (vision.path and is_local_folder(vision.path, key="vision.path")):
        with torch.device("cpu"):
            return load_vision(vision)
    name, size = VISION_SHAPES.get(vision.path, (vision.architecture or VIT_B_16, None))
    try:
        trunk = timm.create_model(name, num_classes=0)
    except RuntimeError:
        raise UserError(f"vision.architecture={vision.architecture} is not a timm model; choose one of timm.list_models()") from None
    stored = timm.get_pretrained_cfg(name).input_size[-1]
    side = vision.image_size or size or stored
    half = (0.5, 0.5, 0.5)
    is_vit = hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "blocks")
    return (TimmVit if is_vit else TimmFeatureMap)(LoadedEncoder(trunk, stored, half, half), size=side, layer=vision.layer)


def _language(config: TrainConfig) -> PretrainedConfig:
    path = config.language.path
    if is_local_folder(path, key="language.path"):
        return AutoConfig.from_pretrained(path)
    kind, shape = SHAPES.get(path, (LlamaConfig, LLAMA_7B))
    return kind(**shape)


def layers_of(config: TrainConfig) -> int:
    """Number of layers of the language model."""
    return _language(config).num_hidden_layers


def is_local_folder(path: str, *, key: str) -> bool:
    """Whether the weights are a local folder rather than a hub id. Raises `UserError` for a local path that does not exist."""
    if path.startswith((".", "/", "data/")) and not Path(path).exists():
        raise UserError(f"{key}={path} does not exist; give a local folder or a hub id")
    return Path(path).exists()


def average_batch(model: VLM, sample: AverageSample, *, rows: int, max_seq_len: int) -> Batch:
    """`rows` packed sequences, each with as many whole average samples as fit into `max_seq_len` tokens."""
    prefix = [0] + [IMAGE_ID] * (sample.images * model.vision.num_patches)
    ids = torch.tensor(prefix + [2] * sample.text, dtype=torch.int32).numpy()
    labels = ids.copy()
    labels[: len(ids) - sample.supervised] = IGNORE
    count = max_seq_len // len(ids)
    if count < 1:
        raise UserError(f"data.max_seq_len={max_seq_len} cannot hold an average sample of {len(ids)} tokens; set it to that or more")
    size = model.vision.size
    images = [torch.zeros(3, size, size, dtype=torch.uint8).numpy()] * (rows * count * sample.images)
    sequence = [EncodedSample(ids, labels, sample.images)] * count
    return collate([sequence] * rows, sources=[[0] * count] * rows, images=images, size=size, pad=2, image_id=IMAGE_ID, keys=[])


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """Counts attention as the fused kernels of every training device compute it; the meta device would save all attention weights."""

    def fused(query, key, value, *, attn_mask=None, is_causal=False, scale=None, **kwargs):
        if attn_mask is not None:  # a mask of bool, as the plain path has it, is converted before every kernel
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]

    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = fused  # type: ignore[assignment]  # it is only called with these arguments
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def _addmm(sum_shape: list[int], a_shape: list[int], b_shape: list[int], **kwargs) -> int:
    """FLOPs of `addmm_`; torch counts only the form that is not in place."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def count_cost(model: VLM, batch: Batch) -> StepCost:
    """Matrix-product FLOPs and saved bytes of a step, in the precision of the parameters.

    A tensor that several operations save counts once; parameters do not count.
    """
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # holds a reference to each storage, so that no address is used again

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm})
    with counter, _fused_attention():
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = model.train()(batch)[0].sum()
        loss.backward()
    tokens = int((batch.sources_BT >= 0).sum())
    saved_bytes = sum(storage.nbytes() for storage in saved.values())
    return StepCost(tokens, batch.num_samples, counter.get_total_flops(), saved_bytes)
