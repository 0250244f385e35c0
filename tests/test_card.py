"""The data card says what the manifests, the quarantine and the audit say, and its Croissant file is valid."""

import json
import shutil
from pathlib import Path

import mlcroissant
import numpy as np
import pytest

from data_prep import sources
from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.source import BuildConfig
from data_prep.card import markdown, render
from data_prep.card.facts import gather_facts, histogram, usage_restrictions
from data_prep.phantom.__main__ import main as draw
from data_prep.shards import build_all
from src.runtime.errors import UserError


@pytest.fixture
def written(shards, tmp_path):
    """The card of the test suite's own mix of three sources. A copy is audited: other tests read the shards of the session."""
    shards = Path(shutil.copytree(shards, tmp_path / "shards"))
    audit_all(AuditConfig(out=shards))
    render.write_card("own", {"alpha": 2, "beta": 1, "gamma": 1}, shards, tmp_path / "card")
    return tmp_path / "card"


def test_counts_shares_and_what_was_left_out(written, shards):
    text = (written / "card.md").read_text()
    manifest = json.loads((shards / "alpha" / "manifest.json").read_text())["counts"]["train"]
    assert f"| alpha | train | 50.0% | {manifest['in']} | {manifest['written']} |" in text
    assert "from 3 sources" in text
    assert "- alpha: nothing" in text
    assert "- gamma: in a test set: gamma " in text  # questions of three words out of six, drawn for both splits
    assert "| beta | the user's own |" in text


def test_the_page_stands_alone(written):
    page = (written / "card.html").read_text()
    assert page.count("<img src='data:image/jpeg;base64,") == 12  # six of each source with pictures
    assert page.count("<svg") == 5  # lengths of three, sizes of two
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<b>Left out:</b> nothing." in page


@pytest.mark.slow
def test_the_croissant_file_is_valid_and_names_every_shard(written, shards):
    described = json.loads((written / "croissant.json").read_text())
    dataset = mlcroissant.Dataset(str(written / "croissant.json"))
    assert not dataset.metadata.issues.errors
    tars = {part["@id"]: part["sha256"] for part in described["distribution"] if part["@type"] == "cr:FileObject"}
    expected = {}
    for source in ("alpha", "beta", "gamma"):
        manifest = json.loads((shards / source / "manifest.json").read_text())
        expected |= {f"{source}/{shard['name']}": shard["sha256"] for shard in manifest["shards"]}
    assert tars == expected


def test_images_that_come_again_are_told(written, shards):
    assert "- alpha: 77 images, 77 different ones by perceptual hash\n" in (written / "card.md").read_text()
    assert "- gamma: no images\n" in (written / "card.md").read_text()
    assert "<b>Images:</b> 77 images, 77 different ones by perceptual hash." in (written / "card.html").read_text()


def test_filtered_rows_have_their_reasons(shards):
    (one,) = gather_facts(shards, {"gamma": 1})
    assert "filtered" not in markdown.excluded_text(one)
    one.shards.manifest["filtered"] = {"language": 1200, "not histology": 3}
    assert markdown.excluded_text(one).startswith("1,200 filtered: language; 3 filtered: not histology")


def test_the_strictest_licence_names_who_limits(shards):
    facts = gather_facts(shards, {"alpha": 1, "beta": 1})
    facts[0].entry = card_entry("quilt_1m")
    facts[1].entry = card_entry("slake")
    assert usage_restrictions(facts) == "non-commercial use only (quilt_1m); must not be redistributed (quilt_1m)"
    facts[0].entry = card_entry("vqa_rad")
    assert usage_restrictions(facts) == "no restriction is known"


def test_licences_of_records_are_counted_and_limit_the_whole(shards):
    facts = gather_facts(shards, {"alpha": 1, "beta": 1})
    facts[0].entry = facts[1].entry = card_entry("vqa_rad")
    assert facts[0].licences() == {}  # no record of alpha states one
    facts[0].shards.manifest["licences"] = {"CC BY": 1200, "": 30, "CC_BY-NC-ND 4.0": 2}
    facts[0].entry = card_entry("slake")
    assert markdown.licence_text(facts[0]) == "CC BY 4.0; of its records: CC BY 1,200, none stated 30, CC_BY-NC-ND 4.0 2"
    assert usage_restrictions(facts) == (
        "non-commercial use only (slake); no derivatives of some records (slake); some records state no licence (slake)"
    )


def card_entry(name):
    return sources.load_sources()[name]


def test_phantoms_are_told_by_the_mark_in_their_raw_folder(tmp_path):
    """Not by where they lie: the folder of one may have any name, and somebody's own data may lie in one that is called phantom."""
    raw, out = tmp_path / "phantom" / "raw", tmp_path / "phantom" / "shards"
    draw([f"out={raw}", "sources=medqa", "scale=0.01"])
    (raw / "mine").mkdir()
    (raw / "mine" / "train.jsonl").write_text(json.dumps({"question": "Which organ?", "answer": "lung"}) + "\n")
    manifests = build_all(BuildConfig(sources=["medqa", "mine"], raw=raw, out=out, workers=1))
    assert {name: manifest["phantom"] for name, manifest in manifests.items()} == {"medqa": True, "mine": False}
    said = "Phantoms, drawn by a program in the layout of the dataset that is named, with nothing of it: medqa."
    render.write_card("own", {"medqa": 1, "mine": 1}, out, tmp_path / "card")
    for name in ("card.md", "card.html", "croissant.json"):
        assert said in (tmp_path / "card" / name).read_text()
    render.write_card("own", {"mine": 1}, out, tmp_path / "card")
    assert "Phantom" not in (tmp_path / "card" / "card.md").read_text()


def test_histograms_count_everything():
    for values in (np.array([1, 5, 5, 900]), np.array([7]), np.arange(3000)):
        counts, edges = histogram(values)
        assert sum(counts) == len(values) - (values == 0).sum()
        assert len(edges) == len(counts) + 1
    assert histogram(np.array([])) == ([], [])


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="mix='ful' names no file in conf/mix; did you mean 'full'"):
        render.mix_shares("ful")
    with pytest.raises(UserError, match="mix='own' states no shares of its own; name one of full"):
        render.mix_shares("own")
    assert sum(render.mix_shares("full").values()) == 3_343_055
