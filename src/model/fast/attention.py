"""Causal attention within each sample of a packed sequence, without a dense mask.

A dense (T, T) mask computes every pair of tokens in a sequence and discards the pairs of different samples. Attention per sample
computes only the pairs that are needed.

Legend: B sequences, T tokens, L = B x T tokens of all sequences, flattened, A query heads, G key and value heads, E head width.
"""

import functools
import inspect
import warnings
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

ATTENTION_NAME = "packed"  # under which transformers finds the two functions that are registered below
VARLEN_HAS_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch 2.11 lacks it
# transformers passes a four-dimensional mask on unchanged. Without a mask it would search the position ids for samples, and on a GPU
# the host would wait for the result.
NO_MASK = torch.empty(0, 0, 0, 0)


@dataclass
class PackedSequences:
    """Sample boundaries: sample n is made of the flattened tokens cu_seqlens[n] to cu_seqlens[n + 1]. Padding is a sample too."""

    cu_seqlens: list[int]
    cu_seqlens_device: Tensor  # int32 copy on the device
    max_seqlen: int

    @staticmethod
    def of(cu_seqlens: list[int], device: torch.device) -> "PackedSequences":
        on_device = torch.tensor(cu_seqlens, dtype=torch.int32).to(device, non_blocking=True)
        return PackedSequences(cu_seqlens, on_device, max(stop - start for start, stop in pairwise(cu_seqlens)))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_sequences: PackedSequences | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention function in the format of transformers: query (B, A, T, E) -> (B, T, A, E).

    Without `packed_sequences` (generation) it is the `sdpa` function of transformers.
    """
    if packed_sequences is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    q_LAE, k_LGE, v_LGE = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    y_LAE = varlen_attention(q_LAE, k_LGE, v_LGE, packed_sequences, scale=kwargs.get("scaling"))
    return y_LAE.unflatten(0, (query.shape[0], query.shape[2])), None


def varlen_attention(q_LAE: Tensor, k_LGE: Tensor, v_LGE: Tensor, packed_sequences: PackedSequences, *, scale: float | None) -> Tensor:
    """Causal attention of each token to its own sample: y_LAE.

    Half precision on a GPU takes one call of `varlen_attn` for all samples; a CPU, an old GPU or float32 takes one call of SDPA per sample.
    """
    heads, grouped = q_LAE.shape[1], k_LGE.shape[1] != q_LAE.shape[1]
    if q_LAE.dtype in (torch.bfloat16, torch.float16) and has_flash_attention(q_LAE.device):
        cu_seqlens, longest = packed_sequences.cu_seqlens_device, packed_sequences.max_seqlen
        gqa = {"enable_gqa": True} if grouped and VARLEN_HAS_GQA else {}
        if grouped and not VARLEN_HAS_GQA:
            k_LGE, v_LGE = (states.repeat_interleave(heads // states.shape[1], dim=1) for states in (k_LGE, v_LGE))
        # On Hopper and Blackwell torch 2.15 prefers cuDNN, which builds a graph for every new geometry (number of samples, longest
        # sample, tokens) and frees none; nearly every packed batch has a new one. Earlier versions use flash for causal attention.
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return varlen_attn(q_LAE, k_LGE, v_LGE, cu_seqlens, cu_seqlens, longest, longest, scale=scale, window_size=(-1, 0), **gqa)
    lengths = [stop - start for start, stop in pairwise(packed_sequences.cu_seqlens)]
    samples = zip(*(states.transpose(0, 1).split(lengths, dim=1) for states in (q_LAE, k_LGE, v_LGE)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=grouped)[0].transpose(0, 1)
        for q, k, v in samples
    ]
    return torch.cat(outputs)


@functools.cache
def has_flash_attention(device: torch.device) -> bool:
    """Whether `varlen_attn` has a kernel for the device: a GPU, or the meta device in its place."""
    if device.type != "cuda" or (capability := torch.cuda.get_device_capability(device)) >= (8, 0):
        return device.type != "cpu"
    warnings.warn(
        f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and flash attention needs 8.0: "
        "attention takes one slower call per sample, with the same results",
        stacklevel=2,
    )
    return False


def padding_mask(*args, attention_mask: Tensor | None = None, **kwargs) -> Tensor | None:
    """Mask function in the format of transformers: a mask only where there is padding to hide (batched generation)."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, padding_mask)
