"""`python -m src.plan +experiment=NAME`: what a training run would cost, before anything is downloaded or started."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from rich.table import Column, Table
from torch import nn

from src.config.plan import PlanConfig
from src.config.train import ACTIVATION_CHECKPOINTING, LanguageConfig, TrainConfig, check_values
from src.data import token_budget
from src.data.packing import Batch, RankBalance, low_utilization_warning
from src.model.cost import AverageSample, StepCost, average_batch, build_on_meta, count_cost, layers_of
from src.model.language_checkpoint import TOKENIZER_FILES
from src.model.loss import CHUNK
from src.model.vlm import VLM
from src.model.weight_files import identity_of
from src.runtime.cli import command, compose
from src.runtime.errors import UserError
from src.runtime.tables import print_table
from src.training.epochs import epochs_to_steps

GB = 1e9
ADAM = 4 + 8  # bytes per trainable parameter: gradient, two moments


@dataclass
class Memory:
    """Bytes of one device: what is there whatever the batch, and what each token of a micro-batch adds."""

    parts: dict[str, int]
    per_token: float

    @property
    def fixed(self) -> int:
        return sum(self.parts.values())

    def tokens(self, gigabytes: float) -> int:
        """The largest micro-batch that fits, in tokens."""
        return max(0, int((gigabytes * GB - self.fixed) / self.per_token))


def measure_cost(config: TrainConfig, sample: AverageSample, *, how: str) -> StepCost:
    """The cost of one row with `how` as `trainer.activation_checkpointing`, in the precision of the matrix products.

    All layers of the language model but the first and the last cost the same, so that one of them is counted for the rest.
    """
    config = replace(config, trainer=replace(config.trainer, activation_checkpointing=how))
    whole = layers_of(config)
    if whole <= 3:
        return measure_layers(config, sample, whole)
    two, three = (measure_layers(config, sample, layers) for layers in (2, 3))
    flops, saved = three.flops - two.flops, three.saved - two.saved
    return replace(three, flops=three.flops + (whole - 3) * flops, saved=three.saved + (whole - 3) * saved)


def measure_layers(config: TrainConfig, sample: AverageSample, layers: int) -> StepCost:
    """The cost of one row with a language model of `layers` layers."""
    model = build_on_meta(config, layers=layers)
    dtype = torch.bfloat16 if config.trainer.precision == "bf16-mixed" else torch.float32
    tokens = sample.text + sample.images * model.vision.num_patches + 1
    batch = average_batch(model, sample, rows=1, max_seq_len=max(1, config.data.max_seq_len // tokens) * tokens)
    return count_cost(model.to(dtype), batch_to_meta(batch))


def batch_to_meta(batch: Batch) -> Batch:
    return Batch(**{**vars(batch.to(torch.device("meta"))), "sources_BT": batch.sources_BT})


def estimate_memory(config: TrainConfig, model: VLM, cost: StepCost, *, working: float, reserve: float) -> Memory:
    """`model` in the precision in which its parameters lie in memory; `working`: bytes that stand beside what is kept in `cost`."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    mixed = config.trainer.precision == "bf16-mixed"
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()) + (2 * trainable if mixed else 0),
        "gradients, AdamW": ADAM * trainable,
        "logits of a chunk": CHUNK * 10,
        "reserve": int(reserve * GB),
    }
    return Memory(parts, (cost.saved + working) / cost.tokens)


def largest_micro_batch(config: TrainConfig, cost: StepCost, *, slots: int) -> int:
    """Tokens of the largest micro-batch: of `slots` per rank, some of one rank hold a whole row more than others. With more ranks the
    largest one has an average sample more than the mean, or a single sample that fills a row."""
    step = math.ceil(config.data.global_batch_size * cost.tokens / cost.samples / config.data.max_seq_len)
    ranks = config.trainer.devices * config.trainer.nodes
    if ranks == 1:
        return math.ceil(step / slots) * config.data.max_seq_len
    sample = math.ceil(cost.tokens / cost.samples)
    return max(config.data.max_seq_len, (step * config.data.max_seq_len // (ranks * slots * sample) + 1) * sample)


def check_plan_config(config: PlanConfig) -> None:
    """Of what is on the disk nothing is asked: a plan comes before it."""
    check_values(config)
    ask = config.plan
    if min(ask.images, ask.supervised, ask.reserve) < 0 or ask.supervised > ask.text or ask.text < 1:
        raise UserError(
            "an average sample has plan.images >= 0 and plan.text >= plan.supervised >= 0, and plan.reserve is at least 0, found "
            f"images={ask.images}, text={ask.text}, supervised={ask.supervised}, reserve={ask.reserve:g}"
        )
    if ask.tflops <= 0 or min(ask.memory, default=1) <= 0:
        raise UserError(f"plan.tflops and each of plan.memory must be above 0, found {ask.tflops:g} and {ask.memory}")


def plan(config: PlanConfig) -> None:
    check_plan_config(config)
    config = epochs_to_steps(config)
    wanted, ask = config.trainer.activation_checkpointing, config.plan
    sample = AverageSample(ask.images, ask.text, ask.supervised)
    model = build_on_meta(config)
    costs = {how: measure_cost(config, sample, how=how) for how in ACTIVATION_CHECKPOINTING}
    # While the backward pass is in a layer, this layer's gradients, or what it computes again, stand beside what is kept.
    working = costs["none"].saved / len(model.language.base.model.layers)
    found = {how: (cost, estimate_memory(config, model, cost, working=working, reserve=ask.reserve)) for how, cost in costs.items()}
    sources = token_budget.source_budgets(config.mix, config.data, steps=config.optim.length, tokenizer=tokenizer_of(config.language))
    print_table(token_budget.budget_table(sources, patches=model.vision.num_patches))
    if others := sorted({part.counted_by for part in sources if part.counted_by and not part.exact}):
        print(
            f"{', '.join(others)}, which counted tokens, is not known to be the tokenizer of language.path={config.language.path}, so that "
            "these numbers are estimates; build the shards with its tokenizer to have them counted"
        )
    print_table(parameter_table(model))
    cost, need = found[wanted]
    ranks, samples = config.trainer.devices * config.trainer.nodes, config.optim.length * config.data.global_batch_size
    tokens = largest_micro_batch(config, cost, slots=config.trainer.accumulate)
    lengths = token_budget.window_lengths(config.mix, config.data, patches=model.vision.num_patches, seed=config.seed)
    lengths = lengths or [cost.tokens // cost.samples] * config.data.packing_window
    used = RankBalance.of(lengths, ranks, global_batch_size=config.data.global_batch_size, max_seq_len=config.data.max_seq_len).utilization
    seconds = samples * cost.flops / cost.samples / (ask.tflops * 1e12 * ranks * used)
    print_table(memory_table(need, tokens))
    print(
        f"{cost.tokens // cost.samples} tokens and {cost.flops / cost.samples / 1e12:.2f} TFLOP per sample; {samples:,} samples take "
        f"{seconds / 3600:.1f} h on {ranks} x {ask.gpu} at {ask.tflops} TFLOP/s (expected, not measured)"
        + (f", of which each computes {used:.0%} and waits for the fullest in the rest" if ranks > 1 else "")
    )
    if ranks > 1 and (warning := low_utilization_warning(lengths, ranks, data=config.data, slots=config.trainer.accumulate)):
        print(warning)
    print_table(device_table({how: need for how, (_, need) in found.items()}, ask.memory, max_seq_len=config.data.max_seq_len))


def tokenizer_of(language: LanguageConfig) -> dict[str, str]:
    """Its id and, where it is on this disk, its sha256."""
    files = [file for name in TOKENIZER_FILES if (file := Path(language.path, name)).is_file()]
    return identity_of(language.path, files[:1], revision=language.revision) if files else {"id": language.path}


def memory_advice(config: TrainConfig, gigabytes: float | None = None) -> str:
    """What makes a run fit that ran out of memory, by the plan of its own device; the update is the same with any of it."""
    ask = compose("plan", []).plan
    gigabytes = gigabytes or device_memory()
    for how in ACTIVATION_CHECKPOINTING[ACTIVATION_CHECKPOINTING.index(config.trainer.activation_checkpointing) :]:
        cost = measure_cost(config, AverageSample(ask.images, ask.text, ask.supervised), how=how)
        model = build_on_meta(config)
        working = cost.saved / len(model.language.base.model.layers)
        fits = estimate_memory(config, model, cost, working=working, reserve=ask.reserve).tokens(gigabytes)
        ranks = config.trainer.devices * config.trainer.nodes
        per_rank = config.data.global_batch_size // ranks
        slots = [n for n in range(config.trainer.accumulate + 1, per_rank + 1) if per_rank % n == 0]
        slots = [n for n in slots if largest_micro_batch(config, cost, slots=n) <= fits]
        if fits >= config.data.max_seq_len and slots:
            return (
                f"set trainer.accumulate={slots[0]} and trainer.activation_checkpointing={how}, with which python -m src.plan expects it to fit into "
                f"{gigabytes:.0f} GB, and run the same command: it resumes with the same updates"
            )
    return (
        f"python -m src.plan expects it to fit into {gigabytes:.0f} GB with no trainer.accumulate and trainer.activation_checkpointing; take a larger "
        f"device, or a smaller data.max_seq_len={config.data.max_seq_len} in a new run"
    )


def device_memory() -> float:
    """Of the first GPU, else of the machine, in GB."""
    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else psutil.virtual_memory().total
    return total / GB


def parameter_table(model: nn.Module) -> Table:
    table = Table("part", *(Column(name, justify="right") for name in ("parameters", "trainable")), box=None)
    for name, part in model.parts().items():
        total, trainable = (sum(p.numel() for p in part.parameters() if p.requires_grad or every) for every in (True, False))
        table.add_row(name, f"{total:,}", f"{trainable:,}")
    return table


def memory_table(need: Memory, tokens: int) -> Table:
    table = Table("memory per device", Column("GB", justify="right"), box=None)
    for name, size in {**need.parts, f"activations of {tokens:,} tokens, the largest micro-batch": need.per_token * tokens}.items():
        table.add_row(name, f"{size / GB:.1f}")
    table.add_row("together", f"{(need.fixed + need.per_token * tokens) / GB:.1f}")
    return table


def device_table(needs: dict[str, Memory], sizes: list[float], *, max_seq_len: int) -> Table:
    """Rows: devices. The largest micro-batch decides how small trainer.accumulate may be; it holds one row at least."""
    table = Table("device", *(Column(f"tokens, recompute={how}", justify="right") for how in needs), box=None)
    for size in sizes:
        fits = [need.tokens(size) for need in needs.values()]
        table.add_row(f"{size:g} GB", *("does not fit" if tokens < max_seq_len else f"{tokens:,}" for tokens in fits))
    return table


@command("plan", PlanConfig, validate=check_plan_config)
def main(config: PlanConfig) -> None:
    plan(config)


if __name__ == "__main__":
    main()
