"""Sizes, configuration, data and model of the GPU benchmark, shared by its parts."""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from experiments.bench import peers, workload
from experiments.bench.flops import peak_tflops
from experiments.bench.gpu_data import make_shards, word_tokenizer
from experiments.bench.gpu_table import Value, gpu_name
from src.config.train import TrainConfig
from src.model import cost
from src.model.vlm import VLM
from src.release.llava import to_llava
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed

# steps: timed optimizer steps after one for warm-up; passes: of the part `memory`; images, questions per image: of `generate`;
# layers, seconds: of the language model and of the training of `resume`
SIZES: dict[str, dict[str, Any]] = {
    "full": {"steps": 4, "batch": 128, "micro": 32, "max_seq_len": 4096, "records": 1024, "product": 8192, "vocabulary": 32_000}
    | {"passes": 200, "images": 8, "questions": 7, "layers": 8, "seconds": 60},
    "small": {"steps": 2, "batch": 4, "micro": 2, "max_seq_len": 600, "records": 64, "product": 64, "vocabulary": 500}
    | {"passes": 40, "images": 2, "questions": 3, "layers": 2, "seconds": 4},
}
SMALL_LLAMA = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512}
SMALL_VISION = ["vision=scratch", "vision.architecture=vit_tiny_patch16_224", "vision.image_size=32"]
SMALL_VISION += ["+vision.architecture_kwargs={embed_dim: 32, depth: 1, num_heads: 2}"]
LENGTHS = ("even", "mix")  # 196 visual and 61 text tokens, 30 of them supervised; or as in experiments/bench/workload.py
MEMORY_GB = 20  # of ours: 13.5 of weights in bfloat16, 2 of what trains with its optimizer, the rest for one sample
# Of `*_transformers` and `generate`, while src/release/llava.py converts our model: twice 13.5, and 26 of adapted weights in float32.
CONVERSION_GB = 55
ADVICE = "use device=cpu size=small to try the script (its numbers mean nothing)"


def check_gpu(device: str, size: str) -> None:
    """Raises `UserError` for a GPU that is missing or has too little memory; prints what an old one lacks."""
    if device != "cuda":
        return
    if not torch.cuda.is_available():
        raise UserError(f"bench-gpu: torch finds no GPU; {ADVICE}")
    check_memory(device, size, MEMORY_GB, "to train one sample at a time")
    properties = torch.cuda.get_device_properties(0)
    if (properties.major, properties.minor) < (8, 0):
        lacks = "bfloat16 and flash attention need 8.0: matrix products are slow, and attention takes one call per sample"
        print(f"warning: {properties.name} has compute capability {properties.major}.{properties.minor}, and {lacks}")


def check_memory(device: str, size: str, gigabytes: int, purpose: str) -> None:
    """Raises `UserError` if the GPU has less memory than the 7B needs."""
    if device == "cuda" and size == "full":
        properties = torch.cuda.get_device_properties(0)
        if properties.total_memory < gigabytes * 1e9:
            memory = f"{properties.name} has {properties.total_memory / 1e9:.0f} GB of memory"
            raise UserError(f"bench-gpu: {memory}, and the 7B needs {gigabytes} {purpose}; {ADVICE}")


def release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


class Bench:
    """What the parts share. Shards, the rate of matrix products and models are made when the first part needs them."""

    def __init__(self, device: str, size: str, folder: Path, deadline: float = math.inf):
        """`deadline`: time by `time.monotonic`, at which parts that wait for another process stop."""
        self.device, self.size, self.folder, self.deadline, self.scale = device, size, folder, deadline, SIZES[size]
        self.tokenizer = word_tokenizer(self.scale["vocabulary"])
        self._key: Any = None
        self._model: Any = None

    @cached_property
    def ceiling(self) -> float:
        """TFLOP/s of the best matrix product."""
        return peak_tflops(self.device, self.scale["product"])

    @property
    def small(self) -> bool:
        return self.size == "small"

    @property
    def shape(self) -> dict[str, int]:
        return SMALL_LLAMA if self.small else cost.LLAMA_7B

    def words(self, lengths: str) -> list[str]:
        """Overrides of a training on samples of these lengths. Makes their shards at the first call."""
        scale = self.scale
        if not (self.folder / "shards" / lengths).exists():
            make_shards(self.folder, lengths, scale)
        words = ["mix=own", f"mix.shares={{{lengths}: 1}}", f"data.root={self.folder}/shards", f"data.max_seq_len={scale['max_seq_len']}"]
        words += [f"data.global_batch_size={scale['batch']}", f"data.packing_window={scale['batch'] * 8}", "optim.warmup=0"]
        words += [f"optim.steps={scale['steps'] + 1}", "name=bench", f"outputs={self.folder}", "optim.lr.vision=1e-5"]
        words += [f"trainer.accumulate={scale['batch'] // scale['micro']}"]
        words += ["data.workers=0", "language=phantom", *SMALL_VISION] if self.small else ["data.workers=8"]
        if self.device == "cuda":
            return [*words, "trainer=gpu"]
        return [*words, *(["trainer=cpu"] if self.small else ["trainer=gpu", "trainer.accelerator=cpu"])]

    def settings(self, lengths: str, *more: str) -> TrainConfig:
        return to_typed(TrainConfig, compose("train", [*self.words(lengths), *more]))

    def model(self, settings: TrainConfig) -> VLM:
        """Our model with random weights on the device; shapes and precisions are those of the real model."""
        key = (settings.language.fast, settings.trainer.activation_checkpointing)
        return self._reuse(key, lambda: self._build(settings)).train()

    def peer(self, settings: TrainConfig) -> Any:
        """Llava of transformers with peft, of the same shape. Raises `UserError` if the GPU has too little memory to build it."""
        check_memory(self.device, self.size, CONVERSION_GB, "for the model of transformers")

        def build() -> Any:
            model, dtype = self._build(settings), getattr(torch, settings.language.dtype)
            with default_dtype(dtype), torch.device(self.device):  # transformers would make its parameters on the CPU, in float32
                return peers.to_peft_llava(model, dtype=dtype).to(self.device)

        return self._reuse(("transformers", settings.trainer.activation_checkpointing), build)

    def llava(self, model: VLM) -> LlavaForConditionalGeneration:
        """`model` in transformers, with its adapters merged, to generate answers. Raises `UserError` like `peer`."""
        check_memory(self.device, self.size, CONVERSION_GB, "for the model of transformers")
        dtype = next(model.language.base.parameters()).dtype
        with default_dtype(dtype), torch.device(self.device):
            llava = to_llava(model, dtype=dtype).to(self.device)
        llava.model.language_model.rotary_emb.inv_freq = model.language.body.rotary_emb.inv_freq  # `to` has rounded them, too
        return llava

    def _build(self, settings: TrainConfig) -> VLM:
        torch.manual_seed(0)
        model = cost.build_on_meta(settings, device=self.device, shape=self.shape)
        model.image_id, model.language.tokenizer = workload.IMAGE_ID, self.tokenizer
        return model

    def _reuse(self, key: Any, build: Callable[[], Any]) -> Any:
        """The model of the previous part if it has the same key, else a new one in its place. What it has learned changes no speed."""
        if self._key != key:
            self.release()
            self._key, self._model = key, build()
        for parameter in self._model.parameters():
            parameter.grad = None
        release_memory()
        return self._model

    def release(self) -> None:
        """Frees the memory of the model."""
        self._key = self._model = None
        release_memory()

    def values(self, part: str, **values: tuple[float, str]) -> list[Value]:
        """name=(value, unit)"""
        return [Value(gpu_name(self.device), part, name, value, unit) for name, (value, unit) in values.items()]
