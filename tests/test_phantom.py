"""The phantom world: deterministic, answered by what is drawn, balanced, and written as the originals are."""

import io
import json
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep import sources
from data_prep.phantom import draw
from data_prep.phantom.__main__ import main
from data_prep.phantom.draw.canvas import canvas
from data_prep.phantom.draw.marks import RADIUS, finding_mask, place
from data_prep.phantom.scene.wording import article, caption, questions
from data_prep.phantom.scene.world import MODALITIES, NORMAL, OPTICAL, RADIOLOGY, item_rng, sample_scene
from data_prep.phantom.writers import FULL, WRITERS, pathvqa, vqa_med_2019
from data_prep.phantom.writers.folder import scenes
from data_prep.readers import READERS
from src.data.record import QUESTION_TYPES, question_type
from src.evaluation.baselines import colour_histogram
from src.runtime.cli import CONF

VQA = {"pathvqa": tuple(OPTICAL), "vqa_med_2019": tuple(RADIOLOGY)}
GENERAL = ("modality", "plane", "organ", "specimen")


def sample_questions(dataset: str, split: str, number: int) -> list[tuple[str, str, str]]:
    return [one for scene, rng in scenes(0, dataset, split, number, VQA[dataset]) for one in pathvqa.sample_questions(scene, rng)]


NUM = {
    "pathvqa": {"train": 60, "val": 4, "test": 4},
    "vqa_med_2019": {"train": 20, "val": 4, "test": 30},
    "pmc_oa": {"train": 100},
    "pubmedqa": {"train": 30, "test": 20},
    "breastmnist": {"train": 8, "val": 4, "test": 12},
}


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


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("source", ["pathvqa", "pubmedqa"])
@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(raw, tmp_path, source):
    expected = files(raw / source)
    assert files(written(source, tmp_path / "same")) == expected
    others = files(written(source, tmp_path / "other", seed=1))
    assert expected.keys() == others.keys()
    assert all(expected[name] != others[name] for name in expected)


def test_a_longer_split_begins_with_the_shorter_one():
    drawn = [[draw.render(scene, rng) for scene, rng in scenes(3, "any", "train", number, tuple(MODALITIES))] for number in (3, 5)]
    for short, long in zip(*drawn, strict=False):
        np.testing.assert_array_equal(short, long)


def test_every_wording_tells_its_type():
    for n in range(600):
        rng = item_rng(0, "wording", "test", n)
        for kind, question, answer in questions(sample_scene(rng), rng):
            assert kind in QUESTION_TYPES
            assert question_type(question, answer) == kind, question
            assert "{" not in question


def test_answers_and_captions_follow_the_scene():
    for n in range(300):
        rng = item_rng(0, "answers", "test", n)
        scene = sample_scene(rng)
        answers = {kind: answer for kind, _, answer in questions(scene, rng) if kind != "presence"}
        text = caption(scene, rng).lower()
        assert MODALITIES[scene.modality].display_name in text
        assert answers["finding"] == scene.finding
        if scene.normal:
            assert not {"count", "side", "size"} & answers.keys()
        else:
            assert answers["side"] == scene.side
            assert all(word in text for word in (answers["count"], scene.side, scene.size, scene.finding))


@pytest.mark.parametrize("dataset", VQA)
def test_the_majority_answer_of_a_type_is_right_less_than_half_the_time(dataset):
    sizes = {"pathvqa": pathvqa, "vqa_med_2019": vqa_med_2019}[dataset].SIZES
    answers = defaultdict(Counter)
    for kind, _, answer in sample_questions(dataset, "train", sizes["train"]):
        answers[kind][answer] += 1
    majority = {kind: counts.most_common(1)[0][0] for kind, counts in answers.items()}
    test = sample_questions(dataset, "test", sizes["test"])
    assert sum(answer == majority[kind] for kind, _, answer in test) / len(test) < 0.45
    assert sum(kind in GENERAL for kind, _, _ in test) / len(test) <= 0.30


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_scene_can_be_drawn(modality):
    for n in range(12):
        rng = item_rng(5, "drawn", modality, n)
        image = draw.render(sample_scene(rng, modalities=[modality]), rng)
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert min(image.shape[:2]) >= 96
        assert image.std() > 8


@pytest.mark.parametrize("modality", MODALITIES)
def test_findings_stand_on_their_side_and_apart(modality):
    for n in range(25):
        rng = item_rng(2, "side", modality, n)
        scene = sample_scene(rng, modalities=[modality])
        if scene.normal:
            continue
        c, radius = canvas(*rng.choice([96, 128], 2)), RADIUS[scene.size]
        ground = draw.GROUNDS[modality](scene, rng, c)
        centres = np.array(place(rng, c, scene.count, scene.side, radius, ground.allowed))
        assert len(centres) == scene.count
        assert ((centres[:, 0] < 0) == (scene.side == "left")).all()
        assert all(ground.allowed(x, y) for x, y in centres)
        apart = np.hypot(*(centres[:, None] - centres).transpose(2, 0, 1)) + 10 * np.eye(len(centres))
        assert apart.min() > 1.6 * radius


@pytest.mark.slow
def test_colours_do_not_tell_the_side():
    seen, sides = [], []
    for scene, rng in scenes(4, "colour", "", 700, tuple(MODALITIES)):
        if not scene.normal:
            seen.append(colour_histogram(draw.render(scene, rng, sides=(96,)).transpose(2, 0, 1)))
            sides.append(scene.side == "left")
    half = len(seen) // 2
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200)).fit(seen[:half], sides[:half])
    assert abs(model.score(seen[half:], sides[half:]) - 0.5) < 0.10  # three standard deviations of a coin


def test_shapes_of_a_technique_are_all_different_and_cover_about_the_same():
    area = {}
    for shape in {finding.shape for kind in MODALITIES.values() for finding in kind.findings.values()}:
        area[shape] = finding_mask(np.random.default_rng(0), canvas(128, 128), shape, [(0.3, 0.2)], 0.16)[0].mean()
    assert max(area.values()) < 1.25 * min(area.values())
    for kind in MODALITIES.values():
        assert len({finding.shape for finding in kind.findings.values()}) == len(kind.findings) >= 3


@pytest.mark.slow
def test_pathvqa_is_a_hub_table(raw):
    tables = sorted((raw / "pathvqa/data").glob("*.parquet"))
    assert [path.name for path in tables] == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation-00000-of-00001.parquet",
    ]
    rows = [row for path in tables for row in pq.read_table(path).to_pylist()]
    assert set(rows[0]) == {"image", "question", "answer"}
    modes = Counter(Image.open(io.BytesIO(row["image"]["bytes"])).mode for row in rows)
    assert modes["CMYK"]
    assert modes["RGB"] > modes["CMYK"]
    assert len({(row["image"]["bytes"], row["question"]) for row in rows}) < len(rows)
    features = json.loads(pq.read_schema(tables[0]).metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}


def test_vqa_med_2019_is_pipe_separated_with_alternatives_in_the_test_set_only(raw):
    root = raw / "vqa_med_2019"
    train = (root / "ImageClef-2019-VQA-Med-Training/All_QA_Pairs_train.txt").read_text().splitlines()
    assert all(line.count("|") == 2 and "#" not in line for line in train)
    by_category = (root / "ImageClef-2019-VQA-Med-Training/QAPairsByCategory").glob("C?_*_train.txt")
    assert sorted(train) == sorted(line for path in by_category for line in path.read_text().splitlines())
    references = (root / "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt").read_text().splitlines()
    assert {line.split("|")[1] for line in references} == set(vqa_med_2019.CATEGORIES)
    assert any("#" in line.split("|")[3] for line in references)


def test_pmc_oa_lacks_some_pictures_and_repeats_others(raw):
    lines = [json.loads(line) for line in (raw / "pmc_oa/pmc_oa.jsonl").read_text().splitlines()]
    with zipfile.ZipFile(raw / "pmc_oa/images.zip") as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert names <= {line["image"] for line in lines}
    assert len({line["image"] for line in lines}) < len(lines)
    assert all(line["caption"][0].isupper() for line in lines)


def test_pubmedqa_is_answered_by_its_contexts(raw):
    articles = json.loads((raw / "pubmedqa/data/ori_pqal.json").read_text())
    truth = json.loads((raw / "pubmedqa/data/test_ground_truth.json").read_text())
    assert truth == {pmid: articles[pmid]["final_decision"] for pmid in truth}
    assert set(truth.values()) == {"yes", "no", "maybe"}
    for n in range(200):
        made = article(item_rng(0, "article", "", n))
        numbers = [int(word) for word in made["contexts"][1].rstrip(".").split() if word.isdigit()]
        if "frequent" in made["question"]:
            assert made["decision"] == {1: "yes", -1: "no", 0: "maybe"}[int(np.sign(numbers[0] - numbers[1]))]


def test_pubmedqa_has_artificial_labels_as_the_hub_holds_them(raw):
    entry = sources.load_sources()["pubmedqa"]
    labelled = json.loads((raw / "pubmedqa/data/ori_pqal.json").read_text())
    artificial = pq.read_table(raw / "pubmedqa/pqa_artificial/train-00000-of-00001.parquet").to_pylist()
    assert artificial
    assert "maybe" not in {row["final_decision"] for row in artificial}
    read = {split: {record.key: record for record in READERS[entry.reader](raw / "pubmedqa", split, entry)} for split in ("train", "test")}
    assert {split: len(records) for split, records in read.items()} == NUM["pubmedqa"]
    assert read["train"].keys() - labelled.keys() == {str(row["pubid"]) for row in artificial}
    one = artificial[0]
    assert read["train"][str(one["pubid"])].turns == [
        (" ".join(one["context"]["contexts"]) + "\n" + one["question"], one["final_decision"])
    ]


def test_breastmnist_has_both_classes(raw):
    arrays = np.load(raw / "breastmnist/breastmnist_224.npz")
    assert arrays["test_images"].shape == (12, 96, 96)
    assert arrays["test_labels"].shape == (12, 1)
    assert arrays["test_labels"].mean() == 0.75


def test_complete_dataset_is_not_written_again_and_partial_one_is(tmp_path):
    words = [f"out={tmp_path}", "sources=pubmedqa", "scale=0.02"]
    (tmp_path / "pubmedqa.tmp").mkdir()
    (tmp_path / "pubmedqa.tmp" / "half").write_text("")
    main(words)
    made = tmp_path / "pubmedqa/data/ori_pqal.json"
    assert not (tmp_path / "pubmedqa/half").exists()
    before = made.stat().st_mtime_ns
    main(words)
    assert made.stat().st_mtime_ns == before
    main([*words, "seed=2"])
    assert made.stat().st_mtime_ns != before


def test_misspelt_source_is_one_line_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([f"out={tmp_path}", "sources=pathvqua"])
    assert "did you mean 'pathvqa'" in capsys.readouterr().err


def test_a_normal_scene_has_no_finding():
    scene = next(scene for scene, _ in scenes(0, "normal", "", 100, tuple(MODALITIES)) if scene.finding == NORMAL)
    assert (scene.count, scene.side, scene.size) == (0, "", "")


def test_every_source_of_the_mixes_has_a_writer():
    mixes = {name: yaml.safe_load((CONF / f"mix/{name}.yaml").read_text())["shares"] for name in ("full", "broad", "open", "mini")}
    assert set(mixes["mini"]) == set(FULL)
    assert set(mixes["full"]) == set(FULL)
    assert set().union(*mixes.values()) <= set(WRITERS)
