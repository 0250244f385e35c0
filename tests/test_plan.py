"""src/plan.py: its tables, and that its estimates agree with real training."""

import ctypes
import resource
from dataclasses import replace

import psutil
import pytest
import torch
from rich.table import Table
from transformers import LlamaConfig

from src.commands.plan import batch_to_meta, estimate_memory, largest_micro_batch, measure_cost, measure_layers, plan, with_planned_steps
from src.config.plan import PlanConfig
from src.config.train import ACTIVATION_CHECKPOINTING, TrainConfig
from src.model import loss
from src.model.cost import AverageSample, StepCost, average_batch, build_on_meta, count_cost
from src.runtime.cli import compose
from src.runtime.errors import UserError, report_user_errors
from src.runtime.schema import to_typed
from src.training.optim import epochs_to_steps, optimizer
from tests.fixtures import parts
from tests.processes import server

SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 8192}
SAMPLE = AverageSample(images=1, text=47, supervised=40)
CHUNK = 1 << 23  # elements of a chunk of logits: 32 of these samples fill one


def test_plan_prints_parts_memory_and_devices(words, capsys):
    """A local model has its own shapes, not those of the 7B."""
    plan(
        to_typed(
            PlanConfig,
            compose("plan", [*words, "plan.images=1", "plan.text=12", "plan.supervised=6", "plan.memory=[1,2]", "plan.reserve=0"]),
        )
    )
    output = capsys.readouterr().out
    assert "37,568" in output
    assert "activations of 320 tokens, the largest micro-batch" in output  # 16 samples of 17 tokens take two sequences of 160
    assert "17 tokens and" in output
    assert "96 samples take" in output
    assert [line.split()[0] for line in output.splitlines()[-3:]] == ["global", "global,", "blocks"]  # cache and bandwidth
    rows = [line.split() for line in output.splitlines() if line.strip().startswith(("1 GB", "2 GB"))]
    assert len(rows) == 2
    for row in rows:
        none, selective, full = (int(number.replace(",", "")) for number in row[2:])
        assert 0 < none <= selective < full


@pytest.mark.slow
def test_plan_shows_no_warning_of_a_library(words, recwarn):
    report_user_errors(plan)(to_typed(PlanConfig, compose("plan", [*words, "plan.text=12", "plan.supervised=6"])))
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.tflops=0", "plan.tflops and each of plan.memory must be above 0, found 0 and"),
        ("plan.memory=[24,0]", "plan.tflops and each of plan.memory must be above 0"),
        ("plan.memory=[nan]", "plan.memory.0 must be a finite number, found nan"),
        ("plan.supervised=1000", "plan.text >= plan.supervised >= 0, .*found images=1, text=61, supervised=1000"),
        ("plan.images=-1", "an average sample has plan.images >= 0"),
        ("trainer.accumulate=0", "trainer.accumulate must be at least 1, found 0"),
        ("trainer.activation_checkpointing=never", "trainer.activation_checkpointing='never'; allowed: full, none, selective"),
        ("optim.steps=null", "give one of optim.steps=None and optim.epochs=None"),
    ],
)
def test_plan_rejects_impossible_values(words, override, message):
    with pytest.raises(UserError, match=message):
        plan(to_typed(PlanConfig, compose("plan", [*words, override])))


def test_epochs_are_planned_from_the_counts_of_sources_that_are_not_built(tmp_path):
    words = ["+experiment=recommended", "mix=own", "mix.shares={slake: 1, vqa_rad: 1}", "optim.epochs=2", f"data.root={tmp_path}"]
    config = to_typed(PlanConfig, compose("plan", [*words, "optim.warmup=0"]))
    assert with_planned_steps(config).optim.steps == round(2 * (9_835 + 1_793) / 128)
    config = replace(config, mix=replace(config.mix, shares={"slake": 1, "my_scans": 1}))
    with pytest.raises(UserError, match=r"optim.epochs=2: no training records of my_scans are known; build the shards, leave"):
        with_planned_steps(config)


def test_epochs_are_planned_from_the_shards_as_in_training(words):
    config = to_typed(PlanConfig, compose("plan", [*words, "optim.steps=null", "optim.epochs=3"]))
    assert with_planned_steps(config) == epochs_to_steps(config)


@pytest.mark.slow
@pytest.mark.parametrize(("words", "device"), [([], "CPU with two cores at 0.15"), (["trainer=gpu"], "H200 at 474.0")])
def test_small_recipe_fits_into_8_gb_on_a_cpu_and_on_a_gpu(tmp_path, capsys, monkeypatch, words, device):
    """Without weights on this disk: SmolLM2 is planned with its own shape, BiomedCLIP as a ViT-B/16."""
    monkeypatch.setattr("src.commands.plan.scale_table", lambda *args, **options: Table())  # takes seconds
    plan(to_typed(PlanConfig, compose("plan", ["+experiment=small", f"data.root={tmp_path}", *words])))
    output = " ".join(capsys.readouterr().out.split())
    assert " language 136,994,112 2,442,240 " in output
    assert 5 < float(output.split(" total ")[-1].split()[0]) < 8
    assert f"7,680 samples take {'3.4' if not words else '0.0'} h on 1 x {device} TFLOP/s" in output
    assert "total 255,843 44,074 3.26 50 " in output  # records, images, GB on disk, shards


@pytest.mark.slow
@pytest.mark.parametrize("mode", ACTIVATION_CHECKPOINTING)
@pytest.mark.parametrize("frozen", [False, True])
def test_cost_from_one_middle_layer_equals_cost_of_the_whole_model(configure, monkeypatch, mode, frozen):
    """With frozen encoder and projector, the first layer differs from the others, because its input needs no gradient."""
    monkeypatch.setattr("src.model.cost._language", lambda config: LlamaConfig(**(SHAPE | {"num_hidden_layers": 5})))
    rates = ["optim.lr.vision=0", "optim.lr.projector=0"] if frozen else []
    config = configure(f"trainer.activation_checkpointing={mode}", "language.path=any/hub", *rates)
    assert measure_cost(config, SAMPLE, checkpointing=mode) == measure_layers(config, SAMPLE, 5)


def send_memory_growth(config: TrainConfig, connection) -> None:
    """Sends the bytes by which this process grows while it trains on one micro-batch."""
    loss.CHUNK = CHUNK
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: freed memory returns to the system, as on a GPU
    torch.ones(64, 64, requires_grad=True).square().sum().backward()
    before = psutil.Process().memory_info().rss
    model = build_on_meta(config, device="cpu", shape=SHAPE).train()
    batch = average_batch(model, SAMPLE, rows=2, max_seq_len=config.data.max_seq_len)
    model(batch)[0].sum().backward()
    optimizer(model, config.optim).step()
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


@pytest.mark.slow
def test_training_needs_the_estimated_memory(configure, monkeypatch):
    """Half a GB, most of it activations, measured in a separate process on the CPU."""
    monkeypatch.setattr("src.commands.plan.CHUNK", CHUNK)
    config = configure("data.max_seq_len=1024", "vision.image_size=64")
    model = build_on_meta(config, shape=SHAPE)
    cost = count_cost(model, batch_to_meta(average_batch(model, SAMPLE, rows=2, max_seq_len=config.data.max_seq_len)))
    estimate = estimate_memory(config, model, cost, working=cost.saved / SHAPE["num_hidden_layers"], reserve=0)
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(target=send_memory_growth, args=(config, sender))
    process.start()
    sender.close()
    assert receiver.poll(120)
    measured = receiver.recv()
    process.join()
    assert estimate.fixed + estimate.per_token * cost.tokens == pytest.approx(measured, rel=0.25)


def token_counts(batches: list) -> StepCost:
    """A cost with the number of real tokens and of samples alone."""
    tokens = sum(int((batch.sources_BT >= 0).sum()) for batch in batches)
    return StepCost(tokens, sum(batch.num_samples for batch in batches), 0, 0)


@pytest.mark.parametrize("accumulate", [1, 4, 8])
def test_no_micro_batch_of_one_rank_exceeds_the_estimate(configure, accumulate):
    """One rank distributes whole sequences: of eight micro-batches, one gets two of nine sequences."""
    config = configure(f"trainer.accumulate={accumulate}", "data.max_seq_len=60")
    _, data = parts(config)
    batches = [data.stream().batch(step, micro_batch=micro_batch) for step in range(2) for micro_batch in range(accumulate)]
    largest = max(batch.input_ids_BT.numel() for batch in batches)
    assert largest <= largest_micro_batch(config, token_counts(batches), accumulate=accumulate) < largest + 60


@pytest.mark.parametrize(("ranks", "accumulate"), [(2, 1), (4, 1), (4, 4), (16, 1)])
def test_no_micro_batch_of_several_ranks_exceeds_the_estimate(configure, ranks, accumulate):
    config = configure(f"trainer.devices={ranks}", f"trainer.accumulate={accumulate}", "data.max_seq_len=60")
    _, data = parts(config)
    streams = [data.stream(rank=rank, world=ranks) for rank in range(ranks)]
    batches = [stream.batch(step, micro_batch=micro_batch) for stream in streams for step in range(2) for micro_batch in range(accumulate)]
    largest = max(batch.input_ids_BT.numel() for batch in batches)
    cost = token_counts(batches)
    assert largest <= largest_micro_batch(config, cost, accumulate=accumulate) <= max(60, largest + cost.tokens / cost.samples + 60 / ranks)


@pytest.mark.slow
def test_expected_time_includes_waiting_for_the_fullest_rank(words, capsys):
    """With sixteen samples for sixteen ranks, all wait for the longest one."""
    keys = ["plan.images=1", "plan.text=12", "plan.supervised=6", "plan.tflops=1e-9", "plan.reserve=0"]
    hours = {}
    for ranks in (1, 16):
        plan(to_typed(PlanConfig, compose("plan", [*words, *keys, f"trainer.devices={ranks}"])))
        output = " ".join(capsys.readouterr().out.split())
        hours[ranks] = float(output.split("samples take ")[1].split(" h")[0])
    used = int(output.split("of which each computes ")[1].split("%")[0]) / 100
    assert used < 0.9
    assert hours[1] / hours[16] == pytest.approx(16 * used, rel=0.02)
    assert f"warning: 16 processes compute {used:.0%} of their time" in output
