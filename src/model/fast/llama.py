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
from src.model.fast.elementwise import is_on_gpu, rotary, rotary_backward
from src.model.fast.lora import AdapterSum, lora_linears, lora_sums
from src.model.fast.recompute import add_and_norm, add_mlp


def patch_llama(body: nn.Module, *, recompute_on_cpu: bool) -> None:
    """Replaces every layer of a model in `FAMILIES` and its attention; does nothing to another model.

    The new modules own the submodules of the old ones, so parameters and their names stay. They differ from transformers only in a
    call with `packed_sequences`, whose last hidden state is (1, S, H) if `loss_index_S` is given too. `recompute_on_cpu`: see
    `patch_recompute`.
    """
    if type(body) not in FAMILIES:
        return
    attention_class, layer_class, last_class = FAMILIES[type(body)]
    config = body.config
    with torch.device("meta"):  # the submodules that the constructors make are replaced at once
        for n, layer in enumerate(body.layers):
            layer.self_attn = _take_submodules(attention_class(config, n), layer.self_attn)
            kind = last_class if n == len(body.layers) - 1 else layer_class
            body.layers[n] = _take_submodules(kind(config, n), layer)
            body.layers[n].recompute_on_cpu, body.layers[n].has_silu = recompute_on_cpu, config.hidden_act == "silu"


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
    ) -> tuple[AdapterSum | Tensor, Tensor | None]:
        """x_BTH -> y_BTH, or (1, S, H): the flattened tokens `output_index_S` alone. With `packed_sequences` y is an `AdapterSum`."""
        if packed_sequences is None:
            return super().forward(hidden_states, position_embeddings, **kwargs)
        projections = lora_linears(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q_LAE, k_LGE, v_LGE = (states.view(-1, states.shape[-1] // self.head_dim, self.head_dim) for states in projections)
        if hasattr(self, "q_norm"):
            q_LAE, k_LGE = self.q_norm(q_LAE), self.k_norm(k_LGE)
        cos_LE, sin_LE = (part.expand(*hidden_states.shape[:-1], -1).flatten(0, 1).to(q_LAE.dtype) for part in position_embeddings)
        q_LAE, k_LGE = _ApplyRotary.apply(q_LAE, k_LGE, cos_LE, sin_LE)
        y_LH = varlen_attention(q_LAE, k_LGE, v_LGE, packed_sequences, scale=self.scaling).flatten(1)
        y_BTH = y_LH.view(*hidden_states.shape[:-1], -1) if output_index_S is None else y_LH.index_select(0, output_index_S)[None]
        return lora_sums(y_BTH, self.o_proj, deferred=(True,))[0], None


class PackedLayer(nn.Module):
    """Comes before the layer class of a family in `FAMILIES`."""

    self_attn: nn.Module
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    recompute_on_cpu = False
    has_silu = False

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, *, loss_index_S: Tensor | None = None, packed_sequences: PackedSequences | None = None, **kwargs
    ) -> Tensor:
        """x_BTH -> y_BTH, or (1, S, H) of the last layer: the flattened tokens `loss_index_S` alone."""
        if packed_sequences is None:
            return super().forward(hidden_states, **kwargs)
        index_S = loss_index_S if isinstance(self, LossOnlyLastLayer) else None
        x, normed = self._add_and_norm(self.input_layernorm, hidden_states)
        attention, _ = self.self_attn(normed, packed_sequences=packed_sequences, output_index_S=index_S, **kwargs)
        x = x if index_S is None else x.flatten(0, 1).index_select(0, index_S)[None]
        x, normed = self._add_and_norm(self.post_attention_layernorm, x, attention)
        return add_mlp(self.mlp, x, normed) if self.has_silu and is_on_gpu(x) else x + self.mlp(normed)

    def _add_and_norm(self, norm: nn.Module, x: Tensor, delta: AdapterSum | None = None) -> tuple[Tensor, Tensor]:
        if self.recompute_on_cpu or is_on_gpu(x):
            return add_and_norm(norm, x, delta)
        x = x if delta is None else x + delta.frozen  # complete on a CPU
        return x, norm(x)


class LossOnlyLastLayer(PackedLayer):
    """Computes the tokens of `loss_index_S` alone after its attention."""


def _family(attention: type, layer: type) -> tuple[type[nn.Module], ...]:
    parts = ((PackedAttention, attention), (PackedLayer, layer), (LossOnlyLastLayer, layer))
    return tuple(type(f"{packed.__name__}Of{plain.__name__}", (packed, plain), {}) for packed, plain in parts)


# class of the body -> classes of its attention, of its layers and of its last layer
FAMILIES: dict[type, tuple[type[nn.Module], ...]] = {
    LlamaModel: _family(LlamaAttention, LlamaDecoderLayer),
    Qwen2Model: _family(Qwen2Attention, Qwen2DecoderLayer),
    Qwen3Model: _family(Qwen3Attention, Qwen3DecoderLayer),
}


class _ApplyRotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_LAE: Tensor, k_LGE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos_LE, sin_LE)
        return rotary(q_LAE, cos_LE, sin_LE), rotary(k_LGE, cos_LE, sin_LE)

    @staticmethod
    def backward(ctx, dq_LAE: Tensor, dk_LGE: Tensor) -> tuple[Tensor | None, ...]:
        cos_LE, sin_LE = ctx.saved_tensors
        return rotary_backward(dq_LAE, cos_LE, sin_LE), rotary_backward(dk_LGE, cos_LE, sin_LE), None, None
