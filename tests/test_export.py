"""What is handed on computes what was trained: the same logits, the same answers, the same features, in other people's libraries."""

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
from src.demo import free_port
from src.export import export
from src.inference.query import Sampling, VQAQuery, finished_run
from src.inference.vqa_model import VQAModel, load_vqa_model
from src.release import usage
from src.release.card import LIBRARIES, CardFacts, collect_facts, model_card, usage_restrictions
from src.release.space import APP, NEEDED, needed, texts
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.conftest import ORGANS, overrides
from tests.rounding import float32_norms, forward_steps, gap, rounding
from tests.runs import finish
from tests.test_vision_checkpoints import OTHER_MEAN, hf_folder, randomise, tiny_clip

QUESTIONS = ["which organ is shown?", "is there a nodule in the left lung?", "what is near the heart, liver and spine?"]
SHORT = Sampling(max_new_tokens=12)
BLOCKS = "vision.architecture_kwargs={embed_dim: 32, depth: 2, num_heads: 2}"


@pytest.fixture(scope="module")
def exported(shards, language, tmp_path_factory):
    """(run folder, export folder, the trained model)."""
    words = overrides(shards, language, tmp_path_factory.mktemp("runs"))
    folder, _ = finish(words, BLOCKS)
    return folder, run_export(folder, folder.parent / "out"), answerer(folder)


def run_export(folder: Path, out: Path, *changes: str) -> Path:
    words = [f"run={folder.name}", f"outputs={folder.parent}", f"out={out}", *changes]
    return export(to_typed(ExportConfig, compose("export", words)))


def answerer(folder: Path) -> VQAModel:
    return load_vqa_model(str(folder), accelerator="cpu")


def picture(seed: int, size: tuple[int, int] = (60, 44)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def inputs_of(hf: Path, image: Image.Image, question: str):
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    processor = AutoProcessor.from_pretrained(hf, backend="pil")
    said = [{"role": "user", "content": content}]
    return processor, processor.apply_chat_template(said, tokenize=True, return_dict=True, return_tensors="pt")


@torch.no_grad()
def logits(trained: VQAModel, asked, answer: list[int] | None = None) -> torch.Tensor:
    ids = torch.tensor([trained.prompter.prefix(len(asked.images)) + asked.prompt + (answer or [])])
    images = torch.stack(asked.images) if asked.images else torch.empty(0)
    return trained.model.language.base(inputs_embeds=trained.model.embed(ids, images)).logits


def exact(trained: VQAModel) -> VQAModel:
    """The same model in float64, in which sums do not depend on the CPU."""
    made = copy.copy(trained)
    made.model = copy.deepcopy(trained.model).double()
    return made


def stored(trained: VQAModel) -> int:
    """Roundings to float32 on the way through a model that computes in float64: seven merged weights in each layer, and the norms."""
    config = trained.model.language.body.config
    return 7 * config.num_hidden_layers + float32_norms(config)


def computed(trained: VQAModel, *, dtype: torch.dtype = torch.float32, length: int = 100) -> int:
    """Roundings to `dtype` on the way through both parts. Products of bfloat16 are added up in float32 and rounded once."""
    blocks, width = len(trained.model.vision.trunk.blocks), trained.model.vision.width
    language = trained.model.language.body.config
    if dtype == torch.float32:
        return blocks * (2 * length + 11 * width) + forward_steps(language, length=length)
    return 10 * (blocks + language.num_hidden_layers) + 5


def answer(trained: VQAModel, query: VQAQuery, sampling: Sampling = SHORT) -> str:
    """Our answer. Each token leads the next best by more than float32 can round, so that every CPU must give it."""
    asked = trained.prepare(query, sampling)
    generator = trained.generator(sampling, batch=1)
    *_, (tokens, _) = generator._steps([asked])
    scores = logits(trained, asked, tokens[0])[0, -len(tokens[0]) - 1 : -1].masked_fill(generator.banned, -torch.inf)
    assert gap(scores) > rounding(computed(trained), scores[scores.isfinite()].abs().max())
    return trained.answers([query], sampling)[0].text


@pytest.mark.parametrize("number", range(3))
def test_llava_has_our_tokens_pixels_logits_and_answers(exported, number):
    _, out, trained = exported
    image, doubled = picture(number), exact(trained)
    processor, inputs = inputs_of(out / "hf", image, QUESTIONS[number])
    asked = trained.prepare(VQAQuery(QUESTIONS[number], [image]), SHORT)
    assert inputs["input_ids"][0].tolist() == trained.prompter.prefix(1) + asked.prompt
    pixels = trained.model.vision.normalise(asked.images[0][None])
    apart = rounding(4, (1 / trained.model.vision.std).max())  # three operations on values of at most 1, the last of which divides by std
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=apart)
    llava = LlavaForConditionalGeneration.from_pretrained(out / "hf").eval()
    ours, expected = logits(trained, asked), logits(doubled, asked)
    with torch.no_grad():
        torch.testing.assert_close(llava(**inputs).logits, ours, rtol=0, atol=rounding(computed(trained), expected.abs().max()))
    made = llava.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(made, skip_special_tokens=True).strip() == answer(trained, VQAQuery(QUESTIONS[number], [image]))
    pixels = doubled.model.vision.normalise(asked.images[0][None])
    with torch.no_grad():
        theirs = llava.double()(**inputs | {"pixel_values": pixels}).logits
    torch.testing.assert_close(theirs, expected, rtol=0, atol=rounding(stored(trained), expected.abs().max()))


def test_the_image_changes_the_logits(exported):
    """Else the equalities above would hold of a model that ignores it."""
    trained = exported[2]
    one, other = (logits(trained, trained.prepare(VQAQuery(QUESTIONS[0], [picture(seed)]), SHORT)) for seed in (0, 1))
    assert (one - other).abs().max() > 0.1


@pytest.mark.slow
def test_the_pipeline_answers_our_answer(exported):
    _, out, trained = exported
    image = picture(5, size=(32, 32))  # no resizing, so that transformers' own default gives equal pixels
    answering = pipeline("image-text-to-text", model=str(out / "hf"))
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTIONS[0]}]
    found = answering(text=[{"role": "user", "content": content}], max_new_tokens=12, return_full_text=False)
    assert found[0]["generated_text"].strip() == answer(trained, VQAQuery(QUESTIONS[0], [image]))


def test_a_conversation_is_spelt_as_in_training(exported):
    _, out, trained = exported
    processor = AutoProcessor.from_pretrained(out / "hf")
    turns = [("which organ is shown?", "lung"), ("is it healthy?", "yes the lung is")]
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turns[0][0]}]}]
    said += [{"role": "assistant", "content": turns[0][1]}, {"role": "user", "content": turns[1][0]}]
    text = processor.apply_chat_template(said, tokenize=False)
    asked = trained.prepare(VQAQuery(turns[1][0], [picture(0)], history=turns[:1]), SHORT)
    spelt = processor.tokenizer(text.replace("<image>", "<image>" * trained.prompter.patches), add_special_tokens=False).input_ids
    assert spelt == trained.prompter.prefix(1) + asked.prompt


@pytest.mark.slow
def test_the_exported_folder_answers_here_too(exported):
    _, out, trained = exported
    queries = [VQAQuery(question, [picture(n), picture(n + 1)]) for n, question in enumerate(QUESTIONS)] + [VQAQuery(QUESTIONS[0])]
    again = load_vqa_model(str(out), accelerator="cpu")
    largest = logits(trained, trained.prepare(queries[0], SHORT)).abs().max()
    for query, mine, theirs in zip(queries, trained.answers(queries, SHORT), again.answers(queries, SHORT), strict=True):
        assert mine.text == theirs.text == answer(trained, query)
        assert mine.confidence == pytest.approx(theirs.confidence, abs=2 * rounding(computed(trained), largest))  # softmax: logit and sum


def test_timm_features_are_bit_equal(exported):
    _, out, trained = exported
    vision = trained.model.vision
    again = timm.create_model(f"local-dir:{out / 'timm'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(again)
    assert (data["input_size"], data["crop_mode"], data["interpolation"]) == ((3, 32, 32), "squash", "bicubic")
    x = vision.normalise(trained.pixels(picture(7))[None])
    with torch.no_grad():
        assert torch.equal(again(x), vision.trunk(x))
        tokens = again.forward_intermediates(x, indices=1, norm=False, intermediates_only=True, output_fmt="NLC")[0]
        assert torch.equal(tokens, vision(trained.pixels(picture(7))[None]))


def test_the_adapter_on_the_base_gives_the_same_logits(exported, language):
    _, out, trained = exported
    ids = torch.tensor([trained.prompter.prefix(0) + trained.prompter.tokens(["Question: what is near the liver?\nAnswer:"])[0]])
    base = AutoModelForCausalLM.from_pretrained(language).double()
    with torch.no_grad():
        before = base(ids).logits.clone()
        found = PeftModel.from_pretrained(base, out / "adapter").eval().double()(ids).logits
        mine = exact(trained).model.language.base(ids).logits
    assert (found - mine[..., : found.shape[-1]]).abs().max() <= rounding(stored(trained), mine.abs().max())
    assert (found - before).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["hf", "adapter", "timm"])
def test_the_lines_of_a_card_run_as_they_are(exported, part, tmp_path, monkeypatch, capsys):
    """Beside the folder of the part, with nothing but a picture."""
    _, out, trained = exported
    (lines,) = re.findall(r"```python\n(.*?)```", (out / part / "README.md").read_text(), re.DOTALL)
    shutil.copytree(out / part, tmp_path / part)
    picture(5).save(tmp_path / "scan.png")
    monkeypatch.chdir(tmp_path)
    exec(lines, names := {"__name__": "card"})
    said = capsys.readouterr().out
    if part == "timm":
        assert said == f"torch.Size([1, {trained.model.vision.width}])\n"
        return
    query = VQAQuery("Which organ is shown?", [picture(5)]) if part == "hf" else VQAQuery("Is aspirin a drug?")
    assert said.strip() == answer(trained, query, Sampling(64))
    if part == "hf":
        call = re.search(r"`(pipeline.*)` answers too", (out / part / "README.md").read_text())[1]
        assert eval(call, names | {"pipeline": pipeline})[0]["input_text"]


@pytest.mark.slow
def test_merging_is_done_in_float32(exported, tmp_path):
    """A bfloat16 base plus its adapter, rounded once; adding in bfloat16 would round the small update away."""
    folder, _, _ = exported
    out = run_export(folder, tmp_path / "half", "parts=[hf]", "dtype=bfloat16")
    trained = answerer(folder)
    stored = safetensors.torch.load_file(out / "hf" / "model.safetensors")
    layer = trained.model.language.base.model.layers[0].mlp.up_proj
    merged = layer.base_layer.weight + layer.get_delta_weight("default")
    assert torch.equal(stored["language_model.model.layers.0.mlp.up_proj.weight"], merged.bfloat16())
    said = json.loads((folder / "export.json").read_text())["logits"]
    assert said["dtype"] == "bfloat16"
    assert 0 < said["max_difference"] < rounding(computed(trained, dtype=torch.bfloat16), said["largest"], torch.bfloat16)


@pytest.fixture(scope="module")
def mini_sized(shards, language, tmp_path_factory):
    """(run folder, the trained model) with the encoder and the language model of `make mini` in size, with random weights."""
    base = tmp_path_factory.mktemp("mini")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(language)
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    llama = LlamaConfig(**SHAPE, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, initializer_range=0.1)
    LlamaForCausalLM(llama).save_pretrained(base)
    kwargs = ["vision.architecture_kwargs={embed_dim: 128, depth: 2, num_heads: 2}", "+vision.architecture_kwargs.patch_size=8"]
    words = [word for word in overrides(shards, base, tmp_path_factory.mktemp("runs")) if "max_seq_len" not in word]
    folder, _ = finish(words, *kwargs, "vision.architecture=vit_base_patch16_224", "vision.image_size=64", "data.max_seq_len=384")
    return folder, answerer(folder)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_at_the_size_of_the_mini_run_differ_by_rounding(mini_sized, tmp_path, dtype):
    folder, trained = mini_sized
    run_export(folder, tmp_path / "out", "parts=[hf]", f"dtype={dtype}")
    found = json.loads((folder / "export.json").read_text())["logits"]
    kind = getattr(torch, dtype)
    assert found["largest"] > 4
    assert found["max_difference"] <= rounding(computed(trained, dtype=kind, length=200), found["largest"], kind)


@pytest.mark.slow
def test_answers_at_the_size_of_the_mini_run_are_the_same(mini_sized, tmp_path):
    """In float64, in which no two tokens of 24 answers are level."""
    folder, trained = mini_sized
    out = run_export(folder, tmp_path / "out", "parts=[hf]", "dtype=float32")
    queries = [VQAQuery(question, [picture(number)]) for question in QUESTIONS for number in range(8)]
    long, trained = Sampling(max_new_tokens=24), exact(trained)
    mine = [found.text for found in trained.answers(queries, long)]
    assert [found.text for found in exact(load_vqa_model(str(out), accelerator="cpu")).answers(queries, long)] == mine
    assert len(set(mine)) > 12
    llava = LlavaForConditionalGeneration.from_pretrained(out / "hf").eval().double()
    for at in (0, 9, 18):
        processor, inputs = inputs_of(out / "hf", queries[at].images[0], queries[at].question)
        made = llava.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(made, skip_special_tokens=True).strip() == mine[at]


@pytest.mark.slow
def test_the_written_weights_are_the_run_s_to_the_last_digits(mini_sized, tmp_path):
    """In float64 only the rounding of the merged weights and of the norms, which compute in float32, is left."""
    folder, trained = mini_sized
    out = run_export(folder, tmp_path / "out", "parts=[hf]", "dtype=float32")
    llava = LlavaForConditionalGeneration.from_pretrained(out / "hf").eval().double()
    doubled = exact(trained)
    for number, question in enumerate(QUESTIONS):
        _, inputs = inputs_of(out / "hf", picture(number), question)
        asked = trained.prepare(VQAQuery(question, [picture(number)]), SHORT)
        mine = logits(doubled, asked)
        with torch.no_grad():
            theirs = llava(**inputs | {"pixel_values": doubled.model.vision.normalise(torch.stack(asked.images))}).logits
        assert mine.dtype == theirs.dtype == torch.float64
        assert mine.abs().max() > 4
        torch.testing.assert_close(theirs, mine, rtol=0, atol=rounding(stored(trained), mine.abs().max()))


@pytest.mark.slow
def test_a_second_export_is_byte_identical(exported, tmp_path):
    folder, out, _ = exported
    again = run_export(folder, tmp_path / "again")
    assert (again / "SHA256SUMS").read_bytes() == (out / "SHA256SUMS").read_bytes()
    assert run_export(folder, out) == out  # into the same folder: nothing to do


@pytest.mark.slow
def test_a_folder_that_differs_is_left_alone(exported, tmp_path):
    folder, out, _ = exported
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "hf" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"differs from this export in hf/README\.md"):
        run_export(folder, copy)
    assert (copy / "hf" / "README.md").read_text() == "mine"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(UserError, match="was not written by export"):
        run_export(folder, foreign)
    assert not list(tmp_path.glob(".*.part"))


def test_only_safetensors_are_written_and_nothing_else_is_read(exported, tmp_path):
    _, out, _ = exported
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".md", ".py", ".txt", ".css", ""}
    copy = tmp_path / "copy"
    shutil.copytree(out / "hf", copy)
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin, a format that can carry code"):
        load_vqa_model(str(copy))


def test_the_card_tells_licences_scores_and_limits(exported):
    _, out, _ = exported
    for part in ("hf", "adapter", "timm"):
        card = (out / part / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: ")
        for said in (
            "Not a medical device",
            "| pathvqa | bleu1 | 200 | 0.500 [0.400, 0.600] |",
            "gain over a blank image",
        ):
            assert said in card
        assert "| alpha (`alpha`) | 50.0% | 60 | the user's own | unsourced | unverified | unverified |" in card
        assert "Strictest licence: research use only until its licence is verified (from alpha, beta, gamma)" in card
        assert "type=organ" not in card
        assert "base_model" not in card  # a folder of this machine is none
        assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == LIBRARIES[usage.PARTS[part][0]][0]
        assert not any(hole in card for hole in ("HERE", "BASE", "TODO", "More Information Needed"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["projector=linear"], "hf"),
        (["projector.hidden=24"], "hf"),
        (["vision.architecture_kwargs.depth=3", "vision.layer=1"], "timm"),
        (["vision.architecture_kwargs.num_heads=4", "vision.image_size=48"], "hf"),
    ],
)
def test_other_shapes_are_exact_too(shards, language, tmp_path, changes, part):
    folder, _ = finish(overrides(shards, language, tmp_path), BLOCKS, *changes)
    out = run_export(folder, tmp_path / "out", "parts=[hf,timm]")
    found = json.loads((folder / "export.json").read_text())["logits"]
    assert found["max_difference"] <= rounding(computed(answerer(folder)), found["largest"])
    assert (out / part / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run_changes", "export_changes", "said"),
    [
        (["projector.hidden=64"], [], "projector of at most the language model's width 32"),
        (["vision.architecture=resnet18", "~vision.architecture_kwargs"], ["parts=[hf]"], "can hold ViT encoders with a CLS token"),
        (["vision.architecture=vit_small_patch16_dinov3"], ["parts=[hf]"], "transformers has no tower equal to this run's"),
        (["data.images=false"], [], "was trained without images"),
        ([], ["parts=[hf,onnx]"], "parts names 'onnx'"),
        ([], ["parts=[space]"], "add hf to parts="),
        ([], ["dtype=int8"], "dtype='int8'"),
        ([], ["push=nonsense"], "no repository name"),
        ([], ["run=tinny"], "no run 'tinny'"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(shards, language, tmp_path, run_changes, export_changes, said):
    folder, _ = finish(overrides(shards, language, tmp_path), *run_changes)
    with pytest.raises(UserError) as caught:
        run_export(folder, tmp_path / "out", *export_changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_unfinished_run_and_a_missing_base_are_one_sentence(shards, language, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(language, base)
    folder, _ = finish(overrides(shards, base, tmp_path / "runs"))
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"language\.path="):
        run_export(folder, tmp_path / "out")
    (folder / "train.json").unlink()
    with pytest.raises(UserError, match="has not finished training"):
        run_export(folder, tmp_path / "out")


def test_the_tokenizer_of_the_export_knows_the_image_token(exported):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(exported[1] / "hf")
    assert tokenizer.convert_tokens_to_ids("<image>") == exported[2].model.image_id
    assert tokenizer(" ".join(ORGANS)).input_ids == exported[2].prompter.tokens([" ".join(ORGANS)])[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf_clip", "hf_vit"])
def test_encoders_of_transformers_are_exported_as_they_are(shards, language, tmp_path, kind):
    path = hf_folder(tmp_path / "encoder", tiny_clip() if kind == "hf_clip" else tiny_vit())
    words = [word for word in overrides(shards, language, tmp_path) if not word.startswith(("vision", "+vision"))]
    folder, _ = finish(words, "vision=pubmedclip", f"vision.format={kind}", f"vision.path={path}")
    out = run_export(folder, tmp_path / "out", "parts=[hf]")
    image, trained = picture(1), answerer(folder)
    found = json.loads((folder / "export.json").read_text())["logits"]
    assert found["max_difference"] <= rounding(forward_steps(trained.model.language.body.config, length=100), found["largest"])
    again = load_vqa_model(str(out), accelerator="cpu")
    assert again.model.vision.mean.flatten().tolist() == pytest.approx(OTHER_MEAN)
    query = VQAQuery(QUESTIONS[0], [image])
    assert exact(again).answers([query], SHORT)[0].text == exact(trained).answers([query], SHORT)[0].text
    with pytest.raises(UserError, match="has no timm form"):
        run_export(folder, tmp_path / "other", "parts=[timm]")


def tiny_vit() -> ViTModel:
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return randomise(ViTModel(ViTConfig(**small), add_pooling_layer=False))


@pytest.mark.slow
def test_a_space_installs_whatever_its_modules_import():
    """A hosted Space has gradio with what that requires, and the requirements that are shipped; the tests' machine has more."""
    gradio = {re.split(r"[^\w.-]", line)[0] for line in requires("gradio") or [] if "extra ==" not in line}
    there = {re.sub(r"[-_.]+", "-", name).lower() for name in {"gradio", *gradio, *NEEDED}}
    owners = packages_distributions()
    for module in {*needed("src.demo"), "app.py"}:
        tree = ast.parse(APP if module == "app.py" else Path(module).read_text())
        nodes = list(ast.walk(tree))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        for name in {name.partition(".")[0] for name in names} - {"src", *sys.stdlib_module_names}:
            owned = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name, [])}
            assert owned & there, f"{module} imports {name}"


def test_every_restriction_of_a_source_is_named(exported):
    told = [("a", "yes", "no"), ("b", "unverified", "yes"), ("c", "no", "unverified"), ("d", "no", "yes")]
    sources = [{"name": name, "non_commercial": limited, "redistribute": passed} for name, limited, passed in told]
    story = CardFacts("tiny", finished_run(exported[0].parent, exported[0].name)[1], {}, sources)
    assert usage_restrictions(story) == (
        "non-commercial use only (from a); the data may not be passed on; whether weights may is unverified (from a); "
        "research use only until its licence is verified (from b); whether the data may be passed on is unverified (from c)"
    )
    story.sources = sources[3:]
    assert usage_restrictions(story) == "every source allows commercial use and redistribution"


def test_a_card_tells_what_was_trained_on_phantoms(exported):
    folder, trained = finished_run(exported[0].parent, exported[0].name)
    story = collect_facts(folder, trained)
    part, whole = "**Trained in part on phantoms.** Images and texts of alpha were", "**Trained on phantoms.** Images and texts were"
    for count, expected in ((0, ""), (1, part), (3, whole)):
        story.sources = [source | {"phantom": number < count} for number, source in enumerate(story.sources)]
        for text in (model_card(story, library="timm", usage=""), texts(story, repository=None)["README.md"]):
            assert expected in text
            assert ("phantoms" in text) == bool(count)


@pytest.fixture
def family(words):
    """(folders of grandparent, parent and child; all trained). The grandparent used non-commercial data, the parent phantoms."""
    folders = []
    for name, source, init in (("grandparent", "medicat", None), ("parent", "slake", "grandparent"), ("child", "alpha", "parent")):
        changes = [f"name={name}", f"mix.shares={{{source}: 1}}", f"init={f'run:{init}' if init else 'null'}"]
        folder, _ = finish([word for word in words if not word.startswith("mix.shares")], *changes)
        manifest = {"licence": "", "counts": {"train": {"written": 1234}}, "phantom": source == "slake"}
        write_lineage(folder, fingerprint={}, manifests={source: manifest})
        folders.append(folder)
    return folders


def test_card_of_a_child_names_data_licences_and_phantoms_of_all_ancestors(family):
    grandparent, parent, child = family
    shutil.rmtree(grandparent)
    shutil.rmtree(parent)
    story = collect_facts(*finished_run(child.parent, child.name))
    text = model_card(story, library="timm", usage="")
    assert usage_restrictions(story).startswith("non-commercial use only (from medicat); ")
    assert "Continued from the weights of run `parent`, trained from run `grandparent`." in text
    assert "| alpha (`alpha`) | 100.0% | 1,234 |" in text
    assert "| MedICaT (`medicat`) in run `grandparent` | 100.0% | 1,234 | research, non-commercial" in text
    assert "- Subramanian et al., MedICaT" in text
    for warned in (text, texts(story, repository=None)["README.md"]):
        assert "**Trained in part on phantoms.** Images and texts of slake in run `parent` were drawn" in warned


def test_export_is_refused_where_a_parent_without_a_copied_record_is_gone(family, tmp_path):
    grandparent, parent, child = family
    for folder in (parent, child):
        (folder / "lineage.json").unlink()  # as runs of older code
    shutil.rmtree(grandparent)
    with pytest.raises(UserError, match=r"run 'parent' continued init=run:grandparent, which is gone .*; put the folder of that run back"):
        run_export(child, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_of_the_hub_is_linked(exported):
    story = CardFacts("tiny", finished_run(exported[0].parent, exported[0].name)[1], {"git": "0", "data": "0", "metrics": {}})
    story.config.language.path = "axiong/PMC_LLaMA_7B"
    fronts = {library: yaml.safe_load(model_card(story, library=library, usage="").split("---")[1]) for library in LIBRARIES}
    assert {library: front.get("base_model") for library, front in fronts.items()} == {
        "transformers": "axiong/PMC_LLaMA_7B",
        "peft": "axiong/PMC_LLaMA_7B",
        "timm": None,
    }


@pytest.mark.slow
def test_the_space_runs_from_its_own_folder(exported, tmp_path):
    """With nothing of this repository but what was written there, and the model beside it; at an address that others reach."""
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
        (tmp_path / "a.png").write_bytes(to_png(picture(0)))
        client = Client(f"http://127.0.0.1:{port}/", verbose=False)
        chat, *_ = client.predict(handle_file(tmp_path / "a.png"), QUESTIONS[0], [], 12, 0, 1, 0, api_name="/ask")
        assert chat[-1]["content"][0]["text"] == answer(exported[2], VQAQuery(QUESTIONS[0], [picture(0)]))
        large = httpx.post(f"http://127.0.0.1:{port}/gradio_api/upload", files={"files": ("a.png", b"<html>")})
        assert large.status_code == 415
    finally:
        process.terminate()
        process.wait(30)
    assert not list((tmp_path / "temporary").glob("openmedq-*"))  # nobody's picture stays, also when a service manager ends it
    front = yaml.safe_load((out / "space" / "README.md").read_text().split("---")[1])
    assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
    for line in (out / "space" / "requirements.txt").read_text().splitlines():
        assert re.fullmatch(r"[\w-]+==[\w.]+", line), line
