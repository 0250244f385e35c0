"""Two ways to train the same model, each in a process of its own: ours, and transformers' Llava with peft as its users train it.

Legend: B samples, T tokens, N images.
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
from experiments.bench.made import memory
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
    """`tokens` are real ones; `seconds` of CPU over the timed steps; `growth` of the resident memory at its peak, in MB."""

    tokens: int
    seconds: float
    growth: float


def trained(name: str, side: str) -> Cost:
    """Eight steps of a side after one to warm up: `ours`, `plain` (random batches), `llava` or `grouped` (see `grouped`)."""
    pinned()
    size = WORKLOADS[name]
    return ours(size) if side == "ours" else peer(size, batches(size, side))


def pinned() -> None:
    """One core and one thread, whatever the machine has."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def batches(size: Workload, side: str) -> list[list[EncodedSample]]:
    """The batches of a peer: one to warm up, then those that are timed."""
    made = workload.samples(size, MEGABATCH)
    in_order = [made[at : at + size.batch] for at in range(0, len(made), size.batch)]
    return in_order[: WARM_UP + STEPS] if side == "plain" else grouped(made, size, by_length=side == "grouped")


def grouped(made: list[EncodedSample], size: Workload, *, by_length: bool) -> list[list[EncodedSample]]:
    """Batches of one modality, in random order of lengths or sorted by length within a megabatch, as transformers' `group_by_length`.

    LLaVA's `group_by_modality_length` sorts the samples of one optimizer step only, to deal long and short ones evenly to the
    processes (llava_trainer.py): in one process it groups by modality alone. The timed batches stand evenly over the megabatch, in
    proportion to the modalities.
    """
    timed, warm = [], []
    for images in (0, 1):
        mine = [sample for sample in made if sample.num_images == images]
        if by_length:
            mine.sort(key=lambda sample: -len(sample.ids))
        whole = [mine[at : at + size.batch] for at in range(0, len(mine) - size.batch + 1, size.batch)]
        wanted = round(STEPS * len(mine) / len(made))
        timed += [whole[int((n + 0.5) * len(whole) / wanted)] for n in range(wanted)]
        warm.append(whole[len(whole) // 2])
    return [warm[1], *timed]


def ours(size: Workload) -> Cost:
    """The model, packing, loss and trainer of a run, on the samples of the plain batches."""
    made = workload.samples(size, WARM_UP + STEPS)
    first, rest = made[: size.batch], made[size.batch :]
    steps = [*workload.packed(first, size, steps=WARM_UP), *workload.packed(rest, size, steps=STEPS)]
    model, clock = workload.model(size), Clock()
    before = memory("VmRSS")
    fit(model, steps, size, callbacks=[clock])
    return Cost(sum(len(sample.ids) for sample in rest), clock.seconds, memory("VmHWM") - before)


class Clock(lightning.Callback):
    """CPU seconds from the end of the warm-up to the end of the training."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if batch_idx == WARM_UP - 1:
            self._since = time.process_time()

    def on_train_end(self, trainer, module) -> None:
        self.seconds = time.process_time() - self._since


def fit(model: VLM, steps: list[Batch], size: Workload, *, callbacks: list | None = None) -> VLMLightningModule:
    config = workload.config(size, steps=len(steps))
    with tempfile.TemporaryDirectory() as folder:
        config.outputs = folder
        module = VLMLightningModule(model, config, sources=["bench"], folder=Path(folder))
        loader: Iterable = DataLoader(steps, batch_size=None)  # type: ignore[arg-type]
        build_trainer(config, callbacks=callbacks or []).fit(module.train(), loader)
    return module


def peer(size: Workload, batches: list[list[EncodedSample]]) -> Cost:
    padded = [pad(batch, size) for batch in batches]
    step = stepper(llava(workload.model(size)))
    before = memory("VmRSS")
    for inputs in padded[:WARM_UP]:
        step(inputs)
    since = time.process_time()
    for inputs in padded[WARM_UP:]:
        step(inputs)
    seconds = time.process_time() - since
    return Cost(sum(len(sample.ids) for batch in batches[WARM_UP:] for sample in batch), seconds, memory("VmHWM") - before)


def stepper(model: PeftModel) -> Callable[[dict[str, Tensor]], float]:
    """One step of transformers' own loss, clipped as its Trainer does."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, foreach=True)

    def step(inputs: dict[str, Tensor]) -> float:
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        return loss.item()

    return step


def llava(model: VLM, *, dtype: torch.dtype = torch.float32) -> PeftModel:
    """The same weights as `LlavaForConditionalGeneration` with peft's LoRA on every linear layer of its language model."""
    adapters = {name.replace("language.model.base_model.model.model.", ""): p for name, p in model.named_parameters() if "lora_" in name}
    settings = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=rf".*language_model.*\.({'|'.join(LINEAR)})")
    peft = get_peft_model(to_llava(model, dtype=dtype).train(), settings)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_" in name:
                p.copy_(adapters[name.rpartition("language_model.")[2]])
            seen = any(part in name for part in ("multi_modal_projector", "vision_tower")) and "post_layernorm" not in name
            if "lora_" in name or seen:
                p.requires_grad_(True).data = p.float()
            else:
                p.requires_grad_(False)
    return peft


def pad(batch: list[EncodedSample], size: Workload) -> dict[str, Tensor]:
    """Right-padded input_ids_BT, labels_BT and attention mask; pixels are normalised, which ours does in the step."""
    tokens = max(len(sample.ids) for sample in batch)
    ids, labels, attended = np.full((3, len(batch), tokens), [[[EOS]], [[IGNORE]], [[0]]])
    for row, sample in enumerate(batch):
        length = len(sample.ids)
        ids[row, :length], labels[row, :length], attended[row, :length] = sample.ids, sample.labels, 1
    padded = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels), "attention_mask": torch.from_numpy(attended)}
    images = sum(sample.num_images for sample in batch)
    if images:
        padded["pixel_values"] = torch.from_numpy(workload.pixels(images, size)).float() / 127.5 - 1
    return padded


def padding(batches: list[list[EncodedSample]]) -> tuple[float, float, float]:
    """(per cent of places that are padding, per cent of tokens that are supervised, tokens per sample)."""
    lengths = [[len(sample.ids) for sample in batch] for batch in batches]
    tokens, places = sum(map(sum, lengths)), sum(max(batch) * len(batch) for batch in lengths)
    supervised = sum(int((sample.labels != IGNORE).sum()) for batch in batches for sample in batch)
    return 100 - 100 * tokens / places, 100 * supervised / tokens, tokens / sum(map(len, lengths))


def agree(name: str) -> float:
    """The largest relative difference of the two sides' losses over two updates on the same samples."""
    pinned()
    size = WORKLOADS[name]
    model, made = workload.model(size), workload.samples(size, 2)
    first, second = made[: size.batch], made[size.batch :]
    step = stepper(llava(model))
    theirs = [step(pad(batch, size)) for batch in (first, second)]
    mean = Losses()
    # In the order of the batch, so that each picture meets the text that it met on the other side.
    fit(model, [batch for half in (first, second) for batch in workload.in_order(half, size)], size, callbacks=[mean])
    return max(abs(a - b) / b for a, b in zip(mean.found, theirs, strict=True))


class Losses(lightning.Callback):
    """Mean loss per supervised token of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        _, sums, counts = module.totals()
        self.found.append(sum(sums) / sum(counts))
        module.reset_sums()
