"""Small inputs in the real formats: shards built by data_prep, a LLaMA folder with its own tokenizer, a configuration."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.config.train import TrainConfig
from src.data.datamodule import DataModule
from src.model.vlm import VLM, build_vlm
from src.runtime.cli import compose
from src.runtime.schema import to_typed
from src.training.callbacks import validation
from tests import isolation

validation.MAX_ANSWER_TOKENS = 3  # an untrained model generates up to the limit

ORGANS = ("lung", "liver", "kidney", "heart", "brain", "spine")
SENTENCES = [f"Question: which organ is shown here? Answer: the {organ} Caption: a chest x-ray of {organ}\n" for organ in ORGANS]


@pytest.fixture(autouse=True, scope="module")
def _module_state():
    """Changes of the environment by the fixtures of a module end with the module."""
    with isolation.restored():
        yield


@pytest.fixture(autouse=True)
def _test_state():
    """Unseeded random numbers and the state of the process do not depend on earlier tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with isolation.restored():
        yield


@pytest.fixture(scope="session")
def language(tmp_path_factory) -> Path:
    """A LLaMA of two layers with a byte-level tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("language")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    pretrained = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    pretrained.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(pretrained)}
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, initializer_range=0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Three sources: questions on one image (alpha), captions of one or two images (beta), text only (gamma)."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for source, make in (("alpha", question), ("beta", caption), ("gamma", text)):
        (raw / source).mkdir()
        for split, count in (("train", 60), ("val", 9), ("test", 8)):
            lines = [make(raw / source, f"{split}{n}", rng) for n in range(count)]
            (raw / source / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_all(BuildConfig(sources=["alpha", "beta", "gamma"], raw=raw, out=out, workers=1))
    return out


def jpeg(rng: np.random.Generator, *, height: int = 40, width: int = 48) -> bytes:
    return simplejpeg.encode_jpeg(rng.integers(0, 256, (height, width, 3), np.uint8), quality=90)


def question(folder: Path, name: str, rng: np.random.Generator) -> dict:
    (folder / f"{name}.jpg").write_bytes(jpeg(rng))
    organs = " ".join(rng.choice(ORGANS, rng.integers(1, 6)))
    return {"image": f"{name}.jpg", "question": f"which organ is shown with {organs}?", "answer": str(rng.choice(ORGANS)), "id": name}


def caption(folder: Path, name: str, rng: np.random.Generator) -> dict:
    images = [f"{name}-{n}.jpg" for n in range(rng.integers(1, 3))]
    for image in images:
        (folder / image).write_bytes(jpeg(rng))
    return {"image": images, "caption": "a scan of " + " ".join(rng.choice(ORGANS, rng.integers(2, 9))), "id": name}


def text(folder: Path, name: str, rng: np.random.Generator) -> dict:
    return {"question": f"what is near the {' '.join(rng.choice(ORGANS, 3))}?", "answer": " ".join(rng.choice(ORGANS, 4)), "id": name}


@pytest.fixture
def words(shards, language, tmp_path) -> list[str]:
    """Command-line overrides of a run that takes seconds."""
    return overrides(shards, language, tmp_path / "outputs")


def overrides(shards: Path, language: Path, outputs: Path) -> list[str]:
    return [
        "name=tiny",
        f"outputs={outputs}",
        "mix=own",
        "mix.shares={alpha: 2, beta: 1, gamma: 1}",
        f"data.root={shards}",
        "data.packing_window=32",
        "data.global_batch_size=16",
        "data.max_seq_len=160",
        "data.workers=0",
        "data.val_samples=4",
        "vision=scratch",
        "vision.architecture=vit_tiny_patch16_224",
        "vision.image_size=32",
        "+vision.architecture_kwargs={embed_dim: 32, depth: 1, num_heads: 2}",
        "language=phantom",
        f"language.path={language}",
        "trainer=cpu",
        "trainer.log_every=2",
        "trainer.val_every=3",
        "optim.steps=6",
        "optim.warmup=2",
    ]


@pytest.fixture
def configure(words):
    """`configure("seed=1", ...)` composes a typed configuration from conf/, as the command does."""

    def compose_config(*overrides: str) -> TrainConfig:
        return to_typed(TrainConfig, compose("train", [*words, *overrides]))

    return compose_config


def parts(config: TrainConfig) -> tuple[VLM, DataModule]:
    """The model and the data of a configuration."""
    model = build_vlm(config)
    prompter = model.prompter(budget=config.data.max_seq_len)
    accumulate = config.trainer.accumulate
    return model, DataModule(config.mix, config.data, prompter=prompter, size=model.vision.size, seed=config.seed, accumulate=accumulate)
