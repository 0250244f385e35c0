"""src/data/train_val_split.py: no record or group is in both parts, and every source large enough has validation records."""

import json

import numpy as np
import pytest

from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.commands.plan import tokenizer_of
from src.config.train import MixConfig
from src.data.shards import Shards
from src.data.token_budget import source_budgets
from src.data.train_val_split import split_rows, split_source
from src.runtime.errors import UserError
from src.training.optim import epochs_to_steps
from tests.fixtures import parts


@pytest.fixture
def build(tmp_path):
    """`build("delta", groups)` builds a text-only source without a validation split, with one training record per entry of `groups`."""

    def build_source(name: str, groups: list[str], *, val: int = 0, leaking: int = 0) -> Shards:
        """The first `leaking` validation records are test records too."""
        (tmp_path / "raw" / name).mkdir(parents=True)
        splits = {"train": groups, "val": [f"val {n}" for n in range(val)], "test": [f"test {n}" for n in range(leaking)]}
        for split, split_groups in splits.items():
            topic = f"{name} {'val' if split == 'test' else split}"
            lines = [
                {"question": f"{topic} {n}?", "answer": f"{n}", "id": f"{split}{n}", "group": group} for n, group in enumerate(split_groups)
            ]
            if lines:
                (tmp_path / "raw" / name / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        build_all(BuildConfig(sources=[name], raw=tmp_path / "raw", out=tmp_path / "shards", workers=1))
        return Shards(tmp_path / "shards" / name)

    return build_source


def test_source_without_training_split_raises(build):
    mix = MixConfig({"delta": 1.0}, decontaminate=True)
    with pytest.raises(UserError, match=r"no training record of 'delta' may be used, it has no training split; set mix.shares.delta=0"):
        split_rows({"delta": build("delta", [], val=5)}, mix, val_samples=4)


def test_validation_records_are_whole_groups_in_a_fixed_order(build):
    opened = build("delta", [f"patient {n % 150}" for n in range(600)])
    groups = opened.column("group")
    train, val = split_source(opened, decontaminate=True, val_samples=10)
    assert len(val) == 10
    assert len(train) == 600 - 12  # three patients of four records
    assert set(groups[train]).isdisjoint(groups[val])
    assert set(groups[val]) == set(np.unique(groups)[:3])
    again = split_source(Shards(opened.folder), decontaminate=True, val_samples=10)
    assert [rows.tolist() for rows in again] == [train.tolist(), val.tolist()]
    assert set(val) < set(split_source(opened, decontaminate=True, val_samples=20)[1])


@pytest.mark.slow
def test_small_sources_and_large_groups_give_up_few_records(build):
    small = build("delta", [f"patient {n}" for n in range(90)])
    train, val = split_source(small, decontaminate=True, val_samples=256)
    assert (len(train), len(val)) == (86, 4)
    large = build("gamma", ["one", "two"] * 40)
    train, val = split_source(large, decontaminate=True, val_samples=256)
    assert (len(train), len(val)) == (80, 0)
    one_is_large = build("eta", ["one"] * 100 + [f"patient {n}" for n in range(100)])
    train, val = split_source(one_is_large, decontaminate=True, val_samples=256)
    assert (len(train), len(val)) == (190, 10)
    assert val.min() >= 100


def test_validation_split_is_used_unchanged(build):
    opened = build("delta", [f"patient {n}" for n in range(90)], val=7)
    for val_samples, count in ((4, 4), (256, 7), (0, 0)):
        train, val = split_source(opened, decontaminate=True, val_samples=val_samples)
        assert train.tolist() == opened.rows("train").tolist()
        assert val.tolist() == opened.rows("val")[:count].tolist()


def test_leaking_validation_records_are_not_used(build):
    opened = build("delta", [f"patient {n}" for n in range(90)], val=7, leaking=3)
    audit_all(AuditConfig(out=opened.folder.parent))
    opened = Shards(opened.folder)
    val = opened.rows("val")
    assert split_source(opened, decontaminate=True, val_samples=4)[1].tolist() == val[3:].tolist()
    assert split_source(opened, decontaminate=False, val_samples=4)[1].tolist() == val[:4].tolist()


def test_source_with_only_leaking_validation_records_gives_up_training_records(build):
    opened = build("delta", [f"patient {n}" for n in range(90)], val=3, leaking=3)
    audit_all(AuditConfig(out=opened.folder.parent))
    opened = Shards(opened.folder)
    train, val = split_source(opened, decontaminate=True, val_samples=4)
    assert (len(train), len(val)) == (86, 4)
    assert set(val) < set(opened.rows("train").tolist())


def test_run_without_validation_uses_all_training_records(build):
    train, val = split_source(build("delta", [f"patient {n}" for n in range(90)]), decontaminate=True, val_samples=0)
    assert (len(train), len(val)) == (90, 0)


@pytest.mark.slow
def test_stream_validation_epochs_and_plan_use_the_same_split(build, configure):
    """Several epochs of a source without a validation split never contain its validation records."""
    opened = build("alpha", [f"patient {n // 2}" for n in range(200)])
    config = configure(f"data.root={opened.folder.parent}", "mix.only=[alpha]", "optim.steps=null", "optim.epochs=4")
    module = parts(config)[1]
    val = {key for batch in module.validation_batches() for key in batch.keys}
    steps = epochs_to_steps(config).optim.steps
    train = {key for step in range(steps) for key in module.stream().batch(step, micro_batch=0).keys}
    assert (len(val), len(train), steps) == (4, 196, 196 * 4 // 16)
    groups = opened.column("group")
    assert not {groups[int(key.partition(":")[2])] for key in val} & {groups[int(key.partition(":")[2])] for key in train}
    assert module.fingerprint["records"]["alpha"].startswith("196 ")
    assert source_budgets(config.mix, config.data, steps=steps, tokenizer=tokenizer_of(config.language))[0].records == 196
