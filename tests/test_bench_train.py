"""experiments/bench/{workload,peers,train,gpu}: the lengths are those for which the targets were set, both sides train alike."""

import csv
from dataclasses import fields

import pytest
import torch

from experiments.bench import gpu, peers, workload
from experiments.bench.watch import Watch
from experiments.bench.workload import STEPS, WARM_UP, WORKLOADS, Workload
from tests.rounding import forward_steps, rounding

TINY = Workload("tiny", 4, 64, 1, 100, 16, padding=0, supervised=0)


@pytest.mark.parametrize(("name", "padding", "supervised"), [("a", 50.9, 25.4), ("b", 29.1, 17.1)])
def test_random_batches_are_padded_as_they_were_when_the_targets_were_set(name, padding, supervised):
    """Four batches after one to warm up, to the digit; the eight that are timed, within two points."""
    batches = peers.batches(WORKLOADS[name], "plain")
    assert len(batches) == WARM_UP + STEPS
    empty, share, _ = peers.padding(batches[1:5])
    assert (round(empty, 1), round(share, 1)) == (padding, supervised)
    empty, share, _ = peers.padding(batches[WARM_UP:])
    assert abs(empty - padding) < 2
    assert abs(share - supervised) < 2


@pytest.mark.parametrize(("side", "least", "most"), [("llava", 35, 50), ("grouped", 0, 5)])
def test_grouped_batches_hold_one_modality_and_by_length_little_padding(side, least, most):
    batches = peers.batches(WORKLOADS["a"], side)[WARM_UP:]
    assert [len({sample.num_images for sample in batch}) for batch in batches] == [1] * STEPS
    assert least < peers.padding(batches)[0] < most


def test_ours_trains_on_every_sample_of_the_plain_batches():
    samples = workload.samples(TINY, STEPS)
    packed = workload.packed(samples, TINY, steps=STEPS)
    assert sum(batch.num_samples for batch in packed) == len(samples)
    assert sum(int((batch.sources_BT >= 0).sum()) for batch in packed) == sum(len(sample.ids) for sample in samples)


@pytest.mark.slow
def test_both_sides_have_the_same_losses_over_updates(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "tiny", TINY)
    monkeypatch.setattr(peers, "pinned", lambda: None)
    steps = forward_steps(workload.model(TINY).language.body.config, length=160)
    assert peers.agree("tiny") < rounding(4 * steps, 1)  # two updates, forward and backward
    trainable = {name for name, p in peers.llava(workload.model(TINY)).named_parameters() if p.requires_grad}
    assert sum("lora_" in name for name in trainable) == 2 * 7
    assert any("vision_tower" in name for name in trainable)


def test_without_a_gpu_the_gpu_benchmark_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "bench-gpu needs a GPU and torch finds none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["devise=cpu"])
    assert "bench-gpu takes device=..., size=..., lengths=..., out=..., found devise=cpu" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["device=cpu", "size=small", "lengths=eve"])
    assert "lengths='eve'; did you mean 'even'?" in capsys.readouterr().err


def test_a_cache_that_grows_with_every_step_shows_in_the_gpu_benchmark():
    watch = Watch()
    watch.times, watch.megabytes = [0.0, 1.0, 2.0, 4.0, 6.0], [500.0, 507.0, 514.0, 521.0, 528.0]
    assert watch.megabytes_per_step == pytest.approx(7)
    assert watch.slowdown == 2


@pytest.mark.slow
def test_the_gpu_benchmark_runs_at_a_small_size(tmp_path, monkeypatch):
    """One variant fits with half as many samples only; what was measured on other lengths stays."""
    usual = gpu.one_per_row

    def large(settings, device, tokenizer, batch):
        if batch > 1:
            raise torch.OutOfMemoryError
        return usual(settings, device, tokenizer, batch)

    monkeypatch.setattr(gpu, "one_per_row", large)
    names = [field.name for field in fields(gpu.Row)]
    (tmp_path / "gpu.csv").write_text(f"{','.join(names)}\n{','.join(['no GPU', 'even'] + ['1'] * (len(names) - 2))}\n")
    gpu.main(["device=cpu", "size=small", "lengths=mix", f"out={tmp_path}/gpu.csv"])
    with (tmp_path / "gpu.csv").open() as file:
        kept, *rows = csv.DictReader(file)
    assert kept["lengths"] == "even"
    assert [row["micro_batch"] for row in rows] == ["2", "2", "2", "1", "2", "2"]
    assert len(rows) == 6
    assert all(float(row["tokens_per_second"]) > float(row["samples_per_second"]) > 0 for row in rows)
    assert all(float(row["mfu"]) > 0 for row in rows)
    assert [bool(row["data_wait"]) for row in rows] == [True] * 4 + [False] * 2
    assert all(float(row["slowdown"]) > 0 and row["host_mb_per_step"] for row in rows)
