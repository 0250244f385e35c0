"""Two ways to train the same model: ours, and transformers' Llava with peft as its users train it. Each runs in its own process.

Legend: B samples, T tokens.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader

from experiments.bench import workload
from experiments.bench.synthetic_data import memory_mb
from experiments.bench.workload import EOS, LINEAR, RATE, STEPS, WARM_UP, WORKLOADS, Workload
from src.data.packing import Batch
from src.data.prompt import IGNORE, EncodedSample
from src.model.vlm import VLM
from src.release.llava import to_llava
from src.training.lightning_module import VLMLightningModule
from src.training.trainer import build_trainer

MEGABATCH = 50  # batches


@dataclass
class Cost:
    tokens: int  # without padding
    seconds: float  # of CPU over the timed steps
    growth: float  # of the peak resident memory, MB


def train_side(name: str, side: str) -> Cost:
    """Trains one warm-up step and eight timed steps of `ours`, `plain` (random batches), `llava` or `grouped` (see `group_batches`)."""
    pin_to_one_core()
    size = WORKLOADS[name]
    return train_ours(size) if side == "ours" else train_peer(size, make_batches(size, side))


def pin_to_one_core() -> None:
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def make_batches(size: Workload, side: str) -> list[list[EncodedSample]]:
    """The batches of a peer: one for warm-up, then the timed ones."""
    samples = workload.make_samples(size, MEGABATCH)
    in_order = [samples[at : at + size.batch] for at in range(0, len(samples), size.batch)]
    return in_order[: WARM_UP + STEPS] if side == "plain" else group_batches(samples, size, by_length=side == "grouped")


def group_batches(samples: list[EncodedSample], size: Workload, *, by_length: bool) -> list[list[EncodedSample]]:
    """Batches of one modality. `by_length` also sorts by length within a megabatch, like `group_by_length` of transformers.

    LLaVA's `group_by_modality_length` sorts only the samples of one optimizer step, to balance the processes (llava_trainer.py). In one
    process it groups by modality only. The timed batches are spread evenly over the megabatch, in proportion to the modalities.
    """
    timed, warm_up = [], []
    for num_images in (0, 1):
        group = [sample for sample in samples if sample.num_images == num_images]
        if by_length:
            group.sort(key=lambda sample: -len(sample.ids))
        full = [group[at : at + size.batch] for at in range(0, len(group) - size.batch + 1, size.batch)]
        count = round(STEPS * len(group) / len(samples))
        timed += [full[int((n + 0.5) * len(full) / count)] for n in range(count)]
        warm_up.append(full[len(full) // 2])
    return [warm_up[1], *timed]


def train_ours(size: Workload) -> Cost:
    """The model, packing, loss and trainer of a run, on the samples of the plain batches."""
    samples = workload.make_samples(size, WARM_UP + STEPS)
    first, rest = samples[: size.batch], samples[size.batch :]
    steps = [*workload.pack_batches(first, size, steps=WARM_UP), *workload.pack_batches(rest, size, steps=STEPS)]
    model, clock = workload.make_model(size), Clock()
    before = memory_mb("VmRSS")
    fit(model, steps, size, callbacks=[clock])
    return Cost(sum(len(sample.ids) for sample in rest), clock.seconds, memory_mb("VmHWM") - before)


class Clock(lightning.Callback):
    """CPU seconds from the end of the warm-up to the end of the training."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if batch_idx == WARM_UP - 1:
            self._start = time.process_time()

    def on_train_end(self, trainer, module) -> None:
        self.seconds = time.process_time() - self._start


def fit(model: VLM, steps: list[Batch], size: Workload, *, callbacks: list | None = None) -> VLMLightningModule:
    config = workload.make_config(size, steps=len(steps))
    with tempfile.TemporaryDirectory() as folder:
        config.outputs = folder
        module = VLMLightningModule(model, config, sources=["bench"], folder=Path(folder))
        loader: Iterable = DataLoader(steps, batch_size=None)  # type: ignore[arg-type]
        build_trainer(config, callbacks=callbacks or []).fit(module.train(), loader)
    return module


def train_peer(size: Workload, batches: list[list[EncodedSample]]) -> Cost:
    padded = [pad(batch, size.image_size) for batch in batches]
    step = make_step(to_peft_llava(workload.make_model(size)))
    before = memory_mb("VmRSS")
    for inputs in padded[:WARM_UP]:
        step(inputs)
    start = time.process_time()
    for inputs in padded[WARM_UP:]:
        step(inputs)
    seconds = time.process_time() - start
    return Cost(sum(len(sample.ids) for batch in batches[WARM_UP:] for sample in batch), seconds, memory_mb("VmHWM") - before)


def make_step(model: PeftModel, *, autocast: bool = False) -> Callable[[dict[str, Tensor]], float]:
    """An optimizer step with the loss of the transformers model, clipped as in its Trainer. The step returns the loss.

    `autocast`: forward pass in bfloat16. Each step enters its own context, because a context keeps its bfloat16 copies of the weights.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    device = trainable[0].device.type
    optimizer = torch.optim.AdamW(trainable, lr=RATE, foreach=True)

    def step(inputs: dict[str, Tensor]) -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        return loss.item()

    return step


def to_peft_llava(model: VLM, *, dtype: torch.dtype = torch.float32) -> PeftModel:
    """`LlavaForConditionalGeneration` with the same weights and with peft's LoRA on every linear layer of its language model.

    Its key-value cache is off, as in LLaVA's `train.py`.
    """
    adapters = {name.replace("language.model.base_model.model.model.", ""): p for name, p in model.named_parameters() if "lora_" in name}
    settings = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=rf".*language_model.*\.({'|'.join(LINEAR)})")
    llava = to_llava(model, dtype=dtype).train()
    llava.config.get_text_config().use_cache = False
    peft = get_peft_model(llava, settings)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.copy_(adapters[name.rpartition("language_model.")[2]])
            is_vision = any(part in name for part in ("multi_modal_projector", "vision_tower")) and "post_layernorm" not in name
            if "lora_" in name or is_vision:
                p.requires_grad_(True).data = p.float()
            else:
                p.requires_grad_(False)
    return peft


def pad(batch: list[EncodedSample], image_size: int) -> dict[str, Tensor]:
    """Right-padded inputs of shape (B, T). The pixels are normalised here; ours normalises them within the step."""
    tokens = max(len(sample.ids) for sample in batch)
    ids, labels, mask = np.full((3, len(batch), tokens), [[[EOS]], [[IGNORE]], [[0]]])
    for row, sample in enumerate(batch):
        length = len(sample.ids)
        ids[row, :length], labels[row, :length], mask[row, :length] = sample.ids, sample.labels, 1
    padded = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels), "attention_mask": torch.from_numpy(mask)}
    num_images = sum(sample.num_images for sample in batch)
    if num_images:
        padded["pixel_values"] = torch.from_numpy(workload.random_pixels(num_images, image_size)).float() / 127.5 - 1
    return padded


def padding_stats(batches: list[list[EncodedSample]]) -> tuple[float, float, float]:
    """(padding in per cent of positions, supervised tokens in per cent of tokens, tokens per sample)."""
    lengths = [[len(sample.ids) for sample in batch] for batch in batches]
    tokens, positions = sum(map(sum, lengths)), sum(max(batch) * len(batch) for batch in lengths)
    supervised = sum(int((sample.labels != IGNORE).sum()) for batch in batches for sample in batch)
    return 100 - 100 * tokens / positions, 100 * supervised / tokens, tokens / sum(map(len, lengths))


def max_loss_difference(name: str) -> float:
    """The largest relative difference between the losses of the two sides over two updates on the same samples."""
    pin_to_one_core()
    size = WORKLOADS[name]
    model, samples = workload.make_model(size), workload.make_samples(size, 2)
    halves = samples[: size.batch], samples[size.batch :]
    step = make_step(to_peft_llava(model))
    peer_losses = [step(pad(half, size.image_size)) for half in halves]
    return max(abs(a - b) / b for a, b in zip(losses_of(model, halves, size), peer_losses, strict=True))


def our_losses(name: str) -> list[float]:
    """The losses of our side over two updates on the first of the plain batches."""
    pin_to_one_core()
    size = WORKLOADS[name]
    return losses_of(workload.make_model(size), make_batches(size, "plain")[:2], size)


def losses_of(model: VLM, batches: Iterable[list[EncodedSample]], size: Workload) -> list[float]:
    """The loss of each update. The order of a batch is kept, so that each image meets the same text as on the side of a peer."""
    recorder = LossRecorder()
    fit(model, [workload.batch_in_order(batch, size) for batch in batches], size, callbacks=[recorder])
    return recorder.losses


class LossRecorder(lightning.Callback):
    """Mean loss per supervised token of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        _, sums, counts = module.totals()
        self.losses.append(sum(sums) / sum(counts))
        module.reset_sums()
