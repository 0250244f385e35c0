"""Backbones beside LLaMA and BiomedCLIP: random weights in their formats give the features, logits and exports of transformers and timm."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipConfig,
    SiglipModel,
)

from src.commands.plan import measure_cost
from src.config.train import TrainConfig, VisionConfig
from src.model.cost import AverageSample, build_on_meta, layers_of
from src.model.fast.llama import LossOnlyLastLayer
from src.model.language_checkpoint import load_language
from src.model.vision import load_vision
from src.model.vlm import build_vlm
from src.release.llava import max_logit_difference, save_llava
from src.release.tower import tower_config, tower_state
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.train import train
from tests.rounding import rounding
from tests.runs import randomise_adapters
from tests.test_vision_checkpoints import OTHER_MEAN, OTHER_STD, hf_folder, normalised, pixels, randomise

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LANGUAGES = {
    "qwen2_5_7b": lambda: Qwen2Config(**SHAPE, vocab_size=384),
    "qwen3_8b": lambda: Qwen3Config(**SHAPE, vocab_size=384, head_dim=16),
    "llama3_1_8b": lambda: LlamaConfig(**SHAPE, vocab_size=384, rope_parameters=ROPE | {"rope_theta": 500000.0}),
}
TRANSFORMER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 32}
TIMM = {"siglip2_base": "vit_base_patch16_siglip_384.v2_webli", "dinov3_vitb": "vit_base_patch16_dinov3.lvd1689m"}


def write_language(folder: Path, name: str, language: Path) -> str:
    """Random weights with a tokenizer that has no begin token, as Qwen's."""
    shutil.copytree(language, folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(language, bos_token=None)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LANGUAGES[name]())
    for p in model.parameters():
        p.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", LANGUAGES)
def test_logits_of_a_language_folder_equal_those_of_transformers(language, tmp_path, name):
    path = write_language(tmp_path / name, name, language)
    expected_model = AutoModelForCausalLM.from_pretrained(path).double()
    model, tokenizer = load_language(path, revision="unverified", dtype=torch.float32)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected = expected_model(ids).logits
        logits = model.double()(ids).logits[..., :384]
    assert tokenizer.bos_token_id is not None
    torch.testing.assert_close(logits, expected, rtol=0, atol=rounding(50, expected.abs().max()))  # float32 norms


@pytest.mark.parametrize("name", LANGUAGES)
def test_language_trains_on_the_fast_path_and_exports_exactly(configure, language, tmp_path, name):
    vlm = build_vlm(configure(f"language.path={write_language(tmp_path / name, name, language)}")).eval()
    assert isinstance(vlm.language.body.layers[-1], LossOnlyLastLayer)
    randomise_adapters(vlm)
    save_llava(vlm, tmp_path / "hf", dtype=torch.float32, prompter=vlm.prompter(budget=160))
    recorded = max_logit_difference(vlm, tmp_path / "hf")
    assert recorded["max_difference"] <= rounding(200, recorded["largest"])
    assert recorded["largest"] > 0.1


def siglip() -> SiglipModel:
    vision = TRANSFORMER | {"patch_size": 8}
    text = {key: value for key, value in TRANSFORMER.items() if key != "image_size"} | {"vocab_size": 64}
    return randomise(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))


def dinov2() -> Dinov2Model:
    sizes = {key: value for key, value in TRANSFORMER.items() if key != "intermediate_size"}
    return randomise(Dinov2Model(Dinov2Config(**sizes, patch_size=8, mlp_ratio=2)))


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("kind", ["hf_siglip", "hf_dinov2"])
def test_features_equal_those_of_transformers_at_any_size(tmp_path, kind, size):
    model = siglip() if kind == "hf_siglip" else dinov2()
    ours = load_vision(VisionConfig(format=kind, path=hf_folder(tmp_path, model), image_size=size)).double().eval()
    reference = getattr(model, "vision_model", model).double().eval()
    interpolate = {"interpolate_pos_encoding": True} if kind == "hf_siglip" else {}
    with torch.no_grad():
        output = reference(normalised(pixels(size), OTHER_MEAN, OTHER_STD).double(), output_hidden_states=True, **interpolate)
        features = ours.features(pixels(size))
        norm = reference.post_layernorm if kind == "hf_siglip" else reference.layernorm
        first = 0 if kind == "hf_siglip" else 1
        # In float64, but for the pixels, which `normalised` rounds to float32.
        torch.testing.assert_close(norm(ours(pixels(size))), output.last_hidden_state[:, first:], rtol=0, atol=1e-5)
    assert ours.num_patches == (size // 8) ** 2
    assert set(features) == ({"mean", "mean_norm"} if kind == "hf_siglip" else {"cls", "mean", "cls_norm", "mean_norm"})
    assert not any(p.requires_grad for name, p in ours.named_parameters() if "head" in name or "post_layernorm" in name)


def timm_folder(folder: Path, name: str) -> str:
    """A narrow model of two blocks in the format of timm."""
    kwargs = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=0, **kwargs))
    save_for_hf(model, folder, model_args=kwargs, safe_serialization=True)
    return str(folder)


@pytest.mark.parametrize("name", TIMM)
def test_features_equal_those_of_timm_and_change_size(tmp_path, name):
    path = timm_folder(tmp_path / name, TIMM[name])
    ours = load_vision(VisionConfig(format="timm", path=path)).eval()
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    x = pixels(ours.size)
    with torch.no_grad():
        normalised_x = ours.normalise(x)
        patches = model.forward_intermediates(normalised_x, indices=1, norm=False, output_fmt="NLC", intermediates_only=True)[0]
        tokens = model.norm(patches)
        torch.testing.assert_close(ours.norm(ours(x)), tokens)
        torch.testing.assert_close(tokens, model.forward_features(normalised_x)[:, model.num_prefix_tokens :])
        larger = load_vision(VisionConfig(format="timm", path=path, image_size=96)).eval()
        assert larger(pixels(96)).shape[1] == larger.num_patches == 36


@pytest.mark.parametrize("kind", ["siglip2_base", "hf_siglip", "hf_dinov2"])
def test_tower_of_the_export_gives_the_same_features(tmp_path, kind):
    if kind in TIMM:
        config = VisionConfig(format="timm", path=timm_folder(tmp_path / kind, TIMM[kind]))
    else:
        config = VisionConfig(format=kind, path=hf_folder(tmp_path, siglip() if kind == "hf_siglip" else dinov2()))
    vision = load_vision(config).eval()
    tower = AutoModel.from_config(tower_config(vision)).eval()
    tower.load_state_dict(tower_state(vision), strict=True)
    x = pixels(vision.size)
    with torch.no_grad():
        states = tower(vision.normalise(x), output_hidden_states=True).hidden_states[-1][:, int(vision.has_cls) :]
        v_NPD = vision(x)
    torch.testing.assert_close(states, v_NPD, rtol=0, atol=rounding(200, v_NPD.abs().max()))


def test_registers_and_interpolated_positions_are_refused(tmp_path):
    vision = load_vision(VisionConfig(format="timm", path=timm_folder(tmp_path / "dinov3", TIMM["dinov3_vitb"])))
    with pytest.raises(UserError, match="transformers has no vision tower for the Eva"):
        tower_config(vision)
    for kind, model in (("hf_siglip", siglip()), ("hf_dinov2", dinov2())):
        vision = load_vision(VisionConfig(format=kind, path=hf_folder(tmp_path / kind, model), image_size=48))
        with pytest.raises(UserError, match="at the image size of its weights"):
            tower_config(vision)


def modern(*changes: str) -> TrainConfig:
    return to_typed(TrainConfig, compose("train", ["+experiment=modern", "data.max_seq_len=1200", *changes]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "billions"), [("qwen2_5_7b", 7.62), ("qwen3_8b", 8.19), ("llama3_1_8b", 8.03)])
def test_planner_knows_the_size_of_a_language_model(name, billions):
    """The parameters in the names of the models, without adapters: those of one layer, times their number, and the rest."""
    config = modern(f"language={name}")
    language = build_on_meta(config, layers=1).language
    count, layer = (sum(p.numel() for n, p in part.named_parameters() if "lora_" not in n) for part in (language, language.body.layers[0]))
    assert round((count + (layers_of(config) - 1) * layer) / 1e9, 2) == billions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vision", "size", "patches"),
    [("siglip2_base", 384, 576), ("siglip2_base", 336, 441), ("dinov3_vitb", 448, 784), ("medsiglip", 448, 1024), ("rad_dino", 336, 576)],
)
def test_planner_counts_the_patches_of_a_resolution(vision, size, patches):
    changes = [] if (vision, size) in (("siglip2_base", 384), ("medsiglip", 448)) else [f"vision.image_size={size}"]
    model = build_on_meta(modern(f"vision={vision}", "language=smollm2", *changes), layers=1)
    assert (model.vision.size, model.vision.num_patches) == (size, patches)


@pytest.mark.slow
def test_modern_costs_more_at_a_higher_resolution():
    sample = AverageSample(images=1, text=61, supervised=30)
    costs = [measure_cost(modern(f"vision.image_size={size}"), sample, checkpointing="selective") for size in (336, 448)]
    assert 1.5 < (costs[1].flops / costs[1].samples) / (costs[0].flops / costs[0].samples) < 2


@pytest.mark.slow
def test_modern_trains_three_steps_on_phantoms(language, shards, tmp_path):
    """The recipe with tiny weights in the formats of its parts."""
    settings = to_typed(
        TrainConfig,
        compose(
            "train",
            [
                *(
                    "+experiment=modern",
                    "trainer=cpu",
                    f"outputs={tmp_path}",
                    f"data.root={shards}",
                    "~mix.shares",
                    "+mix.shares={alpha: 1, beta: 1}",
                ),
                *(f"language.path={write_language(tmp_path / 'qwen', 'qwen2_5_7b', language)}", "language.dtype=float32"),
                f"vision.path={timm_folder(tmp_path / 'siglip', TIMM['siglip2_base'])}",
                *("data.global_batch_size=4", "data.packing_window=8", "data.max_seq_len=160", "data.workers=0", "data.val_samples=4"),
                *("data.val_generations=0", "optim.epochs=null", "optim.steps=3", "trainer.val_every=3"),
            ],
        ),
    )
    folder = train(settings)
    state = torch.load(folder / "checkpoints" / "step=3.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("vision.") for name in state)
    assert all(value.isfinite().all() for value in state.values())
    assert json.loads((folder / "train.json").read_text())
