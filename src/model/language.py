"""The language model with its LoRA adapters.

Legend: B packed sequences, T tokens, L = B x T tokens of all sequences, flattened, S tokens whose successor is supervised, H model width.
"""

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.train import LoraSettings
from src.model.fast import accelerate
from src.model.fast.attention import NO_MASK, PackedSequences
from src.model.fast.llama import LossOnlyLastLayer
from src.runtime.errors import UserError


class Language(nn.Module):
    """A frozen causal LM with trainable LoRA adapters (Hu et al., arXiv 2106.09685) in float32, whatever the precision of the base.

    `fast` applies the patches of `src.model.fast.accelerate`; without it, the model is that of transformers and peft.
    `activation_checkpointing` is none, selective (one of the patches) or full (transformers' own, a layer at a time).

    Raises `UserError` where `lora.targets` names a layer that the model lacks.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        lora: LoraSettings,
        *,
        fast: bool = True,
        activation_checkpointing: str = "none",
    ):
        super().__init__()
        self.tokenizer, self.fast = tokenizer, fast
        names = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
        unknown = sorted(set(lora.targets) - names)
        if unknown:
            raise UserError(f"language.lora.targets names {', '.join(unknown)}; linear layers of the model are {', '.join(sorted(names))}")
        base.config.use_cache = False
        self.model = get_peft_model(
            base,
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"),
        )
        if fast:
            accelerate(self.model, activation_checkpointing=activation_checkpointing)
        else:
            base.set_attn_implementation("sdpa")
        if activation_checkpointing == "full":
            base.gradient_checkpointing_enable({"use_reentrant": False})

    def loss_states(self, e_BTH: Tensor, position_ids_BT: Tensor, cu_seqlens: list[int], loss_index_S: Tensor) -> Tensor:
        """Last hidden states h_SH of the flattened tokens `loss_index_S`. Sample n is made of tokens cu_seqlens[n] to cu_seqlens[n + 1]."""
        mask, extra = NO_MASK, {}
        if self.fast:
            extra["packed_sequences"] = PackedSequences.of(cu_seqlens, e_BTH.device)
        else:
            mask = packed_causal_mask(position_ids_BT)
        selects = isinstance(self.body.layers[-1], LossOnlyLastLayer)
        if selects:
            extra["loss_index_S"] = loss_index_S
        output = self.body(inputs_embeds=e_BTH, position_ids=position_ids_BT, attention_mask=mask, use_cache=False, **extra)
        h_LH = output.last_hidden_state.flatten(0, 1)
        return h_LH if selects else h_LH.index_select(0, loss_index_S)

    @property
    def base(self) -> nn.Module:
        return self.model.base_model.model

    @property
    def hidden(self) -> int:
        return self.base.config.hidden_size

    @property
    def embed(self) -> nn.Module:
        return self.base.get_input_embeddings()

    @property
    def body(self) -> nn.Module:
        return self.base.model

    @property
    def head(self) -> nn.Module:
        return self.base.lm_head


def packed_causal_mask(position_ids_BT: Tensor) -> Tensor:
    """Block-diagonal mask (B, 1, T, T), True where attention is allowed: to earlier tokens of the same sample.

    A sample begins where the positions restart at 0. transformers passes a four-dimensional mask on unchanged.
    """
    sample_BT = (position_ids_BT == 0).cumsum(1)
    return (sample_BT[:, None, :, None] == sample_BT[:, None, None, :]).tril()
