"""The kernels of an optimizer step, of the code that trains: `VLMLightningModule` and its optimizer."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from src.config.train import TrainConfig
from src.data.packing import Batch
from src.model.cost import build_on_meta, layers_of
from src.model.fake_gpu import Autocast, fake_gpu, fake_like, to_fake
from src.model.kernels import KernelRecorder
from src.model.roofline import extrapolate
from src.training.lightning_module import VLMLightningModule


def record_step(config: TrainConfig, batches: list[Batch], *, shape: dict[str, int] | None = None) -> KernelRecorder:
    """Records the passes over the micro-batches `batches` and one update, on one GPU. `shape` replaces that of the language model."""
    passes, update = record_micro_batches(config, batches, shape=shape), record_optimizer(config, shape=shape)
    passes.kernels += update.kernels
    passes.waits += update.waits
    return passes


def record_micro_batches(config: TrainConfig, batches: list[Batch], *, shape: dict[str, int] | None = None) -> KernelRecorder:
    """Forward and backward passes, with the sums of gradients over micro-batches."""

    def passes(layers: int) -> KernelRecorder:
        model, recorder = build_on_meta(config, shape=shape, layers=layers), KernelRecorder()
        with fake_gpu():
            module = _fake_module(model, config, device="meta")
            for batch in batches:
                fake = Batch(**{name: fake_like(value) if isinstance(value, Tensor) else value for name, value in vars(batch).items()})
                recorder.causal_pairs = causal_pairs(batch.cu_seqlens)
                record_passes(recorder, lambda fake=fake: module.training_step(fake, 0) / len(batches), config=config)  # type: ignore[misc]
        return recorder

    return record_layers(passes, shape["num_hidden_layers"] if shape else layers_of(config))


def record_optimizer(config: TrainConfig, *, shape: dict[str, int] | None = None) -> KernelRecorder:
    """Everything of a step after its last backward pass: division by the tokens, norm, clipping, AdamW."""
    model, recorder = build_on_meta(config, shape=shape), KernelRecorder()
    with fake_gpu():
        module = _fake_module(model, config, device="cuda:0")
        module.step_losses, module.step_tokens = [(torch.empty((), device="cuda:0"), [""])] * config.trainer.accumulate, 1
        optimizer = module.configure_optimizers()["optimizer"]

        def update() -> None:
            module.on_before_optimizer_step(optimizer)
            module.configure_gradient_clipping(optimizer, config.optim.clip)
            optimizer.step()

        record_update(recorder, module, optimizer, update)
    return recorder


def _fake_module(model: nn.Module, config: TrainConfig, *, device: str) -> VLMLightningModule:
    module = VLMLightningModule(to_fake(model, device=device), config, sources=["all"], folder=Path()).train()  # type: ignore[arg-type]
    module._device = torch.device(device)  # `to` would convert the parameters
    module.trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=0)
    module.loss_sums, module.token_sums = module.loss_sums.to(device), module.token_sums.to(device)  # once per row of the log
    return module


def record_layers(record: Callable[[int], KernelRecorder], layers: int) -> KernelRecorder:
    """What `record` returns for a model of `layers` layers. Of a larger model it records two and three, which tell the kernels of all."""
    if layers <= 3:
        return record(layers)
    two, three = record(2), record(3)
    three.kernels = extrapolate(two.kernels, three.kernels, layers)
    return three


def record_passes(recorder: KernelRecorder, loss: Callable[[], Tensor], *, config: TrainConfig) -> None:
    """Forward and backward pass of a micro-batch in the precision of the run."""
    with recorder, Autocast(enabled=config.trainer.precision == "bf16-mixed") as autocast:
        total = loss()
        autocast.clear()
        # Autocast stays on for what activation checkpointing computes again. `total.backward()` would turn the mode off.
        _engine_run_backward((total,), (torch.ones_like(total),), False, False, (), allow_unreachable=True, accumulate_grad=True)


def record_update(recorder: KernelRecorder, model: nn.Module, optimizer: torch.optim.Optimizer, update: Callable[[], None]) -> None:
    """`update` with a gradient of every trainable parameter. The state of the optimizer is made before."""
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    with recorder:
        update()


def causal_pairs(cu_seqlens: list[int]) -> int:
    """Pairs of a token and one of the same sample that it attends to, itself included."""
    lengths = [stop - start for start, stop in pairwise(cu_seqlens)]
    return sum(length * (length + 1) // 2 for length in lengths)
