"""LLaMA, Qwen2 and Qwen3 layers for packed sequences: the results of transformers with fewer passes over memory.

Q, K and V stay flattened as (B*T, heads, head_dim), which saves two transposes and their copies. After its attention, the last layer
computes only the tokens whose successor is supervised, because the loss reads no other.

Legend: B sequences, T tokens, L = B x T tokens of all sequences, flattened, S tokens whose successor is supervised, A query heads,
G key and value heads, E head width, F = E / 2, H model width.
"""

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3DecoderLayer, Qwen3Model

from src.model.fast.attention import PackedSequences, varlen_attention
from src.model.fast.lora import lora_linears


def patch_llama(body: nn.Module) -> None:
    """Replaces the attention of every layer, and the last layer, of a model in `FAMILIES`; does nothing to another model.

    The new modules own the submodules of the old ones, so parameters and their names stay. They differ from transformers only in a
    call with `packed_sequences`, whose last hidden state is (1, S, H) if `loss_index_S` is given too.
    """
    if type(body) not in FAMILIES:
        return
    attention_class, last_class = FAMILIES[type(body)]
    config = body.config
    with torch.device("meta"):  # the submodules that the constructors make are replaced at once
        for n, layer in enumerate(body.layers):
            layer.self_attn = _take_submodules(attention_class(config, n), layer.self_attn)
        last = len(body.layers) - 1
        body.layers[last] = _take_submodules(last_class(config, last), body.layers[last])


def _take_submodules(new: nn.Module, old: nn.Module) -> nn.Module:
    for name, child in old.named_children():
        setattr(new, name, child)
    return new.train(old.training)


class PackedAttention(nn.Module):
    """Comes before the attention class of a family in `FAMILIES`. Qwen3 normalises each head of Q and K."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    head_dim: int
    scaling: float

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *,
        packed_sequences: PackedSequences | None = None,
        output_index_S: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """x_BTH -> y_BTH, or (1, S, H): the flattened tokens `output_index_S` alone."""
        if packed_sequences is None:
            return super().forward(hidden_states, position_embeddings, **kwargs)
        projections = lora_linears(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q_LAE, k_LGE, v_LGE = (states.view(-1, states.shape[-1] // self.head_dim, self.head_dim) for states in projections)
        if hasattr(self, "q_norm"):
            q_LAE, k_LGE = self.q_norm(q_LAE), self.k_norm(k_LGE)
        cos_LE, sin_LE = (part.expand(*hidden_states.shape[:-1], -1).flatten(0, 1).to(q_LAE.dtype) for part in position_embeddings)
        q_LAE, k_LGE = (_ApplyRotary.apply(states, cos_LE, sin_LE) for states in (q_LAE, k_LGE))
        y_LH = varlen_attention(q_LAE, k_LGE, v_LGE, packed_sequences, scale=self.scaling).flatten(1)
        y_BTH = y_LH.view(*hidden_states.shape[:-1], -1) if output_index_S is None else y_LH.index_select(0, output_index_S)[None]
        return self.o_proj(y_BTH), None


class LossOnlyLastLayer(nn.Module):
    """Comes before the layer class of a family in `FAMILIES`."""

    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def forward(self, hidden_states: Tensor, *, loss_index_S: Tensor | None = None, **kwargs) -> Tensor:  # type: ignore[override]
        """x_BTH -> y_BTH, or (1, S, H): the flattened tokens `loss_index_S` alone."""
        if loss_index_S is None:
            return super().forward(hidden_states, **kwargs)
        attention_1SH, _ = self.self_attn(self.input_layernorm(hidden_states), output_index_S=loss_index_S, **kwargs)
        x_1SH = hidden_states.flatten(0, 1).index_select(0, loss_index_S) + attention_1SH
        return x_1SH + self.mlp(self.post_attention_layernorm(x_1SH))


# class of the body -> (class of its attention, class of its last layer)
FAMILIES: dict[type, tuple[type[nn.Module], type[nn.Module]]] = {
    body: (type(f"Packed{attention.__name__}", (PackedAttention, attention), {}), type("LastLayer", (LossOnlyLastLayer, layer), {}))
    for body, attention, layer in (
        (LlamaModel, LlamaAttention, LlamaDecoderLayer),
        (Qwen2Model, Qwen2Attention, Qwen2DecoderLayer),
        (Qwen3Model, Qwen3Attention, Qwen3DecoderLayer),
    )
}


class _ApplyRotary(torch.autograd.Function):
    """Rotary position embedding (Su et al., arXiv 2104.09864) that pairs the two halves of a head, as transformers stores LLaMA."""

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
