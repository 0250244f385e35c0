"""LLaMA layers for packed sequences: the results of transformers with fewer passes over memory.

Q, K and V stay flattened as (B*T, heads, head_dim), which saves two transposes and their copies. After its attention, the last layer
computes only the tokens whose successor is supervised, because the loss reads no other.

Legend: B sequences, T tokens, L = B x T tokens of all sequences, flattened, S tokens whose successor is supervised, A query heads,
G key and value heads, E head width, F = E / 2, H model width.
"""

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaModel

from src.model.fast.attention import PackedSequences, varlen_attention
from src.model.fast.elementwise import rotary, rotary_backward
from src.model.fast.lora import lora_linears
from src.model.fast.recompute import add_and_norm


def patch_llama(body: nn.Module, *, recompute_on_cpu: bool) -> None:
    """Replaces every layer of a `LlamaModel` and its attention; does nothing to another model. `recompute_on_cpu`: see `patch_recompute`.

    The new modules own the submodules of the old ones, so parameters and their names stay. They differ from transformers only in a
    call with `packed_sequences`, whose last hidden state is (1, S, H) if `loss_index_S` is given too.
    """
    if type(body) is not LlamaModel:
        return
    config = body.config
    with torch.device("meta"):  # the submodules that the constructors make are replaced at once
        for n, layer in enumerate(body.layers):
            layer.self_attn = _take_submodules(PackedLlamaAttention(config, n), layer.self_attn)
            kind = LossOnlyLastLayer if n == len(body.layers) - 1 else PackedLlamaLayer
            body.layers[n] = _take_submodules(kind(config, n), layer)
            body.layers[n].recompute_on_cpu = recompute_on_cpu


def _take_submodules(new: nn.Module, old: nn.Module) -> nn.Module:
    for name, child in old.named_children():
        setattr(new, name, child)
    return new.train(old.training)


class PackedLlamaAttention(LlamaAttention):
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
        cos_LE, sin_LE = (part.expand(*hidden_states.shape[:-1], -1).flatten(0, 1).to(q_LAE.dtype) for part in position_embeddings)
        q_LAE, k_LGE = _ApplyRotary.apply(q_LAE, k_LGE, cos_LE, sin_LE)
        y_LH = varlen_attention(q_LAE, k_LGE, v_LGE, packed_sequences, scale=self.scaling).flatten(1)
        y_BTH = y_LH.view(*hidden_states.shape[:-1], -1) if output_index_S is None else y_LH.index_select(0, output_index_S)[None]
        return self.o_proj(y_BTH), None


class PackedLlamaLayer(LlamaDecoderLayer):
    recompute_on_cpu = False

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
        return x + self.mlp(normed)

    def _add_and_norm(self, norm: nn.Module, x: Tensor, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.recompute_on_cpu or not x.is_cpu:
            return add_and_norm(norm, x, delta)
        x = x if delta is None else x + delta
        return x, norm(x)


class LossOnlyLastLayer(PackedLlamaLayer):
    """Computes the tokens of `loss_index_S` alone after its attention."""


class _ApplyRotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_LAE: Tensor, k_LGE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos_LE, sin_LE)
        return rotary(q_LAE, k_LGE, cos_LE, sin_LE)

    @staticmethod
    def backward(ctx, dq_LAE: Tensor, dk_LGE: Tensor) -> tuple[Tensor | None, ...]:
        return *rotary_backward(dq_LAE, dk_LGE, *ctx.saved_tensors), None, None
