"""The training workloads: sample lengths as in medical question answering, and small models.

`a` is dominated by the vocabulary (a small model with LLaMA's 32,000 tokens). `b` has the proportions of the 7B (the head is 4% of the
body); `b_qwen3` is `b` with Qwen3 in place of LLaMA. Lengths are random, not measured on the 14 datasets: 25% of the samples have no
image, and answers are short or as long as captions.

Legend: T tokens.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, PretrainedConfig, Qwen3Config

from src.config.train import LoraSettings, TrainConfig
from src.data.packing import Batch, collate, pack, split_evenly
from src.data.prompt import IGNORE, EncodedSample
from src.model.language import Language
from src.model.projector import Projector
from src.model.vision import HfVit
from src.model.vision_checkpoints import LoadedEncoder
from src.model.vlm import VLM
from src.runtime.cli import compose
from src.runtime.schema import to_typed

WARM_UP, STEPS = 1, 8
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BOS, EOS, IMAGE_ID, FIRST_WORD = 1, 2, 3, 4
MAX_SEQ_LEN = 1024
RATE = 1e-4
ACTIVATION_CHECKPOINTING = "selective"  # of ours, for speed and memory


@dataclass(frozen=True)
class Workload:
    """Sizes. `padding` (per cent of positions) and `supervised` (per cent of tokens) are expected of random batches of these lengths."""

    name: str
    batch: int
    hidden: int
    layers: int
    vocabulary: int
    image_size: int
    padding: float
    supervised: float
    language: type[PretrainedConfig] = LlamaConfig

    @property
    def patches(self) -> int:
        return (self.image_size // 8) ** 2

    @property
    def setting(self) -> str:
        sizes = f"h{self.hidden} x{self.layers}, vocabulary {self.vocabulary:,}, {self.patches} visual tokens"
        return f"{sizes}, batch {self.batch}, fp32, activation_checkpointing={ACTIVATION_CHECKPOINTING}"


WORKLOADS = {
    "a": Workload("a", 32, 256, 6, 32_000, 64, padding=50.9, supervised=25.4),
    "b": Workload("b", 16, 512, 8, 2_048, 112, padding=29.1, supervised=17.1),
    "b_qwen3": Workload("b_qwen3", 16, 512, 8, 2_048, 112, padding=29.1, supervised=17.1, language=Qwen3Config),
}


def make_samples(workload: Workload, batches: int) -> list[EncodedSample]:
    """Samples in random order, the same for all sides."""
    rng = np.random.default_rng(0)
    lengths = [sample_lengths(rng) for _ in range(batches * workload.batch)]
    return [_make_sample(rng, images, prompt, answer, workload) for images, prompt, answer in lengths]


def sample_lengths(rng: np.random.Generator) -> tuple[int, int, int]:
    """(images, prompt tokens, answer tokens)."""
    if rng.random() < 0.25:
        if rng.random() < 0.6:
            return 0, int(rng.integers(30, 200)), int(rng.integers(1, 6))
        return 0, int(rng.integers(20, 120)), int(rng.integers(40, 250))
    if rng.random() < 0.65:
        return 1, int(rng.integers(12, 35)), int(rng.integers(1, 8))
    return 1, int(rng.integers(6, 14)), int(np.clip(rng.lognormal(3.8, 0.6), 10, 200))


def _make_sample(rng: np.random.Generator, images: int, prompt: int, answer: int, workload: Workload) -> EncodedSample:
    words = rng.integers(FIRST_WORD, workload.vocabulary, prompt + answer)
    ids = np.array([BOS, *[IMAGE_ID] * (images * workload.patches), *words, EOS], np.int32)
    labels = np.where(np.arange(len(ids)) < len(ids) - answer - 1, IGNORE, ids).astype(np.int32)
    return EncodedSample(ids, labels, images)


def random_pixels(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, side, side), np.uint8)


def pack_batches(samples: list[EncodedSample], workload: Workload, *, steps: int) -> list[Batch]:
    """Packs the samples like one window of the stream and divides the sequences evenly among `steps` batches."""
    packed = pack([len(sample.ids) for sample in samples], MAX_SEQ_LEN)
    sequences = [[samples[item] for item in items] for items in packed]
    return [_collate([sequences[n] for n in split_evenly(len(sequences), steps, step)], workload) for step in range(steps)]


def batch_in_order(samples: list[EncodedSample], workload: Workload) -> Batch:
    """The samples of one step in sequences that keep their order."""
    sequences: list[list[EncodedSample]] = [[]]
    for sample in samples:
        if sum(len(other.ids) for other in sequences[-1]) + len(sample.ids) > MAX_SEQ_LEN:
            sequences.append([])
        sequences[-1].append(sample)
    return _collate(sequences, workload)


def _collate(sequences: list[list[EncodedSample]], workload: Workload) -> Batch:
    num_images = sum(sample.num_images for sequence in sequences for sample in sequence)
    images = list(random_pixels(num_images, workload.image_size))
    sources = [[0] * len(sequence) for sequence in sequences]
    return collate(sequences, sources=sources, images=images, size=workload.image_size, pad=EOS, image_id=IMAGE_ID, keys=[])


def make_model(workload: Workload) -> VLM:
    """Our model of this size with random weights. Everything trains except the language model under its adapters."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=workload.image_size,
        patch_size=8,
    )
    half = (0.5, 0.5, 0.5)
    encoder = HfVit(LoadedEncoder(CLIPVisionModel(vision), workload.image_size, half, half), size=workload.image_size, layer=-1)
    text = workload.language(
        hidden_size=workload.hidden,
        intermediate_size=int(workload.hidden * 2.6875),
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.hidden // 64,
        num_key_value_heads=workload.hidden // 64,
        head_dim=64,
        vocab_size=workload.vocabulary,
    )
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: IMAGE_ID)
    lora = LoraSettings(rank=8, alpha=16, dropout=0.0, targets=LINEAR)
    language = Language(AutoModelForCausalLM.from_config(text), tokenizer, lora, activation_checkpointing=ACTIVATION_CHECKPOINTING)  # type: ignore[arg-type]
    return VLM(encoder, Projector(make_config(workload).projector, vision_width=128, language_width=workload.hidden), language)


def make_config(workload: Workload, *, steps: int = STEPS) -> TrainConfig:
    """The config of a run on one core. The batches are prepared in advance, so no data is read."""
    rates = {"vision": RATE, "projector": RATE, "language": RATE}
    keys = {"optim.steps": steps, "optim.warmup": 0, "optim.schedule": "constant", "optim.betas": "[0.9,0.999]", "optim.weight_decay": 0.01}
    keys |= {f"optim.lr.{part}": rate for part, rate in rates.items()}
    keys |= {"data.global_batch_size": workload.batch, "data.max_seq_len": MAX_SEQ_LEN, "name": "bench", "outputs": "unused"}
    return to_typed(TrainConfig, compose("train", ["trainer=cpu", *(f"{key}={value}" for key, value in keys.items())]))
