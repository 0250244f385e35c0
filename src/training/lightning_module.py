"""The LightningModule: one token-normalised update per optimizer step."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import lightning
import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch import Tensor

from src.config.train import TrainConfig
from src.data.packing import Batch
from src.model.vlm import VLM
from src.runtime.errors import UserError
from src.training.checkpoint import check_same_weights, restore_state, trained_state
from src.training.optim import lr_schedule, optimizer


class VLMLightningModule(lightning.LightningModule):
    """Loss of a step = sum over its supervised tokens / their number, over all ranks and accumulation slots.

    A mean of per-batch means would weigh a token by how few neighbours it has in its batch.
    """

    def __init__(self, model: VLM, config: TrainConfig, *, sources: list[str], folder: Path):
        super().__init__()
        self.model, self.config, self.sources, self.folder = model, config, sources, folder
        self.strict_loading = False  # checkpoints hold the trained parts only; `restore` looks for missing ones
        if config.trainer.precision == "bf16-mixed":
            disable_lora_input_cast(model)
        self.step_tokens = 0
        self.step_losses: list[tuple[Tensor, list[str]]] = []  # of each slot: the sum on the device, the keys of its samples
        self.grad_norm = torch.tensor(0.0)
        self.skipped = 0  # optimizer steps since the last log line
        self.reset_sums()

    def reset_sums(self) -> None:
        """Sums since the last log line, kept on the device: loss and supervised tokens per source; samples, tokens, places, cut tokens."""
        self.loss_sums = torch.zeros(len(self.sources))
        self.token_sums = torch.zeros(len(self.sources))
        self.samples = self.tokens = self.places = self.cut = self.skipped = 0

    def totals(self) -> tuple[list[int], list[float], list[float]]:
        """([samples, tokens, places, cut tokens], loss sums, supervised tokens) since the last log line, over all ranks."""
        counts = torch.tensor([self.samples, self.tokens, self.places, self.cut], dtype=torch.float64, device=self.device)
        found = torch.cat([counts, self.loss_sums.to(counts), self.token_sums.to(counts)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found)
        counts, sums, tokens = found.split([4, len(self.sources), len(self.sources)])
        return counts.long().tolist(), sums.tolist(), tokens.tolist()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is a function of (seed, micro-batch, rank), so a resumed run draws what the uninterrupted one would have.
        torch.manual_seed(self.config.seed * 1_000_003 + batch_idx * self.trainer.world_size + self.trainer.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses_S, sources_S = self.model(batch)
        total = losses_S.sum()
        self.step_tokens += len(losses_S)
        self.step_losses.append((total.detach(), batch.keys))
        self._count(batch, losses_S.detach(), sources_S)
        # Lightning divides by the accumulation steps and DDP by the ranks; what remains to divide by is done once, below.
        return total * self.config.trainer.accumulate

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        losses = torch.stack([loss for loss, _ in self.step_losses])
        bad = (~torch.isfinite(losses)).sum()
        sums = torch.stack([torch.tensor(float(self.step_tokens), device=self.device), bad.float()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        scale = self.trainer.world_size / sums[0].clamp(min=1)
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_mul_(grads, scale)
        self.grad_norm = torch.nn.utils.get_total_norm(grads)
        # Gradients are the same on every rank by now, so that all ranks decide alike.
        if not torch.isfinite(self.grad_norm):
            self._refuse_step(optimizer, losses.tolist(), everywhere=int(sums[1]))
        self.step_tokens, self.step_losses = 0, []

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # Lightning's own way refuses mixed precision with a fused AdamW, which a GPU has, and takes the norm a second time.
        if gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self.grad_norm)

    def configure_optimizers(self):
        opt = optimizer(self.model, self.config.optim)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": lr_schedule(opt, self.config.optim), "interval": "step"}}

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        return trained_state(self.model)

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True):
        return restore_state(self.model, state)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_same_weights(self.model, checkpoint["weights"])
        # Lightning counts micro-batches, and steps when their number divides by the accumulation, which may have changed since.
        micro = checkpoint["global_step"] * self.config.trainer.accumulate
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):  # as they stand when a callback saves after a micro-batch
            counts |= {"ready": micro, "started": micro, "processed": micro, "completed": micro - 1}

    @torch.no_grad()
    def validation_losses(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean loss per supervised token for each source of the fixed validation list, summed over ranks before dividing."""
        sums = torch.zeros(2, len(self.sources), dtype=torch.float32, device=self.device)
        self.model.eval()
        for batch in batches:
            losses_S, sources_S = self.model(batch.to(self.device))
            sums[0].index_add_(0, sources_S.long(), losses_S.float())
            sums[1].index_add_(0, sources_S.long(), torch.ones_like(losses_S, dtype=torch.float32))
        self.model.train()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return {source: (loss / count).item() for source, loss, count in zip(self.sources, *sums, strict=True) if count > 0}

    def _count(self, batch: Batch, losses_S: Tensor, sources_S: Tensor) -> None:
        self.loss_sums, self.token_sums = self.loss_sums.to(self.device), self.token_sums.to(self.device)
        self.loss_sums.index_add_(0, sources_S.long(), losses_S.float().nan_to_num(0.0, 0.0, 0.0))
        self.token_sums.index_add_(0, sources_S.long(), torch.isfinite(losses_S).float())
        self.samples += batch.num_samples
        self.cut += batch.num_truncated
        self.tokens += (batch.sources_BT >= 0).sum()
        self.places += batch.input_ids_BT.numel()

    def _refuse_step(self, optimizer: torch.optim.Optimizer, losses: list[float], *, everywhere: int) -> None:
        """Lists the samples of losses that are not finite, or, where only the gradient is not, all of the step; then stops, or updates
        nothing. `everywhere` counts such losses over all ranks."""
        step, path = self.trainer.global_step, self.folder / "nonfinite.jsonl"
        with path.open("a") as file:
            for loss, (_, keys) in zip(losses, self.step_losses, strict=True):
                if not math.isfinite(loss) or not everywhere:
                    file.write(json.dumps({"step": step, "rank": self.trainer.global_rank, "loss": str(loss), "samples": keys}) + "\n")
        if self.config.trainer.on_nonfinite == "stop":
            raise UserError(
                f"the {'loss' if everywhere else 'gradient'} became nan or infinite at step {step}; the samples of that batch are listed "
                f"in {path}; trainer.on_nonfinite=skip leaves such steps out"
            )
        optimizer.zero_grad(set_to_none=True)  # AdamW passes over parameters without a gradient
        self.skipped += 1


def disable_lora_input_cast(model: VLM) -> None:
    """Adapters take their input as it is: autocast brings it to bfloat16 anyway, and peft's cast to float32 before that would make
    every adapter keep a copy of what the adapters of a layer share."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
