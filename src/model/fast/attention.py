"""Attention inside each sample of a packed row, and nothing across: one causal block per sample instead of a dense mask.

A dense mask computes every pair of tokens of a row and throws most away; a block per sample costs what the samples cost alone.

Legend: B rows, T tokens, L = B x T places of all rows in a line, A heads, G heads of keys and values, E width of a head.
"""

import inspect
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed"
GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in torch 2.11
# A mask that is four-dimensional already is passed on as it is; with none, transformers would look at the positions for samples
# and, on a GPU, wait for the answer.
NO_MASK = torch.empty(0, 0, 0, 0)


@dataclass
class PackedSequences:
    """Where samples stand in the line of all places: sample n fills places edges[n] to edges[n + 1], padding included."""

    edges: list[int]
    edges_on_device: Tensor  # int32, the same
    longest: int

    @staticmethod
    def of(edges: list[int], device: torch.device) -> "PackedSequences":
        on_device = torch.tensor(edges, dtype=torch.int32).to(device, non_blocking=True)
        return PackedSequences(edges, on_device, max(stop - start for start, stop in pairwise(edges)))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: PackedSequences | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention that transformers calls: query (B, A, T, E) -> (B, T, A, E). Without `spans` it is transformers' own `sdpa`."""
    if spans is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    q_LAE, k_LGE, v_LGE = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    return varlen_attention(q_LAE, k_LGE, v_LGE, spans, scale=kwargs.get("scaling")).unflatten(0, (query.shape[0], query.shape[2])), None


def varlen_attention(q_LAE: Tensor, k_LGE: Tensor, v_LGE: Tensor, spans: PackedSequences, *, scale: float | None) -> Tensor:
    """Each place attends to those before it in its own span: (L, A, E)."""
    heads, grouped = q_LAE.shape[1], k_LGE.shape[1] != q_LAE.shape[1]
    if not q_LAE.is_cpu and q_LAE.dtype in (torch.bfloat16, torch.float16):  # a GPU, or its shadow on the meta device
        edges, groups = spans.edges_on_device, {"enable_gqa": True} if grouped and GROUPS else {}
        if grouped and not GROUPS:
            k_LGE, v_LGE = (states.repeat_interleave(heads // states.shape[1], dim=1) for states in (k_LGE, v_LGE))
        # On Hopper and Blackwell torch 2.15 prefers cuDNN, which builds a graph for every new geometry (number of samples, longest
        # sample, places) and frees none; nearly every packed batch has a new one. Earlier versions take flash for causal attention anyway.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return varlen_attn(q_LAE, k_LGE, v_LGE, edges, edges, spans.longest, spans.longest, scale=scale, window_size=(-1, 0), **groups)
    sizes = [stop - start for start, stop in pairwise(spans.edges)]
    parts = zip(*(states.transpose(0, 1).split(sizes, dim=1) for states in (q_LAE, k_LGE, v_LGE)), strict=True)
    done = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=grouped)[0].transpose(0, 1)
        for q, k, v in parts
    ]
    return torch.cat(done)


def padding_mask(*args, attention_mask: Tensor | None = None, **kwargs) -> Tensor | None:
    """No mask where there is no padding to hide: what else is apart, `spans` keep apart."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, padding_mask)
