"""Next-token cross-entropy without the logits of all tokens.

The head of the language model is frozen, so the gradient of a token's loss with respect to its hidden state is known as soon as its
logits are: (softmax - one-hot) @ W. The gradient is saved (H numbers per token); the logits (V numbers, 8 times as many for LLaMA-7B)
are computed once, in chunks, and dropped.

Legend: S supervised tokens, C tokens of a chunk, H width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1 << 25  # logits in memory at once: 128 MB in float32, about 1,000 tokens of LLaMA's vocabulary


def token_losses(h_SH: Tensor, head: nn.Module, targets_S: Tensor, *, fast: bool = True) -> Tensor:
    """Cross-entropy of each token, in float32 or better. `fast` needs a frozen `head`; otherwise it is plain PyTorch on all logits."""
    if not fast:
        logits_SV = head(h_SH)
        return F.cross_entropy(logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32)), targets_S, reduction="none")
    assert not any(p.requires_grad for p in head.parameters()), "the head must be frozen"
    return _TokenLosses.apply(h_SH, targets_S, head)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_SH: Tensor, targets_S: Tensor, head: nn.Module) -> Tensor:
        chunk = max(1, CHUNK // head.weight.shape[0])
        losses, grads = [], []
        for h_CH, targets_C in zip(h_SH.detach().split(chunk), targets_S.split(chunk), strict=True):
            logits_CV = head(h_CH)
            logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
            logits_CV.sub_(logits_CV.amax(-1, keepdim=True))
            target_C1 = logits_CV.gather(1, targets_C[:, None])
            # `p_CV` holds exp(logit), not probabilities. Dividing the C x V logits by their sum is slow, so the C x H gradient is divided
            # instead.
            p_CV = logits_CV.exp_()
            total_C1 = p_CV.sum(-1, keepdim=True)
            losses.append((total_C1.log() - target_C1)[:, 0])
            if ctx.needs_input_grad[0]:
                p_CV.scatter_add_(1, targets_C[:, None], -total_C1)
                grads.append(((p_CV.to(head.weight.dtype) @ head.weight).to(total_C1.dtype) / total_C1).to(h_SH.dtype))
        if grads:
            ctx.save_for_backward(torch.cat(grads))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, upstream_S: Tensor) -> tuple[Tensor | None, None, None]:
        (grads_SH,) = ctx.saved_tensors
        return (grads_SH * upstream_S[:, None]).to(grads_SH.dtype), None, None
