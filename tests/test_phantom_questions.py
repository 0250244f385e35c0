"""The phantoms of question and text sources: each stands as the original does, and every fault of it ends where it should."""

import csv
import json
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep import sources
from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build.source import BuildConfig
from data_prep.phantom.scene.choices import choice_questions, options
from data_prep.phantom.scene.clinic import CARE, COMPLAINT, card, exam, fact, letter, with_typos
from data_prep.phantom.scene.wording import NUMBERS
from data_prep.phantom.scene.world import MODALITIES, NORMAL, item_rng, sample_scene
from data_prep.phantom.writers import WRITERS, pmc_vqa
from data_prep.phantom.writers.folder import scenes
from data_prep.shards import build_all
from src.config.evaluate import EvaluateConfig
from src.data.shards import Shards
from src.evaluate import evaluate
from src.evaluation import benchmark
from src.runtime.cli import compose
from src.runtime.schema import to_typed
from tests.fixtures import overrides
from tests.runs import finish

NUM = {
    "slake": {"train": 14, "val": 4, "test": 8},
    "vqa_rad": {"train": 24, "test": 12},
    "pmc_vqa": {"train": 60, "test": 8},
    "ubench": {"train": 12},
    "medqa": {"train": 40, "val": 8, "test": 16},
    "medmcqa": {"train": 40, "test": 16},
    "medical_flashcards": {"train": 60},
    "healthcaremagic": {"train": 40},
}
QUARANTINED = {"pmc_vqa": "image missing", "medical_flashcards": "empty answer"}


def written(name: str, out: Path, *, seed: int = 0) -> Path:
    (out / name).mkdir(parents=True)
    WRITERS[name].write(out / name, seed=seed, num=NUM[name])
    return out / name


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    for name in NUM:
        written(name, out)
    return out


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("shards")
    return out, build_all(BuildConfig(sources=list(NUM), raw=raw, out=out, workers=1))


def records(built: tuple[Path, dict], name: str, split: str = "train") -> list:
    shards = Shards(built[0] / name)
    return [shards[row] for row in shards.rows(split).tolist()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def right(choices: list[str], answer: str) -> int:
    assert len(set(choices)) == len(choices)
    return choices.index(answer)


@pytest.mark.parametrize("name", NUM)
@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(raw, tmp_path, name):
    expected = files(raw / name)
    assert files(written(name, tmp_path / "same")) == expected
    others = files(written(name, tmp_path / "other", seed=1))
    assert expected.keys() == others.keys()
    assert all(expected[path] != others[path] for path in expected)


@pytest.mark.parametrize("name", NUM)
@pytest.mark.slow
def test_every_row_ends_somewhere(built, name):
    out, manifests = built
    entry = sources.load_sources()[name]
    for split in NUM[name]:
        counts = manifests[name]["counts"][split]
        assert counts["written"] == len(records(built, name, split)) > 0
        assert split in entry.expected
    totals = {key: sum(counts[key] for counts in manifests[name]["counts"].values()) for key in ("in", "quarantined", "filtered")}
    assert (totals["quarantined"] > 0) == (name in QUARANTINED)
    assert totals["quarantined"] <= 0.05 * totals["in"]
    assert (totals["filtered"] > 0) == (name == "slake")
    refused = [json.loads(line)["reason"].partition(":")[0] for line in (out / name / "quarantine.jsonl").read_text().splitlines()]
    assert set(refused) == {QUARANTINED[name]} if refused else name not in QUARANTINED
    assert all(bool(record.images) == entry.images for record in records(built, name))


@pytest.mark.slow
def test_chinese_training_questions_of_slake_show_test_pictures_and_are_left_out(raw, built):
    tables = {split: json.loads((raw / "slake" / name).read_text()) for split, name in WRITERS["slake"].FILES.items()}
    images = {(split, row["q_lang"]): set() for split, rows in tables.items() for row in rows}
    for split, rows in tables.items():
        for row in rows:
            images[split, row["q_lang"]].add(row["img_name"])
    assert images["train", "zh"] & images["test", "en"]
    assert not images["train", "en"] & images["test", "en"]
    chinese = {split: sum(row["q_lang"] == "zh" for row in rows) for split, rows in tables.items()}
    assert {split: built[1]["slake"]["counts"][split]["filtered"] for split in chinese} == chinese
    assert built[1]["slake"]["filtered"] == {"language": sum(chinese.values())}
    groups = {split: {record.group for record in records(built, "slake", split)} for split in tables}
    assert [len(result) for result in groups.values()] == [14, 4, 8]
    assert not groups["train"] & groups["test"]
    rows = [record for split in tables for record in records(built, "slake", split)]
    assert all(record.question.isascii() and record.answer[0].isupper() for record in rows)
    assert {record.meta["answer_type"] for record in rows if record.type == "side"} <= {"OPEN", "CLOSED"}
    assert {"MRI", "CT", "X-Ray"} >= {record.answer for record in rows if record.type == "modality"}


def test_pictures_of_vqa_rad_stand_in_both_splits_with_other_questions(raw, built):
    by_split = {split: records(built, "vqa_rad", split) for split in ("train", "test")}
    groups = {split: {record.group for record in result} for split, result in by_split.items()}
    both = groups["train"] & groups["test"]
    assert len(both) == 2  # a third is encoded anew
    assert len(groups["test"]) == 12
    of = {split: {(record.group, record.question) for record in result if record.group in both} for split, result in by_split.items()}
    assert not of["train"] & of["test"]
    texts = [row["answer"] for path in (raw / "vqa_rad").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert any(text.endswith("\t") for text in texts)
    assert not any("\t" in record.answer for record in by_split["train"])


def test_the_audit_finds_what_vqa_rad_shares(built):
    result = audit_all(AuditConfig(out=built[0], sources=["vqa_rad"]))["vqa_rad"]
    train = [record.group for record in records(built, "vqa_rad")]
    both = {record.group for record in records(built, "vqa_rad", "test")} & set(train)
    opened = Shards(built[0] / "vqa_rad")
    again = opened.repeats_image(opened.rows("train"), of=opened.rows("test"))
    assert result["leaks"]["vqa_rad"] == again.sum() > sum(group in both for group in train)
    assert result["groups_on_two_sides"] == len(both)


def test_pmc_vqa_lacks_a_picture_and_its_options_carry_letters(raw, built):
    with (raw / "pmc_vqa" / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert "Answer" not in rows[0]
    assert all(row[f"Choice {letter}"].startswith(f" {letter}:") for row in rows for letter in "ABCD")
    assert all(row[f"Choice {row['Answer_label']}"] == f" {row['Answer_label']}:{row['Anwser']}" for row in rows)
    with zipfile.ZipFile(raw / "pmc_vqa" / "images.zip") as archive:
        there = {Path(name).name for name in archive.namelist()}
    missing = [row for row in rows if row["Figure_path"] not in there]
    assert built[1]["pmc_vqa"]["counts"]["train"]["quarantined"] == len(missing) > 0
    for record in records(built, "pmc_vqa"):
        assert not any(choice[1:2] == ":" or choice != choice.strip() for choice in record.choices)
        right(record.choices, record.answer)


def test_every_picture_of_ubench_has_its_licence_and_may_lack_a_question(raw, built):
    result = records(built, "ubench")
    assert {record.licence for record in result} == set(WRITERS["ubench"].LICENCES)
    assert len({len(record.turns) for record in result}) > 1
    assert all(record.group == record.key for record in result)
    assert all(answer != "none of the above" for record in result for _, answer in record.turns)


def test_medmcqa_counts_options_from_0_and_from_1(raw, built):
    hub = pq.read_table(raw / "medmcqa" / "data").to_pylist()
    release = [json.loads(line) for line in (raw / "medmcqa" / "dev.json").read_text().splitlines()]
    assert {row["cop"] for row in hub} == {0, 1, 2, 3}
    assert {row["cop"] for row in release} == {1, 2, 3, 4}
    assert {row["exp"] for row in hub} >= {None, ""}
    assert any("&nbsp;" in row["question"] for row in hub)
    assert any("&#x27;" in row["question"] for row in hub)
    finding_of = {care: finding for finding, care in CARE.items()}
    organ_of = {complaint: organ for organ, complaint in COMPLAINT.items()}
    for split in ("train", "test"):
        for record in records(built, "medmcqa", split):
            assert "&" not in record.question
            assert "\u00a0" not in record.question
            if "patient is the treatment of" in record.question:
                assert record.answer == finding_of[record.question.split(" in a ")[0].lower()]
            elif "complaint is" in record.question:
                assert record.answer == organ_of[record.question.split("complaint is ")[1].split(".")[0]]
            elif "Which technique" in record.question:
                shows = record.question.split("patient's ")[1].rstrip("?")
                able = {kind.display_name for kind in MODALITIES.values() if shows in kind.organs}
                assert able & set(record.choices) == {record.answer}
            else:
                assert record.answer == care_of(record.question)


def care_of(text: str) -> str:
    """The treatment of the one finding that a text names."""
    plural = {kind.findings[name].plural: name for kind in MODALITIES.values() for name in kind.findings}
    named = {name for words in (plural, {name: name for name in plural.values()}) for word, name in words.items() if f" {word}" in text}
    assert len(named) <= 1, text
    return CARE[named.pop() if named else NORMAL]


def test_cases_are_answered_by_what_they_state(built):
    for record in records(built, "medqa") + records(built, "medqa", "test"):
        case, question = record.question.split(". ")[:-1], record.question.split(". ")[-1]
        if "left?" in question:
            assert NUMBERS.index(record.answer) == next(n for n, word in enumerate(NUMBERS) if f" {word} " in f" {case[1].lower()} ") - 1
        elif "finding" in question:
            assert CARE[record.answer] == care_of(" ".join(case))
        else:
            assert record.answer == care_of(" ".join(case))
        right(record.choices, record.answer)


def test_letters_have_typing_errors_and_signatures(built):
    result = records(built, "healthcaremagic")
    assert all(record.answer.endswith("Chat Doctor.") for record in result)
    known = {word for n in range(400) for word in letter(*_scene("known", n))[0].split()}
    wrong = [word for record in result for word in record.question.split() if word not in known]
    assert 0.005 < len(wrong) / sum(len(record.question.split()) for record in result) < 0.10
    assert sorted(with_typos("abdomen " * 50, item_rng(0, "hurried", "", 0))) == sorted("abdomen " * 50)


def test_cards_keep_to_the_rules():
    for n in range(200):
        scene, rng = _scene("card", n)
        question, answer = card(scene, rng)
        if "treat" in question or "done for" in question:
            assert (CARE[scene.finding] if not scene.normal else "no treatment") in answer


def _scene(name: str, number: int):
    rng = item_rng(0, name, "", number)
    return sample_scene(rng), rng


def test_every_place_is_right_equally_often():
    places = {"exam": Counter(), "fact": Counter(), "image": Counter()}
    for n in range(1200):
        scene, rng = _scene("places", n)
        _, answer, choices = exam(scene, rng)
        places["exam"][right(choices, answer)] += 1
        (_, answer, choices), _ = fact(scene, rng)
        places["fact"][right(choices, answer)] += 1
        _, answer, choices = pmc_vqa.sample_questions(scene, rng)[0]
        places["image"][right(choices, answer)] += 1
    for counts in places.values():
        assert all(abs(counts[place] / 1200 - 0.25) < 0.06 for place in range(4)), counts  # five standard deviations


def test_options_are_four_of_one_kind():
    rng = item_rng(0, "options", "", 0)
    assert sorted(options(rng, "b", ("a", "b", "c", "d"))) == ["a", "b", "c", "d"]
    assert len(options(rng, "b", ("a", "b", "c", "d", "e", "f"))) == 4
    for n in range(100):
        for _, _, answer, choices in choice_questions(*_scene("kinds", n)):
            assert len(choices) == 4
            right(choices, answer)


@pytest.mark.slow
def test_a_question_with_options_cannot_be_answered_without_its_image():
    """Best guess from the options: the one that was right most often among the training questions that offer it."""
    offered, was_right = Counter(), Counter()
    for scene, rng in scenes(0, "pmc_vqa", "train", 3000, tuple(MODALITIES)):
        for _, answer, choices in pmc_vqa.sample_questions(scene, rng):
            offered.update(choices)
            was_right[answer] += 1
    test = [one for scene, rng in scenes(0, "pmc_vqa", "test", 1500, tuple(MODALITIES)) for one in pmc_vqa.sample_questions(scene, rng)]
    guessed = sum(max(choices, key=lambda one: was_right[one] / (offered[one] or 1)) == answer for _, answer, choices in test)
    assert guessed / len(test) < 0.33


@pytest.mark.slow
def test_every_benchmark_is_asked_on_its_phantom(built, shards, language, tmp_path):
    folder, _ = finish(overrides(shards, language, tmp_path))
    names = ["vqa_rad", "vqa_rad_disjoint", "slake", "pmc_vqa", "medqa", "medmcqa"]
    words = [f"run={folder.name}", f"outputs={tmp_path}", f"data_root={built[0]}", f"benchmarks=[{','.join(names)}]", "max_seq_len=512"]
    words += ["images=[real,shuffled,none]", "limit=8", "resamples=20", "max_new_tokens=2", "accelerator=cpu"]
    evaluate(to_typed(EvaluateConfig, compose("evaluate", words)))
    metrics = json.loads((folder / "evaluate.json").read_text())["metrics"]
    for name in names:
        condition = "none" if name in ("medqa", "medmcqa") else "real"
        score = "accuracy" if name in ("pmc_vqa", "medqa", "medmcqa") else "bleu1"
        assert metrics[f"vqa/{name}/{condition}/all/{score}"]["n"] == 8
        assert metrics[f"vqa/{name}/majority/all/{score}"]["n"] == 8
        assert (f"vqa/{name}/real_minus_shuffled/all/{score}" in metrics) == (condition == "real")
    assert metrics["vqa/pooled/real/all/bleu1"]["n"] == 16  # vqa_rad and slake


def test_the_disjoint_benchmark_drops_exactly_the_shared_pictures(built):
    whole, apart = (benchmark.read_benchmark(name, root=built[0]) for name in ("vqa_rad", "vqa_rad_disjoint"))
    dropped = [item for item in whole.items if item not in apart.items]
    train = {record.group for record in records(built, "vqa_rad")}
    assert len(dropped) == 3  # one question on each of three pictures
    assert sum(item["image"] not in train for item in dropped) == 1  # encoded anew
