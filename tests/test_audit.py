"""The audit finds cropped, mirrored and re-encoded test images in training records, and nothing else."""

import json
import resource
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from data_prep.audit.evaluation_sets import EvaluationImage, EvaluationSet, evaluation_sets
from data_prep.audit.leaks import AuditConfig, KnownTestData, _print_table, audit_all, main
from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from src.data import hamming_search as search
from src.data.hamming_search import RADIUS, hamming_pairs
from src.data.shards import Shards
from src.runtime import progress
from src.runtime.errors import UserError

COPIES = {
    "quality60": lambda image: image,
    "half": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "grey": lambda image: image.convert("L"),
    "flipped": ImageOps.mirror,
    "cut2": lambda image: crop(image, 0.025),
    "cut5": lambda image: crop(image, 0.05),
}


def crop(image: Image.Image, share: float) -> Image.Image:
    left, top = round(image.width * share), round(image.height * share)
    return image.crop((left, top, image.width - left, image.height - top))


def scene(seed: int) -> Image.Image:
    """Random blobs on a background that all scenes share, as chest X-rays share the outline of a chest."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 128), (30, 30, 40))
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 10, 140, 120), fill=(120, 110, 100))
    for _ in range(12):
        x, y, r = rng.uniform(20, 140), rng.uniform(15, 110), rng.uniform(4, 16)
        draw.ellipse((x - r, y - r * rng.uniform(0.4, 1), x + r, y + r), fill=tuple(rng.integers(40, 250, 3).tolist()))
    return image.filter(ImageFilter.GaussianBlur(1))


def save(path: Path, image: Image.Image, quality: int = 92) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)
    return path.name


def line(path: Path, split: str, **fields) -> None:
    with (path / f"{split}.jsonl").open("a") as file:
        file.write(json.dumps(fields) + "\n")


@pytest.fixture
def out(tmp_path) -> Path:
    """Shards of VQA-RAD with 20 test images, of PubMedQA with test texts, and of `mix`, which has each kind of copy of both."""
    raw = tmp_path / "raw"
    rad, text, mix = (raw / name for name in ("vqa_rad", "pubmedqa", "mix"))
    for n in range(20):
        line(rad if rad.exists() else _made(rad), "test", image=save(rad / f"{n}.jpg", scene(n)), question="What?", answer=f"cell {n}")
        line(text if text.exists() else _made(text), "test", question=f"Is {n} odd?", answer="no")
        for kind, copy in COPIES.items():
            name = save(mix / f"{kind}-{n}.jpg", copy(scene(n)), 60 if kind == "quality60" else 92)
            line(mix, "train", id=f"{kind}-{n}", image=name, caption=f"A scan, {kind} {n}")
    for n in range(300):
        line(mix, "train", id=f"other-{n}", image=save(mix / f"other-{n}.jpg", scene(1000 + n)), caption=f"Another scan {n}")
    line(mix, "train", id="second", image=["other-1.jpg", "grey-3.jpg"], caption="two views")
    line(mix, "train", id="same-question", question="is 3  ODD?", answer="No")
    line(mix, "train", id="other-question", question="Is 21 odd?", answer="no")
    line(mix, "test", id="test", image="grey-4.jpg", caption="its own test split")
    build_all(BuildConfig(sources=["mix"], raw=raw, out=tmp_path / "out", workers=1))
    for name in ("vqa_rad", "pubmedqa"):
        _build_as(name, raw, tmp_path / "out")
    return tmp_path / "out"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _build_as(name: str, raw: Path, out: Path) -> None:
    """Builds own data and renames it to a known source."""
    (raw / name).rename(raw / "own")
    build_all(BuildConfig(sources=["own"], raw=raw, out=out, workers=1))
    (raw / "own").rename(raw / name)
    (out / "own").rename(out / name)


def leaks(out: Path, source: str) -> dict[str, str]:
    shards = Shards(out / source)
    return dict(zip(shards.column("key"), shards.column("leaks_into"), strict=True))


def test_audit_finds_all_copies_and_nothing_else(out, capsys):
    audits = audit_all(AuditConfig(out=out))
    test_sets = leaks(out, "mix")
    copies = {f"{kind}-{n}" for kind in COPIES for n in range(20)} | {"second"}
    assert {key for key, name in test_sets.items() if "vqa_rad" in name.split(",")} == copies
    assert {key for key, name in test_sets.items() if name == "pubmedqa"} == {"same-question"}
    assert audits["mix"]["leaks"] == {"mix": len(COPIES), "pubmedqa": 1, "vqa_rad": len(COPIES) * 20 + 1}
    assert audits["mix"]["checked"] == {"mix": 1, "pubmedqa": 20, "vqa_rad": 20}
    assert "pathvqa" in audits["mix"]["not_checked"]
    printed = capsys.readouterr().out
    assert "not checked, because not on disk: breastmnist" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("mix ")]
    assert line.split()[-2:] == [f"{count:,}" for count in audits["mix"]["images"].values()]


@pytest.mark.slow
def test_decontaminated_rows_exclude_leaks_and_an_audit_is_repeatable(out):
    before = len(Shards(out / "mix").rows("train", decontaminate=True))
    first = audit_all(AuditConfig(out=out))["mix"]
    index = (out / "mix" / "index.arrow").read_bytes()
    assert len(Shards(out / "mix").rows("train", decontaminate=True)) == before - first["records"]
    assert audit_all(AuditConfig(out=out, sources=["mix"]))["mix"] == first == json.loads((out / "mix" / "audit.json").read_text())
    assert (out / "mix" / "index.arrow").read_bytes() == index
    tars = {path.name: path.read_bytes() for path in (out / "mix").glob("*.tar")}
    for path in (out / "vqa_rad").iterdir():  # a deleted benchmark is no longer checked
        if path.is_file():
            path.unlink()
    assert audit_all(AuditConfig(out=out))["mix"]["leaks"] == {"mix": len(COPIES), "pubmedqa": 1}
    assert {path.name: path.read_bytes() for path in (out / "mix").glob("*.tar")} == tars
    assert Shards(out / "mix")[5].key


def build_own(tmp_path: Path, name: str, **splits: list[dict]) -> Path:
    """Builds own data from lines per split; returns the folder of all shards."""
    for split, lines in splits.items():
        (tmp_path / "raw" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    build_all(BuildConfig(sources=[name], raw=tmp_path / "raw", out=tmp_path / "shards", workers=1))
    return tmp_path / "shards"


def test_audit_checks_the_test_split_of_own_data(tmp_path):
    folder = tmp_path / "raw" / "my_scans"
    images = [save(folder / f"{n}.jpg", scene(n)) for n in range(20)]
    turns = [{"image": image, "question": "What is it?", "answer": "a cell"} for image in images]
    train = [{"id": f"train{n}", **one} for n, one in enumerate(turns[:15])]
    test = [{"id": f"test{n}", **one, "question": question} for n, one in enumerate(turns[10:]) for question in ("Where is it?",)]
    test += [{"id": "no image", "question": "Is 3 odd?", "answer": "yes"}]
    train += [{"id": "text", "question": "Is 3 odd?", "answer": "yes"}]
    out = build_own(tmp_path, "my_scans", train=train, val=[{"id": "val", **turns[17]}], test=test)
    audit = audit_all(AuditConfig(out=out))["my_scans"]
    assert audit["checked"] == {"my_scans": 11}  # ten images and a text
    assert audit["leaks"] == {"my_scans": 7}
    assert {key for key, name in leaks(out, "my_scans").items() if name} == {*(f"train{n}" for n in range(10, 15)), "text", "val"}
    keys = Shards(out / "my_scans").column("key")
    assert set(audit["test_records_in_train"]["my_scans"]) == {key for key in keys if key in [f"test{n}" for n in range(5)] or "no" in key}


@pytest.mark.slow
def test_audit_names_every_test_record_in_the_training_split(out):
    """Also those with a mirrored or cropped image, and those with the same text."""
    audit = audit_all(AuditConfig(out=out))["mix"]
    keys = {name: Shards(out / name).column("key") for name in ("vqa_rad", "pubmedqa")}
    assert audit["test_records_in_train"]["vqa_rad"] == sorted(keys["vqa_rad"])
    assert audit["test_records_in_train"]["pubmedqa"] == [keys["pubmedqa"][3]]


def test_audit_finds_a_text_question_whatever_its_answer_and_options(tmp_path):
    question = "Which drug is given first?"
    options = {"question": question, "choices": ["aspirin", "heparin"]}
    train = [
        {"id": "other answer", **options, "answer": "heparin"},
        {"id": "other order", "question": "which drug is  given FIRST?", "choices": ["heparin", "aspirin"], "answer": "aspirin"},
        {"id": "other question", "question": "Which drug is given last?", "answer": "aspirin"},
        {"id": "on an image", "image": save(tmp_path / "raw" / "exam" / "scan.jpg", scene(1)), "question": question, "answer": "rest"},
    ]
    out = build_own(tmp_path, "exam", train=train, test=[{"id": "test", **options, "answer": "aspirin"}])
    audit = audit_all(AuditConfig(out=out))["exam"]
    test_sets = list(leaks(out, "exam").values())[: len(train)]
    assert test_sets == ["exam", "exam", "", ""]  # a question about an image is another question
    assert audit["test_records_in_train"] == {"exam": ["test"]}


def test_audit_of_an_earlier_build_is_ignored(tmp_path):
    lines = [{"question": f"Is {n} odd?", "answer": "no"} for n in range(4)]
    out = build_own(tmp_path, "own", train=lines[:3], test=lines[2:])
    assert Shards(out / "own").audit is None
    audit = audit_all(AuditConfig(out=out))["own"]
    assert Shards(out / "own").audit == audit
    build_own(tmp_path, "own", train=lines, test=lines[2:])
    assert not (out / "own" / "audit.json").exists()
    (out / "own" / "audit.json").write_text(json.dumps(audit))  # as if it had been copied there
    assert Shards(out / "own").audit is None


@pytest.mark.slow
def test_rebuilding_an_index_discards_its_audit(tmp_path):
    """The rebuilt index of the same build has no leaks."""
    lines = [{"question": f"Is {n} odd?", "answer": "no"} for n in range(4)]
    out = build_own(tmp_path, "own", train=lines[:3], test=lines[2:])
    audit_all(AuditConfig(out=out))
    (out / "own" / "index.arrow").unlink()
    build_own(tmp_path, "own", train=lines[:3], test=lines[2:])
    assert set(leaks(out, "own").values()) == {""}
    assert Shards(out / "own").audit is None


@pytest.mark.slow
def test_audit_checks_classification_sets(out, tmp_path):
    test = [np.asarray(scene(1000 + n).resize((64, 64))) for n in range(3)]
    arrays = {"test_images": np.stack(test), "test_labels": np.array([[0], [1], [0]], np.uint8)}
    for split in ("train", "val"):
        arrays |= {f"{split}_images": np.zeros((2, 64, 64, 3), np.uint8), f"{split}_labels": np.array([[0], [1]], np.uint8)}
    (tmp_path / "raw" / "breastmnist").mkdir()
    np.savez(tmp_path / "raw" / "breastmnist" / "breastmnist_224.npz", **arrays)
    audit_all(AuditConfig(out=out, raw=tmp_path / "raw"))
    assert {key for key, name in leaks(out, "mix").items() if name == "breastmnist"} >= {"other-0", "other-1", "other-2"}


@pytest.mark.slow
def test_broken_test_image_raises_with_its_name(out, tmp_path):
    folder = tmp_path / "raw" / "own_set"
    folder.mkdir()
    lines = ["image,label,split"]
    for n, split in enumerate(("train", "train", "val", "val", "test", "test")):
        scene(n).save(folder / f"{n}.png")
        lines.append(f"{n}.png,{'ab'[n % 2]},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    audit_all(AuditConfig(out=out, raw=tmp_path / "raw", sources=["mix"], benchmarks=["own_set"]))
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:300])
    with pytest.raises(UserError, match=r"own_set/4\.png: cannot be compared with the records \(broken image: .*\); download it again"):
        audit_all(AuditConfig(out=out, raw=tmp_path / "raw", sources=["mix"], benchmarks=["own_set"]))


@pytest.mark.slow
def test_audit_counts_groups_in_several_splits(out, tmp_path):
    for split, group in (("train", "patient 1"), ("train", "patient 2"), ("test", "patient 1"), ("val", "patient 2"), ("val", "patient 3")):
        folder = tmp_path / "raw" / "grouped"
        folder.mkdir(exist_ok=True)
        line(folder, split, question=f"What, {split} {group}?", answer="a", group=group)
    build_all(BuildConfig(sources=["grouped"], raw=tmp_path / "raw", out=out, workers=1))
    audit = audit_all(AuditConfig(out=out))["grouped"]
    assert (audit["groups_on_two_sides"], audit["groups_in_train_and_val"]) == (1, 1)


@pytest.mark.slow
def test_full_disk_raises_and_keeps_the_index(out):
    index = (out / "mix" / "index.arrow").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
        with pytest.raises(UserError, match=r"no space is left for .*/mix or for temporary files"):
            audit_all(AuditConfig(out=out, sources=["mix"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (out / "mix" / "index.arrow").read_bytes() == index


def test_different_test_images_with_the_same_hash_are_all_used(tmp_path):
    """Blank images share one hash; their pixels distinguish them."""
    raw = tmp_path / "raw" / "vqa_rad"
    _made(raw)
    for n, width in enumerate((64, 80)):
        line(raw, "test", image=save(raw / f"{n}.png", Image.new("RGB", (width, 64))), question="What?", answer=f"cell {n}")
        line(raw, "test", image=f"{n}.png", question="How many?", answer=f"{n}")
    _build_as("vqa_rad", tmp_path / "raw", tmp_path / "out")
    shards = Shards(tmp_path / "out" / "vqa_rad")
    assert len(np.unique(shards.column("image_hash"))) == 1
    (vqa_rad,), _ = evaluation_sets({"vqa_rad": shards}, None)
    assert len(vqa_rad.images) == 2


def test_audit_prints_progress_lines_and_full_names_without_a_terminal(monkeypatch, capsys):
    names = [f"benchmark_{n}_2019" for n in range(8)]
    counts = {"records": 1, "groups_on_two_sides": 2, "groups_in_train_and_val": 3, "images": {"all": 4, "different": 5}}
    _print_table({"vqa_med_2019_disjoint": {"leaks": dict.fromkeys(names, 1), **counts}}, [])
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split() == ["vqa_med_2019_disjoint", *" 1, ".join(names).split(), "1", *"12345"]
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    KnownTestData([EvaluationSet("x", images=[EvaluationImage(lambda: Image.new("L", (64, 64)))])])
    assert "test images: image 1/1, " in capsys.readouterr().err


@pytest.mark.slow
def test_missing_shards_raise(out, tmp_path, capsys):
    with pytest.raises(UserError, match=r"sources=mxi: no shards in .*; did you mean 'mix'"):
        audit_all(AuditConfig(out=out, sources=["mxi"]))
    with pytest.raises(SystemExit):
        main([f"out={tmp_path / 'nothing'}"])
    assert "no finished shards; build them with `make shards`" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["data_prep.audit", "data_prep.card"])
def test_package_runs_as_a_command(package, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [package, "nonsense"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(package, run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("pairs", [1, 1000, 1 << 22])
def test_hamming_pairs_equals_comparing_all_pairs(monkeypatch, pairs):
    monkeypatch.setattr(search, "PAIRS", pairs)
    rng = np.random.default_rng(0)
    corpus, queries = (rng.integers(0, 2**64, n, dtype=np.uint64) for n in (400, 150))
    for n in range(0, 150, 2):  # at every distance around the radius
        for bit in rng.choice(64, n % 12, replace=False):
            corpus[n] ^= np.uint64(1) << np.uint64(bit)
        queries[n] = corpus[n]
        for bit in rng.choice(64, n % 12, replace=False):
            queries[n] ^= np.uint64(1) << np.uint64(bit)
    corpus[200:220] = corpus[0]
    expected = np.argwhere(np.bitwise_count(corpus[:, None] ^ queries[None]) <= RADIUS)
    np.testing.assert_array_equal(np.stack(hamming_pairs(corpus, queries), 1), expected)
    for empty in (hamming_pairs(corpus[:0], queries), hamming_pairs(corpus, queries[:0])):
        assert [len(part) for part in empty] == [0, 0]
