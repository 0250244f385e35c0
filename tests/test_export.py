"""Exported models compute the same logits, answers and features as the run, in transformers, PEFT and timm."""

import ast
import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from gradio_client import Client, handle_file
from peft import PeftModel
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
    pipeline,
)

from data_prep.phantom.weights.language import SHAPE, VOCABULARY
from src.config.export import ExportConfig
from src.data.image_io import to_png
from src.data.lineage import write_lineage
from src.data.prompt import Prompter
from src.data.record import Record
from src.demo import free_port
from src.export import export
from src.inference.query import Sampling, VQAQuery, finished_run, training_data_of_card
from src.inference.vqa_model import VQAModel, load_vqa_model
from src.release import usage
from src.release.card import LIBRARIES, CardFacts, collect_facts, model_card, usage_restrictions
from src.release.llava import chat_template
from src.release.space import APP, REQUIREMENTS, imported_files, texts
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.fixtures import ORGANS, overrides
from tests.rounding import float32_norms, forward_steps, gap, rounding
from tests.runs import finish
from tests.test_backbones import dinov2 as tiny_dinov2
from tests.test_backbones import siglip as tiny_siglip
from tests.test_vision_checkpoints import OTHER_MEAN, hf_folder, randomise, tiny_clip

QUESTIONS = ["which organ is shown?", "is there a nodule in the left lung?", "what is near the heart, liver and spine?"]
SHORT = Sampling(max_new_tokens=12)
BLOCKS = "vision.architecture_kwargs={embed_dim: 32, depth: 2, num_heads: 2}"


@pytest.fixture(scope="module")
def exported(shards, language, tmp_path_factory):
    """(run folder, export folder, the trained model)."""
    run_overrides = overrides(shards, language, tmp_path_factory.mktemp("runs"))
    folder, _ = finish(run_overrides, BLOCKS)
    return folder, run_export(folder, folder.parent / "out"), load_model(folder)


def run_export(folder: Path, out: Path, *changes: str) -> Path:
    export_overrides = [f"run={folder.name}", f"outputs={folder.parent}", f"out={out}", *changes]
    return export(to_typed(ExportConfig, compose("export", export_overrides)))


def load_model(folder: Path) -> VQAModel:
    return load_vqa_model(str(folder), accelerator="cpu")


def random_image(seed: int, size: tuple[int, int] = (60, 44)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def processor_inputs(hf: Path, image: Image.Image, question: str):
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    processor = AutoProcessor.from_pretrained(hf, backend="pil")
    messages = [{"role": "user", "content": content}]
    return processor, processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")


@torch.no_grad()
def logits(trained: VQAModel, request, answer: list[int] | None = None) -> torch.Tensor:
    ids = torch.tensor([trained.prompter.prefix(len(request.images)) + request.prompt + (answer or [])])
    images = torch.stack(request.images) if request.images else torch.empty(0)
    return trained.model.language.base(inputs_embeds=trained.model.embed(ids, images)).logits


def to_float64(trained: VQAModel) -> VQAModel:
    """The same model in float64, in which sums do not depend on the CPU."""
    model64 = copy.copy(trained)
    model64.model = copy.deepcopy(trained.model).double()
    return model64


def float32_roundings(trained: VQAModel) -> int:
    """Number of roundings to float32 in a model that computes in float64: seven merged weights per layer, and the norms."""
    config = trained.model.language.body.config
    return 7 * config.num_hidden_layers + float32_norms(config)


def num_roundings(trained: VQAModel, *, dtype: torch.dtype = torch.float32, length: int = 100) -> int:
    """Number of roundings to `dtype` in encoder and language model. Products of bfloat16 are summed in float32 and rounded once."""
    blocks, width = len(trained.model.vision.trunk.blocks), trained.model.vision.width
    language = trained.model.language.body.config
    if dtype == torch.float32:
        return blocks * (2 * length + 11 * width) + forward_steps(language, length=length)
    return 10 * (blocks + language.num_hidden_layers) + 5


def answer(trained: VQAModel, query: VQAQuery, sampling: Sampling = SHORT) -> str:
    """Our answer. The margin of each token exceeds the float32 rounding error, so every CPU gives the same answer."""
    request = trained.prepare(query, sampling)
    generator = trained.generator(sampling, batch=1)
    *_, (tokens, _) = generator._steps([request])
    scores = logits(trained, request, tokens[0])[0, -len(tokens[0]) - 1 : -1].masked_fill(generator.banned, -torch.inf)
    assert gap(scores) > rounding(num_roundings(trained), scores[scores.isfinite()].abs().max())
    return trained.answers([query], sampling)[0].text


@pytest.mark.parametrize("number", range(3))
def test_llava_has_the_tokens_pixels_logits_and_answers_of_the_run(exported, number):
    _, out, trained = exported
    image, model64 = random_image(number), to_float64(trained)
    processor, inputs = processor_inputs(out / "hf", image, QUESTIONS[number])
    request = trained.prepare(VQAQuery(QUESTIONS[number], [image]), SHORT)
    assert inputs["input_ids"][0].tolist() == trained.prompter.prefix(1) + request.prompt
    pixels = trained.model.vision.normalise(request.images[0][None])
    tolerance = rounding(4, (1 / trained.model.vision.std).max())  # three operations on values of at most 1; the last divides by std
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=tolerance)
    llava = LlavaForConditionalGeneration.from_pretrained(out / "hf").eval()
    ours, expected = logits(trained, request), logits(model64, request)
    with torch.no_grad():
        torch.testing.assert_close(llava(**inputs).logits, ours, rtol=0, atol=rounding(num_roundings(trained), expected.abs().max()))
    generated = llava.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(generated, skip_special_tokens=True).strip() == answer(trained, VQAQuery(QUESTIONS[number], [image]))
    pixels = model64.model.vision.normalise(request.images[0][None])
    with torch.no_grad():
        theirs = llava.double()(**inputs | {"pixel_values": pixels}).logits
    torch.testing.assert_close(theirs, expected, rtol=0, atol=rounding(float32_roundings(trained), expected.abs().max()))


def test_image_changes_the_logits(exported):
    """The comparisons above would also hold for a model that ignores the image."""
    trained = exported[2]
    one, other = (logits(trained, trained.prepare(VQAQuery(QUESTIONS[0], [random_image(seed)]), SHORT)) for seed in (0, 1))
    assert (one - other).abs().max() > 0.1


@pytest.mark.slow
def test_pipeline_gives_the_answer_of_the_run(exported):
    _, out, trained = exported
    image = random_image(5, size=(32, 32))  # no resizing, so the default backend of transformers gives equal pixels
    answer_pipeline = pipeline("image-text-to-text", model=str(out / "hf"))
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTIONS[0]}]
    outputs = answer_pipeline(text=[{"role": "user", "content": content}], max_new_tokens=12, return_full_text=False)
    assert outputs[0]["generated_text"].strip() == answer(trained, VQAQuery(QUESTIONS[0], [image]))


PARTS = [{"type": "image"}, {"type": "text", "text": "which organ is shown?"}]


@pytest.mark.parametrize("content", [PARTS, PARTS[::-1], "<image>\nwhich organ is shown?", "which organ is shown? <image>"], ids=str)
def test_chat_template_matches_the_training_prompt(exported, content):
    _, out, trained = exported
    processor = AutoProcessor.from_pretrained(out / "hf")
    turns = [("which organ is shown?", "lung"), ("is it healthy?", "yes the lung is")]
    messages = [{"role": "user", "content": content}]
    messages += [{"role": "assistant", "content": turns[0][1]}, {"role": "user", "content": turns[1][0]}]
    text = processor.apply_chat_template(messages, tokenize=False)
    request = trained.prepare(VQAQuery(turns[1][0], [random_image(0)], history=turns[:1]), SHORT)
    ids = processor(text=text, images=random_image(0)).input_ids[0]
    assert list(ids) == trained.prompter.prefix(1) + request.prompt


@pytest.mark.parametrize("scheme", ["first", "always", "never", "legacy"])
def test_chat_template_has_the_tokens_of_training_for_any_word_marks(scheme):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if scheme == "legacy" else scheme)
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Prepend("\u2581")
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>", "<image>"], show_progress=False)
    tokenizer.train_from_iterator(["Question: is the lung healthy? shown\nAnswer: yes lung"] * 5, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    prompter = Prompter(fast, patches=1, budget=200)
    fast.chat_template = chat_template(prompter)
    turns = [("is the lung shown?", "yes"), ("is the lung healthy?", "")]
    for number, num_images in ((0, 0), (0, 1), (1, 1)):
        record = Record(key="k", source="s", split="test", turns=turns[: number + 1])
        prefix, prompt = prompter.question_ids(record, num_images, max_new_tokens=8)
        texts = [text for turn in record.turns for text in turn][:-1]
        texts[0] = "<image>" * num_images + texts[0]
        messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
        assert fast.apply_chat_template(messages, return_dict=False) == prefix + prompt


@pytest.mark.slow
def test_exported_folder_gives_the_answers_of_the_run(exported):
    _, out, trained = exported
    queries = [VQAQuery(question, [random_image(n), random_image(n + 1)]) for n, question in enumerate(QUESTIONS)] + [
        VQAQuery(QUESTIONS[0])
    ]
    reloaded = load_vqa_model(str(out), accelerator="cpu")
    largest = logits(trained, trained.prepare(queries[0], SHORT)).abs().max()
    for query, ours, theirs in zip(queries, trained.answers(queries, SHORT), reloaded.answers(queries, SHORT), strict=True):
        assert ours.text == theirs.text == answer(trained, query)
        # The softmax rounds the logit and the sum.
        assert ours.confidence == pytest.approx(theirs.confidence, abs=2 * rounding(num_roundings(trained), largest))


def test_timm_features_are_bit_equal(exported):
    _, out, trained = exported
    vision = trained.model.vision
    encoder = timm.create_model(f"local-dir:{out / 'timm'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(encoder)
    assert (data["input_size"], data["crop_mode"], data["interpolation"]) == ((3, 32, 32), "squash", "bicubic")
    x = vision.normalise(trained.pixels(random_image(7))[None])
    with torch.no_grad():
        assert torch.equal(encoder(x), vision.trunk(x))
        tokens = encoder.forward_intermediates(x, indices=1, norm=False, intermediates_only=True, output_fmt="NLC")[0]
        assert torch.equal(tokens, vision(trained.pixels(random_image(7))[None]))


def test_adapter_on_its_base_has_the_logits_of_the_run(exported, language):
    _, out, trained = exported
    ids = torch.tensor([trained.prompter.prefix(0) + trained.prompter.tokens(["Question: what is near the liver?\nAnswer:"])[0]])
    base = AutoModelForCausalLM.from_pretrained(language).double()
    with torch.no_grad():
        before = base(ids).logits.clone()
        adapted = PeftModel.from_pretrained(base, out / "adapter").eval().double()(ids).logits
        ours = to_float64(trained).model.language.base(ids).logits
    assert (adapted - ours[..., : adapted.shape[-1]]).abs().max() <= rounding(float32_roundings(trained), ours.abs().max())
    assert (adapted - before).abs().max() > 0.1


def run_code_of_card(part: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Executes the code of a card in `folder`, next to the folder of the part and an image; returns its variables."""
    (code,) = re.findall(r"```python\n(.*?)```", (part / "README.md").read_text(), re.DOTALL)
    shutil.copytree(part, folder / part.name)
    random_image(5).save(folder / "scan.png")
    monkeypatch.chdir(folder)
    exec(code, names := {"__name__": "card"})
    return names


@pytest.mark.slow
@pytest.mark.parametrize("part", ["hf", "adapter", "timm"])
def test_code_of_a_card_runs(exported, part, tmp_path, monkeypatch, capsys):
    """It runs next to the folder of the part and needs only an image."""
    _, out, trained = exported
    names = run_code_of_card(out / part, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    if part == "timm":
        assert printed == f"torch.Size([1, {trained.model.vision.width}])\n"
        return
    query = VQAQuery("Which organ is shown?", [random_image(5)]) if part == "hf" else VQAQuery("Is aspirin a drug?")
    assert printed.strip() == answer(trained, query, Sampling(64))
    if part == "hf":
        call = re.search(r"`(pipeline.*)` gives an answer, too", (out / part / "README.md").read_text())[1]
        assert eval(call, names | {"pipeline": pipeline})[0]["input_text"]


@pytest.mark.slow
def test_merging_is_done_in_float32(exported, tmp_path):
    """The sum of a bfloat16 base and its adapter is rounded once; addition in bfloat16 would lose the small update."""
    folder, _, _ = exported
    out = run_export(folder, tmp_path / "half", "parts=[hf]", "dtype=bfloat16")
    trained = load_model(folder)
    weights = safetensors.torch.load_file(out / "hf" / "model.safetensors")
    layer = trained.model.language.base.model.layers[0].mlp.up_proj
    merged = layer.base_layer.weight + layer.get_delta_weight("default")
    assert torch.equal(weights["language_model.model.layers.0.mlp.up_proj.weight"], merged.bfloat16())
    recorded = json.loads((folder / "export.json").read_text())["logits"]
    assert recorded["dtype"] == "bfloat16"
    assert 0 < recorded["max_difference"] < rounding(num_roundings(trained, dtype=torch.bfloat16), recorded["largest"], torch.bfloat16)


@pytest.fixture(scope="module")
def mini_sized(shards, language, tmp_path_factory):
    """(run folder, the trained model) with random weights and the sizes of `make mini`."""
    base = tmp_path_factory.mktemp("mini")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(language)
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    llama = LlamaConfig(**SHAPE, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, initializer_range=0.1)
    LlamaForCausalLM(llama).save_pretrained(base)
    kwargs = ["vision.architecture_kwargs={embed_dim: 128, depth: 2, num_heads: 2}", "+vision.architecture_kwargs.patch_size=8"]
    run_overrides = [o for o in overrides(shards, base, tmp_path_factory.mktemp("runs")) if "max_seq_len" not in o]
    folder, _ = finish(run_overrides, *kwargs, "vision.architecture=vit_base_patch16_224", "vision.image_size=64", "data.max_seq_len=384")
    return folder, load_model(folder)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_at_mini_size_differ_only_by_rounding(mini_sized, tmp_path, dtype):
    folder, trained = mini_sized
    run_export(folder, tmp_path / "out", "parts=[hf]", f"dtype={dtype}")
    recorded = json.loads((folder / "export.json").read_text())["logits"]
    kind = getattr(torch, dtype)
    assert recorded["largest"] > 4
    assert recorded["max_difference"] <= rounding(num_roundings(trained, dtype=kind, length=200), recorded["largest"], kind)


@pytest.mark.slow
def test_answers_at_mini_size_are_equal(mini_sized, tmp_path):
    """In float64, no two candidate tokens of the 24 answers are tied."""
    folder, trained = mini_sized
    out = run_export(folder, tmp_path / "out", "parts=[hf]", "dtype=float32")
    queries = [VQAQuery(question, [random_image(number)]) for question in QUESTIONS for number in range(8)]
    long, trained = Sampling(max_new_tokens=24), to_float64(trained)
    ours = [result.text for result in trained.answers(queries, long)]
    assert [result.text for result in to_float64(load_vqa_model(str(out), accelerator="cpu")).answers(queries, long)] == ours
    assert len(set(ours)) > 12
    llava = LlavaForConditionalGeneration.from_pretrained(out / "hf").eval().double()
    for at in (0, 9, 18):
        processor, inputs = processor_inputs(out / "hf", queries[at].images[0], queries[at].question)
        generated = llava.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(generated, skip_special_tokens=True).strip() == ours[at]


@pytest.mark.slow
def test_written_weights_equal_those_of_the_run(mini_sized, tmp_path):
    """In float64, only the rounding of the merged weights and of the norms, which compute in float32, remains."""
    folder, trained = mini_sized
    out = run_export(folder, tmp_path / "out", "parts=[hf]", "dtype=float32")
    llava = LlavaForConditionalGeneration.from_pretrained(out / "hf").eval().double()
    model64 = to_float64(trained)
    for number, question in enumerate(QUESTIONS):
        _, inputs = processor_inputs(out / "hf", random_image(number), question)
        request = trained.prepare(VQAQuery(question, [random_image(number)]), SHORT)
        ours = logits(model64, request)
        with torch.no_grad():
            theirs = llava(**inputs | {"pixel_values": model64.model.vision.normalise(torch.stack(request.images))}).logits
        assert ours.dtype == theirs.dtype == torch.float64
        assert ours.abs().max() > 4
        torch.testing.assert_close(theirs, ours, rtol=0, atol=rounding(float32_roundings(trained), ours.abs().max()))


@pytest.mark.slow
def test_second_export_is_byte_identical(exported, tmp_path):
    folder, out, _ = exported
    second = run_export(folder, tmp_path / "again")
    assert (second / "SHA256SUMS").read_bytes() == (out / "SHA256SUMS").read_bytes()
    assert run_export(folder, out) == out  # the same folder stays as it is


@pytest.mark.slow
def test_existing_different_folder_is_not_changed(exported, tmp_path):
    folder, out, _ = exported
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "hf" / "README.md").write_text("edited")
    with pytest.raises(UserError, match=r"differs from this export in hf/README\.md"):
        run_export(folder, copy)
    assert (copy / "hf" / "README.md").read_text() == "edited"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(UserError, match="was not written by export"):
        run_export(folder, foreign)
    assert not list(tmp_path.glob(".*.part"))


def test_only_safetensors_are_written_and_pickles_are_refused(exported, tmp_path):
    _, out, _ = exported
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".md", ".py", ".txt", ".css", ""}
    copy = tmp_path / "copy"
    shutil.copytree(out / "hf", copy)
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a format that can carry code"):
        load_vqa_model(str(copy))


def test_card_states_licences_scores_and_limits(exported):
    _, out, _ = exported
    for part in ("hf", "adapter", "timm"):
        card = (out / part / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: ")
        for sentence in (
            "Not a medical device",
            "| pathvqa | bleu1 | 200 | 0.500 [0.400, 0.600] |",
            "gain over a blank image",
        ):
            assert sentence in card
        assert "| alpha (`alpha`) | 50.0% | 60 | the user's own | unsourced | unverified | unverified |" in card
        assert "Combined restrictions: research use only until the licence is verified (from alpha, beta, gamma)" in card
        assert "type=organ" not in card
        assert "base_model" not in card  # a local folder is not a model of the Hub
        assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == LIBRARIES[usage.PARTS[part][0]][0]
        assert not any(placeholder in card for placeholder in ("HERE", "BASE", "TODO", "More Information Needed"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["projector=linear"], "hf"),
        (["projector.hidden=24"], "hf"),
        (["vision.architecture=vit_base_patch16_siglip_384"], "hf"),
        (["vision.architecture_kwargs.depth=3", "vision.layer=1"], "timm"),
        (["vision.architecture_kwargs.num_heads=4", "vision.image_size=48"], "hf"),
    ],
)
def test_other_architectures_are_exact(shards, language, tmp_path, changes, part):
    folder, _ = finish(overrides(shards, language, tmp_path), BLOCKS, *changes)
    out = run_export(folder, tmp_path / "out", "parts=[hf,timm]")
    recorded = json.loads((folder / "export.json").read_text())["logits"]
    assert recorded["max_difference"] <= rounding(num_roundings(load_model(folder)), recorded["largest"])
    assert (out / part / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run_changes", "export_changes", "message"),
    [
        (["projector.hidden=64"], [], "projector of at most the language model's width 32"),
        (["vision.architecture=resnet18", "~vision.architecture_kwargs"], ["parts=[hf]"], "needs a plain ViT encoder"),
        (["vision.architecture=vit_small_patch16_dinov3"], ["parts=[hf]"], "transformers has no vision tower for"),
        (["data.images=false"], [], "was trained without images"),
        ([], ["parts=[hf,onnx]"], "parts='onnx' is unknown"),
        ([], ["parts=[space]"], "add hf to parts="),
        ([], ["dtype=int8"], "dtype='int8'"),
        ([], ["push.repository=nonsense"], "is not a repository name"),
        ([], ["run=tinny"], "no run 'tinny'"),
    ],
)
def test_impossible_export_is_refused(shards, language, tmp_path, run_changes, export_changes, message):
    folder, _ = finish(overrides(shards, language, tmp_path), *run_changes)
    with pytest.raises(UserError) as caught:
        run_export(folder, tmp_path / "out", *export_changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_unfinished_run_and_missing_base_are_refused(shards, language, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(language, base)
    folder, _ = finish(overrides(shards, base, tmp_path / "runs"))
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"language\.path="):
        run_export(folder, tmp_path / "out")
    (folder / "train.json").unlink()
    with pytest.raises(UserError, match="has not finished training"):
        run_export(folder, tmp_path / "out")


def test_tokenizer_of_the_export_has_the_image_token(exported):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(exported[1] / "hf")
    assert tokenizer.convert_tokens_to_ids("<image>") == exported[2].model.image_id
    assert tokenizer(" ".join(ORGANS)).input_ids == exported[2].prompter.tokens([" ".join(ORGANS)])[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf_clip", "hf_vit", "hf_siglip", "hf_dinov2"])
def test_transformers_encoders_are_exported_exactly(shards, language, tmp_path, kind):
    encoders = {"hf_clip": tiny_clip, "hf_vit": tiny_vit, "hf_siglip": tiny_siglip, "hf_dinov2": tiny_dinov2}
    path = hf_folder(tmp_path / "encoder", encoders[kind]())
    run_overrides = [o for o in overrides(shards, language, tmp_path) if not o.startswith(("vision", "+vision"))]
    folder, _ = finish(run_overrides, "vision=pubmedclip", f"vision.format={kind}", f"vision.path={path}")
    out = run_export(folder, tmp_path / "out", "parts=[hf]")
    image, trained = random_image(1), load_model(folder)
    recorded = json.loads((folder / "export.json").read_text())["logits"]
    assert recorded["max_difference"] <= rounding(forward_steps(trained.model.language.body.config, length=100), recorded["largest"])
    reloaded = load_vqa_model(str(out), accelerator="cpu")
    assert reloaded.model.vision.mean.flatten().tolist() == pytest.approx(OTHER_MEAN)
    query = VQAQuery(QUESTIONS[0], [image])
    assert to_float64(reloaded).answers([query], SHORT)[0].text == to_float64(trained).answers([query], SHORT)[0].text
    with pytest.raises(UserError, match="has no timm equivalent"):
        run_export(folder, tmp_path / "other", "parts=[timm]")


def tiny_vit() -> ViTModel:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return randomise(ViTModel(ViTConfig(**sizes), add_pooling_layer=False))


@pytest.mark.slow
def test_space_requirements_cover_all_imports():
    """A hosted Space has gradio, its requirements and the shipped requirements; the test machine has more packages."""
    gradio = {re.split(r"[^\w.-]", line)[0] for line in requires("gradio") or [] if "extra ==" not in line}
    installed = {re.sub(r"[-_.]+", "-", name).lower() for name in {"gradio", *gradio, *REQUIREMENTS}}
    owners = packages_distributions()
    for module in {*imported_files("src.demo"), "app.py"}:
        tree = ast.parse(APP if module == "app.py" else Path(module).read_text())
        # The functions of slurm_jobs import submitit, which a Space does not need: only sweeps on a cluster call them.
        nodes = tree.body if module == "src/runtime/slurm_jobs.py" else list(ast.walk(tree))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        for name in {name.partition(".")[0] for name in names} - {"src", *sys.stdlib_module_names}:
            owned = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name, [])}
            assert owned & installed, f"{module} imports {name}"


def test_every_restriction_of_a_source_is_named(exported):
    restrictions = [("a", "yes", "no"), ("b", "unverified", "yes"), ("c", "no", "unverified"), ("d", "no", "yes")]
    sources = [{"name": name, "non_commercial": limited, "redistribute": passed} for name, limited, passed in restrictions]
    facts = CardFacts("tiny", finished_run(exported[0].parent, exported[0].name)[1], {}, sources)
    assert usage_restrictions(facts) == (
        "non-commercial use only (from a); the data may not be redistributed; whether the weights may be is unverified (from a); "
        "research use only until the licence is verified (from b); whether the data may be redistributed is unverified (from c)"
    )
    facts.sources = sources[3:]
    assert usage_restrictions(facts) == "every source allows commercial use and redistribution"


def test_card_warns_about_phantoms(exported):
    folder, trained = finished_run(exported[0].parent, exported[0].name)
    facts = collect_facts(folder, trained)
    part = "**Trained in part on phantoms.** A program generated the images and texts of alpha in"
    whole = "**Trained on phantoms.** A program generated all images and texts"
    drawn = "Trained on alpha, beta, gamma. Of these, a program drew alpha."
    for count, expected, sentence in ((0, "", "Trained on alpha, beta, gamma."), (1, part, drawn), (3, whole, whole.replace("**", ""))):
        facts.sources = [source | {"phantom": index < count} for index, source in enumerate(facts.sources)]
        for text in (model_card(facts, library="timm", usage=""), texts(facts, repository=None)["README.md"]):
            assert expected in text
            assert ("phantoms" in text) == bool(count)
            assert training_data_of_card(text).startswith(sentence)  # what ask and the demo show


@pytest.fixture
def family(words):
    """(folders of grandparent, parent and child; all trained). The grandparent used non-commercial data, the parent phantoms."""
    folders = []
    for name, source, init in (("grandparent", "medicat", None), ("parent", "slake", "grandparent"), ("child", "alpha", "parent")):
        changes = [f"name={name}", f"mix.shares={{{source}: 1}}", f"init={f'run:{init}' if init else 'null'}"]
        folder, _ = finish([override for override in words if not override.startswith("mix.shares")], *changes)
        manifest = {"licence": "", "counts": {"train": {"written": 1234}}, "phantom": source == "slake"}
        write_lineage(folder, fingerprint={}, manifests={source: manifest})
        folders.append(folder)
    return folders


@pytest.mark.slow
def test_card_of_a_child_names_data_licences_and_phantoms_of_all_ancestors(family):
    grandparent, parent, child = family
    shutil.rmtree(grandparent)
    shutil.rmtree(parent)
    facts = collect_facts(*finished_run(child.parent, child.name))
    text = model_card(facts, library="timm", usage="")
    assert usage_restrictions(facts).startswith("non-commercial use only (from medicat); ")
    assert "Continued from the weights of run `parent`, which was trained from run `grandparent`." in text
    assert "| alpha (`alpha`) | 100.0% | 1,234 |" in text
    assert "| MedICaT (`medicat`) in run `grandparent` | 100.0% | 1,234 | research, non-commercial" in text
    assert "- Subramanian et al., MedICaT" in text
    for card in (text, texts(facts, repository=None)["README.md"]):
        assert "**Trained in part on phantoms.** A program generated the images and texts of slake in run `parent` in" in card


@pytest.mark.slow
def test_export_is_refused_if_the_record_of_a_parent_is_missing(family, tmp_path):
    grandparent, parent, child = family
    for folder in (parent, child):
        (folder / "lineage.json").unlink()  # as in runs of older versions
    shutil.rmtree(grandparent)
    with pytest.raises(UserError, match=r"'parent' continued init=run:grandparent, whose folder is missing, .*; restore the folder of"):
        run_export(child, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_base_model_of_the_hub_is_linked(exported):
    result = {"version": "0", "git": "0", "data": "0", "metrics": {}}
    facts = CardFacts("tiny", finished_run(exported[0].parent, exported[0].name)[1], result)
    facts.config.language.path = "axiong/PMC_LLaMA_7B"
    fronts = {library: yaml.safe_load(model_card(facts, library=library, usage="").split("---")[1]) for library in LIBRARIES}
    assert {library: front.get("base_model") for library, front in fronts.items()} == {
        "transformers": "axiong/PMC_LLaMA_7B",
        "peft": "axiong/PMC_LLaMA_7B",
        "timm": None,
    }


@pytest.mark.slow
def test_space_runs_from_its_own_folder(exported, tmp_path):
    """It needs only its own files and the model next to it, and listens on an address that other machines can reach."""
    out = tmp_path / "out"
    shutil.copytree(exported[1], out)
    port = free_port("127.0.0.1")
    settings = {
        "GRADIO_SERVER_NAME": "0.0.0.0",  # as the hub sets it
        "PORT": str(port),
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(tmp_path / "temporary"),
    }
    (tmp_path / "temporary").mkdir()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "app.py"], cwd=out / "space", env=settings, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/config").status_code == 200:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        (tmp_path / "a.png").write_bytes(to_png(random_image(0)))
        client = Client(f"http://127.0.0.1:{port}/", verbose=False)
        chat, *_ = client.predict(handle_file(tmp_path / "a.png"), QUESTIONS[0], [], 12, 0, 1, 0, api_name="/ask")
        assert chat[-1]["content"][0]["text"] == answer(exported[2], VQAQuery(QUESTIONS[0], [random_image(0)]))
        refused = httpx.post(f"http://127.0.0.1:{port}/gradio_api/upload", files={"files": ("a.png", b"<html>")})
        assert refused.status_code == 415
    finally:
        process.terminate()
        process.wait(30)
    assert not list((tmp_path / "temporary").glob("openmedq-*"))  # no uploaded image is left after SIGTERM
    front = yaml.safe_load((out / "space" / "README.md").read_text().split("---")[1])
    assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
    for line in (out / "space" / "requirements.txt").read_text().splitlines():
        assert re.fullmatch(r"[\w-]+==[\w.]+", line), line
