"""`python -m experiments.bench.gpu`: training at full size on one GPU, with random weights and synthetic shards, into a table.

Whole optimizer steps of our trainer and stream, with and without packing and recomputation, against transformers' Llava with peft as
LLaVA's scripts run it (right-padded batches, with and without gradient checkpointing). MFU counts 4 FLOPs per frozen parameter and
real token and 6 per trained one, no recomputation, against the best matrix product of the same run.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from experiments.bench import peers, workload
from experiments.bench.flops import ceiling, flops_per_token, now
from experiments.bench.gpu_data import make_shards, pixels, sample_batches, words_tokenizer
from experiments.bench.gpu_table import Row, name_of, show, write
from experiments.bench.watch import Watch
from experiments.bench.workload import IMAGE_ID
from src.config.train import TrainConfig
from src.data.datamodule import DataModule
from src.data.packing import collate
from src.data.prompt import Prompter
from src.model import cost
from src.model.vlm import VLM
from src.runtime.cli import compose
from src.runtime.errors import UserError, report_user_errors
from src.runtime.schema import check_choice, to_typed
from src.training.lightning_module import VLMLightningModule
from src.training.trainer import build_trainer

SIZES: dict[str, dict[str, Any]] = {
    "full": {"steps": 8, "batch": 128, "micro": 32, "row": 4096, "records": 4096, "product": 8192, "vocabulary": 32_000},
    "small": {"steps": 2, "batch": 4, "micro": 2, "row": 600, "records": 64, "product": 64, "vocabulary": 500},
}
SMALL_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512}
SMALL_VISION = ["vision=scratch", "vision.architecture=vit_tiny_patch16_224", "vision.image_size=32"]
SMALL_VISION += ["+vision.architecture_kwargs={embed_dim: 32, depth: 1, num_heads: 2}"]
LENGTHS = ("even", "mix")  # 196 visual and 61 text tokens, 30 of them supervised; or as in experiments/bench/workload.py


@report_user_errors
def main(words: list[str]) -> None:
    asked = {"device": "cuda", "size": "full", "lengths": ",".join(LENGTHS), "out": "experiments/bench/gpu.csv"}
    for word in words:
        key, _, value = word.partition("=")
        if key not in asked:
            raise UserError(f"bench-gpu takes {', '.join(f'{name}=...' for name in asked)}, found {word}")
        asked[key] = value
    if asked["device"] == "cuda" and not torch.cuda.is_available():
        raise UserError("bench-gpu needs a GPU and torch finds none; device=cpu size=small tries the script, its figures mean nothing")
    check_choice("size", asked["size"], tuple(SIZES))
    for lengths in asked["lengths"].split(","):
        check_choice("lengths", lengths, LENGTHS)
    rows: list[Row] = []
    for row in measure(asked["device"], asked["size"], asked["lengths"].split(",")):
        rows.append(row)
        write(rows, Path(asked["out"]))  # after each: a lease that ends early keeps what was measured
        print(f"{row.lengths}, {row.variant}: {row.samples_per_second:.4g} samples/s", flush=True)
    show(rows)


def measure(device: str, size: str, asked: list[str]) -> Iterator[Row]:
    scale = SIZES[size]
    top = ceiling(device, scale["product"])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = words_tokenizer(scale["vocabulary"])
        for lengths in asked:
            make_shards(Path(folder), lengths, scale)
            for variant, run in variants(device, size, Path(folder), lengths, tokenizer).items():
                micro, (seconds, samples, tokens, supervised, wait, watch, model) = fitting(run, scale["micro"])
                flops = tokens * flops_per_token(model, supervised / tokens)
                peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
                rate = flops / seconds / 1e12
                speed = (samples / seconds, tokens / seconds, rate, top, rate / top)
                yield Row(name_of(device), lengths, variant, micro, *speed, peak, wait, watch.megabytes_per_step, watch.slowdown)
                del model
                release()


Run = Callable[[int], tuple[float, int, int, int, float | None, Watch, Any]]


def fitting(run: Run, micro: int) -> tuple[int, tuple]:
    """The largest micro-batch that fits, of `micro` samples, a half of them, and so on; and what it gives."""
    while micro:
        try:
            return micro, run(micro)
        except torch.OutOfMemoryError:
            micro //= 2
        release()  # now that the error is gone, which holds all that did not fit
    raise UserError("bench-gpu does not fit: not one sample at a time, beside the weights")


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def started() -> float:
    """The time, and from now on the peak of the memory: building a model takes more than training it with recomputation."""
    since = now()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return since


def variants(device: str, size: str, folder: Path, lengths: str, tokenizer) -> dict[str, Run]:
    """Each trains the same samples, in micro-batches of so many: seconds, samples, real tokens, supervised tokens, waiting share,
    host memory and time per step, model."""

    def settings(micro: int, *more: str) -> TrainConfig:
        return config(size, folder, lengths, device, (f"trainer.accumulate={SIZES[size]['batch'] // micro}", *more))

    def ours(how: str) -> Run:
        return lambda micro: with_stream(settings(micro, f"trainer.activation_checkpointing={how}"), device, tokenizer)

    def peer(checkpointing: bool) -> Run:
        return lambda micro: padded_by_transformers(settings(micro), device, tokenizer, micro, checkpointing)

    found = {f"ours, packed, recompute={how}": ours(how) for how in ("none", "selective", "full")}
    found["ours, one sample per row"] = lambda micro: one_per_row(settings(micro), device, tokenizer, micro)
    return found | {"transformers, padded": peer(False), "transformers, padded, checkpointing": peer(True)}


def config(size: str, folder: Path, lengths: str, device: str, more: tuple[str, ...]) -> TrainConfig:
    scale = SIZES[size]
    words = ["mix=own", f"mix.shares={{{lengths}: 1}}", f"data.root={folder}/shards", f"data.max_seq_len={scale['row']}", "optim.warmup=0"]
    words += [f"data.global_batch_size={scale['batch']}", f"data.packing_window={scale['batch'] * 8}"]
    words += [f"optim.steps={scale['steps'] + 1}", "name=bench", f"outputs={folder}", "optim.lr.vision=1e-5"]
    words += ["trainer=cpu", "data.workers=0", "language=phantom", *SMALL_VISION] if size == "small" else ["trainer=gpu", "data.workers=8"]
    words += [] if device == "cuda" else ["trainer.accelerator=cpu"]
    return to_typed(TrainConfig, compose("train", [*words, *more]))


def built(settings: TrainConfig, device: str) -> VLM:
    """Random weights on the device; only shapes and precisions are those of the real ones."""
    torch.manual_seed(0)
    small = settings.language.path.startswith("data/phantom")
    model = cost.build_on_meta(settings, device=device, shape=SMALL_LLAMA if small else cost.LLAMA_7B)
    model.image_id = IMAGE_ID
    return model


def with_stream(settings: TrainConfig, device: str, tokenizer) -> tuple:
    """Our trainer on our stream: read, decoded, packed by data workers while it trains."""
    model = built(settings, device)
    prompter = Prompter(tokenizer, patches=model.vision.num_patches, budget=settings.data.max_seq_len)
    slots = settings.trainer.accumulate
    data = DataModule(settings.mix, settings.data, prompter=prompter, size=model.vision.size, seed=0, slots=slots)
    return fit(model, settings, data)


def one_per_row(settings: TrainConfig, device: str, tokenizer, batch: int) -> tuple:
    """Our model and trainer without packing: a sample in each row, padded to the longest."""
    model = built(settings, device)
    chosen = sample_batches(settings, model, tokenizer, batch)
    size, batches = model.vision.size, []
    for samples in chosen:
        images = list(pixels(samples, model))
        rows = [[sample] for sample in samples]
        sources = [[0]] * len(samples)
        batches.append(collate(rows, sources=sources, images=images, size=size, pad=workload.EOS, image_id=IMAGE_ID, keys=[]))
    return fit(model, settings, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]


def fit(model: VLM, settings: TrainConfig, data) -> tuple:
    module, clock = (
        VLMLightningModule(model, settings, sources=["bench"], folder=Path(settings.outputs)),
        Clock(settings.trainer.accumulate),
    )
    build_trainer(settings, callbacks=[clock]).fit(module.train(), data)
    return clock.seconds, clock.samples, int(clock.tokens), clock.supervised, clock.wait / clock.seconds, clock.watch, model


class Clock(lightning.Callback):
    """Seconds after the first optimizer step, and what was trained and waited for in them."""

    def __init__(self, slots: int) -> None:
        self.slots, self.samples, self.tokens, self.supervised, self.wait = slots, 0, 0, 0, 0.0
        self.watch = Watch()

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx > self.slots:
            self.wait += time.perf_counter() - self._ended
        self._timed = batch_idx >= self.slots

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self._timed:
            self.samples += batch.num_samples
            self.tokens += (batch.sources_BT >= 0).sum()
            self.supervised += len(batch.loss_index_S)
        elif batch_idx == self.slots - 1:
            self._since = started()
        if (batch_idx + 1) % self.slots == 0:
            self.watch.record()
        self._ended = time.perf_counter()

    def on_train_end(self, trainer, module) -> None:
        self.seconds = now() - self._since


def padded_by_transformers(settings: TrainConfig, device: str, tokenizer, batch: int, checkpointing: bool) -> tuple:
    """As LLaVA's scripts train: bfloat16, right-padded batches, loss over all positions; a step per batch."""
    model = built(settings, device)
    batches = sample_batches(settings, model, tokenizer, batch)
    size: Any = SimpleNamespace(image_size=model.vision.size)
    dtype = getattr(torch, settings.language.dtype)
    peer = peers.llava(model, dtype=dtype).to(device)
    if checkpointing:
        peer.enable_input_require_grads()
        peer.gradient_checkpointing_enable({"use_reentrant": False})
    step = peers.stepper(peer)
    mixed = torch.autocast(device, torch.bfloat16, enabled=settings.trainer.precision == "bf16-mixed")
    inputs = [{name: value.to(device) for name, value in peers.pad(samples, size).items()} for samples in batches]
    del model
    with mixed:
        step(inputs[0])
        since, watch = started(), Watch()
        watch.record()
        for padded in inputs[1:]:
            step(padded)
            watch.record()
        seconds = now() - since
    timed = [sample for samples in batches[1:] for sample in samples]
    supervised = sum(int((sample.labels >= 0).sum()) for sample in timed)
    return seconds, len(timed), sum(len(sample.ids) for sample in timed), supervised, None, watch, peer


if __name__ == "__main__":
    main(sys.argv[1:])
