"""Estimates what a training run costs; the command is `src/plan.py`."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from rich.table import Column, Table
from torch import nn

from src.commands.plan_scale import scale_table
from src.config.plan import PlanConfig, check_plan_config
from src.config.train import LanguageConfig, TrainConfig
from src.data import token_budget
from src.data.packing import Batch, RankBalance, low_utilization_warning
from src.data.subsets import with_default_exclusions
from src.data.working_set import SourceLoad, cache_table
from src.model.cost import AverageSample, StepCost, average_batch, build_on_meta, count_cost, layers_of
from src.model.fast.elementwise import meta_counts_as
from src.model.language_checkpoint import TOKENIZER_FILES
from src.model.loss import CHUNK
from src.model.vlm import VLM
from src.model.weight_files import identity_of
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.tables import print_table
from src.training.optim import epochs_to_steps

GB = 1e9
ADAM = 4 + 8  # bytes per trainable parameter: gradient, two moments


@dataclass
class Memory:
    """Memory of one device in bytes."""

    parts: dict[str, int]  # independent of the batch
    per_token: float  # added by each token of a micro-batch

    @property
    def fixed(self) -> int:
        return sum(self.parts.values())

    def tokens(self, gigabytes: float) -> int:
        """The largest micro-batch that fits, in tokens."""
        return max(0, int((gigabytes * GB - self.fixed) / self.per_token))


def measure_cost(config: TrainConfig, sample: AverageSample, *, checkpointing: str) -> StepCost:
    """The cost of one packed sequence, with `checkpointing` as `trainer.activation_checkpointing`, in the precision of the matrix products.

    All layers of the language model except the first and the last have the same cost, so one of them is counted for the rest.
    """
    config = replace(config, trainer=replace(config.trainer, activation_checkpointing=checkpointing))
    num_layers = layers_of(config)
    if num_layers <= 3:
        return measure_layers(config, sample, num_layers)
    two, three = (measure_layers(config, sample, layers) for layers in (2, 3))
    flops, saved = three.flops - two.flops, three.saved - two.saved
    return replace(three, flops=three.flops + (num_layers - 3) * flops, saved=three.saved + (num_layers - 3) * saved)


def measure_layers(config: TrainConfig, sample: AverageSample, layers: int) -> StepCost:
    """The cost of one packed sequence with a language model of `layers` layers."""
    model = build_on_meta(config, layers=layers)
    dtype = torch.bfloat16 if config.trainer.precision == "bf16-mixed" else torch.float32
    tokens = sample.text + sample.images * model.vision.num_patches + 1
    batch = average_batch(model, sample, rows=1, max_seq_len=max(1, config.data.max_seq_len // tokens) * tokens)
    with meta_counts_as(config.trainer.accelerator):
        return count_cost(model.to(dtype), batch_to_meta(batch))


def batch_to_meta(batch: Batch) -> Batch:
    """The batch on the meta device; only the source numbers stay real, because `count_cost` counts tokens by them."""
    return Batch(**{**vars(batch.to(torch.device("meta"))), "sources_BT": batch.sources_BT})


def estimate_memory(config: TrainConfig, model: VLM, cost: StepCost, *, working: float, reserve: float) -> Memory:
    """Memory of training `model`, whose parameters have the precision that they have in memory.

    `working`: bytes that a backward pass needs beside the saved activations of `cost`. `reserve`: GB for the driver and fragmentation.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    mixed = config.trainer.precision == "bf16-mixed"
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()) + (2 * trainable if mixed else 0),
        "gradients, AdamW": ADAM * trainable,
        "logits of a chunk": CHUNK * 10,
        "reserve": int(reserve * GB),
    }
    return Memory(parts, (cost.saved + working) / cost.tokens)


def largest_micro_batch(config: TrainConfig, cost: StepCost, *, accumulate: int) -> int:
    """Tokens of the largest micro-batch.

    One rank distributes whole sequences over its micro-batches, so some hold one sequence more than others. Several ranks share single
    samples: the largest micro-batch exceeds the mean by an average sample, or is one sample as long as a sequence.
    """
    max_seq_len, ranks = config.data.max_seq_len, config.trainer.devices * config.trainer.nodes
    sequences = math.ceil(config.data.global_batch_size * cost.tokens / cost.samples / max_seq_len)  # per optimizer step
    if ranks == 1:
        return math.ceil(sequences / accumulate) * max_seq_len
    sample = math.ceil(cost.tokens / cost.samples)
    return max(max_seq_len, (sequences * max_seq_len // (ranks * accumulate * sample) + 1) * sample)


def plan(config: PlanConfig) -> None:
    """Prints the tables of data, parameters, memory and devices, and the expected time."""
    check_plan_config(config)
    config = with_planned_steps(replace(config, mix=with_default_exclusions(config.mix)))
    assumed, trainer, (device, tflops) = config.plan, config.trainer, config.device
    sample = AverageSample(assumed.images, assumed.text, assumed.supervised)
    model = build_on_meta(config)
    costs: dict[str, StepCost] = {}
    for mode in config.language.checkpointing_choices:
        same = mode == "selective" and trainer.accelerator != "cpu"  # as none, because a GPU never saves element-wise results
        costs[mode] = costs["none"] if same else measure_cost(config, sample, checkpointing=mode)
    # During the backward pass of a layer, its gradients or recomputed activations are in memory beside all saved activations.
    working = costs["none"].saved / len(model.language.base.model.layers)
    memory = {mode: estimate_memory(config, model, cost, working=working, reserve=assumed.reserve) for mode, cost in costs.items()}
    sources = token_budget.source_budgets(config.mix, config.data, steps=config.optim.length, tokenizer=tokenizer_of(config.language))
    print_table(token_budget.budget_table(sources, patches=model.vision.num_patches))
    if others := sorted({part.counted_by for part in sources if part.counted_by and not part.exact}):
        print(
            f"{', '.join(others)} counted the tokens, which may not be the tokenizer of language.path={config.language.path}, so these "
            "numbers are estimates; build the shards with its tokenizer for exact ones"
        )
    print_table(parameter_table(model))
    cost = costs[trainer.activation_checkpointing]
    ranks, samples = trainer.devices * trainer.nodes, config.optim.length * config.data.global_batch_size
    tokens = largest_micro_batch(config, cost, accumulate=trainer.accumulate)
    lengths = token_budget.window_lengths(config.mix, config.data, patches=model.vision.num_patches, seed=config.seed)
    lengths = lengths or [cost.tokens // cost.samples] * config.data.packing_window
    used = RankBalance.of(lengths, ranks, global_batch_size=config.data.global_batch_size, max_seq_len=config.data.max_seq_len).utilization
    seconds = samples * cost.flops / cost.samples / (tflops * 1e12 * ranks * used)
    print_table(memory_table(memory[trainer.activation_checkpointing], tokens))
    print(
        f"{cost.tokens // cost.samples} tokens and {cost.flops / cost.samples / 1e12:.2f} TFLOP per sample; {samples:,} samples take "
        f"{seconds / 3600:.1f} h on {ranks} x {device} at {tflops} TFLOP/s (expected, not measured)"
        + (f", of which each computes {used:.0%} and waits for the fullest in the rest" if ranks > 1 else "")
    )
    if ranks > 1 and (warning := low_utilization_warning(lengths, ranks, data=config.data, accumulate=trainer.accumulate)):
        print(warning)
    print_table(device_table(memory, assumed.memory, max_seq_len=config.data.max_seq_len))
    if trainer.accelerator == "gpu":
        print_table(scale_table(config, model, sample, lengths, sample_bytes=token_budget.bytes_per_sample(sources)))
    loads = [
        SourceLoad(source.shards, source.disk, source.records, source.draws / samples)
        for source in sources
        if source.records and source.shards
    ]
    node = trainer.devices * tflops * 1e12 / (cost.flops / cost.samples)  # samples per second
    if loads:
        print_table(cache_table(loads, config.data, samples_per_second=node))


def with_planned_steps(config: PlanConfig) -> PlanConfig:
    """Converts `optim.epochs` to `optim.steps`, with the counts of `data_prep/sources.yaml` for sources that are not built yet."""
    if config.optim.epochs is None:
        return epochs_to_steps(config)
    sources = token_budget.source_budgets(config.mix, config.data, steps=0, tokenizer=tokenizer_of(config.language))
    if unknown := [source.name for source in sources if not source.records]:
        raise UserError(
            f"optim.epochs={config.optim.epochs:g}: no training records of {', '.join(unknown)} are known; build the shards, leave these "
            "sources out, or give optim.steps and set optim.epochs=null"
        )
    return epochs_to_steps(config, records=sum(source.records for source in sources))


def tokenizer_of(language: LanguageConfig) -> dict[str, str]:
    """The identity of the tokenizer: its id and, if it is a local folder, its sha256."""
    files = [file for name in TOKENIZER_FILES if (file := Path(language.path, name)).is_file()]
    return identity_of(language.path, files[:1], revision=language.revision) if files else {"id": language.path}


def memory_advice(config: TrainConfig, gigabytes: float | None = None) -> str:
    """Settings with which a run that ran out of memory is expected to fit its device. None of them changes the update."""
    assumed = compose("plan", []).plan
    gigabytes = gigabytes or device_memory()
    sample = AverageSample(assumed.images, assumed.text, assumed.supervised)
    choices = config.language.checkpointing_choices
    for mode in choices[choices.index(config.trainer.activation_checkpointing) :]:
        cost = measure_cost(config, sample, checkpointing=mode)
        model = build_on_meta(config)
        working = cost.saved / len(model.language.base.model.layers)
        fits = estimate_memory(config, model, cost, working=working, reserve=assumed.reserve).tokens(gigabytes)
        per_rank = config.data.global_batch_size // (config.trainer.devices * config.trainer.nodes)
        accumulate = [n for n in range(config.trainer.accumulate + 1, per_rank + 1) if per_rank % n == 0]
        accumulate = [n for n in accumulate if largest_micro_batch(config, cost, accumulate=n) <= fits]
        if fits >= config.data.max_seq_len and accumulate:
            return (
                f"set trainer.accumulate={accumulate[0]} and trainer.activation_checkpointing={mode}, with which src.plan expects it "
                f"to fit into {gigabytes:.0f} GB, and run the same command: it resumes with the same updates"
            )
    return (
        f"python -m src.plan expects it to fit into {gigabytes:.0f} GB with no trainer.accumulate and trainer.activation_checkpointing; "
        f"use a larger device, or a smaller data.max_seq_len={config.data.max_seq_len} in a new run"
    )


def device_memory() -> float:
    """Memory of the first GPU, or of the machine if it has none, in GB."""
    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else psutil.virtual_memory().total
    return total / GB


def parameter_table(model: nn.Module) -> Table:
    table = Table("part", *(Column(name, justify="right") for name in ("parameters", "trainable")), box=None)
    for name, part in model.parts().items():
        total, trainable = (sum(p.numel() for p in part.parameters() if p.requires_grad or every) for every in (True, False))
        table.add_row(name, f"{total:,}", f"{trainable:,}")
    return table


def memory_table(memory: Memory, tokens: int) -> Table:
    table = Table("memory per device", Column("GB", justify="right"), box=None)
    sizes = {**memory.parts, f"activations of {tokens:,} tokens, the largest micro-batch": memory.per_token * tokens}
    for name, size in {**sizes, "total": sum(sizes.values())}.items():
        table.add_row(name, f"{size / GB:.1f}")
    return table


def device_table(memory: dict[str, Memory], gigabytes: list[float], *, max_seq_len: int) -> Table:
    """The largest micro-batch per device and mode of activation checkpointing, which limits how small trainer.accumulate can be."""
    table = Table("device", *(Column(f"tokens, {mode} checkpointing", justify="right") for mode in memory), box=None)
    for size in gigabytes:
        fits = [estimate.tokens(size) for estimate in memory.values()]
        table.add_row(f"{size:g} GB", *("does not fit" if tokens < max_seq_len else f"{tokens:,}" for tokens in fits))
    return table
