"""Credentialed data: its texts and images stay in its shards, and what is derived from it is marked and not uploaded by accident."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import yaml

from data_prep import sources
from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.chunking import hash64
from data_prep.build.source import BuildConfig, without_text
from data_prep.card import render
from data_prep.readers import READERS
from data_prep.readers.tables import table_rows
from data_prep.shards import build_all
from data_prep.sources import Licence, Source
from src.ask import ask
from src.classification.encoders import Encoder
from src.config.ask import AskConfig
from src.config.evaluate import EvaluateConfig
from src.config.export import ExportConfig, PushConfig
from src.config.report import ReportConfig
from src.config.train import MixConfig, TrainConfig, VisionConfig
from src.data import credentialed as rules
from src.data import source_entries
from src.data.lineage import FILE, credentialed, lineage, write_lineage
from src.demo import examples_from_run
from src.evaluate import evaluate
from src.export import export
from src.inference.query import find_model
from src.model.generate import Answer
from src.release.card import LIBRARIES, collect_facts, model_card
from src.release.space import texts
from src.report import report
from src.reporting.run_data import RunData, credentialed_sources
from src.runtime.cli import compose, normalise_override
from src.runtime.errors import UserError
from src.runtime.run_folder import open_run
from src.runtime.schema import to_plain, to_typed
from src.serving.limits import Limits
from src.serving.page import build
from src.train import train
from tests.fixtures import jpeg, overrides
from tests.runs import finish
from tests.test_push import hub  # noqa: F401 (a fixture)
from tests.test_wandb import complete_records, run_files, without_login  # noqa: F401 (a fixture)

CLOSED, OPEN, MEMORISED = "kzqvxk", "pzqvxp", "mzqvxm"  # in every text of the credentialed source, of the other one, in every answer
REASON = "The owner of the data approved this upload in writing."


def write_raw(folder: Path, marker: str) -> None:
    """Questions and captions on images; every text, also of the two rows that cannot be used, holds the marker."""
    rng = np.random.default_rng(ord(marker[0]))
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("val", 6), ("test", 8)):
        lines = []
        for n in range(count):
            (folder / f"{split}{n}.jpg").write_bytes(jpeg(rng))
            texts = {"caption": f"{marker} caption {n}"} if n % 4 == 3 else {"question": f"{marker} {n}?", "answer": f"{marker} {n % 2}"}
            lines.append({"id": f"{split}{n}", "image": f"{split}{n}.jpg", "licence": "own", "note": marker, **texts})
        lines += [
            {"id": "bad-role", "messages": [{"role": marker, "content": marker}]},
            {**lines[0], "id": "bad-image", "image": f"{marker}.jpg"},
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def set_credentialed(monkeypatch, *names: str) -> None:
    """Entries as that of a source with `licence.credentialed: yes`."""
    original = sources.find_source

    def find_source(name: str, raw: Path) -> Source:
        entry = original(name, raw)
        return replace(entry, licence=replace(entry.licence, credentialed="yes")) if name in names else entry

    monkeypatch.setattr(sources, "find_source", find_source)


def run_everything(root: Path, language: Path) -> None:
    """Builds, audits, describes, trains, evaluates, reports, exports and asks, with errors on purpose."""
    for name, marker in (("closed", CLOSED), ("public", OPEN)):
        write_raw(root / "raw" / name, marker)
    shards, outputs = root / "shards", root / "outputs"
    build_config = BuildConfig(sources=["closed", "public"], raw=root / "raw", out=shards, workers=1, quarantine_limit=1)
    build_all(build_config)
    audit_all(AuditConfig(out=shards))
    render.write_card("own", MixConfig({"closed": 1, "public": 1}, decontaminate=True), shards, root / "card")
    words = [word for word in overrides(shards, language, outputs) if not word.startswith("mix.shares")]
    words += ["mix.shares={closed: 1, public: 1}", "logger=wandb"]
    train(to_typed(TrainConfig, compose("train", words)))
    with pytest.raises(UserError, match="record 'closed/") as error:
        train(to_typed(TrainConfig, compose("train", [*words, "name=broken", "data.max_seq_len=16", "vision.image_size=64"])))
    print(error.value)
    run = ["run=tiny", f"outputs={outputs}"]
    evaluate(to_typed(EvaluateConfig, compose("evaluate", [*run, "benchmarks=[closed,public]", "resamples=10", "accelerator=cpu"])))
    report(to_typed(ReportConfig, compose("report", ["runs=tiny", f"outputs={outputs}", "examples=16"])))
    export(to_typed(ExportConfig, compose("export", [*run, f"out={root / 'export'}"])))
    (root / "demo").mkdir()
    questions = [question for _, question in examples_from_run(find_model("run:tiny", outputs=str(outputs)).config, root / "demo")]
    (root / "demo" / "questions").write_text("\n".join(questions))
    for model in ("run:tiny", str(root / "export")):
        ask(to_typed(AskConfig, compose("ask", [f"model={model}", f"outputs={outputs}", "question='which organ?'", "accelerator=cpu"])))


def read(folder: Path) -> dict[str, bytes]:
    """The files of a folder except raw data, tars and predictions, which hold texts by design."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in files if path.suffix != ".tar" and path.parent.name != "predictions"}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("raw/")}


def holders(files: dict[str, bytes], marker: str) -> set[str]:
    return {name for name, content in files.items() if marker.encode() in content}


@pytest.mark.slow
@pytest.mark.parametrize("is_closed", [True, False], ids=["credentialed", "open"])
def test_texts_of_a_credentialed_source_stay_in_its_shards(is_closed, language, tmp_path, monkeypatch, capfd):
    """Everything that the commands write and print is searched. An open source with the same texts is found in all of these places."""
    if is_closed:
        set_credentialed(monkeypatch, "closed")
    line = Answer.line
    monkeypatch.setattr(Answer, "line", lambda answer: line(answer) | {"prediction": f"{MEMORISED} {CLOSED}"})  # a model may memorise
    run_everything(tmp_path, language)
    (artifact,) = (one.artifact for one in complete_records(run_files(tmp_path / "outputs" / "tiny")[-1]) if one.HasField("artifact"))

    def broken(raw, split, entry) -> Iterator:
        raise ValueError(f"{CLOSED}: not a number")

    monkeypatch.setitem(READERS, "jsonl", broken)
    with pytest.raises((UserError, ValueError)) as error:
        build_all(BuildConfig(sources=["closed"], raw=tmp_path / "raw", out=tmp_path / "again", workers=1))
    out, err = capfd.readouterr()
    files = read(tmp_path) | {"stdout": out.encode(), "stderr": err.encode(), "error": str(error.value).encode()}
    table = next(name for name in files if "/media/table/" in name)
    pictures = sum(entry.path.endswith(".png") for entry in artifact.manifest.contents)
    page, card = (files[name].decode() for name in ("outputs/tiny/report.html", "card/card.html"))
    assert {table, "outputs/tiny/report.html", "card/card.html", "demo/questions"} <= holders(files, OPEN)
    assert json.loads(files["shards/closed/manifest.json"])["credentialed"] is is_closed
    assert len([line for line in files["shards/closed/quarantine.jsonl"].splitlines() if b"unknown role" in line]) == 3
    if is_closed:
        assert holders(files, CLOSED) == holders(files, MEMORISED) == set()
        assert (page.count('src="data:image/jpeg'), card.count("src='data:image/jpeg"), pictures) == (8, 6, 8)
        assert "record train0 of a credentialed source; its content is withheld" in card
        assert "record test0 of a credentialed source; its content is withheld" in page
        assert "ValueError in test_credentialed.py, line" in str(error.value)
        assert f"{tmp_path}/outputs/tiny/predictions: sensitive" in out
        assert out.count("Credentialed: trained on closed,") == 2  # training and export
        assert err.count("note: Credentialed: trained on closed,") == 2  # the run and its export
        assert "Credentialed: trained on closed," in page
        assert "credentialed: records and what is derived from them are sensitive" in card
        predictions = (tmp_path / "outputs" / "tiny" / "predictions" / "closed.real.jsonl").read_text()  # local, needed for the scores
        assert CLOSED in predictions
    else:
        places = {table, "outputs/tiny/report.html", "card/card.html", "demo/questions", "shards/closed/quarantine.jsonl", "error"}
        assert places <= holders(files, CLOSED)
        assert {table, "outputs/tiny/report.html"} <= holders(files, MEMORISED)
        assert (page.count('src="data:image/jpeg'), card.count("src='data:image/jpeg"), pictures) == (16, 12, 16)
        assert "Credentialed: trained on" not in out + err + page


NOT_UNICODE = "p10\udce9"


@pytest.mark.parametrize(
    ("key", "reason", "expected"),
    [
        ("p10/s500-1", f"unknown role: '{CLOSED}'", ("p10/s500-1", "unknown role")),
        ("p10/s500-1", "empty answer", ("p10/s500-1", "empty answer")),
        (NOT_UNICODE, "empty answer", (f"row-{hash64(NOT_UNICODE):016x}", "empty answer")),
        (CLOSED * 20, "empty answer", (f"row-{hash64(CLOSED * 20):016x}", "empty answer")),
        (f"report: {CLOSED}", "unexpected field type: KeyError", (f"row-{hash64(f'report: {CLOSED}'):016x}", "unexpected field type")),
    ],
)
def test_quarantine_holds_no_text_of_a_credentialed_row(key, reason, expected):
    assert without_text(key, reason) == expected


def test_message_about_a_table_without_header_shows_no_row(tmp_path):
    (tmp_path / "train.csv").write_text(f"1,{CLOSED}\n2,b\n")
    entry = Source(name="closed", reader="", files={}, licence=Licence(credentialed="yes"))
    for credentialed_entry, notices in ((entry, False), (replace(entry, licence=Licence()), True)):
        with pytest.raises(UserError, match="no column 'report'") as error:
            list(table_rows(tmp_path / "train.csv", credentialed_entry, required=["report"]))
        assert (CLOSED in str(error.value)) == notices


@pytest.fixture
def start(words):
    """`start("child", "alpha", init="parent", manifest={...})`: a finished run on one source with its lineage, without weights."""

    def start_run(name: str, source: str, *changes: str, init: str = "", manifest: dict | None = None) -> Path:
        named = [f"name={name}", f"mix.shares={{{source}: 1}}", f"init={f'run:{init}' if init else 'null'}", *changes]
        config = to_typed(TrainConfig, compose("train", [word for word in words if not word.startswith("mix.shares")] + named))
        folder = Path(config.outputs) / name
        open_run(folder, to_plain(config))
        (folder / "train.json").write_text(json.dumps({"git": "0", "version": "0"}))
        (folder / "result.json").write_text(json.dumps({"metrics": {}, "data": "0"}))
        write_lineage(folder, fingerprint={}, manifests={source: manifest or {}})
        return folder

    return start_run


def test_children_of_a_credentialed_run_are_credentialed(start, monkeypatch):
    parent = start("parent", "alpha", manifest={"credentialed": True})
    child = start("child", "gamma", init="parent")
    shutil.rmtree(parent)
    assert credentialed(lineage(child)) == ["alpha"]
    assert find_model("run:child", outputs=str(child.parent)).credentialed == ["alpha"]
    assert credentialed(lineage(start("other", "gamma"))) == []


def test_record_of_older_code_is_looked_up_by_name(start, monkeypatch):
    folder = start("older", "gamma")
    records = json.loads((folder / FILE).read_text())
    del records[0]["sources"][0]["credentialed"], records[0]["pretrained_on"]
    (folder / FILE).write_text(json.dumps(records))
    assert credentialed(lineage(folder)) == []
    monkeypatch.setattr(rules, "listed_sources", lambda: frozenset({"gamma"}))
    assert credentialed(lineage(folder)) == ["gamma"]


def test_listed_sources_are_those_of_the_file(tmp_path, monkeypatch):
    """Own parsing, because `src` does not import `data_prep`; YAML reads an unquoted yes as true."""
    (tmp_path / "sources.yaml").write_text(
        "a: {licence: {credentialed: yes}}\nb: {licence: {credentialed: 'yes'}}\nc: {licence: {}}\nd: {}\n"
    )
    for path, expected in ((tmp_path / "sources.yaml", {"a", "b"}), (tmp_path / "none.yaml", set())):
        monkeypatch.setattr(source_entries, "SOURCES_YAML", path)
        source_entries.source_entries.cache_clear()
        assert rules.listed_sources() == expected
    monkeypatch.undo()
    source_entries.source_entries.cache_clear()
    assert rules.listed_sources() == {name for name, entry in sources.load_sources().items() if entry.credentialed}


def test_run_on_an_exported_credentialed_model_is_credentialed(start, tmp_path, language):
    exported = shutil.copytree(language, tmp_path / "exported")
    (exported / "README.md").write_text("---\nlicense: other\ncredentialed: [closed]\n---\n\n# card\n")
    assert credentialed(lineage(start("tuned", "gamma", f"language.path={exported}"))) == ["closed"]


@pytest.mark.parametrize("has_card", [True, False])
def test_model_loaded_by_hub_id_is_recognised_in_the_cache(start, tmp_path, monkeypatch, has_card):
    """A folder in the layout of the hub's cache stands for a download, of which loading fetches config and weights but no card."""
    snapshot = tmp_path / "models--user--name" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--user--name" / "refs").mkdir()
    (tmp_path / "models--user--name" / "refs" / "main").write_text("c0ffee")
    (snapshot / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = Encoder("hf:user/name", "hf:user_name", VisionConfig(format="timm", path="user/name"))
    assert encoder.credentialed == rules.exported_sources("user/name") == []
    if has_card:
        (snapshot / "README.md").write_text("---\ncredentialed: [closed]\n---\n")
    else:
        rules.mark_config(snapshot / "config.json", ["closed"])
    assert encoder.credentialed == rules.exported_sources("user/name", revision="unverified") == ["closed"]
    assert rules.exported_sources("user/name", revision="0ther") == rules.exported_sources("user/other") == []
    run = start("tuned", "gamma", "vision.format=timm", "vision.path=user/name", "vision.architecture=vit_tiny_patch16_224")
    assert credentialed(lineage(run)) == find_model(str(run)).credentialed == ["closed"]


def test_report_names_credentialed_encoders_of_transfer(tmp_path):
    (tmp_path / "transfer.json").write_text(json.dumps({"metrics": {}, "credentialed": ["closed"]}))
    assert credentialed_sources(RunData("table", tmp_path)).strip().startswith("Credentialed: trained on closed,")


@pytest.mark.parametrize("text", ["", "# no front matter", "---\n[broken\n---\n", "---\ncredentialed: yes\n---\n", "---\n- list\n---\n"])
def test_card_of_another_model_names_no_credentialed_source(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert rules.exported_sources(tmp_path) == rules.exported_sources(tmp_path / "model.safetensors") == []
    assert rules.exported_sources("some/repository") == rules.exported_sources("no hub id") == rules.exported_sources(None) == []


@pytest.mark.parametrize("text", ["", "[]", "{broken", '{"credentialed": "yes"}'])
def test_config_of_another_model_names_no_credentialed_source(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert rules.exported_sources(tmp_path) == []


@pytest.mark.slow
def test_every_card_states_that_the_model_is_credentialed(start):
    facts = collect_facts(*_finished(start("parent", "alpha", manifest={"credentialed": True})))
    cards = [model_card(facts, library=library, usage="") for library in LIBRARIES] + [texts(facts, repository=None)["README.md"]]
    for card in cards:
        assert "**Credentialed.** Trained on `alpha`: only credentialed users have access to this data" in card
        assert "may be shared only under the same agreement" in card
        assert yaml.safe_load(card.split("---\n")[1])["credentialed"] == ["alpha"]
    assert (
        "Combined restrictions: credentialed: to be treated as sensitive and shared only under the agreement of the data (from alpha)"
        in cards[0]
    )
    plain = collect_facts(*_finished(start("plain", "alpha")))
    assert "redentialed" not in model_card(plain, library="timm", usage="") + texts(plain, repository=None)["README.md"]


def _finished(folder: Path) -> tuple:
    source = find_model(str(folder))
    return source.folder, source.config


@pytest.mark.parametrize(("part", "reason"), [("hf", None), ("adapter", ""), ("timm", "  "), ("hf,space", "yes"), ("timm", "I may do it")])
def test_no_part_of_a_credentialed_model_is_uploaded_without_a_reason(start, tmp_path, monkeypatch, part, reason):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    folder = start("parent", "alpha", manifest={"credentialed": True})
    push = PushConfig("user/name", reason)
    config = ExportConfig("parent", str(tmp_path / "out"), part.split(","), "best", None, push, str(folder.parent))
    with pytest.raises(UserError, match=r"^push=user/name: the run was trained on credentialed data \(alpha\)"):
        export(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_reason_of_an_upload_is_recorded_and_stated_on_every_card(words, tmp_path, hub, capsys):  # noqa: F811
    folder, _ = finish(words, "vision.architecture_kwargs.depth=2")
    write_lineage(folder, fingerprint={}, manifests={"alpha": {"credentialed": True}})
    words = [
        "run=tiny",
        f"outputs={folder.parent}",
        f"out={tmp_path / 'out'}",
        "push.repository=user/name",
        f"push.credentialed='{REASON}'",
    ]
    export(to_typed(ExportConfig, compose("export", words)))
    assert json.loads((folder / "export.json").read_text())["credentialed"] == {"sources": ["alpha"], "push": "user/name", "reason": REASON}
    cards = [files["README.md"].decode() for kind in hub.store.values() for files in kind.values()]
    assert len(cards) == 4
    assert all(f"Reason for this upload, as stated by its user: {REASON}" in card for card in cards)
    assert "warning: Credentialed: trained on alpha," in capsys.readouterr().out
    for part in ("hf", "timm"):
        assert json.loads(hub.store["model"][f"user/name{'' if part == 'hf' else '-timm'}"]["config.json"])["credentialed"] == ["alpha"]
        (tmp_path / "out" / part / "README.md").unlink()
    assert find_model(str(tmp_path / "out")).credentialed == ["alpha"]  # from config.json


def test_push_is_short_for_its_repository():
    assert normalise_override('push="user/name"', ExportConfig) == 'push.repository="user/name"'
    assert normalise_override("push.credentialed=x", ExportConfig) == "push.credentialed=x"
    assert normalise_override("push=x", AskConfig) == "push=x"


@pytest.mark.parametrize("notice", ["", "Credentialed: trained on <closed>."])
def test_demo_page_shows_the_notice_in_one_line(notice):
    page = build(Future(), Limits(), name="run:x", examples=[], notice=notice)
    notices = [block.value for block in page.blocks.values() if isinstance(block, gr.HTML) and "id='notice'" in str(block.value)]
    assert notices == ([f"<div id='notice' role='note'>{notice.replace('<', '&lt;').replace('>', '&gt;')}</div>"] if notice else [])
