"""The LightningModule: one token-normalised update per optimizer step, and the validation loss of every source."""

import json
import math
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
    """Trains and validates a `VLM`.

    The loss of a step is the sum over its supervised tokens, divided by their number, over all ranks and micro-batches. A mean of
    means per batch would give a token in a short batch more weight.

    `validation_step` and `on_validation_epoch_end` log `val/<source>` and `val`, the mean over sources, which decides what
    `best.ckpt` is. `CSVLog` logs the training values, because they are sums over ranks since the last row of `log.csv`.
    """

    def __init__(self, model: VLM, config: TrainConfig, *, sources: list[str], folder: Path):
        super().__init__()
        self.model, self.config, self.sources, self.folder = model, config, sources, folder
        self.strict_loading = False  # checkpoints hold the trained parts only; `restore_state` checks that none is missing
        if config.trainer.precision == "bf16-mixed":
            disable_lora_input_cast(model)
        self.step_tokens = 0
        self.step_losses: list[tuple[Tensor, list[str]]] = []  # per micro-batch: the sum on the device, the keys of its samples
        self.grad_norm = torch.tensor(0.0)
        self.skipped = 0  # optimizer steps since the last row of the log
        self.reset_sums()

    def reset_sums(self) -> None:
        """Sets the sums since the last row of the log to zero: loss and supervised tokens per source; samples, tokens, places (padding
        included), truncated tokens. They stay on the device, so that counting never waits for it."""
        self.loss_sums = torch.zeros(len(self.sources))
        self.token_sums = torch.zeros(len(self.sources))
        self.samples = self.tokens = self.places = self.cut = self.skipped = 0

    def totals(self) -> tuple[list[int], list[float], list[float]]:
        """([samples, tokens, places, truncated tokens], loss per source, supervised tokens per source) since the last row of the log, over
        all ranks, which all have to call it."""
        counts = torch.tensor([self.samples, self.tokens, self.places, self.cut], dtype=torch.float64, device=self.device)
        values = torch.cat([counts, self.loss_sums.to(counts), self.token_sums.to(counts)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)
        counts, loss_sums, token_sums = values.split([4, len(self.sources), len(self.sources)])
        return counts.long().tolist(), loss_sums.tolist(), token_sums.tolist()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on (seed, micro-batch, rank) alone, so a resumed run repeats the masks of an uninterrupted one.
        seed = self.config.seed * 1_000_003 + batch_idx * self.trainer.world_size + self.trainer.global_rank
        # `torch.manual_seed` also formats a stack trace for each kind of device that the machine lacks: half a millisecond.
        (torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed)(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses_S, sources_S = self.model(batch)
        total = losses_S.sum()
        self.step_tokens += len(losses_S)
        self.step_losses.append((total.detach(), batch.keys))
        self._count(batch, losses_S.detach(), sources_S)
        # Multiplying by `accumulate` undoes Lightning's division. `on_before_optimizer_step` undoes DDP's division by the ranks and divides
        # the gradients by the supervised tokens of all ranks.
        return total * self.config.trainer.accumulate

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        losses = torch.stack([loss for loss, _ in self.step_losses])
        num_nonfinite = (~torch.isfinite(losses)).sum()
        sums = torch.stack([torch.full((), float(self.step_tokens), device=self.device), num_nonfinite.float()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        scale = self.trainer.world_size / sums[0].clamp(min=1)
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_mul_(grads, scale)
        self.grad_norm = torch.nn.utils.get_total_norm(grads)
        # Every rank has the same gradients now, so all ranks decide the same.
        if not torch.isfinite(self.grad_norm):
            self._handle_nonfinite(optimizer, losses.tolist(), num_nonfinite=int(sums[1]))
        self.step_tokens, self.step_losses = 0, []

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # Lightning's clipping rejects the fused AdamW (used on a GPU) in mixed precision, and computes the norm again.
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
        # Lightning steps the optimizer when its micro-batch counter is a multiple of `accumulate`. A resume may use another `accumulate`,
        # so the counters are recomputed from the number of steps.
        micro = checkpoint["global_step"] * self.config.trainer.accumulate
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):  # as for a checkpoint that is saved in on_train_batch_end
            counts |= {"ready": micro, "started": micro, "processed": micro, "completed": micro - 1}

    def on_validation_epoch_start(self) -> None:
        self.val_sums = torch.zeros(2, len(self.sources), dtype=torch.float32, device=self.device)  # loss, supervised tokens

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses_S, sources_S = self.model(batch)
        self.val_sums[0].index_add_(0, sources_S.long(), losses_S.float())
        self.val_sums[1].index_add_(0, sources_S.long(), torch.ones_like(losses_S, dtype=torch.float32))

    def on_validation_epoch_end(self) -> None:
        losses = self.validation_losses()
        values = {f"val/{source}": loss for source, loss in losses.items()}
        values |= {"val": sum(losses.values()) / len(losses)} if losses else {}
        self.log_dict(values, logger=False, batch_size=1, sync_dist=True)  # equal on all ranks; sync_dist avoids a warning

    def validation_losses(self) -> dict[str, float]:
        """Mean loss per supervised token of each source, summed over ranks before the division."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.val_sums)
        return {source: (loss / count).item() for source, loss, count in zip(self.sources, *self.val_sums, strict=True) if count > 0}

    def _count(self, batch: Batch, losses_S: Tensor, sources_S: Tensor) -> None:
        self.loss_sums, self.token_sums = self.loss_sums.to(self.device), self.token_sums.to(self.device)
        self.loss_sums.index_add_(0, sources_S.long(), losses_S.float().nan_to_num(0.0, 0.0, 0.0))
        self.token_sums.index_add_(0, sources_S.long(), torch.isfinite(losses_S).float())
        self.samples += batch.num_samples
        self.cut += batch.num_truncated
        self.tokens += (batch.sources_BT >= 0).sum()
        self.places += batch.input_ids_BT.numel()

    def _handle_nonfinite(self, optimizer: torch.optim.Optimizer, losses: list[float], *, num_nonfinite: int) -> None:
        """Writes the samples of micro-batches with a non-finite loss to `nonfinite.jsonl`, or all samples of the step if only the gradient
        is not finite. Then it raises `UserError`, or drops the gradient (`trainer.on_nonfinite=skip`).

        `losses` are those of this rank; `num_nonfinite` counts non-finite ones over all ranks."""
        step, path = self.trainer.global_step, self.folder / "nonfinite.jsonl"
        with path.open("a") as file:
            for loss, (_, keys) in zip(losses, self.step_losses, strict=True):
                if not math.isfinite(loss) or not num_nonfinite:
                    file.write(json.dumps({"step": step, "rank": self.trainer.global_rank, "loss": str(loss), "samples": keys}) + "\n")
        if self.config.trainer.on_nonfinite == "stop":
            raise UserError(
                f"{path}: the {'loss' if num_nonfinite else 'gradient'} became nan or infinite at step {step}, and this file lists the "
                "samples of that batch; remove them, lower optim.lr, or set trainer.on_nonfinite=skip to leave such steps out"
            )
        optimizer.zero_grad(set_to_none=True)  # AdamW skips parameters without a gradient
        self.skipped += 1


def disable_lora_input_cast(model: VLM) -> None:
    """Turns off peft's cast of adapter inputs to float32.

    Autocast converts the input to bfloat16 anyway. With the cast, every adapter of a layer keeps its own float32 copy of the same input.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
