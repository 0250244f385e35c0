"""What a training step costs, counted on a model of the real size that has shapes and no numbers (torch's meta device).

Legend: B rows, T tokens.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import timm
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from src.config.train import TrainConfig
from src.data.packing import Batch, collate
from src.data.prompt import IGNORE, EncodedSample
from src.model.fast.recompute import set_activation_checkpointing
from src.model.language import Language
from src.model.projector import Projector
from src.model.vision import TimmVit, Vision, load_vision
from src.model.vision_checkpoints import LoadedEncoder
from src.model.vlm import VLM
from src.runtime.errors import UserError

# Architectures of weights that only a hub holds, so that planning needs neither network nor download.
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32064}
VIT_B_16 = "vit_base_patch16_224"
IMAGE_ID = 1


@dataclass
class AverageSample:
    """An average sample: images, text tokens, and how many of these are supervised."""

    images: int
    text: int
    supervised: int


@dataclass
class StepCost:
    """Of one forward and backward pass over packed rows."""

    tokens: int  # real ones, image tokens included
    samples: int
    flops: int  # of matrix products
    saved: int  # bytes that are kept for the backward pass


def build_on_meta(config: TrainConfig, *, device: str = "meta", shape: dict[str, int] | None = None, layers: int | None = None) -> VLM:
    """The model of a configuration on the meta device, or with random weights on another. Stored weights are read only for their
    shapes, where they are on this disk; `shape` stands for those of the language model, of which `layers` are built."""
    with torch.device(device):
        vision = _vision(config)
        architecture = LlamaConfig(**shape) if shape else _language(config)
        architecture.num_hidden_layers = layers or architecture.num_hidden_layers
        base = LlamaForCausalLM(architecture)
        tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: IMAGE_ID)
        language = Language(base.to(getattr(torch, config.language.dtype)), tokenizer, config.language.lora)  # type: ignore[arg-type]
        projector = Projector(config.projector, width=vision.width, hidden=language.hidden)
    model = VLM(vision.to(device), projector, language)
    for name, part in model.parts().items():
        if getattr(config.optim.lr, name) == 0:
            part.requires_grad_(False)
    vision.recompute(config.trainer.activation_checkpointing == "full")
    set_activation_checkpointing(base, config.trainer.activation_checkpointing)
    return model


def _vision(config: TrainConfig) -> Vision:
    vision = config.vision
    if vision.format == "scratch" or is_local_folder(vision.path, key="vision.path"):
        with torch.device("cpu"):
            return load_vision(vision)
    try:
        trunk = timm.create_model(vision.architecture or VIT_B_16, num_classes=0)
    except RuntimeError:
        raise UserError(f"vision.architecture={vision.architecture} is not known to timm") from None
    return TimmVit(LoadedEncoder(trunk, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), size=vision.image_size or 224, layer=vision.layer)


def _language(config: TrainConfig) -> LlamaConfig:
    path = config.language.path
    return AutoConfig.from_pretrained(path) if is_local_folder(path, key="language.path") else LlamaConfig(**LLAMA_7B)


def layers_of(config: TrainConfig) -> int:
    """Number of layers of the language model."""
    return _language(config).num_hidden_layers


def is_local_folder(path: str, *, key: str) -> bool:
    """Whether the weights are a local folder; a local name without a folder is a mistake, any other name is one of a hub."""
    if path.startswith((".", "/", "data/")) and not Path(path).exists():
        raise UserError(f"{key}={path} does not exist; give a local folder or a hub id")
    return Path(path).exists()


def average_batch(model: VLM, sample: AverageSample, *, rows: int, max_seq_len: int) -> Batch:
    """Rows that are as full as whole average samples can make them."""
    prefix = [0] + [IMAGE_ID] * (sample.images * model.vision.num_patches)
    ids = torch.tensor(prefix + [2] * sample.text, dtype=torch.int32).numpy()
    labels = ids.copy()
    labels[: len(ids) - sample.supervised] = IGNORE
    fit = max_seq_len // len(ids)
    if fit < 1:
        raise UserError(f"data.max_seq_len={max_seq_len} cannot hold an average sample of {len(ids)} tokens")
    size = model.vision.size
    images = [torch.zeros(3, size, size, dtype=torch.uint8).numpy()] * (rows * fit * sample.images)
    row = [EncodedSample(ids, labels, sample.images)] * fit
    return collate([row] * rows, sources=[[0] * fit] * rows, images=images, size=size, pad=2, image_id=IMAGE_ID, keys=[])


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as the fused kernels of every training device do it; the meta device would keep the whole attention matrix."""

    def fused(query, key, value, *, is_causal=False, scale=None, **kwargs):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal, scale=scale)[0]

    usual = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = fused  # type: ignore[assignment]  # one call of it, with these arguments
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


def _addmm(sum_shape: list[int], a_shape: list[int], b_shape: list[int], **kwargs) -> int:
    """FLOPs of the product that is added in place, of which torch counts only the other form."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def count_cost(model: VLM, batch: Batch) -> StepCost:
    """Matrix-product FLOPs and kept bytes of a step, in the precision in which the parameters are.

    A tensor that several operations keep counts once; parameters do not count.
    """
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no storage is taken for another

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm})
    with counter, _fused_attention():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = model.train()(batch)[0].sum()
        total.backward()
    real = int((batch.sources_BT >= 0).sum())
    saved = sum(storage.nbytes() for storage in kept.values())
    return StepCost(real, batch.num_samples, counter.get_total_flops(), saved)
