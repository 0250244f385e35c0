"""The stand-ins for PMC-LLaMA and BiomedCLIP pass the doors of the real ones, and are the same bits each time."""

import hashlib
import shutil

import pytest
import torch

from data_prep.build.source import BuildConfig
from data_prep.phantom.__main__ import main as phantoms
from data_prep.phantom.weights import language, vision
from data_prep.phantom.weights.__main__ import main
from data_prep.shards import build_all
from src.config.train import VisionConfig
from src.data.prompt import IMAGE, Prompter, prompt_answer_pairs
from src.data.shards import Shards
from src.model.language_checkpoint import load_language
from src.model.vision import load_vision


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("phantom_shards")
    phantoms([f"out={raw}", "sources=pmc_oa,pubmedqa", "scale=0.02"])
    build_all(BuildConfig(sources=["pmc_oa", "pubmedqa"], raw=raw, out=out, workers=1))
    return out


@pytest.fixture(scope="module")
def weights(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    main(words(shards, out))
    return out


def words(shards, out) -> list[str]:
    return [f"out={out}", f"shards={shards}", "language_steps=3", "vision_steps=2"]


@pytest.mark.slow
def test_the_language_model_opens_as_any_folder_of_transformers(weights, shards):
    model, tokenizer = load_language(str(weights / "language"), revision="unverified", dtype=torch.float32)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    prompter = Prompter(tokenizer, patches=2, budget=256)
    opened = Shards(shards / "pubmedqa")
    record = opened.text(int(opened.rows("train")[0]))
    (encoded,) = prompter.encode([record], num_images=[1])
    assert encoded.ids[:3].tolist() == [1, prompter.image_id, prompter.image_id]
    assert tokenizer.convert_tokens_to_ids(IMAGE) == prompter.image_id < model.get_input_embeddings().weight.shape[0]
    prompt, answer = prompt_answer_pairs(record)[0]
    text = tokenizer.decode(encoded.ids[3:-1])
    assert text.replace(" ", "") == (prompt + answer).replace(" ", "")


def test_the_encoder_opens_as_biomedclip_does(weights):
    encoder = load_vision(VisionConfig(format="open_clip", path=str(weights / "vision")))
    assert (encoder.size, encoder.num_patches) == (64, 64)
    assert encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 64, vision.KWARGS["embed_dim"])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["language/model.safetensors", "language/tokenizer.json", "vision/open_clip_model.safetensors"])
def test_the_same_seed_gives_the_same_bytes(weights, again, file):
    assert hashlib.sha256((weights / file).read_bytes()).digest() == hashlib.sha256((again / file).read_bytes()).digest()


@pytest.fixture(scope="module")
def again(shards, tmp_path_factory):
    """Made where a killed run has left its temporary folders."""
    out = tmp_path_factory.mktemp("again")
    for part in ("language", "vision"):
        (out / f"{part}.tmp").mkdir()
        (out / f"{part}.tmp" / "model.safetensors").write_bytes(b"cut sh")
    main(words(shards, out))
    return out


def test_what_is_complete_is_kept(weights, shards, tmp_path, monkeypatch):
    def untouched(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(language, "pretrain", untouched)
    monkeypatch.setattr(vision, "pretrain", untouched)
    main(words(shards, weights))
    for changed in ("seed=1", "vision_steps=9"):
        copy = shutil.copytree(weights, tmp_path / changed)
        with pytest.raises(AssertionError, match="trained again"):
            main([*words(shards, copy), changed, "parts=vision"])


def test_the_language_model_is_never_shown_an_image(shards, tmp_path, monkeypatch):
    def seen(self, row):
        raise AssertionError("an image was read")

    monkeypatch.setattr(Shards, "__getitem__", seen)
    language.pretrain(tmp_path / "language", [Shards(shards / "pmc_oa")], steps=1, seed=0)


@pytest.mark.parametrize(
    ("word", "text"),
    [("parts=lnguage", "did you mean 'language'"), ("shards=nowhere", "shards=nowhere"), ("seeds=1", "did you mean 'seed'")],
)
def test_a_mistake_is_one_sentence(word, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([f"out={tmp_path}", word])
    printed = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert text in printed
    assert "\n" not in printed
