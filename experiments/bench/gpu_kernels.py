"""Kernels of one optimizer step of our trainer, measured by torch.profiler and predicted by src/model/roofline.py, for the same batches."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from experiments.bench import roofline
from experiments.bench.flops import synchronised_time
from experiments.bench.gpu_setup import Bench
from experiments.bench.gpu_table import KernelRow, gpu_name
from experiments.bench.gpu_train import StayingModule
from src.model.roofline import ACCELERATORS, H100, Accelerator, Kernel, Prediction, most_expensive
from src.runtime.errors import UserError
from src.training.step_kernels import record_step
from src.training.trainer import build_trainer

# Kernels with FLOPs, by their names: of cuBLAS, CUTLASS, cuDNN and flash attention on a GPU, of ATen's operations on a CPU.
MATRIX = re.compile(
    r"gemm|gemv|nvjet|cutlass|xmma|splitk|flash|fmha|sdpa|scaled_dot_product|convolution|conv2d|fprop|dgrad|wgrad"
    r"|aten::(mm|bmm|addmm|addmm_)$",
    re.IGNORECASE,
)
HOST_COPIES = ("Memcpy HtoD", "Memcpy DtoH")  # not kernels; the prediction counts none
WARM_UP = 2  # steps: the second one compiles kernels for any number of tokens
TOP = 10
NAME = 120  # characters of a kernel's name; templates have thousands

Measured = list[tuple[str, int, float]]  # name, launches, ms


class StepProfiler(lightning.Callback):
    """Profiles one optimizer step after `WARM_UP` steps: kernels on a GPU, operations on a CPU."""

    def __init__(self, device: str, accumulate: int) -> None:
        self.device, self.accumulate, self.seconds, self.is_profiling = device, accumulate, 0.0, False
        self.profile = profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx == WARM_UP * self.accumulate:
            self.profile.start()
            self.is_profiling = True
            self._start = synchronised_time()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if batch_idx == (WARM_UP + 1) * self.accumulate - 1:
            self.seconds = synchronised_time() - self._start
            self._stop()

    def on_exception(self, trainer, module, exception) -> None:
        if self.is_profiling:
            self._stop()

    def _stop(self) -> None:
        self.is_profiling = False
        self.profile.stop()

    def kernels(self) -> Measured:
        """Most time first. On a CPU, operations with the time that they spend outside of others."""
        on_gpu = self.device == "cuda"
        device_type, time = (DeviceType.CUDA, "self_device_time_total") if on_gpu else (DeviceType.CPU, "self_cpu_time_total")
        rows = [
            (event.key, event.count, getattr(event, time) / 1e3)
            for event in self.profile.key_averages()
            if event.device_type == device_type and not event.is_user_annotation and (on_gpu or event.key.startswith("aten::"))
        ]
        return sorted((row for row in rows if not row[0].startswith(HOST_COPIES)), key=lambda row: -row[2])


def compare_kernels(bench: Bench) -> list[KernelRow]:
    """Predicted and measured totals, and the kernels with most time of both, of one step of `ours_none` on the lengths of the mix."""
    settings = bench.settings("mix", "trainer.activation_checkpointing=none", f"optim.steps={WARM_UP + 1}", "trainer.accumulate=2")
    model = bench.model(settings)
    samples = [roofline.sample_of(length, model.vision.num_patches) for length in roofline.mix_lengths()]
    sequence = {"max_seq_len": settings.data.max_seq_len, "size": model.vision.size}
    batches = roofline.packed_batches(samples, rows=1 if bench.small else 2, **sequence)
    module = StayingModule(model, settings, sources=["bench"], folder=Path(settings.outputs))
    profiler = StepProfiler(bench.device, accumulate=len(batches))
    loader: Any = DataLoader(batches * (WARM_UP + 1), batch_size=None)  # type: ignore[arg-type]
    build_trainer(settings, callbacks=[profiler]).fit(module.train(), loader)
    measured = profiler.kernels()
    if not measured:
        raise UserError("bench-gpu: torch.profiler recorded no kernel; CUPTI is missing, or the driver allows profiling to root only")
    totals = f"{sum(count for _, count, _ in measured):,} kernels, {sum(ms for _, _, ms in measured):.1f} ms"
    tokens = sum(int((batch.sources_BT >= 0).sum()) for batch in batches)
    print(f"one step of {tokens:,} tokens: {totals}, {1e3 * profiler.seconds:.1f} ms by the host's clock", flush=True)
    name = gpu_name(bench.device)
    accelerator = next((gpu for key, gpu in ACCELERATORS.items() if key.upper() in name), H100)
    recording = record_step(settings, batches, shape=bench.shape).kernels
    return kernel_rows(name, measured, recording, accelerator)


def kernel_rows(gpu: str, measured: Measured, recording: Counter[Kernel], accelerator: Accelerator) -> list[KernelRow]:
    """`measured` is sorted; `recording` is that of a `KernelRecorder`."""
    predicted = Prediction.of(recording, accelerator)
    matrix = [row for row in measured if MATRIX.search(row[0]) and not row[0].startswith("triton")]
    other = [row for row in measured if row not in matrix]
    launches = {has_flops: sum(n * k.launches for k, n in recording.items() if bool(k.flops) == has_flops) for has_flops in (True, False)}
    totals = {
        "all kernels": (predicted.kernels, measured, predicted.seconds),
        "matrix": (launches[True], matrix, predicted.matrix),
        "other": (launches[False], other, predicted.other),
    }
    rows = [
        KernelRow(gpu, "total", name, launched, sum(n for _, n, _ in part), 1e3 * seconds, sum(ms for _, _, ms in part))
        for name, (launched, part, seconds) in totals.items()
    ]
    for kernel, count, ms in measured[:TOP]:
        rows.append(KernelRow(gpu, "most time, measured", kernel[:NAME], launches_measured=count, ms_measured=ms))
    for op, line, count, seconds in most_expensive(recording, accelerator, count=TOP):
        group, name = f"most time, predicted for {accelerator.name}", f"{op}, {line}"
        rows.append(KernelRow(gpu, group, name, launches_predicted=count, ms_predicted=1e3 * seconds))
    return rows
