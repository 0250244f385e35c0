"""Our loaders compute the same features as the library that defines each format, for random weights that the library wrote."""

import copy
import json

import open_clip
import pytest
import safetensors.torch
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from src.config.train import VisionConfig
from src.model.vision import identity, load_vision
from src.model.vision_checkpoints import CLIP_MEAN, CLIP_STD, save_open_clip, untrained_copy
from src.runtime.errors import UserError
from tests.rounding import rounding

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
OTHER_MEAN, OTHER_STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def pixels(size: int, *, num: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(x: torch.Tensor, mean, std) -> torch.Tensor:
    return (x.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Moves every tensor away from its initial value, so that the tests notice a tensor that is not loaded."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_((torch.rand(value.shape, generator=generator) - 0.5) * 0.1)
    return module.eval()


def last_tokens(vit: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Patch tokens of a timm ViT's last block."""
    return vit.forward_intermediates(x, indices=1, norm=False, intermediates_only=True, output_fmt="NLC")[0]


@pytest.fixture(scope="module")
def biomedclip(tmp_path_factory):
    """A folder in the format of open_clip, with a small timm tower and a small text tower, and the model itself."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model = randomise(open_clip.CustomTextCLIP(embed_dim=24, vision_cfg=vision, text_cfg=text))
    description = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": OTHER_MEAN, "std": OTHER_STD},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(description))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder, model


def test_open_clip_features_match_its_image_tower(biomedclip):
    folder, model = biomedclip
    ours = load_vision(VisionConfig(format="open_clip", path=str(folder))).eval()
    x = pixels(160)
    x_normalised = normalised(x, OTHER_MEAN, OTHER_STD)
    with torch.no_grad():
        tokens = last_tokens(model.visual.trunk, x_normalised)
        assert torch.equal(ours(x), tokens)
        assert torch.equal(model.visual.head(ours.pooled(x, "cls_norm")), model.encode_image(x_normalised))
        assert torch.equal(ours.pooled(x, "mean_norm"), model.visual.trunk.norm(tokens).mean(1))
    assert (ours.size, ours.num_patches, ours.width) == (160, 100, 64)


def test_open_clip_loads_safetensors_and_torch_files(biomedclip, tmp_path):
    folder, _ = biomedclip
    original = load_vision(VisionConfig(format="open_clip", path=str(folder)))
    for safe in (True, False):
        target = tmp_path / str(safe)
        save_open_clip(target, original.trunk, timm_model_name="test_vit", kwargs={}, mean=OTHER_MEAN, std=OTHER_STD, safetensors_file=safe)
        loaded = load_vision(VisionConfig(format="open_clip", path=str(target)))
        assert torch.equal(loaded(pixels(160)), original(pixels(160)))


def test_open_clip_builds_a_tower_from_its_arguments(tmp_path):
    tower = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY))
    save_open_clip(tmp_path, tower, timm_model_name="vit_tiny_patch16_224", kwargs=TINY)
    ours = load_vision(VisionConfig(format="open_clip", path=str(tmp_path)))
    assert (ours.size, ours.num_patches, ours.width) == (32, 16, 48)
    assert torch.equal(ours(pixels(32)), last_tokens(tower, normalised(pixels(32), CLIP_MEAN, CLIP_STD)))


def hf_folder(tmp_path, model):
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": OTHER_MEAN, "image_std": OTHER_STD}))
    return str(tmp_path)


def tiny_clip() -> CLIPModel:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = small | {"num_hidden_layers": 3, "image_size": 64, "patch_size": 16}
    text = small | {"num_hidden_layers": 1, "vocab_size": 64}
    return randomise(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))


def test_hf_clip_features_match_clip_model(tmp_path):
    model = tiny_clip()
    ours = load_vision(VisionConfig(format="hf_clip", path=hf_folder(tmp_path, model))).eval()
    x = pixels(64)
    with torch.no_grad():
        output = model.vision_model(normalised(x, OTHER_MEAN, OTHER_STD))
        assert torch.equal(ours(x), output.last_hidden_state[:, 1:])
        assert torch.equal(ours.pooled(x, "cls"), output.last_hidden_state[:, 0])
        assert torch.equal(ours.pooled(x, "cls_norm"), output.pooler_output)
    assert (ours.size, ours.num_patches, ours.width) == (64, 16, 32)


def test_sharded_weights_match_a_single_file(tmp_path):
    model = tiny_clip()
    single, sharded = (VisionConfig(format="hf_clip", path=str(tmp_path / name)) for name in ("single", "sharded"))
    hf_folder(tmp_path / "single", model)
    hf_folder(tmp_path / "sharded", model)
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert torch.equal(load_vision(single).eval()(pixels(64)), load_vision(sharded).eval()(pixels(64)))
    shard = max((tmp_path / "sharded").glob("model-*.safetensors"))
    before = identity(sharded)["sha256"]
    shard.write_bytes(shard.read_bytes()[:-4] + b"abcd")
    assert identity(sharded)["sha256"] != before


def test_hf_clip_supports_earlier_layers_and_larger_images(tmp_path):
    model = tiny_clip()
    path = hf_folder(tmp_path, model)
    earlier = load_vision(VisionConfig(format="hf_clip", path=path, layer=-2)).eval()
    larger = load_vision(VisionConfig(format="hf_clip", path=path, image_size=96)).eval()
    with torch.no_grad():
        x = pixels(64)
        output = model.vision_model(normalised(x, OTHER_MEAN, OTHER_STD), output_hidden_states=True)
        assert torch.equal(earlier(x), output.hidden_states[-2][:, 1:])
        x = pixels(96)
        output = model.vision_model(normalised(x, OTHER_MEAN, OTHER_STD), interpolate_pos_encoding=True)
        assert torch.equal(larger(x), output.last_hidden_state[:, 1:])
    assert larger.num_patches == 36


def test_hf_vit_features_are_before_the_final_norm(tmp_path):
    config = ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    model = randomise(ViTModel(config, add_pooling_layer=False))
    ours = load_vision(VisionConfig(format="hf_vit", path=hf_folder(tmp_path, model))).eval()
    with torch.no_grad():
        output = model(normalised(pixels(32), OTHER_MEAN, OTHER_STD), output_hidden_states=True)
        assert torch.equal(ours(pixels(32)), output.hidden_states[-1][:, 1:])
        assert torch.equal(ours.pooled(pixels(32), "cls_norm"), output.last_hidden_state[:, 0])


@pytest.fixture(scope="module")
def pmc_clip():
    model = randomise(ModifiedResNet(layers=[3, 4, 6, 3], output_dim=768, heads=32, image_size=224, width=64))
    # Initial weights give nearly uniform attention, for which the number of heads hardly matters; sharpen it.
    model.attnpool.positional_embedding.data *= 50
    model.attnpool.q_proj.weight.data *= 5
    return model


@pytest.mark.slow
def test_pmc_clip_features_match_modified_resnet(pmc_clip, tmp_path):
    """In float64: in float32 the rounding of fifty convolutions would hide a difference."""
    tower = {f"module.visual.{name}": value for name, value in pmc_clip.state_dict().items()}
    torch.save({"state_dict": tower | {"module.logit_scale": torch.ones(())}, "epoch": 3}, tmp_path / "checkpoint.pt")
    ours = load_vision(VisionConfig(format="pmc_clip", path=str(tmp_path))).double()
    pmc_clip = copy.deepcopy(pmc_clip).double()
    x = pixels(224, num=1)
    x_normalised = ours.normalise(x)
    torch.testing.assert_close(x_normalised, normalised(x, CLIP_MEAN, CLIP_STD).double(), rtol=0, atol=rounding(4, 1 / min(CLIP_STD)))
    with torch.no_grad():
        expected = pmc_clip.forward_intermediates(x_normalised, indices=[4])
        # A new module is in training mode. Batch norm must use the stored statistics even then.
        torch.testing.assert_close(ours(x), expected["image_intermediates"][0].flatten(2).mT)
        torch.testing.assert_close(ours.pooled(x, "cls"), expected["image_features"])
        pmc_clip.attnpool.num_heads = 8
        eight_heads = pmc_clip(x_normalised)
        pmc_clip.attnpool.num_heads = 32
        assert (eight_heads - expected["image_features"]).abs().max() > 1e-2
    assert (ours.size, ours.num_patches, ours.width, ours.poolings()) == (224, 49, 2048, ("cls", "mean"))


@pytest.mark.slow
def test_pmc_clip_loads_the_tower_alone_with_32_heads(pmc_clip, tmp_path):
    torch.save(pmc_clip.state_dict(), tmp_path / "image_encoder(resnet50).pth")
    ours = load_vision(VisionConfig(format="pmc_clip", path=str(tmp_path / "image_encoder(resnet50).pth")))
    assert ours.trunk.head.num_heads == pmc_clip.attnpool.num_heads == 32
    assert torch.equal(ours.trunk.stem.conv1.conv.weight, pmc_clip.conv1.weight)


def test_timm_folder_loads(tmp_path):
    model = randomise(timm.create_model("test_vit", num_classes=5))
    model_config = {"pretrained_cfg": {"mean": OTHER_MEAN, "std": OTHER_STD}}
    timm.models.save_for_hf(model, tmp_path, model_config=model_config, safe_serialization=True)
    ours = load_vision(VisionConfig(format="timm", path=str(tmp_path)))
    assert torch.equal(ours(pixels(160)), last_tokens(model, normalised(pixels(160), OTHER_MEAN, OTHER_STD)))
    assert len(identity(VisionConfig(format="timm", path=str(tmp_path)))["sha256"]) == 64
    assert untrained_copy(VisionConfig(format="timm", path=str(tmp_path), image_size=96)) == VisionConfig(
        format="scratch", architecture="test_vit", image_size=96
    )


def test_scratch_weights_depend_on_the_seed():
    config = VisionConfig(format="scratch", architecture="vit_tiny_patch16_224", architecture_kwargs=TINY)
    features = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        features.append(load_vision(config)(pixels(32)))
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def error_of(config: VisionConfig) -> str:
    """The message of the `UserError` that loading raises; it is one line."""
    with pytest.raises(UserError) as error:
        load_vision(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_tensors_that_do_not_fit_are_named(biomedclip, tmp_path):
    folder, model = biomedclip
    config = (folder / "open_clip_config.json").read_bytes()
    state = model.state_dict()
    prefix = "visual.trunk."
    states = {
        "lacks norm.weight": {name: value for name, value in state.items() if name != prefix + "norm.weight"},
        "has unknown norm.gamma": state | {prefix + "norm.gamma": torch.ones(1)},
        "has wrong shapes: pos_embed is (1, 5, 64), not (1, 101, 64)": state | {prefix + "pos_embed": torch.zeros(1, 5, 64)},
    }
    for n, (message, wrong_state) in enumerate(states.items()):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "open_clip_config.json").write_bytes(config)
        torch.save(wrong_state, tmp_path / str(n) / "open_clip_pytorch_model.bin")
        assert message in error_of(VisionConfig(format="open_clip", path=str(tmp_path / str(n))))


def test_hf_clip_with_a_missing_tensor_is_refused(tmp_path):
    model = tiny_clip()
    path = hf_folder(tmp_path, model)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del state["vision_model.post_layernorm.weight"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "post_layernorm.weight" in error_of(VisionConfig(format="hf_clip", path=path))


def test_wrong_keys_and_folders_are_refused_in_one_line(biomedclip, tmp_path):
    folder, _ = biomedclip
    assert "did you mean 'open_clip'?" in error_of(VisionConfig(format="openclip"))
    assert "did you mean 'vit_base_patch16_224'?" in error_of(VisionConfig(architecture="vit_base_patch16_22"))
    assert "depht" in error_of(VisionConfig(architecture="vit_tiny_patch16_224", architecture_kwargs={"depht": 2}))
    assert "vision.layer=6 is out of range: the encoder has 6 layers" in error_of(
        VisionConfig(format="open_clip", path=str(folder), layer=6)
    )
    assert "is of type None" in error_of(VisionConfig(format="hf_clip", path=_config(tmp_path / "a", {})))
    assert "'vit'" in error_of(VisionConfig(format="hf_clip", path=_config(tmp_path / "b", {"model_type": "vit"})))
    assert "open_clip_config.json; it holds config.json" in error_of(VisionConfig(format="open_clip", path=str(tmp_path / "a")))
    assert "preprocessor_config.json" in error_of(VisionConfig(format="hf_vit", path=str(tmp_path / "b")))
    assert "it has no 'architecture'" in error_of(VisionConfig(format="timm", path=str(tmp_path / "b")))
    with pytest.raises(UserError, match=r"vision.architecture=gcvit_tiny.in1k has weights in no hub repository"):
        identity(VisionConfig(format="timm", architecture="gcvit_tiny.in1k"))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([], "holds a JSON list, not an object of names and values"),
        ({"model_cfg": {"vision_cfg": None}}, "open_clip_config.json cannot be used ("),
        ({"model_cfg": {"vision_cfg": {"timm_model_name": "test_vit", "image_size": [160, 96]}}}, "a square image"),
        (
            {"model_cfg": {"vision_cfg": {"timm_model_name": "test_vit"}}, "preprocess_cfg": {"mean": [0.5], "std": None}},
            "open_clip_config.json cannot be used (",
        ),
    ],
)
def test_unusable_open_clip_config_is_refused_in_one_line(tmp_path, description, message):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description))
    assert message in error_of(VisionConfig(format="open_clip", path=str(tmp_path)))


class Payload:
    def __reduce__(self):
        return (print, ("code in a pickle ran",))


def test_broken_hf_folders_are_refused_in_one_line(tmp_path, capfd):
    path = hf_folder(tmp_path, tiny_clip())
    config = VisionConfig(format="hf_clip", path=path)
    preprocessor, model_config, weights = (tmp_path / name for name in ("preprocessor_config.json", "config.json", "model.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    assert "cannot be loaded as hf_clip" in error_of(config)
    weights.unlink()
    torch.save({"payload": Payload()}, tmp_path / "pytorch_model.bin")
    assert error_of(config).endswith("its weights hold Python objects besides tensors, or are no torch file")
    assert "code in a pickle ran" not in capfd.readouterr().out
    weights.write_bytes(content)
    settings = json.loads(model_config.read_text())
    model_config.write_text(json.dumps(settings | {"vision_config": settings["vision_config"] | {"intermediate_size": 7}}))
    assert "the file has wrong shapes: encoder.layers.0.mlp.fc1.bias" in error_of(config)
    preprocessor.write_text("{}")
    assert "cannot be loaded as hf_clip: it has no 'image_mean'" in error_of(config)


def _config(folder, content: dict) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)
