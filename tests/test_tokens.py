"""Tokens in the index are those that training would have, for any tokenizer, number of workers and interruption."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import sentencepiece
from rich.console import Console
from transformers import AutoTokenizer

from data_prep import sources
from data_prep.build import chunking, shard_writer, slurm
from data_prep.build import source as building
from data_prep.build.source import BuildConfig
from data_prep.build.token_counts import tokenizer_file
from data_prep.shards import build_all
from src.commands.plan import plan
from src.config.plan import PlanConfig
from src.config.train import MixConfig
from src.data import token_budget
from src.data.remote import CacheConfig, RemoteShards
from src.data.shards import SCHEMA, Shards
from src.data.train_val_split import split_source
from src.runtime.cli import compose
from src.runtime.errors import UserError
from tests.test_language_checkpoint import sentencepiece_model
from tests.test_shards import contents, interrupted, put_lines

TURNS = [["Which organ is shown?", "the  lung"], ["Where is the caption?", "left of the heart, é"]]


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(chunking, "SHARD_ROWS", 20)
    monkeypatch.setattr(chunking, "CHUNK_ROWS", 6)
    turns = [{"question": f"{question} {n}", "answer": answer} for n in range(25) for question, answer in TURNS]
    lines = [{**turn, "id": f"q{n}", "choices": ["lung", "heart"]} for n, turn in enumerate(turns)]
    put_lines(tmp_path / "raw" / "own", "train", [*lines, {"id": "no-answer", "question": "What?", "answer": ""}])
    put_lines(tmp_path / "raw" / "own", "test", [{"id": f"c{n}", "caption": f"a chest x-ray of {n} lungs"} for n in range(5)])
    return tmp_path / "raw"


@pytest.fixture(scope="module")
def nameless(tmp_path_factory) -> Path:
    """The tokenizer of PMC-LLaMA as its repository holds it."""
    folder = tmp_path_factory.mktemp("nameless")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    described = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


def build(raw: Path, out: Path, tokenizer: Path | str = "", **settings) -> Shards:
    build_all(BuildConfig(**{"sources": ["own"], "raw": raw, "out": out, "workers": 1, "tokenizer": str(tokenizer), **settings}))
    return Shards(out / "own")


def test_what_is_counted_is_questions_answers_and_captions(raw, language, tmp_path):
    built = build(raw, tmp_path / "out", language)
    tokenizer = AutoTokenizer.from_pretrained(language)
    for record, counted in zip(map(built.__getitem__, range(len(built))), built.column("tokens").tolist(), strict=True):
        parts = [part for turn in record.turns for part in turn] or [record.caption]
        assert counted == sum(len(tokenizer(part, add_special_tokens=False).input_ids) for part in parts)
    assert len(built) == 55
    digest = hashlib.sha256((language / "tokenizer.json").read_bytes()).hexdigest()
    assert built.manifest["tokenizer"] == {"id": str(language), "revision": "unverified", "sha256": digest}


def test_a_vocabulary_of_sentencepiece(raw, nameless, tmp_path):
    built = build(raw, tmp_path / "out", nameless)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(nameless / "tokenizer.model"))
    record = built[0]
    assert built.column("tokens")[0] == sum(len(reference.encode(part)) for turn in record.turns for part in turn)
    assert built.manifest["tokenizer"]["sha256"] == hashlib.sha256((nameless / "tokenizer.model").read_bytes()).hexdigest()


def test_without_a_tokenizer_nothing_is_counted_and_the_samples_are_the_same(raw, language, tmp_path):
    built, counted = build(raw, tmp_path / "out"), build(raw, tmp_path / "counted", language)
    assert set(built.column("tokens").tolist()) == {-1}
    assert built.manifest["tokenizer"] is None
    assert built.manifest["fingerprint"] == counted.manifest["fingerprint"]
    assert built.manifest["shards"] == counted.manifest["shards"]


@pytest.mark.slow
def test_the_same_bytes_for_any_number_of_workers_jobs_and_after_an_interruption(raw, language, tmp_path, monkeypatch):
    build(raw, tmp_path / "one", language)
    whole = contents(tmp_path / "one" / "own")
    build(raw, tmp_path / "two", language, workers=2)
    assert contents(tmp_path / "two" / "own") == whole
    with interrupted(monkeypatch, "train-000001"):
        build(raw, tmp_path / "cut", language)
    build(raw, tmp_path / "cut", language)
    assert contents(tmp_path / "cut" / "own") == whole
    config = BuildConfig(sources=["own"], raw=raw, out=tmp_path / "jobs", workers=1, jobs=2, tokenizer=str(language))
    (tmp_path / "jobs").mkdir()
    with tokenizer_file(config.tokenizer) as counting:
        slurm.write_shards([sources.find_source("own", raw)], config, counting, cluster="debug")
    build_all(config)
    assert contents(tmp_path / "jobs" / "own") == whole


def test_another_tokenizer_is_another_build(raw, language, nameless, tmp_path, monkeypatch):
    first = build(raw, tmp_path / "out", language).column("tokens").tolist()
    written = []
    monkeypatch.setattr(building, "write_shard", lambda *args: written.append(args[1]) or shard_writer.write_shard(*args))
    build(raw, tmp_path / "out", shutil.copytree(language, tmp_path / "moved"))
    assert written == []  # the same tokenizer under another name
    other = build(raw, tmp_path / "out", nameless)
    assert len(written) == 4
    assert other.column("tokens").tolist() != first
    assert set(build(raw, tmp_path / "out").column("tokens").tolist()) == {-1}


def test_a_plan_estimates_only_what_was_not_counted(raw, language, tmp_path, configure):
    build(raw, tmp_path / "out", language)
    shutil.copytree(raw / "own", raw / "other")
    build(raw, tmp_path / "out", sources=["other"])
    data = configure(f"data.root={tmp_path / 'out'}").data
    own, other = token_budget.source_budgets(
        MixConfig({"own": 1, "other": 1}, decontaminate=True), data, steps=10, tokenizer={"id": str(language)}
    )
    opened = Shards(tmp_path / "out" / "own")
    drawn = split_source(opened, decontaminate=True, val_samples=data.val_samples)[0]
    assert own.text == pytest.approx(opened.column("tokens")[drawn].mean())
    assert (own.counted_by, other.counted_by) == (str(language), "")
    console = Console(width=200, record=True)
    console.print(token_budget.budget_table([own, other], patches=4))
    text = console.export_text()
    assert f"tokens counted by {language}" in text
    assert ["about" in line for line in text.splitlines()[1:3]] == [False, True]


@pytest.mark.slow
def test_a_plan_takes_for_estimates_what_another_tokenizer_counted(raw, language, tmp_path, configure, capsys):
    moved = shutil.copytree(language, tmp_path / "moved")
    build(raw, tmp_path / "out", moved)
    config = configure(f"data.root={tmp_path / 'out'}")
    config = PlanConfig(**vars(config) | {"mix": MixConfig({"own": 1}, decontaminate=True), "plan": compose("plan", []).plan})

    def printed_plan() -> tuple[str, str]:
        capsys.readouterr()
        plan(config)
        lines = capsys.readouterr().out.splitlines()
        return lines[1], " ".join(line.strip() for line in lines)

    warning = f"{moved} counted the tokens, which may not be the tokenizer of language.path={language}, so these numbers are estimates"
    row, text = printed_plan()
    assert ("about" in row, warning in text) == (False, False)
    (moved / "tokenizer.json").write_text((moved / "tokenizer.json").read_text() + " ")
    build(raw, tmp_path / "out", moved)
    row, text = printed_plan()
    assert ("about" in row, warning in text) == (True, True)
    for name, exact in ((str(moved), True), ("own/hub", False)):  # not on this disk: by name
        (own,) = token_budget.source_budgets(config.mix, config.data, steps=10, tokenizer={"id": name})
        assert own.exact == exact


def test_shards_of_an_older_layout_are_refused_here_and_at_an_address(raw, tmp_path):
    built = build(raw, tmp_path / "out")
    path, columns = tmp_path / "out" / "own" / "index.arrow", [name for name in SCHEMA.names if name != "tokens"]
    batch = pa.record_batch([built.arrow(name) for name in columns], names=columns)
    path.unlink()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(UserError, match=r"own/index\.arrow: no column tokens; build it again with `make shards`"):
        Shards(tmp_path / "out" / "own")
    with pytest.raises(UserError, match=rf"^file://{tmp_path}/out/own/index\.arrow: no column tokens; build it again"):
        RemoteShards(f"file://{tmp_path}/out/own", CacheConfig(str(tmp_path / "cache")))


@pytest.mark.slow
def test_a_build_without_a_tokenizer_imports_nothing_heavy():
    text = "import sys, data_prep.shards; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("tokenizer", "sentence"),
    [
        ("nowhere", r"tokenizer='nowhere' is neither a file, nor a folder, nor a hub id of the form owner/name"),
        ("empty", r"tokenizer=.*/empty is a folder without tokenizer\.json or tokenizer\.model; it holds nothing"),
        ("broken", r"the tokenizer of tokenizer=.*/broken cannot be loaded: "),
    ],
)
def test_mistakes(raw, tmp_path, tokenizer, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "broken" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=sentence):
        build(raw, tmp_path / "out", tmp_path / tokenizer if tokenizer != "nowhere" else tokenizer)
    assert not (tmp_path / "out").exists()
