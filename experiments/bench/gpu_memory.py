"""Host memory and step time over many forward and backward passes, each over one packed sequence of another geometry.

A library that keeps a graph for every geometry (number of samples, longest sample) makes both grow.
"""

import torch

from experiments.bench import roofline
from experiments.bench.gpu_setup import Bench
from experiments.bench.gpu_table import Value
from experiments.bench.step_monitor import StepMonitor
from src.training.lightning_module import disable_lora_input_cast

MAX_SEQ_LEN = 2048  # at most: the kernels of short sequences take least time, and graphs do not depend on it


def host_memory(bench: Bench) -> list[Value]:
    settings = bench.settings("mix", "trainer.activation_checkpointing=none")
    model, passes = bench.model(settings), bench.scale["passes"]
    disable_lora_input_cast(model)
    samples = [roofline.sample_of(length, model.vision.num_patches) for length in roofline.mix_lengths()]
    length = min(settings.data.max_seq_len, MAX_SEQ_LEN)
    batches = roofline.packed_batches(samples, rows=1, max_seq_len=length, size=model.vision.size, count=passes)
    warm_up, monitor = passes // 10, StepMonitor()
    for number, batch in enumerate(batches):
        with torch.autocast(bench.device, torch.bfloat16, enabled=settings.trainer.precision == "bf16-mixed"):
            loss = model(batch.to(torch.device(bench.device)))[0].sum()
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None
        if number >= warm_up:
            monitor.record()
    return bench.values(
        "memory",
        passes=(passes, f"forward and backward passes of {length} tokens, {warm_up} of them for warm-up"),
        layers=(model.language.body.config.num_hidden_layers, "of the language model"),
        geometries=(len({tuple(batch.cu_seqlens) for batch in batches}), "different packed sequences"),
        host_growth=(monitor.megabytes_per_step, "MB of host memory per pass"),
        slowdown=(monitor.slowdown_of_last(4), "median time of a pass in the last quarter over that in the first"),
    )
