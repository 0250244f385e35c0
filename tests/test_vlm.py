import pytest
import torch

from src.data.packing import collate
from src.model.vlm import build_vlm, parameter_summary, summary_table
from tests.fixtures import parts
from tests.rounding import float32_norms, forward_steps, rounding
from tests.test_packing import samples


def test_image_tokens_without_images_are_refused(configure):
    model = build_vlm(configure())
    batch = collate([samples(model, [5], images=[2])], sources=[[0]], images=[], size=32, pad=2, image_id=330, keys=[])
    with pytest.raises(ValueError, match="8 <image> tokens for 0 images of 4 patches"):
        model(batch)


def test_patches_replace_their_placeholders(configure):
    """Two sequences, one with two samples: each placeholder is replaced by its own patch, in order."""
    model = build_vlm(configure())
    encoded = samples(model, [4, 6, 5], images=[1, 2, 1])
    pixels = list(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8).numpy())
    batch = collate([encoded[:2], encoded[2:]], sources=[[0, 0], [0]], images=pixels, size=32, pad=2, image_id=330, keys=[])
    embedded = model.embed(batch.input_ids_BT, batch.images_NCHW)
    is_image = batch.input_ids_BT == model.image_id
    assert torch.equal(embedded[is_image], model.encode_images(batch.images_NCHW).flatten(0, 1))
    assert torch.equal(embedded[~is_image], model.language.embed(batch.input_ids_BT)[~is_image])


def test_text_only_batch_gives_every_trainable_parameter_a_gradient(configure):
    """Otherwise DDP waits forever for a rank without images. The loss does not change."""
    model, data = parts(configure("mix.shares.alpha=0", "mix.shares.beta=0"))
    model = model.double()
    batch = data.stream().batch(0, micro_batch=0)
    assert len(batch.images_NCHW) == 0
    losses, _ = model(batch)
    losses.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert "lora" in name or not parameter.grad.any(), name
    with torch.no_grad():
        tolerance = rounding(float32_norms(model.language.body.config), losses.max())
        assert (model(batch)[0] - losses).abs().max() <= tolerance


def test_batch_without_supervised_tokens_gets_zero_grad(configure):
    """A micro-batch has no sequence if a step has fewer sequences than ranks x micro-batches."""
    model = build_vlm(configure())
    losses, sources = model(collate([], sources=[], images=[], size=32, pad=2, image_id=330, keys=[]))
    losses.sum().backward()
    assert len(losses) == len(sources) == 0
    assert not any(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_learning_rate_zero_freezes_a_part(configure):
    config = configure("optim.lr={vision: 0, projector: 1e-3, language: 0}")
    model = build_vlm(config)
    trainable = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"projector"}
    lines = summary_table(parameter_summary(model, config)).splitlines()
    assert [line.split()[3] for line in lines[1:]] == ["frozen", "0.001", "frozen"]
    assert lines[2].split()[1] == f"{32 * 32 * 2 + 64:,}"


def test_only_adapters_of_the_language_model_are_trainable(configure):
    model = build_vlm(configure())
    trainable = [name for name, p in model.language.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * 2
    assert all("lora_A" in name or "lora_B" in name for name in trainable)


@pytest.mark.slow
def test_seed_determines_random_initialisation(configure):
    one, same, other = (build_vlm(configure(f"seed={seed}")).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["projector.linear_1.weight"], other["projector.linear_1.weight"])


@pytest.mark.slow
@pytest.mark.parametrize(("how", "share"), [("selective", 0.97), ("full", 0.25)])
def test_activation_checkpointing_saves_memory_and_keeps_gradients(configure, how, share):
    """Dropout draws the same numbers again when activations are recomputed. Gradients of `selective` are equal up to rounding."""
    loss, grads, saved_bytes = forward_and_backward(configure("trainer.activation_checkpointing=none", "language.lora.dropout=0.2"))
    other_loss, other_grads, other_saved_bytes = forward_and_backward(
        configure(f"trainer.activation_checkpointing={how}", "language.lora.dropout=0.2")
    )
    assert loss == other_loss
    config = build_vlm(configure()).language.body.config
    tolerance = rounding(2 * forward_steps(config, length=160), 1) if how == "selective" else 0.0
    assert grads.keys() == other_grads.keys()
    assert all((grads[name] - other_grads[name]).abs().max() <= tolerance * grads[name].abs().max() for name in grads)
    assert other_saved_bytes < share * saved_bytes


def forward_and_backward(config) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """The loss, the gradients, and the number of bytes that autograd saves."""
    model, data = parts(config)
    batch = data.stream().batch(0, micro_batch=0)
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = model.train()(batch)[0].sum()
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(saved.values())
