"""LLaMA's layers on packed rows: what transformers computes, with fewer passes over memory and without what nothing reads.

Queries, keys and values stay in the line of all places (transformers turns them to and fro, a copy each), and the last layer goes
on behind its attention for those places alone that predict a supervised token: no other place reads the rest.

Legend: B rows, T tokens, L = B x T places of all rows in a line, S places that predict, A heads, G heads of keys and values, E width
of a head, F half of it, H width.
"""

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaModel

from src.model.fast.attention import PackedSequences, varlen_attention
from src.model.fast.lora import lora_linears


def patch_llama(body: nn.Module) -> bool:
    """Changes a `LlamaModel` in place and says whether it is one; only a call with `spans` goes the new way.

    With `loss_index_S` its last hidden state is (1, S, H).
    """
    if type(body) is not LlamaModel:
        return False
    for layer in body.layers:
        layer.self_attn.__class__ = PackedLlamaAttention
    body.layers[-1].__class__ = LossOnlyLastLayer
    return True


class PackedLlamaAttention(LlamaAttention):
    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        spans: PackedSequences | None = None,
        only_S: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """x_BTH -> y_BTH, or (1, S, H) of the places `only_S`."""
        if spans is None:
            return super().forward(hidden_states, position_embeddings, **kwargs)
        made = lora_linears(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q_LAE, k_LGE, v_LGE = (states.view(-1, states.shape[-1] // self.head_dim, self.head_dim) for states in made)
        cos_LE, sin_LE = (part.expand(*hidden_states.shape[:-1], -1).flatten(0, 1).to(q_LAE.dtype) for part in position_embeddings)
        q_LAE, k_LGE = (_ApplyRotary.apply(states, cos_LE, sin_LE) for states in (q_LAE, k_LGE))
        y_LH = varlen_attention(q_LAE, k_LGE, v_LGE, spans, scale=self.scaling).flatten(1)
        return self.o_proj(y_LH.view(*hidden_states.shape[:-1], -1) if only_S is None else y_LH.index_select(0, only_S)[None]), None


class LossOnlyLastLayer(LlamaDecoderLayer):
    def forward(self, hidden_states: Tensor, *, loss_index_S: Tensor | None = None, **kwargs) -> Tensor:  # type: ignore[override]
        """x_BTH -> y_BTH, or (1, S, H) with `loss_index_S`."""
        if loss_index_S is None:
            return super().forward(hidden_states, **kwargs)
        attended_1SH, _ = self.self_attn(self.input_layernorm(hidden_states), only_S=loss_index_S, **kwargs)
        x_1SH = hidden_states.flatten(0, 1).index_select(0, loss_index_S) + attended_1SH
        return x_1SH + self.mlp(self.post_attention_layernorm(x_1SH))


class _ApplyRotary(torch.autograd.Function):
    """Rotary positions (Su et al., arXiv 2104.09864), halves of a head as pairs, as transformers stores LLaMA."""

    @staticmethod
    def forward(ctx, x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_LE, sin_LE)
        return _apply_rotary(x_LAE, cos_LE, sin_LE)

    @staticmethod
    def backward(ctx, dy_LAE: Tensor) -> tuple[Tensor, None, None]:
        cos_LE, sin_LE = ctx.saved_tensors
        return _apply_rotary(dy_LAE, cos_LE, -sin_LE), None, None


def _apply_rotary(x_LAE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    half = x_LAE.shape[-1] // 2
    (left_LAF, right_LAF), sin_L1F = x_LAE.split(half, -1), sin_LE[:, None, :half]
    y_LAE = x_LAE * cos_LE[:, None]
    y_LAE[..., :half].addcmul_(right_LAF, sin_L1F, value=-1)
    y_LAE[..., half:].addcmul_(left_LAF, sin_L1F)
    return y_LAE
