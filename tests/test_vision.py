import pytest
import torch
from transformers import ViTConfig, ViTModel

from src.config.train import VisionConfig
from src.model.vision import POOLINGS, HfVit, load_vision
from src.model.vision_checkpoints import LoadedEncoder, save_open_clip
from src.runtime.errors import UserError

TINY = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}


def scratch(name: str = "vit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    settings = {"architecture": name, "image_size": 32, "architecture_kwargs": TINY if name.startswith("vit_tiny") else {}}
    return load_vision(VisionConfig(**({"format": "scratch"} | settings | changes)))


def pixels(size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_are_before_the_final_norm_and_without_cls():
    vision = scratch().eval()
    tokens = vision.trunk.forward_features(vision.normalise(pixels()))
    v_NPD = vision(pixels())
    assert v_NPD.shape == (2, vision.num_patches, vision.width) == (2, 16, 48)
    torch.testing.assert_close(vision.trunk.norm(v_NPD), tokens[:, 1:])


def test_features_hold_every_pooling():
    vision = scratch().eval()
    features = vision.features(pixels())
    assert tuple(features) == vision.poolings() == POOLINGS
    for pooling, f_NF in features.items():
        assert torch.equal(f_NF, vision.pooled(pixels(), pooling))
    assert torch.equal(features["mean"], vision(pixels()).mean(1))
    assert torch.equal(features["cls_norm"], vision.trunk(vision.normalise(pixels())))


def test_unknown_pooling_is_refused():
    vision = scratch("resnet18")
    assert vision.poolings() == ("mean",)
    with pytest.raises(UserError, match="no pooling 'cls'; allowed: mean"):
        vision.pooled(pixels(), "cls")


def test_scratch_encoders_normalise_alike():
    assert torch.equal(scratch().normalise(pixels()), scratch("resnet18").normalise(pixels()))


def test_mean_and_std_move_with_the_module_but_are_not_saved():
    vision = scratch()
    assert not {"mean", "std"} & set(vision.state_dict())
    assert vision.to("meta").mean.device.type == "meta"


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("vit_tiny_patch16_224", {"norm"}),
        ("vit_base_patch16_siglip_224", {"norm", "attn_pool"}),
        ("beit_base_patch16_224", {"fc_norm"}),
        ("eva02_tiny_patch14_224", {"fc_norm"}),
        ("resnet18", set()),
        ("swin_tiny_patch4_window7_224", set()),
    ],
)
def test_every_trainable_parameter_gets_a_gradient(name, frozen):
    """DDP waits for each of them. Only parameters that the features do not depend on are frozen."""
    small = {} if name.startswith(("resnet", "swin")) else {"architecture_kwargs": TINY}
    vision = scratch(name, image_size=64 if name.startswith("swin") else 32, layer=-2, **small)
    vision(pixels(vision.size)).square().sum().backward()
    gradients = {key: p.grad is not None for key, p in vision.named_parameters()}
    assert gradients == {key: p.requires_grad for key, p in vision.named_parameters()}
    assert {key.split(".")[1] for key, has_gradient in gradients.items() if not has_gradient} == frozen


def test_freeze_unused_keeps_weights_and_random_state():
    vision = scratch("resnet18")
    state, before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in vision.state_dict().items()}
    vision.train().freeze_unused()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vision.state_dict().items())


def test_pooler_of_a_transformers_vit_is_frozen():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    module, half = ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)), (0.5, 0.5, 0.5)
    vision = HfVit(LoadedEncoder(module, 32, half, half), size=32, layer=-1)
    assert {key.split(".")[1] for key, p in vision.named_parameters() if not p.requires_grad} == {"pooler", "layernorm"}


def test_earlier_layer_matches_the_block_of_the_whole_encoder():
    whole, shortened = scratch(), scratch(layer=-2)
    x = whole.normalise(pixels())
    expected = whole.trunk.forward_intermediates(x, indices=[1], intermediates_only=True, output_fmt="NLC")[0]
    assert torch.equal(shortened(pixels()), expected)
    assert len(shortened.trunk.blocks) == 2


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_image_size_determines_the_number_of_patches(name):
    vision = scratch(name, image_size=64)
    assert vision(pixels(64)).shape == (2, vision.num_patches, vision.width)


@pytest.mark.parametrize("vision_format", ["open_clip", "scratch"])
def test_unsupported_image_size_is_refused(tmp_path, vision_format):
    save_open_clip(tmp_path, scratch().trunk, timm_model_name="vit_tiny_patch16_224", kwargs={**TINY, "img_size": 32})
    with pytest.raises(UserError, match=r"vision.image_size=7 does not fit this encoder: "):
        scratch(format=vision_format, path=str(tmp_path), image_size=7)


def test_activation_checkpointing_saves_less_and_keeps_gradients():
    sizes, gradients = [], []
    for enabled in (False, True):
        vision = scratch().train()
        vision.set_activation_checkpointing(enabled)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss = vision(pixels()).square().sum()
        loss.backward()
        sizes.append(sum(saved))
        gradients.append(vision.trunk.patch_embed.proj.weight.grad)
    assert sizes[1] < 0.5 * sizes[0]
    assert torch.equal(*gradients)


def test_training_keeps_batch_norm_statistics():
    vision = scratch("resnet18").train()
    before = vision.trunk.bn1.running_mean.clone()
    vision(torch.zeros_like(pixels()))
    assert torch.equal(before, vision.trunk.bn1.running_mean)
