"""The language model with its LoRA adapters, wrapped before the parts are joined so that adapters reach nothing else."""

from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.train import LoraSettings
from src.model.fast import attention
from src.model.fast.attention import NO_MASK, PackedSequences
from src.model.fast.llama import patch_llama
from src.model.fast.lora import patch_peft
from src.runtime.errors import UserError


class Language(nn.Module):
    """A frozen causal LM plus trainable LoRA (Hu et al., arXiv 2106.09685); adapters are fp32 whatever the base is."""

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: LoraSettings):
        super().__init__()
        self.tokenizer = tokenizer
        names = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
        unknown = sorted(set(lora.targets) - names)
        if unknown:
            there = ", ".join(sorted(names))
            raise UserError(f"language.lora.targets names {', '.join(unknown)}; linear layers of the model are {there}")
        base.config.use_cache = False
        base.set_attn_implementation(attention.NAME)
        self.model = get_peft_model(
            base,
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"),
        )
        patch_peft(self.model)
        self._short = patch_llama(base.model)

    def states(self, e_BTH: Tensor, position_ids_BT: Tensor, spans: PackedSequences, loss_index_S: Tensor) -> Tensor:
        """Last hidden states h_SH of packed rows at the places `loss_index_S` in the line of all."""
        only = {"loss_index_S": loss_index_S} if self._short else {}
        whole = self.body(inputs_embeds=e_BTH, position_ids=position_ids_BT, attention_mask=NO_MASK, use_cache=False, spans=spans, **only)
        h_LH = whole.last_hidden_state.flatten(0, 1)
        return h_LH if self._short else h_LH.index_select(0, loss_index_S)

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
