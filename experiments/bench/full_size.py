"""The real 7B without its weights or a device: matrix products and kept bytes, counted on the meta device."""

from dataclasses import dataclass

import torch

from src.config.train import TrainConfig
from src.model.cost import AverageSample, StepCost, average_batch, build_on_meta, count_cost
from src.plan import batch_to_meta
from src.runtime.cli import compose
from src.runtime.schema import to_typed

TOKENS, SUPERVISED = 257, 30  # 196 of an image and 61 of text
BODY, HEAD, ADAPTERS = 6.476e9, 131e6, 20.0e6  # parameters of LLaMA-7B and of its LoRA r=8


@dataclass
class FullSize:
    """`flops` per token of text alone (so that the language model is all there is) and the least that they could be; `saved` bytes
    per token of samples with an image, the encoder's included."""

    flops: float
    least: float
    saved: float
    saved_alone: float  # bytes per token of the language model alone
    trainable: int  # parameters of the language model


def full_size(how: str) -> FullSize:
    """With `how` as `trainer.activation_checkpointing`.

    The least, without attention: 4 FLOPs per frozen weight that a token meets, 6 per trained one; the head meets supervised tokens.
    """
    model = build_on_meta(to_typed(TrainConfig, compose("train", ["+experiment=full_mix", f"trainer.activation_checkpointing={how}"]))).to(
        torch.bfloat16
    )

    def cost(images: int, text: int) -> StepCost:
        return count_cost(
            model, batch_to_meta(average_batch(model, AverageSample(images, text, SUPERVISED), rows=1, max_seq_len=4 * (TOKENS + 1)))
        )

    text, image = cost(0, TOKENS), cost(1, TOKENS - model.vision.num_patches)
    least = 4 * BODY + 4 * HEAD * SUPERVISED / (TOKENS + 1) + 6 * ADAPTERS
    trainable = sum(p.numel() for p in model.language.parameters() if p.requires_grad)
    return FullSize(text.flops / text.tokens, least, image.saved / image.tokens, text.saved / text.tokens, trainable)
