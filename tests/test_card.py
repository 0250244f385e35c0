"""The data card states the content of manifests, quarantine and audit, and its Croissant file is valid."""

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
from src.config.train import MixConfig
from src.runtime.errors import UserError


@pytest.fixture
def card(shards, tmp_path):
    """Folder with the card of a mix of three sources. A copy is audited, because other tests read the shards of the session."""
    shards = Path(shutil.copytree(shards, tmp_path / "shards"))
    audit_all(AuditConfig(out=shards))
    render.write_card("own", MixConfig({"alpha": 2, "beta": 1, "gamma": 1}, decontaminate=True), shards, tmp_path / "card")
    return tmp_path / "card"


def test_card_states_counts_shares_and_excluded_records(card, shards):
    text = (card / "card.md").read_text()
    manifest = json.loads((shards / "alpha" / "manifest.json").read_text())["counts"]["train"]
    assert f"| alpha | train | 50.0% | {manifest['in']} | {manifest['written']} |" in text
    assert "from 3 sources" in text
    assert "- alpha: nothing" in text
    assert "- gamma: in a test set: gamma " in text  # random questions that occur in both splits
    assert "| beta | the user's own |" in text


def test_html_card_is_self_contained(card):
    page = (card / "card.html").read_text()
    assert page.count("<img src='data:image/jpeg;base64,") == 12  # six of each source with images
    assert page.count("<svg") == 5  # text lengths of three sources, image sizes of two
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "<b>Excluded:</b> nothing." in page


@pytest.mark.slow
def test_croissant_file_is_valid_and_lists_every_shard(card, shards):
    metadata = json.loads((card / "croissant.json").read_text())
    dataset = mlcroissant.Dataset(str(card / "croissant.json"))
    assert not dataset.metadata.issues.errors
    tars = {part["@id"]: part["sha256"] for part in metadata["distribution"] if part["@type"] == "cr:FileObject"}
    expected = {}
    for source in ("alpha", "beta", "gamma"):
        manifest = json.loads((shards / source / "manifest.json").read_text())
        expected |= {f"{source}/{shard['name']}": shard["sha256"] for shard in manifest["shards"]}
    assert tars == expected


def test_card_states_the_number_of_distinct_images(card, shards):
    assert "- alpha: 77 images, 77 distinct by perceptual hash\n" in (card / "card.md").read_text()
    assert "- gamma: no images\n" in (card / "card.md").read_text()
    assert "<b>Images:</b> 77 images, 77 distinct by perceptual hash." in (card / "card.html").read_text()


def test_excluded_text_names_the_filters(shards):
    (one,) = gather_facts(shards, MixConfig({"gamma": 1}, decontaminate=True))
    assert "filtered" not in markdown.excluded_text(one)
    one.shards.manifest["filtered"] = {"language": 1200, "not histology": 3}
    assert markdown.excluded_text(one).startswith("1,200 filtered: language; 3 filtered: not histology")


def test_usage_restrictions_name_the_sources_that_impose_them(shards):
    facts = gather_facts(shards, MixConfig({"alpha": 1, "beta": 1}, decontaminate=True))
    facts[0].entry = card_entry("quilt_1m")
    facts[1].entry = card_entry("slake")
    assert usage_restrictions(facts) == "non-commercial use only (quilt_1m); must not be redistributed (quilt_1m)"
    facts[0].entry = card_entry("vqa_rad")
    assert usage_restrictions(facts) == "no restriction is known"


def test_licences_of_records_are_counted_and_restrict_the_mix(shards):
    facts = gather_facts(shards, MixConfig({"alpha": 1, "beta": 1}, decontaminate=True))
    facts[0].entry = facts[1].entry = card_entry("vqa_rad")
    assert facts[0].licences() == {}  # no record of alpha states a licence
    facts[0].shards.manifest["licences"] = {"CC BY": 1200, "": 30, "CC_BY-NC-ND 4.0": 2}
    facts[0].entry = card_entry("slake")
    assert markdown.licence_text(facts[0]) == "CC BY 4.0; records: CC BY 1,200, none stated 30, CC_BY-NC-ND 4.0 2"
    assert usage_restrictions(facts) == (
        "non-commercial use only (slake); no derivatives of some records (slake); some records state no licence (slake)"
    )


def card_entry(name):
    return sources.load_sources()[name]


@pytest.mark.slow
def test_phantoms_are_recognised_by_the_marker_in_their_raw_folder(tmp_path):
    """The path does not matter: it may have any name, and a folder called phantom may hold real data."""
    raw, out = tmp_path / "phantom" / "raw", tmp_path / "phantom" / "shards"
    draw([f"out={raw}", "sources=medqa", "scale=0.01"])
    (raw / "own_data").mkdir()
    (raw / "own_data" / "train.jsonl").write_text(json.dumps({"question": "Which organ?", "answer": "lung"}) + "\n")
    manifests = build_all(BuildConfig(sources=["medqa", "own_data"], raw=raw, out=out, workers=1))
    assert {name: manifest["phantom"] for name, manifest in manifests.items()} == {"medqa": True, "own_data": False}
    notice = "Phantoms (synthetic records in the file layout of the named dataset, without any of its data): medqa."
    render.write_card("own", MixConfig({"medqa": 1, "own_data": 1}, decontaminate=True), out, tmp_path / "card")
    for name in ("card.md", "card.html", "croissant.json"):
        assert notice in (tmp_path / "card" / name).read_text()
    render.write_card("own", MixConfig({"own_data": 1}, decontaminate=True), out, tmp_path / "card")
    assert "Phantom" not in (tmp_path / "card" / "card.md").read_text()


def test_histogram_counts_every_value():
    for values in (np.array([1, 5, 5, 900]), np.array([7]), np.arange(3000)):
        counts, edges = histogram(values)
        assert sum(counts) == len(values) - (values == 0).sum()
        assert len(edges) == len(counts) + 1
    assert histogram(np.array([])) == ([], [])


def test_unknown_mix_or_mix_without_shares_raises(tmp_path):
    with pytest.raises(UserError, match="mix=ful: no such file in conf/mix; did you mean 'full'"):
        render.read_mix("ful")
    with pytest.raises(UserError, match="mix=own: the file states no shares; choose one of broad"):
        render.read_mix("own")
    assert sum(render.read_mix("full").shares.values()) == 2_665_908
