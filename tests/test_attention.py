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
def test_packed_attention_matches_transformers_with_a_dense_mask(groups):
    """Two sequences of 12 tokens: samples of 5, 4 and 3, and of 7 and 5. The reference finds samples by the restarting positions."""
    model = llama(heads=4, groups=groups)
    ids = torch.randint(0, 50, (2, 12))
    positions = torch.tensor([[*range(5), *range(4), *range(3)], [*range(7), *range(5)]])
    expected = model(ids, position_ids=positions, use_cache=False).logits
    model.set_attn_implementation(attention.ATTENTION_NAME)
    packed_sequences = PackedSequences.of([0, 5, 9, 12, 19, 24], torch.device("cpu"))
    logits = model(ids, position_ids=positions, use_cache=False, packed_sequences=packed_sequences).logits
    assert (logits - expected).abs().max() <= rounding(float32_norms(model.config), expected.abs().max())


def varlen_attn_of_torch_2_11(q_LAE, k_LGE, v_LGE, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """Has the signature of torch 2.11, which needs as many key and value heads as query heads."""
    assert q_LAE.shape == k_LGE.shape == v_LGE.shape
    assert (max_q, window_size) == (7, (-1, 0))
    return torch.empty_like(q_LAE)


@pytest.mark.parametrize("groups", [4, 2])
def test_gpu_attention_works_with_the_oldest_supported_torch(monkeypatch, groups):
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn_of_torch_2_11)
    monkeypatch.setattr(attention, "VARLEN_HAS_GQA", False)
    on_gpu = {"device": "meta", "dtype": torch.bfloat16}
    query, (key, value) = torch.empty(2, 4, 12, 8, **on_gpu), (torch.empty(2, groups, 12, 8, **on_gpu) for _ in "kv")
    packed_sequences = PackedSequences.of([0, 5, 9, 12, 19, 24], torch.device("meta"))
    output, _ = attention.packed_attention(torch.nn.Module(), query, key, value, None, packed_sequences=packed_sequences)
    assert output.shape == (2, 12, 4, 8)


def test_gpu_attention_uses_the_flash_backend(monkeypatch):
    """cuDNN keeps a graph for every geometry of packed sequences. The backward pass uses the backend of the forward pass."""

    def enabled() -> dict[str, bool]:
        return {"flash": torch.backends.cuda.flash_sdp_enabled(), "cudnn": torch.backends.cuda.cudnn_sdp_enabled()}

    def varlen_attn(q_LAE, *args, **kwargs):
        during.append(enabled())
        return torch.empty_like(q_LAE)

    during: list[dict[str, bool]] = []
    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    before = enabled()
    states = [torch.empty(1, 2, 12, 8, device="meta", dtype=torch.bfloat16) for _ in "qkv"]
    packed_sequences = PackedSequences.of([0, 5, 12], torch.device("meta"))
    attention.packed_attention(torch.nn.Module(), *states, None, packed_sequences=packed_sequences)
    assert before["cudnn"]
    assert during == [{"flash": True, "cudnn": False}]
    assert enabled() == before


def test_generation_with_padding_matches_sdpa():
    model = llama(heads=4, groups=4)
    ids, attention_mask = torch.randint(3, 50, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    settings = {"attention_mask": attention_mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **settings, return_dict_in_generate=True, output_logits=True)
    scores = torch.stack(expected.logits)
    assert gap(scores) > rounding(float32_norms(model.config), scores.abs().max())  # the best token is certain everywhere
    model.set_attn_implementation(attention.ATTENTION_NAME)
    assert torch.equal(model.generate(ids, **settings), expected.sequences)


def test_cu_seqlens_hold_every_sample_and_every_padding(configure):
    model = build_vlm(configure())
    encoded = samples(model, [5, 3, 4], images=[0, 1, 0])
    pixels = [torch.zeros(3, 32, 32).byte().numpy()]
    batch = collate([encoded[:2], encoded[2:]], sources=[[0, 0], [0]], images=pixels, size=32, pad=2, image_id=330, keys=[])
    starts = (batch.position_ids_BT.flatten() == 0).nonzero()[:, 0].tolist()
    assert batch.cu_seqlens == [*starts, batch.input_ids_BT.numel()]
    assert collate([], sources=[], images=[], size=32, pad=2, image_id=330, keys=[]).cu_seqlens == [0, 1]


def test_packed_sequence_costs_as_much_as_its_samples_alone(configure):
    """In FLOPs of matrix products, attention included: nothing is computed between samples."""
    model = build_vlm(configure())
    encoded = samples(model, [30, 50, 20, 40], images=[0, 0, 0, 0])

    def flops(sequences) -> int:
        sources = [[0] * len(sequence) for sequence in sequences]
        batch = collate(sequences, sources=sources, images=[], size=32, pad=2, image_id=330, keys=[])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch)
        return counter.get_total_flops()

    assert flops([encoded]) == sum(flops([[sample]]) for sample in encoded)
