"""Replacements for parts of transformers and peft that compute the same numbers with less time and memory.

`accelerate` lists them. `language.fast=false` leaves all of them out; tests/test_plain_path.py compares both paths. Everything
replaced is in the language model: the image encoder and the projector are the same on both paths.

A worked example. A batch of two packed sequences (B = 2) of 12 tokens (T = 12) for a LLaMA with H = 32, A = 4 heads of width E = 8,
G = 2 key and value heads and LoRA rank 4. Sequence 0 holds samples of 5, 4 and 3 tokens; sequence 1 holds a sample of 7 tokens and
5 tokens of padding. Flattened, these are L = 24 tokens:

    cu_seqlens   = [0, 5, 9, 12, 19, 24]      sample n is tokens cu_seqlens[n] to cu_seqlens[n + 1]; padding is the last sample
    max_seqlen   = 7
    position_ids = [[0 1 2 3 4  0 1 2 3  0 1 2]
                    [0 1 2 3 4 5 6  0 1 2 3 4]]
    loss_index   = [3, 7, 17]                 S = 3 tokens whose successor is supervised

attention.py: causal attention per sample. Q (24, 4, 8), K and V (24, 2, 8) and cu_seqlens go to `varlen_attn` on a GPU; on a CPU each
    sample is one SDPA call: Q (1, 4, 5, 8), K and V (1, 2, 5, 8), and so on. Pairs computed: 5^2 + 4^2 + 3^2 + 7^2 + 5^2 = 124 instead
    of 2 x 12^2 = 288 with the block-diagonal mask (2, 1, 12, 12) of the plain path.
llama.py: Q, K and V come from the projections as (2, 12, 32), (2, 12, 16), (2, 12, 16) and are viewed as (24, 4, 8), (24, 2, 8),
    (24, 2, 8); transformers transposes them to (2, 4, 12, 8) and back. Rotary embeddings take one product and two additions in place.
    After the attention of the last layer, 3 of the 24 tokens are selected: `o_proj`, MLP and final norm run on (1, 3, 32).
    A residual sum and the norm after it are one step, whose backward pass adds the gradients of both.
lora.py: x (24, 32) times the stacked A matrices of Q, K and V (12, 32) gives (24, 12) in one product; each slice (24, 4) times B^T
    (4, 32) or (4, 16) is added into the output of the frozen layer by `addmm_`, or on a GPU by the kernel that reads this output.
recompute.py (with trainer.activation_checkpointing=selective, and always on a GPU): RMSNorm saves its input (2, 12, 32) in its own
    precision and one float32 number per token (2, 12, 1); the MLP saves gate and up (2, 12, I), not silu(gate). Both compute the rest
    again in the backward pass.
elementwise.py: one kernel on a GPU for each norm, rotary embedding and activation, which also adds the products of the adapters.
loss.py (in the folder above): cross-entropy that saves one gradient (3, 32) per token instead of logits (3, V).
"""

from peft import PeftModel

from src.model.fast.attention import ATTENTION_NAME
from src.model.fast.llama import patch_llama
from src.model.fast.lora import patch_peft
from src.model.fast.recompute import patch_recompute


def accelerate(model: PeftModel, *, activation_checkpointing: str) -> None:
    """Applies every patch to a causal LM of transformers with LoRA adapters, in place. Parameters and their names stay.

    Raises `UserError` where `activation_checkpointing=selective` does not support the model.
    """
    base = model.base_model.model
    base.set_attn_implementation(ATTENTION_NAME)  # replaces `sdpa` with a dense mask: attention per sample, by a registered function
    on_cpu = activation_checkpointing == "selective"
    patch_llama(base.model, recompute_on_cpu=on_cpu)  # replaces the layers of LLaMA, Qwen2 and Qwen3 by subclasses; others keep theirs
    patch_peft(model)  # replaces `forward` of peft's Linear, where it has no dropout: frozen layer and adapter in one step
    # replaces `forward` of RMSNorm and MLP: element-wise results are computed again in the backward pass, with `none` and `full` on a GPU
    patch_recompute(base, on_cpu=on_cpu)
