"""`language.fast=false` (unpatched transformers and peft) and the fast path compute the same numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from peft.tuners.lora import Linear
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from src.config.train import TrainConfig
from src.data.packing import Batch, collate
from src.data.record import Record
from src.model.fast import elementwise, llama, lora, recompute
from src.model.generate import Generator, make_request
from src.model.language import packed_causal_mask
from src.model.vlm import VLM, build_vlm
from src.runtime.errors import UserError
from src.runtime.run_folder import open_run
from src.runtime.schema import to_plain, to_typed
from src.train import train
from tests.fixtures import ORGANS
from tests.runs import randomise_adapters
from tests.test_packing import samples


def model(configure, *settings: str, fast: bool, exact: bool = True) -> VLM:
    """A model whose adapters are not zero, in float64 if `exact`."""
    vlm = build_vlm(configure(f"language.fast={str(fast).lower()}", "language.lora.dropout=0", *settings))
    vlm = vlm.double() if exact else vlm
    torch.manual_seed(1)
    randomise_adapters(vlm)
    return vlm


def packed_batch(vlm: VLM) -> Batch:
    """Two sequences: four samples with and without images, and a shorter sequence with padding."""
    encoded = samples(vlm, [5, 9, 4, 7, 6], images=[1, 0, 2, 0, 1])
    pixels = list(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8))
    return collate([encoded[:4], encoded[4:]], sources=[[0] * 4, [1]], images=pixels, size=32, pad=2, image_id=vlm.image_id, keys=[])


def loss_states_and_gradients(vlm: VLM, batch: Batch) -> dict[str, torch.Tensor]:
    e_BTH = vlm.embed(batch.input_ids_BT, batch.images_NCHW, batch.image_token_index_K)
    states = vlm.language.loss_states(e_BTH, batch.position_ids_BT, batch.cu_seqlens, batch.loss_index_S)
    losses, sources = vlm.train()(batch)
    losses.sum().backward()
    results = {"losses": losses, "sources": sources, "states": states}
    return results | {name: p.grad for name, p in vlm.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("how", "tolerance"), [("none", 1e-12), ("full", 1e-12), ("selective", 1e-5)])
def test_losses_states_and_gradients_of_both_paths_are_equal(configure, how, tolerance):
    """transformers computes norms in float32, and `selective` in float64."""
    fast = model(configure, f"trainer.activation_checkpointing={how}", fast=True)
    plain = model(configure, f"trainer.activation_checkpointing={'full' if how == 'full' else 'none'}", fast=False)
    batch = packed_batch(fast)
    assert (batch.sources_BT == -1).any()
    expected, results = loss_states_and_gradients(plain, batch), loss_states_and_gradients(fast, batch)
    assert expected.keys() == results.keys()
    assert len(expected) > 20
    for name, tensor in expected.items():
        assert tensor.any(), name
        assert (tensor - results[name]).abs().max() <= tolerance * tensor.abs().max(), name


@pytest.mark.parametrize("settings", [(), ("language.lora.targets=[q_proj,up_proj,down_proj]",), ("language.lora.rank=17",)])
def test_kernels_of_a_gpu_compute_what_those_of_a_cpu_compute(configure, monkeypatch, settings):
    """The products of adapters are added by the kernel that reads them, and so are the gradients of the input of `down_proj`."""
    vlm = model(configure, "trainer.activation_checkpointing=selective", *settings, fast=True)
    batch = packed_batch(vlm)
    expected = loss_states_and_gradients(vlm, batch)
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    vlm.zero_grad()
    sums = []
    for module in (elementwise, llama, lora, recompute):
        monkeypatch.setattr(module, "is_on_gpu", lambda x: True)
    add_product = elementwise.add_product
    monkeypatch.setattr(elementwise, "add_product", lambda y, xa, b: sums.append(xa is not None) or add_product(y, xa, b))
    results = loss_states_and_gradients(vlm, batch)
    assert any(sums) == (vlm.language.model.peft_config["default"].r <= lora.MAX_DEFERRED_RANK)
    for name, tensor in expected.items():
        assert (tensor - results[name]).abs().max() <= 1e-12 * tensor.abs().max(), name


def test_losses_of_both_paths_agree_in_mixed_precision(configure):
    losses = []
    for fast in (True, False):
        vlm = model(configure, "language.dtype=bfloat16", fast=fast, exact=False)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(vlm(packed_batch(vlm))[0])
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert torch.allclose(*losses, rtol=0.02)


def test_plain_path_patches_nothing(configure):
    plain = model(configure, fast=False)
    assert plain.language.base.config._attn_implementation == "sdpa"
    layers = plain.language.body.layers
    assert all(type(layer) is LlamaDecoderLayer and type(layer.self_attn) is LlamaAttention for layer in layers)
    assert any(isinstance(module, Linear) for module in plain.modules())
    assert not [name for name, module in plain.named_modules() if "forward" in vars(module)]


def test_patches_keep_parameter_names_order_and_values(configure):
    fast, plain = (dict(model(configure, fast=fast).named_parameters()) for fast in (True, False))
    assert list(fast) == list(plain)
    assert all(torch.equal(fast[name], plain[name]) for name in fast)


def test_greedy_answers_and_likelihoods_of_both_paths_are_equal(configure):
    rng, answers, likelihoods = np.random.default_rng(0), [], []
    pictures = [torch.from_numpy(rng.integers(0, 256, (3, 32, 32), np.uint8)) for _ in range(3)]
    questions = [" ".join(rng.choice(ORGANS, n)) for n in (1, 4, 2, 7, 3, 5)]
    for fast in (True, False):
        vlm = model(configure, fast=fast)
        prompter = vlm.prompter(budget=160)
        requests = []
        for n, question in enumerate(questions):
            record = Record(key="k", source="s", split="test", turns=[(question, "unknown")])
            images = [] if n == 5 else [pictures[n % 3]]
            requests.append(make_request(record, images=images, prefix=str(n % 3), prompter=prompter, max_new_tokens=12))
        generator = Generator(vlm, prompter, batch=4, max_new_tokens=12)
        answers.append({n: answer.text for n, answer in generator.answers(requests)})
        likelihoods.append(np.array(generator.likelihoods(requests, [["lung", "the left liver"]] * len(requests))))
    assert answers[0] == answers[1]
    assert all(answers[0].values())
    assert np.allclose(*likelihoods, rtol=1e-6)  # the log-softmax is computed in float32


def test_packed_causal_mask_separates_samples_and_padding():
    mask = packed_causal_mask(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]))
    samples_of_tokens = [[0, 0, 0, 1, 1], [0, 0, 1, 2, 2]]
    expected = [[[row[t] == row[s] and s <= t for s in range(5)] for t in range(5)] for row in samples_of_tokens]
    assert mask.tolist() == [[matrix] for matrix in expected]


def test_selective_checkpointing_without_the_fast_path_is_refused(configure):
    config = configure("language.fast=false", "trainer.activation_checkpointing=selective")
    with pytest.raises(UserError, match=r"selective needs language\.fast=true; set it, or trainer\.activation_checkpointing=full or none"):
        train(config)
    assert config.language.checkpointing_choices == ("none", "full")
    assert configure().language.checkpointing_choices == ("none", "selective", "full")


@pytest.mark.slow
def test_run_may_be_resumed_on_the_other_path(configure, tmp_path):
    for fast in ("true", "false", "true"):
        open_run(tmp_path / "run", to_plain(configure(f"language.fast={fast}")))


def test_configurations_of_older_runs_use_the_fast_path(configure):
    stored = to_plain(configure("language.fast=false"))
    del stored["language"]["fast"]
    assert to_typed(TrainConfig, OmegaConf.create(stored)).language.fast


@pytest.mark.slow
def test_both_paths_train_the_same_weights(configure):
    settings = ("trainer.activation_checkpointing=none", "trainer.precision=64-true", "optim.steps=3", "trainer.val_every=3")
    folders = [train(configure(f"name=fast_{fast}", f"language.fast={fast}", *settings)) for fast in ("true", "false")]
    fast, plain = (trained_weights(folder) for folder in folders)
    assert fast.keys() == plain.keys()
    for name, value in fast.items():
        assert (value - plain[name]).abs().max() < 1e-6, name


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "step=3.ckpt", weights_only=True)["state_dict"]
