"""experiments/bench/{trl_sft,trl}: the data that TRL gets, and the rows from a stub of its process. TRL itself is not needed."""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.bench import peers, trl, trl_sft, workload
from experiments.bench.peers import Cost
from experiments.bench.train import ROUNDS
from experiments.bench.workload import Workload
from src.data.prompt import IGNORE
from src.runtime.errors import UserError
from tests.rounding import rounding

TINY = Workload("tiny", 4, 64, 1, 100, 16, padding=0, supervised=0)


def test_records_have_the_tokens_labels_and_pixels_of_the_other_sides():
    processor, batch = trl_sft.make_processor(TINY), workload.make_samples(TINY, 1)
    assert {sample.num_images for sample in batch} == {0, 1}
    records = trl_sft.to_records(batch, TINY)
    for sample, record in zip(batch, records, strict=True):
        prompt = processor(images=record["images"] or None, text=[record["prompt"]], add_special_tokens=False)["input_ids"][0]
        completion = processor(text=[record["completion"]], add_special_tokens=False)["input_ids"][0]
        assert [*prompt, *completion] == sample.ids.tolist()
        assert completion == sample.labels[sample.labels != IGNORE].tolist()
    images = [image for record in records for image in record["images"]]
    pixels = processor.image_processor(images, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels, peers.pad(batch, TINY.image_size)["pixel_values"], rtol=0, atol=rounding(8, 1))  # below 1e-6


def stub_trl(monkeypatch, *, losses: list[float]) -> None:
    """TRL takes 2 s for 100 tokens, ours 0.5 s; our first losses are 4 and 3."""
    results = {peers.our_losses: [4.0, 3.0], peers.train_side: Cost(100, 0.5, 1.0)}
    output = "progress\n" + json.dumps([vars(Cost(100, 2.0, 1.0)), losses, 0.7]) + "\n"
    monkeypatch.setattr(trl.environments, "is_built", lambda name: True)
    monkeypatch.setattr(trl, "run_in_process", lambda function, *arguments: results[function])
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: SimpleNamespace(returncode=0, stdout=output, stderr=""))


def test_rows_compare_ours_with_the_process_of_trl(monkeypatch, capsys):
    stub_trl(monkeypatch, losses=[4.0, 3.0, 2.0])
    rows = {row.name: row for row in trl.measure()}
    assert list(rows) == [f"train_{name}_{side}" for name in trl.TARGETS for side in ("trl", "trl_grouped")]
    assert {(row.value, row.ours, row.peer, row.n) for row in rows.values()} == {(4.0, 200.0, 50.0, ROUNDS)}
    assert (rows["train_a_trl"].target, rows["train_b_trl"].target) == (">= 4.0", ">= 1.5")
    assert "0.1 CPU s per step in TRL's collator" in capsys.readouterr().out


def test_rows_are_refused_if_the_losses_differ(monkeypatch):
    stub_trl(monkeypatch, losses=[4.0, 3.001, 2.0])
    with pytest.raises(AssertionError, match="workload a: the losses of TRL differ from ours"):
        list(trl.measure())


def test_rows_without_the_environment_are_skipped_with_the_command_that_builds_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(trl.environments, "ROOT", tmp_path)
    assert list(trl.measure()) == []
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "train_a_trl" in line
    assert "`python -m experiments.soak.environments trl`" in line


def test_failure_of_the_process_names_its_last_line_and_log(monkeypatch, tmp_path):
    failed = SimpleNamespace(returncode=1, stdout="", stderr="Traceback\nImportError: no trl\n")
    monkeypatch.setattr(subprocess, "run", lambda *command, **options: failed)
    monkeypatch.setattr(trl_sft, "LOG", tmp_path / "trl.log")
    with pytest.raises(UserError, match="exit code 1: ImportError: no trl; see"):
        trl_sft.run(tmp_path / "python", "a", "plain")
    assert "Traceback" in trl_sft.LOG.read_text()
