import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from src.classification import encoders, layouts
from src.classification.dataset import build_dataset
from src.classification.encoders import find_encoder
from src.classification.features import extract_features
from src.classification.layouts import ClassificationConfig
from src.config.train import VisionConfig
from src.model.vision import load_vision
from src.model.vision_checkpoints import save_open_clip
from src.runtime.errors import UserError

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture
def outputs(tmp_path):
    """A run `mini` with a trained encoder that started from weights in the open_clip format."""
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", num_classes=0, **TINY)
    save_open_clip(tmp_path / "weights", model, timm_model_name="vit_base_patch16_224", kwargs=TINY)
    vision = VisionConfig(format="open_clip", path=str(tmp_path / "weights"))
    stored = {"vision": vars(vision), "data": {"root": str(tmp_path / "shards")}, "mix": {"shares": {"a": 1.0}, "decontaminate": True}}
    folder = tmp_path / "outputs/mini"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    state = {f"vision.{name}": p.detach() + 1 for name, p in load_vision(vision).named_parameters() if p.requires_grad}
    torch.save({"state_dict": state | {"projector.net.weight": torch.zeros(2)}}, folder / "checkpoints/best.ckpt")
    return tmp_path / "outputs"


def load(name, outputs):
    return find_encoder(name, outputs=str(outputs), checkpoint="best")


def test_run_encoder_has_trained_and_frozen_weights(outputs):
    encoder = load("run:mini", outputs)
    trained, base = encoder.build(seed=0).state_dict(), load_vision(encoder.config).state_dict()
    assert encoder.ours
    for name in base:
        assert torch.equal(trained[name], base[name] + (0 if name.startswith("trunk.norm.") else 1)), name


def test_identity_of_a_run_depends_on_its_checkpoint(outputs):
    before = load("run:mini", outputs).identity
    path = outputs / "mini/checkpoints/best.ckpt"
    state = torch.load(path, weights_only=True)
    state["state_dict"]["vision.trunk.cls_token"] += 1
    torch.save(state, path)
    after = load("run:mini", outputs).identity
    assert before["sha256"] != after["sha256"]
    assert before["base"] == after["base"]


def test_scratch_encoder_has_the_same_architecture_and_random_weights(outputs):
    ours, scratch = load("run:mini", outputs), load("scratch:mini", outputs)
    assert (scratch.label, scratch.random, ours.random) == ("scratch", True, False)
    a, b, again, other = ours.build(seed=0), scratch.build(seed=0), scratch.build(seed=0), scratch.build(seed=1)
    assert {n: p.shape for n, p in a.named_parameters()} == {n: p.shape for n, p in b.named_parameters()}
    assert (a.size, a.num_patches, a.width) == (b.size, b.num_patches, b.width)
    assert torch.equal(b.trunk.blocks[0].attn.qkv.weight, again.trunk.blocks[0].attn.qkv.weight)
    assert not torch.equal(b.trunk.blocks[0].attn.qkv.weight, other.trunk.blocks[0].attn.qkv.weight)


def test_scratch_accepts_config_files(tmp_path):
    assert load("scratch:scratch", tmp_path).config == load("scratch", tmp_path).config


def test_encoders_with_equal_normalisation_get_equal_tensors(outputs, tmp_path):
    """From files of several sizes to the input of the trunk, for two encoders of different width, weights and format."""
    rng = np.random.default_rng(0)
    for n in range(20):
        folder = tmp_path / "raw/set" / "ab"[n % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + n, 50, 3), dtype=np.uint8)).save(folder / f"{n}.{('png', 'jpg')[n // 2 % 2]}")
    data = build_dataset("set", list(layouts.folder_layout(tmp_path / "raw/set", ClassificationConfig("folder"))), classes=[])
    smaller = {"patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    other = VisionConfig(architecture="vit_base_patch16_224", image_size=32, architecture_kwargs=smaller)
    inputs = [trunk_inputs(vision, data) for vision in (load("run:mini", outputs).build(seed=0), load_vision(other))]
    assert inputs[0].shape == (20, 3, 32, 32)
    assert torch.equal(*inputs)


def trunk_inputs(vision, data) -> torch.Tensor:
    """The tensors that enter the trunk when the features of a set are extracted."""
    inputs, encode = [], vision.encode
    vision.encode = lambda x_N3HW: inputs.append(x_N3HW.clone()) or encode(x_N3HW)
    extract_features(vision, data, device=torch.device("cpu"), batch=3, threads=2)
    return torch.cat(inputs)


def test_config_files_are_names_and_labels_have_no_slash(tmp_path):
    assert load("pubmedclip", tmp_path).config.format == "hf_clip"
    assert load("timm:hf_hub/x.y", tmp_path).label == "timm:hf_hub_x.y"


def test_format_of_a_folder_is_read_from_its_configuration(outputs, tmp_path):
    assert load(f"hf:{tmp_path / 'weights'}", outputs).config.format == "open_clip"
    for model_config, format_ in (
        ('{"model_type": "clip"}', "hf_clip"),
        ('{"model_type": "vit"}', "hf_vit"),
        ('{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}', "timm"),
    ):
        folder = tmp_path / format_
        folder.mkdir()
        (folder / "config.json").write_text(model_config)
        assert encoders.detect_format(str(folder)).format == format_
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="unknown type 'bert'"):
        encoders.detect_format(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("biomedclp", "did you mean 'biomedclip'"),
        ("run:mni", "no run 'mni' in .*found mini"),
        ("vgg19", "encoder=vgg19; allowed: .*timm:ID"),
    ],
)
def test_unknown_name_is_reported(outputs, name, message):
    with pytest.raises(UserError, match=message):
        load(name, outputs)


def test_checkpoint_without_a_vision_part_is_rejected(outputs):
    torch.save({"state_dict": {"projector.net.weight": torch.zeros(2)}}, outputs / "mini/checkpoints/best.ckpt")
    with pytest.raises(UserError, match="no vision part, because the run froze the encoder"):
        load("run:mini", outputs)


def test_checkpoint_of_another_encoder_is_rejected(outputs):
    torch.save({"state_dict": {"vision.trunk.cls_token": torch.zeros(1, 1, 7)}}, outputs / "mini/checkpoints/best.ckpt")
    with pytest.raises(UserError, match=r"does not fit the encoder of its run: trunk\.cls_token"):
        load("run:mini", outputs).build(seed=0)
