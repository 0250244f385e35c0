"""Language models with the properties of small published ones pass through every command, from training to the demo.

The properties are those of SmolLM2 (grouped heads, tied embeddings, no pad token, in the base model bos = eos) and of JackFram/llama-160m
(the pad token is the begin token).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from src.ask import ask
from src.config.ask import AskConfig
from src.config.evaluate import EvaluateConfig
from src.config.export import ExportConfig
from src.config.train import TrainConfig
from src.data.prompt import IGNORE
from src.data.record import Record
from src.evaluate import evaluate
from src.export import export
from src.inference.query import Sampling, VQAQuery
from src.inference.vqa_model import load_vqa_model
from src.model.generate import Generator, make_request
from src.model.language_checkpoint import load_language
from src.model.vlm import build_vlm
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.serving.handlers import DemoHandlers
from src.serving.limits import Limits
from src.train import train
from tests.fixtures import SENTENCES, overrides, parts
from tests.rounding import forward_steps, rounding

GROUPED = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
SPECIAL = {  # model -> special tokens in the order of their ids, names of the tokenizer, shape
    "smollm2": (["<|endoftext|>"], dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"), GROUPED),
    "smollm2_instruct": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>"},
        GROUPED,
    ),
    "no_bos": (["<|end|>"], {"eos_token": "<|end|>"}, GROUPED),
    "llama_160m": (
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<s>"},
        {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": False},
    ),
}
TIED = [name for name, (*_, shape) in SPECIAL.items() if shape["tie_word_embeddings"]]


def write_model(folder: Path, name: str) -> Path:
    """A random LLaMA of two layers in the format of transformers."""
    special, names, shape = SPECIAL[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    pretrained = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    pretrained.save_pretrained(folder)
    ids = {f"{kind}_token_id": getattr(pretrained, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = LlamaConfig(**shape, **ids, intermediate_size=64, num_hidden_layers=2, vocab_size=len(pretrained), initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: write_model(tmp_path_factory.mktemp(name), name) for name in SPECIAL}


@pytest.fixture
def configure_small(configure, folders):
    def compose_config(name: str, *overrides: str) -> TrainConfig:
        return configure(f"language.path={folders[name]}", *overrides)

    return compose_config


@pytest.mark.parametrize("name", SPECIAL)
def test_labels_end_with_eos_and_padding_has_none(configure_small, name):
    """A model that is padded with eos and ignores eos in the loss would never learn to stop."""
    _, data = parts(configure_small(name, "data.max_seq_len=40", "mix.shares={gamma: 1}"))
    prompter, batch = data.prompter, data.stream().batch(0, micro_batch=0)
    padding = batch.sources_BT == -1
    assert padding.any()
    assert (batch.labels_BT[padding] == IGNORE).all()
    assert int((batch.labels_BT == prompter.eos).sum()) == batch.num_samples
    assert batch.sources_BT.shape == batch.labels_BT.shape


@pytest.mark.parametrize("name", TIED)
def test_tied_matrix_stays_one_and_frozen(configure_small, name):
    language = build_vlm(configure_small(name)).language
    assert language.head.weight is language.embed.weight
    assert not language.embed.weight.requires_grad
    assert language.head.weight.shape[0] % 64 == 0
    assert language.base.config.tie_word_embeddings


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapter_on_the_embedding_or_the_output_matrix_is_refused(configure_small, target):
    with pytest.raises(UserError, match=rf"language\.lora\.targets names {target}; linear layers of the model are down_proj, "):
        build_vlm(configure_small("smollm2", f"language.lora.targets=[q_proj,{target}]"))


@pytest.mark.parametrize("name", SPECIAL)
def test_logits_of_a_loaded_folder_equal_those_of_transformers(folders, name):
    ids = torch.arange(3, 60)[None]
    expected_model = LlamaForCausalLM.from_pretrained(folders[name]).double()
    model, tokenizer = load_language(str(folders[name]), revision="unverified", dtype=torch.float32)
    assert None not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    with torch.no_grad():
        expected = expected_model(ids).logits
        logits = model.double()(ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(logits, expected, rtol=0, atol=rounding(20, expected.abs().max()))


@pytest.mark.parametrize("name", SPECIAL)
def test_answer_ends_at_eos_also_where_it_is_the_begin_token(configure_small, name):
    """A model whose output matrix prefers eos for every hidden state ends each answer at once, with an empty text."""
    model = build_vlm(configure_small(name))
    prompter = model.prompter(budget=160)
    request = make_request(
        Record(key="q", source="q", split="test", turns=[("which organ is shown?", "")]),
        images=[],
        prefix="",
        prompter=prompter,
        max_new_tokens=5,
    )
    with torch.no_grad():  # only the first number of a hidden state reaches the output matrix, and it is positive
        model.language.body.norm.weight.zero_()[0] = 1.0
        model.language.embed.weight[:, 0] = 50.0
        model.language.head.weight[prompter.eos, 0] = 1000.0
    answers = list(Generator(model, prompter, batch=1, max_new_tokens=5).stream(request))
    assert [(answer.text, answer.truncated) for answer in answers] == [("", False)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECIAL)
def test_small_model_passes_through_every_command(shards, folders, tmp_path, name):
    words = [*overrides(shards, folders[name], tmp_path / "outputs"), "optim.steps=2", "optim.warmup=1", "trainer.val_every=2"]
    folder = train(to_typed(TrainConfig, compose("train", words)))
    run = [f"run={folder.name}", f"outputs={folder.parent}"]
    add_noise(folder)

    evaluate(to_typed(EvaluateConfig, compose("evaluate", [*run, "benchmarks=[alpha,gamma]", "resamples=50", "max_new_tokens=4"])))
    scores = json.loads((folder / "evaluate.json").read_text())["metrics"]
    assert scores["vqa/alpha/real/all/exact"]["n"] == 8

    out = export(to_typed(ExportConfig, compose("export", [*run, f"out={tmp_path / 'out'}"])))
    trained, exported = (load_vqa_model(str(where), accelerator="cpu") for where in (folder, out))
    logits = json.loads((folder / "export.json").read_text())["logits"]
    steps = 2 * 100 + 11 * trained.model.vision.width + forward_steps(trained.model.language.base.config, length=100)
    assert 0 <= logits["max_difference"] <= rounding(steps, logits["largest"])

    picture = tmp_path / "a.png"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    image.save(picture)
    query = VQAQuery("which organ is shown?", [image])
    trained.model.double(), exported.model.double()
    ours, theirs = (model.answers([query], Sampling(max_new_tokens=8))[0] for model in (trained, exported))
    assert ours.text == theirs.text
    assert ours.confidence == pytest.approx(theirs.confidence, abs=1e-4)
    for where in (folder, out):
        words = [f"model={where}", "question='which organ is shown?'", f"image=[{picture}]", "accelerator=cpu", "max_new_tokens=8"]
        assert ask(to_typed(AskConfig, compose("ask", words)))["confidence"] < 0

    handlers = DemoHandlers(exported, Limits(megapixels=1, megabytes=1, question=80))
    *_, (messages, _, status) = handlers.ask(str(picture), "which organ is shown?", [], 8, 0, 1, 0)
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert "not calibrated" in status
    assert "With the image" in handlers.matter(str(picture), messages)


def add_noise(folder: Path) -> None:
    """Replaces the trained adapters of every checkpoint by larger random ones, so that an adapter that is lost changes the logits."""
    for path in (folder / "checkpoints").glob("*.ckpt"):
        stored = torch.load(path, weights_only=True)
        generator = torch.Generator().manual_seed(3)
        for tensor_name, value in stored["state_dict"].items():
            value.add_(torch.randn(value.shape, generator=generator) * (0.1 if "lora_B" in tensor_name else 0.02))
        torch.save(stored, path)
