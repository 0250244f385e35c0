"""src/data/train_val_split.py: no record or group is drawn and checked; every source that can be is checked."""

import json

import numpy as np
import pytest

from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.data.shards import Shards
from src.data.token_budget import source_budgets as budget
from src.data.train_val_split import split_source
from src.plan import tokenizer_of
from src.training.optim import epochs_to_steps
from tests.conftest import parts


@pytest.fixture
def build(tmp_path):
    """`build("delta", groups=[...])` is a text-only source without a validation split, a record per named group."""

    def built(name: str, groups: list[str], *, val: int = 0, leaking: int = 0) -> Shards:
        """`leaking` of the validation records, the first ones, are test records too."""
        (tmp_path / "raw" / name).mkdir(parents=True)
        splits = {"train": groups, "val": [f"val {n}" for n in range(val)], "test": [f"test {n}" for n in range(leaking)]}
        for split, of in splits.items():
            asked = "val" if split == "test" else split
            lines = [{"question": f"{name} {asked} {n}?", "answer": f"{n}", "id": f"{split}{n}", "group": at} for n, at in enumerate(of)]
            if lines:
                (tmp_path / "raw" / name / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        build_all(BuildConfig(sources=[name], raw=tmp_path / "raw", out=tmp_path / "shards", workers=1))
        return Shards(tmp_path / "shards" / name)

    return built


def test_whole_groups_are_held_out_once_and_for_all(build):
    opened = build("delta", [f"patient {n % 150}" for n in range(600)])
    groups = opened.column("group")
    drawn, checked = split_source(opened, decontaminate=True, validate=10)
    assert len(checked) == 10
    assert len(drawn) == 600 - 12  # three patients of four records
    assert set(groups[drawn]).isdisjoint(groups[checked])
    assert set(groups[checked]) == set(np.unique(groups)[:3])
    again = split_source(Shards(opened.folder), decontaminate=True, validate=10)
    assert [rows.tolist() for rows in again] == [drawn.tolist(), checked.tolist()]
    assert set(checked) < set(split_source(opened, decontaminate=True, validate=20)[1])


@pytest.mark.slow
def test_small_sources_and_those_of_large_groups_keep_what_they_have(build):
    small = build("delta", [f"patient {n}" for n in range(90)])
    drawn, checked = split_source(small, decontaminate=True, validate=256)
    assert (len(drawn), len(checked)) == (86, 4)
    large = build("gamma", ["one", "two"] * 40)
    drawn, checked = split_source(large, decontaminate=True, validate=256)
    assert (len(drawn), len(checked)) == (80, 0)
    one_is_large = build("eta", ["one"] * 100 + [f"patient {n}" for n in range(100)])
    drawn, checked = split_source(one_is_large, decontaminate=True, validate=256)
    assert (len(drawn), len(checked)) == (190, 10)
    assert checked.min() >= 100


def test_a_validation_split_is_used_as_it_is(build):
    opened = build("delta", [f"patient {n}" for n in range(90)], val=7)
    for validate, found in ((4, 4), (256, 7), (0, 0)):
        drawn, checked = split_source(opened, decontaminate=True, validate=validate)
        assert drawn.tolist() == opened.rows("train").tolist()
        assert checked.tolist() == opened.rows("val")[:found].tolist()


def test_leaking_validation_records_do_not_choose_the_best_checkpoint(build):
    opened = build("delta", [f"patient {n}" for n in range(90)], val=7, leaking=3)
    audit_all(AuditConfig(out=opened.folder.parent))
    opened = Shards(opened.folder)
    val = opened.rows("val")
    assert split_source(opened, decontaminate=True, validate=4)[1].tolist() == val[3:].tolist()
    assert split_source(opened, decontaminate=False, validate=4)[1].tolist() == val[:4].tolist()


def test_source_whose_validation_records_all_leak_gives_up_training_records(build):
    opened = build("delta", [f"patient {n}" for n in range(90)], val=3, leaking=3)
    audit_all(AuditConfig(out=opened.folder.parent))
    opened = Shards(opened.folder)
    drawn, checked = split_source(opened, decontaminate=True, validate=4)
    assert (len(drawn), len(checked)) == (86, 4)
    assert set(checked) < set(opened.rows("train").tolist())


def test_nothing_is_held_out_of_a_run_that_checks_nothing(build):
    drawn, checked = split_source(build("delta", [f"patient {n}" for n in range(90)]), decontaminate=True, validate=0)
    assert (len(drawn), len(checked)) == (90, 0)


@pytest.mark.slow
def test_the_stream_the_check_the_length_and_the_plan_agree(build, configure):
    """Of a source without a validation split, several epochs never show what decides the best checkpoint."""
    opened = build("alpha", [f"patient {n // 2}" for n in range(200)])
    config = configure(f"data.root={opened.folder.parent}", "mix.only=[alpha]", "optim.steps=null", "optim.epochs=4")
    module = parts(config)[1]
    checked = {key for batch in module.validation_batches() for key in batch.keys}
    steps = epochs_to_steps(config).optim.steps
    drawn = {key for step in range(steps) for key in module.stream().batch(step, slot=0).keys}
    assert (len(checked), len(drawn), steps) == (4, 196, 196 * 4 // 16)
    groups = opened.column("group")
    assert not {groups[int(key.partition(":")[2])] for key in checked} & {groups[int(key.partition(":")[2])] for key in drawn}
    assert module.fingerprint["records"]["alpha"].startswith("196 ")
    assert budget(config.mix, config.data, steps=steps, tokenizer=tokenizer_of(config.language))[0].records == 196
