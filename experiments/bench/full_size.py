"""FLOPs and saved bytes of the real 7B model, counted on the meta device without weights."""

from dataclasses import dataclass

import torch

from src.commands.plan import batch_to_meta
from src.config.train import TrainConfig
from src.model.cost import AverageSample, StepCost, average_batch, build_on_meta, count_cost
from src.runtime.cli import compose
from src.runtime.schema import to_typed

TOKENS, SUPERVISED = 257, 30  # 196 of an image and 61 of text
BODY, HEAD, ADAPTERS = 6.476e9, 131e6, 20.0e6  # parameters of LLaMA-7B and of its LoRA r=8


@dataclass
class FullSizeCost:
    flops: float  # per token of text samples, so that only the language model counts
    min_flops: float  # analytic minimum of `flops`
    saved: float  # bytes saved for backward per token of image samples, including the encoder
    saved_language: float  # the same for the language model alone
    trainable: int  # parameters of the language model


def full_size_cost(activation_checkpointing: str) -> FullSizeCost:
    """The cost with this value of `trainer.activation_checkpointing`.

    The minimum, without attention, is 4 FLOPs per frozen weight and 6 per trained weight and token. The head counts only for supervised
    tokens.
    """
    overrides = ["+experiment=recommended", f"trainer.activation_checkpointing={activation_checkpointing}"]
    model = build_on_meta(to_typed(TrainConfig, compose("train", overrides))).to(torch.bfloat16)

    def cost(images: int, text: int) -> StepCost:
        batch = average_batch(model, AverageSample(images, text, SUPERVISED), rows=1, max_seq_len=4 * (TOKENS + 1))
        return count_cost(model, batch_to_meta(batch))

    text, image = cost(0, TOKENS), cost(1, TOKENS - model.vision.num_patches)
    min_flops = 4 * BODY + 4 * HEAD * SUPERVISED / (TOKENS + 1) + 6 * ADAPTERS
    trainable = sum(p.numel() for p in model.language.parameters() if p.requires_grad)
    return FullSizeCost(text.flops / text.tokens, min_flops, image.saved / image.tokens, text.saved / text.tokens, trainable)
