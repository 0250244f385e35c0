"""Sub-sets of a source (src/data/subsets.py): stored beside the index at build time, excluded and limited without a rebuild, and named in
cards, reports and the table of overlaps with transfer sets."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep import sources
from data_prep.build import chunking, shard_writer
from data_prep.build import source as building
from data_prep.build.source import BuildConfig
from data_prep.card import render
from data_prep.shards import build_all
from experiments.paper import overlap
from src.config.train import MixConfig, TrainConfig
from src.config.train_rules import check_values
from src.data import subsets
from src.data.fingerprint import data_fingerprint
from src.data.lineage import lineage, write_lineage
from src.data.remote import CacheConfig, RemoteShards
from src.data.shards import Shards
from src.data.subsets import check_subsets, release_overlaps, select_subsets, subset_usage, with_default_exclusions
from src.data.test_sets import benchmark_configs
from src.data.train_val_split import split_rows, split_source
from src.release.card import CardFacts, data_statement
from src.reporting.blocks import Table, Text
from src.reporting.releases import release_blocks
from src.reporting.run_data import RunData
from src.runtime.cli import CONF, compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from src.train import check_train, train
from tests.test_remote import Server

COUNTS = {"RadImageNet": 60, "NLM- Malaria Data": 12, "OCT & X-Ray 2017": 8}  # of the source `delta`


def write_raw(raw: Path, name: str, counts: dict[str, int]) -> None:
    """Text-only questions; two questions form a group. The records of the sub-sets alternate."""
    (raw / name).mkdir(parents=True)
    rows = [
        {"question": f"{subset} {n}?", "answer": "yes", "group": f"{subset} {n // 2}", **({"dataset": subset} if subset else {})}
        for subset, count in counts.items()
        for n in range(count)
    ]
    rows = [rows[n] for n in np.random.default_rng(0).permutation(len(rows))]
    (raw / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Shards of `delta`, which has sub-sets, and `epsilon`, which has none."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    write_raw(raw, "delta", COUNTS)
    write_raw(raw, "epsilon", {"": 40})
    build_all(BuildConfig(sources=["delta", "epsilon"], raw=raw, out=out, workers=1))
    return out


@pytest.fixture
def delta(root) -> Shards:
    return Shards(root / "delta")


def names_of(shards: Shards, rows: np.ndarray) -> list[str]:
    return [shards.text(row).meta["dataset"] for row in rows.tolist()]


def test_file_holds_the_sub_set_of_each_row_and_is_absent_without_sub_sets(root, delta):
    names, numbers = delta.subsets
    assert names == sorted(COUNTS)
    assert [names[number] for number in numbers] == names_of(delta, np.arange(len(delta)))
    content = (delta.folder / "subsets.arrow").read_bytes()
    entry = delta.manifest["subsets"]
    assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "records": dict(sorted(COUNTS.items()))}
    assert not (root / "epsilon" / "subsets.arrow").exists()
    assert "subsets" not in json.loads((root / "epsilon" / "manifest.json").read_text())
    assert Shards(root / "epsilon").subsets[0] == []


@pytest.mark.slow
def test_bytes_do_not_depend_on_workers_and_interruptions(tmp_path, monkeypatch):
    monkeypatch.setattr(chunking, "SHARD_ROWS", 10)
    monkeypatch.setattr(chunking, "CHUNK_ROWS", 3)
    write_raw(tmp_path / "raw", "delta", COUNTS)
    config = BuildConfig(sources=["delta"], raw=tmp_path / "raw", out=tmp_path / "whole", workers=1)
    build_all(config)
    build_all(replace(config, out=tmp_path / "parallel", workers=2))
    written = []

    def interrupt(folder, shard, chunks):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(shard)
        return shard_writer.write_shard(folder, shard, chunks)

    with monkeypatch.context() as patched:
        patched.setattr(building, "write_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_all(replace(config, out=tmp_path / "interrupted"))
    build_all(replace(config, out=tmp_path / "interrupted"))
    (tmp_path / "parallel" / "delta" / "subsets.arrow").unlink()  # is written again by the same command
    build_all(replace(config, out=tmp_path / "parallel", workers=2))
    for name in ("subsets.arrow", "index.arrow", "manifest.json"):
        contents = {(tmp_path / out / "delta" / name).read_bytes() for out in ("whole", "parallel", "interrupted")}
        assert len(contents) == 1, name


def test_excluding_in_sources_yaml_needs_no_rebuild(tmp_path, monkeypatch):
    write_raw(tmp_path / "raw", "delta", COUNTS)
    entry = sources.Source(name="delta", reader="jsonl", files={"train": ["train.jsonl"]}, subsets=COUNTS)
    states = []
    for exclude in ([], ["RadImageNet"]):
        monkeypatch.setattr(sources, "load_sources", {"delta": replace(entry, exclude=exclude)}.copy)
        build_all(BuildConfig(sources=["delta"], raw=tmp_path / "raw", out=tmp_path / "out", workers=1))
        states.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "delta").iterdir()})
    assert states[0] == states[1]


@pytest.mark.parametrize("damage", ["missing", "cut", "of another build"])
def test_damaged_file_is_reported(tmp_path, damage):
    write_raw(tmp_path / "raw", "delta", COUNTS)
    write_raw(tmp_path / "other", "delta", {"RadImageNet": 3})
    for raw in ("raw", "other"):
        build_all(BuildConfig(sources=["delta"], raw=tmp_path / raw, out=tmp_path / f"{raw}-shards", workers=1))
    path = tmp_path / "raw-shards" / "delta" / "subsets.arrow"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-50])
    elif damage == "of another build":
        path.write_bytes((tmp_path / "other-shards" / "delta" / "subsets.arrow").read_bytes())
    with pytest.raises(UserError, match=r"delta/subsets.arrow: missing or does not match its index; build it again with `make shards`"):
        _ = Shards(path.parent).subsets


def test_excluded_sub_sets_are_in_neither_part(delta):
    for exclude in (["NLM- Malaria Data"], ["nlm-malaria data"]):  # copies of a dataset spell names differently
        train, val = split_source(delta, decontaminate=True, val_samples=4, exclude=exclude)
        assert len(val)
        assert sorted(names_of(delta, np.concatenate([train, val]))) == ["OCT & X-Ray 2017"] * 8 + ["RadImageNet"] * 60


def test_limit_keeps_the_same_records_of_each_sub_set(delta):
    rows = delta.rows("train")
    small, large = (select_subsets(delta, rows, limit=limit) for limit in (10, 20))
    assert {name: names_of(delta, small).count(name) for name in COUNTS} == {name: min(count, 10) for name, count in COUNTS.items()}
    assert names_of(delta, large).count("RadImageNet") == 20
    assert set(small) < set(large) < set(rows)
    assert np.all(np.diff(small) > 0)
    only = select_subsets(delta, rows[np.array(names_of(delta, rows)) == "RadImageNet"], limit=10)
    assert set(only) == {row for row, name in zip(small, names_of(delta, small), strict=True) if name == "RadImageNet"}


def test_limit_does_not_favour_validation_records(delta):
    """Validation takes the groups with the smallest hashes. A limit by the same hashes would fill it with the limited sub-set."""
    rows = delta.rows("train")
    chosen = set(select_subsets(delta, rows, limit=10).tolist())
    radimagenet = [row for row, name in zip(rows.tolist(), names_of(delta, rows), strict=True) if name == "RadImageNet"]
    by_group = sorted(radimagenet, key=lambda row: delta.column("group")[row])[:10]
    assert len(chosen & set(by_group)) < 8


@pytest.mark.parametrize(
    ("exclude", "limit", "message"),
    [
        ({"delta": ["RadImageNt"]}, None, r"names 'RadImageNt', which is no sub-set of this source; did you mean 'RadImageNet'\?"),
        ({"epsilon": ["x"]}, None, "mix.exclude.epsilon: .* has no sub-sets; remove the key, or build it again"),
        (None, {"epsilon": 3}, "mix.max_per_subset.epsilon: .* has no sub-sets"),
        ({"delta": list(COUNTS)}, None, "all its training records leak into test sets or are excluded"),
    ],
)  # fmt: skip
def test_wrong_selection_is_reported(root, exclude, limit, message):
    mix = MixConfig({"delta": 1.0, "epsilon": 1.0}, decontaminate=True, exclude=exclude, max_per_subset=limit)
    with pytest.raises(UserError, match=message):
        split_rows({source: Shards(root / source) for source in mix.shares}, mix, val_samples=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mix.exclude={alhpa: [x]}", r"mix.exclude names 'alhpa', which mix.shares does not have; did you mean 'alpha'\?"),
        ("mix.max_per_subset={alhpa: 3}", "mix.max_per_subset names 'alhpa'"),
        ("mix.max_per_subset={alpha: 0}", "mix.max_per_subset.alpha must be at least 1, found 0"),
    ],
)
def test_wrong_keys_are_reported_without_shards(configure, override, message):
    with pytest.raises(UserError, match=message):
        check_values(configure(override))


def test_selection_is_checked_before_the_model_is_built(configure):
    with pytest.raises(UserError, match=r"mix.exclude.alpha: .*alpha has no sub-sets"):
        check_train(configure("mix.exclude={alpha: [x]}"))


def test_published_sub_set_may_be_absent_from_the_shards(delta, monkeypatch):
    mix = MixConfig({"delta": 1.0}, decontaminate=True, exclude={"delta": ["DeepDRiD"]})
    with pytest.raises(UserError, match="names 'DeepDRiD'"):
        check_subsets(delta, mix, "delta")
    monkeypatch.setattr(subsets, "source_entries", lambda: {"delta": {"subsets": {"DeepDRiD": 132}}})
    check_subsets(delta, mix, "delta")


def test_default_exclusions_come_from_sources_yaml(monkeypatch):
    mix = MixConfig({"delta": 1.0, "epsilon": 1.0}, decontaminate=True, exclude={"epsilon": ["x"]})
    assert with_default_exclusions(mix) is mix
    monkeypatch.setattr(subsets, "source_entries", lambda: {"delta": {"exclude": ["RadImageNet"]}})
    assert with_default_exclusions(mix).exclude == {"delta": ["RadImageNet"], "epsilon": ["x"]}
    assert with_default_exclusions(replace(mix, exclude={"delta": []})).exclude == {"delta": []}


def test_fingerprint_has_the_selection_only_if_it_is_used(root, configure):
    data, shards = configure().data, {source: Shards(root / source) for source in ("delta", "epsilon")}
    mix = MixConfig({"delta": 1.0, "epsilon": 1.0}, decontaminate=True)
    plain = data_fingerprint(shards, mix, seed=0, data=data)
    assert set(plain) == {"version", "shards", "shares", "decontaminate", "records", "seed", "data"}
    for selection in ({"exclude": {"delta": ["RadImageNet"]}}, {"max_per_subset": {"delta": 5}}):
        used = data_fingerprint(shards, replace(mix, **selection), seed=0, data=data)
        assert used == plain | selection | {"records": used["records"]}
        assert used["records"]["delta"] != plain["records"]["delta"]


@pytest.mark.slow
def test_run_stores_its_selection_and_resumes_only_with_it(root, words, monkeypatch):
    """The default of sources.yaml is resolved when the run starts."""
    words = [word for word in words if not word.startswith(("mix.shares", "data.root"))]
    words += ["mix.shares={delta: 1, epsilon: 1}", f"data.root={root}", "mix.max_per_subset={delta: 20}", "optim.steps=3"]
    config = to_typed(TrainConfig, compose("train", words))
    entries = {"delta": {"exclude": ["OCT & X-Ray 2017"]}}
    monkeypatch.setattr(subsets, "source_entries", lambda: entries)
    folder = train(config)
    assert yaml.safe_load((folder / "config.yaml").read_text())["mix"]["exclude"] == {"delta": ["OCT & X-Ray 2017"]}
    sources = {source["name"]: source for source in lineage(folder)[0]["sources"]}
    used = {name: (usage["used"], usage["excluded"]) for name, usage in sources["delta"]["subsets"].items()}
    assert used["OCT & X-Ray 2017"] == (0, True)
    selection = {"exclude": ["OCT & X-Ray 2017"], "max_per_subset": 20}
    expected = split_source(Shards(root / "delta"), decontaminate=True, val_samples=config.data.val_samples, **selection)[0]
    assert sum(count for count, _ in used.values()) == len(expected) <= 32
    assert "subsets" not in sources["epsilon"]
    (folder / "train.json").unlink()  # as after an interruption
    entries["delta"]["exclude"] = []
    with pytest.raises(UserError, match=r"mix.exclude.delta was .* now None"):
        train(config)


@pytest.mark.slow
def test_remote_file_is_fetched_and_verified(root, tmp_path):
    server = Server(root)
    cache = CacheConfig(str(tmp_path / "cache"))
    try:
        server.faults["/delta/subsets.arrow"] = ["corrupt"]
        remote = RemoteShards(f"{server.url}/delta", cache)
        assert remote.subsets[0] == sorted(COUNTS)
        assert np.array_equal(remote.subsets[1], Shards(root / "delta").subsets[1])
        requests = server.requests["/delta/subsets.arrow"]
        RemoteShards(f"{server.url}/delta", cache)
        assert (requests, server.requests["/delta/subsets.arrow"]) == (2, 2)  # again after the damage, then from the cache
        assert RemoteShards(f"{server.url}/epsilon", cache).subsets[0] == []
    finally:
        server.shutdown()
        server.server_close()


def test_cards_list_what_was_excluded_and_limited(root, delta, tmp_path):
    mix = MixConfig({"delta": 1.0}, decontaminate=True, exclude={"delta": ["OCT & X-Ray 2017"]}, max_per_subset={"delta": 10})
    expected = (
        "NLM- Malaria Data 10 of 12 training records; OCT & X-Ray 2017 0 of 8 training records, excluded; "
        "RadImageNet 10 of 60 training records."
    )
    render.write_card("own", mix, root, tmp_path / "card")
    assert f"Sub-sets of delta: {expected}" in (tmp_path / "card" / "card.md").read_text()
    assert "OCT &amp; X-Ray 2017 0 of 8 training records, excluded" in (tmp_path / "card" / "card.html").read_text()
    usage = subset_usage(delta, split_source(delta, **mix.selection("delta"), val_samples=0)[0], exclude=["OCT & X-Ray 2017"])
    source = dict.fromkeys(("title", "licence", "from", "non_commercial", "redistribute", "citation"), "x")
    source |= {"name": "delta", "ancestor": None, "share": 1.0, "records": 80, "phantom": False, "subsets": usage}
    assert f"Sub-sets of delta: {expected}" in data_statement(CardFacts("run", None, {}, [source]))


@pytest.fixture
def run(tmp_path) -> RunData:
    """A run on OmniMedVQA without one sub-set, and on SLAKE."""
    folder = tmp_path / "outputs" / "run"
    folder.mkdir(parents=True)
    config = {
        "name": "run",
        "init": None,
        "mix": {"shares": {"omnimedvqa": 1.0, "slake": 1.0}, "decontaminate": True},
        "data": {"root": "x"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    usage = {
        "OCT & X-Ray 2017": {"records": 8, "used": 0, "excluded": True},
        "CoronaHack": {"records": 12, "used": 10, "excluded": False},
    }
    manifests = {"slake": {"counts": {"train": {"written": 7}}}}
    write_lineage(folder, fingerprint={}, manifests=manifests, subsets={"omnimedvqa": usage})
    return RunData("run", folder)


def test_report_names_the_releases_that_the_run_was_trained_on(run):
    overlap = {"found": {"slake": 3}, "trained_on": False, "notes": [], "start": None}
    cells = [{"benchmark": name, "overlap": overlap if name == "cxr8" else None} for name in ("pneumoniamnist", "cxr8", "sicapv2", "other")]
    table, known, unlisted = release_blocks(run, cells)
    assert isinstance(table, Table)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [tuple(row.values())[0:6] for row in rows] == [
        ("pneumoniamnist", "run", "omnimedvqa/OCT & X-Ray 2017", "certain", "no: excluded", None),
        ("pneumoniamnist", "run", "omnimedvqa/CoronaHack", "certain", "10 of 12 records", None),
        ("cxr8", "run", "slake/X-Ray", "certain", "unknown part of 7 records", 3),
    ]
    assert all(row["evidence"] and row["stated by"] for row in rows)
    assert known == Text("No source of the training data is known to hold the same release as sicapv2.")
    assert unlisted == Text("data_prep/overlaps.yaml states nothing on other.", "gap")


def test_folder_without_training_record_has_no_releases(tmp_path):
    assert release_blocks(RunData("x", tmp_path), [{"benchmark": "cxr8"}]) == []


def test_lineage_without_sub_sets_has_no_entry_for_them(run):
    omnimedvqa, slake = lineage(run.folder)[0]["sources"]
    assert set(omnimedvqa["subsets"]) == {"OCT & X-Ray 2017", "CoronaHack"}
    assert "subsets" not in slake


def test_overlaps_name_transfer_sets_sources_and_sub_sets():
    classification = {name for name, config in benchmark_configs().items() if config.get("layout", "external") != "external"}
    paper = {"cxr8", "medfmc_chest", "medfmc_colon", "medfmc_endo", "busi"}
    assert classification | paper == set(release_overlaps())
    entries = sources.load_sources()
    for statement in (one for overlaps in release_overlaps().values() for one in overlaps):
        assert set(statement) == {"with", "strength", "evidence", "from"}
        assert statement["strength"] in ("certain", "likely", "unknown")
        assert statement["evidence"]
        assert statement["from"]
        source, _, subset = statement["with"].partition("/")
        assert not subset or subset in entries[source].subsets
        assert source in entries


def test_clean_mix_excludes_exactly_the_sub_sets_of_the_overlaps():
    excluded = yaml.safe_load((CONF / "experiment" / "full_mix_clean.yaml").read_text())["mix"]["exclude"]
    named = {one["with"] for overlaps in release_overlaps().values() for one in overlaps if "/" in one["with"]}
    assert {f"{source}/{subset}" for source, names in excluded.items() for subset in names} == named


def test_table_of_overlaps_is_rendered():
    assert overlap.FILE.read_text() == overlap.render(), "run python -m experiments.paper.overlap"
