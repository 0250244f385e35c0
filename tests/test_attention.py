import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from src.data.packing import collate
from src.model.fast import attention
from src.model.fast.attention import PackedSequences
from src.model.vlm import build_vlm
from tests.rounding import float32_norms, gap, rounding
from tests.test_packing import samples


def llama(*, heads: int, groups: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=heads, num_key_value_heads=groups)).eval().double()


@pytest.mark.parametrize("groups", [4, 2])
def test_blocks_are_what_transformers_computes_with_a_dense_mask(groups):
    """Two rows of 12: samples of 5, 4 and 3, and 7 and 5. The reference tells samples apart by the restarting positions."""
    model = llama(heads=4, groups=groups)
    ids = torch.randint(0, 50, (2, 12))
    positions = torch.tensor([[*range(5), *range(4), *range(3)], [*range(7), *range(5)]])
    reference = model(ids, position_ids=positions, use_cache=False).logits
    model.set_attn_implementation(attention.NAME)
    spans = PackedSequences.of([0, 5, 9, 12, 19, 24], torch.device("cpu"))
    ours = model(ids, position_ids=positions, use_cache=False, spans=spans).logits
    assert (ours - reference).abs().max() <= rounding(float32_norms(model.config), reference.abs().max())


def torch_2_11(q_LAE, k_LGE, v_LGE, edges, same, longest, again, *, scale=None, window_size=(-1, -1)):
    """The signature of `varlen_attn` there: as many heads of keys and values as of queries."""
    assert q_LAE.shape == k_LGE.shape == v_LGE.shape
    assert (longest, window_size) == (7, (-1, 0))
    return torch.empty_like(q_LAE)


@pytest.mark.parametrize("groups", [4, 2])
def test_a_gpu_runs_with_the_oldest_torch_too(monkeypatch, groups):
    monkeypatch.setattr(attention, "varlen_attn", torch_2_11)
    monkeypatch.setattr(attention, "GROUPS", False)
    on_gpu = {"device": "meta", "dtype": torch.bfloat16}
    query, (key, value) = torch.empty(2, 4, 12, 8, **on_gpu), (torch.empty(2, groups, 12, 8, **on_gpu) for _ in "kv")
    spans = PackedSequences.of([0, 5, 9, 12, 19, 24], torch.device("meta"))
    assert attention.packed_attention(torch.nn.Module(), query, key, value, None, spans=spans)[0].shape == (2, 12, 4, 8)


def test_a_gpu_attends_with_the_flash_backend(monkeypatch):
    """cuDNN keeps a graph for every geometry of packed rows. The backward pass takes the backend of the forward pass."""

    def enabled() -> dict[str, bool]:
        return {"flash": torch.backends.cuda.flash_sdp_enabled(), "cudnn": torch.backends.cuda.cudnn_sdp_enabled()}

    def varlen_attn(q_LAE, *args, **kwargs):
        seen.append(enabled())
        return torch.empty_like(q_LAE)

    seen: list[dict[str, bool]] = []
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    before = enabled()
    states = [torch.empty(1, 2, 12, 8, device="meta", dtype=torch.bfloat16) for _ in "qkv"]
    attention.packed_attention(torch.nn.Module(), *states, None, spans=PackedSequences.of([0, 5, 12], torch.device("meta")))
    assert before["cudnn"]
    assert seen == [{"flash": True, "cudnn": False}]
    assert enabled() == before


def test_generation_with_padding_is_that_of_sdpa():
    model = llama(heads=4, groups=4)
    ids, seen = torch.randint(3, 50, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    settings = {"attention_mask": seen, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    reference = model.generate(ids, **settings, return_dict_in_generate=True, output_logits=True)
    scores = torch.stack(reference.logits)
    assert gap(scores) > rounding(float32_norms(model.config), scores.abs().max())  # no two tokens are level
    model.set_attn_implementation(attention.NAME)
    assert torch.equal(model.generate(ids, **settings), reference.sequences)


def test_every_sample_and_every_padding_is_a_span(configure):
    model = build_vlm(configure())
    made = samples(model, [5, 3, 4], images=[0, 1, 0])
    batch = collate(
        [made[:2], made[2:]], sources=[[0, 0], [0]], images=[torch.zeros(3, 32, 32).byte().numpy()], size=32, pad=2, image_id=330, keys=[]
    )
    starts = (batch.position_ids_BT.flatten() == 0).nonzero()[:, 0].tolist()
    assert batch.cu_seqlens == [*starts, batch.input_ids_BT.numel()]
    assert collate([], sources=[], images=[], size=32, pad=2, image_id=330, keys=[]).cu_seqlens == [0, 1]


def test_a_packed_row_costs_what_its_samples_cost_alone(configure):
    """Matrix products of attention included: nothing is computed between samples."""
    model = build_vlm(configure())
    made = samples(model, [30, 50, 20, 40], images=[0, 0, 0, 0])

    def flops(rows) -> int:
        batch = collate(rows, sources=[[0] * len(row) for row in rows], images=[], size=32, pad=2, image_id=330, keys=[])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch)
        return counter.get_total_flops()

    assert flops([made]) == sum(flops([[sample]]) for sample in made)
