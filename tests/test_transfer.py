import json

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from src import transfer as verb
from src.classification import features
from src.config.train import VisionConfig
from src.config.transfer import TransferConfig
from src.data.record import PHANTOM_MARKER
from src.model.vision import load_vision
from src.model.vision_checkpoints import save_open_clip
from src.runtime import progress, sweep
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def paint(folder, *, broken=None):
    """A set of 15 bright and 15 dark pictures; `broken` is one whose file is cut."""
    rng = np.random.default_rng(0)
    for k, kind in enumerate(("bright", "dark")):
        (folder / kind).mkdir(parents=True)
        for n in range(15):
            pixels = (rng.integers(0, 90, (20, 20, 3)) + 100 * (1 - k)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{n}.png")
    if broken:
        whole = (folder / broken).read_bytes()
        (folder / broken).write_bytes(whole[: len(whole) // 2])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run `mini` and two sets: dots that are bright or dark, in a folder and, with fewer classes' names, in another."""
    root = tmp_path_factory.mktemp("transfer")
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch16_224", num_classes=0, **TINY)
    save_open_clip(root / "weights", model, timm_model_name="vit_base_patch16_224", kwargs=TINY)
    vision = VisionConfig(format="open_clip", path=str(root / "weights"))
    stored = {"vision": vars(vision), "data": {"root": "nowhere"}, "mix": {"shares": {"a": 1.0}, "decontaminate": True}}
    (root / "outputs/mini/checkpoints").mkdir(parents=True)
    (root / "outputs/mini/config.yaml").write_text(yaml.safe_dump(stored))
    state = {f"vision.{name}": p.detach() for name, p in load_vision(vision).named_parameters() if p.requires_grad}
    torch.save({"state_dict": state}, root / "outputs/mini/checkpoints/best.ckpt")
    for name in ("dots", "spots"):
        paint(root / "raw" / name)
    return root


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """Of the penalty of a linear probe; most of the time goes to its fits."""
    monkeypatch.setattr("src.classification.probe.GRID", (1e-3, 1e-1, 10))


def run(place, *overrides):
    standard = [
        f"outputs={place}/outputs",
        f"raw={place}/raw",
        "resamples=200",
        "threads=1",
        "seeds=2",
        "finetune.steps=2",
        "finetune.warmup=1",
    ]
    config = to_typed(TransferConfig, compose("transfer", [*standard, *(word.replace("benchmark=", "benchmarks=") for word in overrides)]))
    return verb.transfer(config)


def test_transfer_writes_progress_lines_without_a_terminal(place, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    run(place, "encoder=run:mini", "benchmark=dots", "name=lines", "protocol=[probe,finetune]", "seeds=1")
    printed = capsys.readouterr().err
    for line in ("dots: features: image 30/30, ", "logistic on mean: fit 10, ", "dots: fine-tuning, lr=3e-05: step 2/2, "):
        assert line in printed


@pytest.mark.slow
def test_cells_accumulate_and_are_computed_once(place, monkeypatch):
    folder = run(place, "encoder=run:mini", "benchmark=dots", "name=one")
    first = json.loads((folder / "transfer.json").read_text())
    assert first["metrics"].keys() == {f"transfer/dots/run:mini/probe/{score}" for score in ("macro_f1", "balanced_accuracy", "auroc")}
    assert first["metrics"]["transfer/dots/run:mini/probe/macro_f1"]["n"] == 6
    calls = []
    monkeypatch.setattr(verb, "extract_features", lambda *args, **kwargs: calls.append(args) or features.extract_features(*args, **kwargs))
    run(place, "encoder=[run:mini,scratch:mini]", "benchmark=[dots,spots]", "name=one")
    assert len(calls) == 5  # of ours on spots, of two draws of scratch on both
    both = json.loads((folder / "transfer.json").read_text())
    for key, value in first["metrics"].items():
        assert both["metrics"][key] == value
    for key in ("dots/scratch", "spots/run:mini", "mean/run:mini", "mean/scratch", "mean/run:mini_minus_scratch"):
        assert f"transfer/{key}/probe/macro_f1" in both["metrics"]
    assert [len(cell["per_seed"]) for cell in both["transfer"]["cells"] if cell["benchmark"] == "dots"] == [1, 2]
    assert json.loads((folder / "result.json").read_text())["metrics"] == both["metrics"]
    assert both["seconds"] > first["seconds"]


@pytest.mark.slow
def test_the_folder_is_that_of_the_run_and_its_predictions_are_files(place):
    folder = run(place, "encoder=run:mini", "benchmark=dots", "protocol=[knn,few_shot]")
    assert folder == place / "outputs/mini"
    lines = [json.loads(line) for line in (folder / "transfer/dots/run:mini/probe_5shot.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert lines[0].keys() == {"id", "source", "group", "label", "prediction", "seed", "probabilities"}
    assert sum(lines[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    shots = json.loads((folder / "transfer.json").read_text())["transfer"]["few_shot"]
    assert [one["shots"] for one in shots] == [10, 1, 50, 5]


def test_a_run_that_was_trained_on_is_computed_again(place):
    folder = run(place, "encoder=run:mini", "benchmark=dots", "name=two")
    before = (folder / "transfer/dots/run:mini/probe.jsonl").read_text()
    path = place / "outputs/mini/checkpoints/best.ckpt"
    kept = path.read_bytes()
    state = torch.load(path, weights_only=True)
    for value in state["state_dict"].values():
        value += torch.randn(value.shape)
    torch.save(state, path)
    run(place, "encoder=run:mini", "benchmark=dots", "name=two")
    path.write_bytes(kept)
    assert (folder / "transfer/dots/run:mini/probe.jsonl").read_text() != before


@pytest.mark.slow
def test_fine_tuning_runs_through_the_same_cells(place):
    folder = run(place, "encoder=scratch:mini", "benchmark=dots", "protocol=finetune", "name=three")
    (cell,) = json.loads((folder / "transfer.json").read_text())["transfer"]["cells"]
    assert len(cell["per_seed"]) == 2
    assert {"lr"} == cell["setting"][0].keys()
    assert np.array(cell["confusion"]).sum() == 12


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("protocol=prob", "protocol='prob'; did you mean 'probe'?"),
        ("checkpoint=lst", "checkpoint='lst'; did you mean 'last'?"),
        ("benchmark=dotts", "did you mean 'dots'"),
        ("encoder=run:none", "no run 'none'"),
        ("resample=3", "unknown config key 'resample'; did you mean 'resamples'"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_computed(place, override, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        run(place, "encoder=run:mini", "benchmark=dots", "name=four", override)
    assert not (place / "outputs/four").exists()


def test_a_broken_picture_in_the_last_set_ends_it_before_the_first_fit(place, monkeypatch):
    """Its header is whole, so that only decoding finds out."""
    paint(place / "raw/cut", broken="dark/7.png")
    fitted = []
    monkeypatch.setattr(verb, "fit_probe", lambda *args, **kwargs: fitted.append(args))
    with pytest.raises(UserError, match=r"benchmark 'cut': cannot read dark/7\.png as images"):
        run(place, "encoder=run:mini", "benchmark=[dots,cut]", "name=five")
    assert fitted == []


@pytest.mark.slow
def test_cells_of_pictures_that_have_changed_are_left_out_of_the_table(place, capsys):
    paint(place / "raw/moving")
    folder = run(place, "encoder=[run:mini,scratch:mini]", "benchmark=[moving,dots]", "name=six")
    (place / "raw/moving/dark/0.png").unlink()
    run(place, "encoder=run:mini", "benchmark=moving", "name=six")
    path = folder / "transfer/moving/scratch/probe.json"
    assert f"left out, because the images of moving changed: {path}; compute it again, or remove it" in capsys.readouterr().out
    found = json.loads((folder / "transfer.json").read_text())
    assert "transfer/moving/scratch/probe/macro_f1" not in found["metrics"]
    assert [one["benchmark"] for one in found["transfer"]["differences"]] == ["dots"]
    run(place, "encoder=run:mini", "benchmark=dots", "name=six")  # where the changed set is not named, its newest cell tells
    assert "left out, because the images of moving" in capsys.readouterr().out
    run(place, "encoder=scratch:mini", "benchmark=moving", "name=six")
    assert "left out" not in capsys.readouterr().out


def test_cells_of_other_weights_of_an_encoder_are_left_out_of_the_table(place, capsys):
    folder = run(place, "encoder=[run:mini,scratch:mini]", "benchmark=[dots,spots]", "protocol=knn", "name=eleven")
    path = place / "outputs/mini/checkpoints/best.ckpt"
    kept = path.read_bytes()
    state = torch.load(path, weights_only=True)
    torch.save({"state_dict": {name: value * 2 for name, value in state["state_dict"].items()}}, path)
    capsys.readouterr()
    run(place, "encoder=run:mini", "benchmark=dots", "protocol=knn", "name=eleven")
    path.write_bytes(kept)
    old = "transfer/spots/run:mini/knn.json"
    why = "the weights of run:mini changed"
    assert f"left out, because {why}: {folder / old}; compute it again, or remove it" in capsys.readouterr().out
    found = json.loads((folder / "transfer.json").read_text())
    assert found["transfer"]["left_out"] == [{"file": old, "why": why}]
    assert "transfer/spots/run:mini/knn/macro_f1" not in found["metrics"]
    assert "transfer/spots/scratch/knn/macro_f1" in found["metrics"]
    assert "transfer/mean/run:mini/knn/macro_f1" not in found["metrics"]


def test_cells_of_other_seeds_or_settings_of_an_encoder_are_left_out_of_the_table(place):
    both = ["encoder=scratch:mini", "benchmark=[dots,spots]", "protocol=[knn,finetune]", "name=twelve"]
    folder = run(place, *both)
    run(place, both[0], "benchmark=dots", "protocol=finetune", "name=twelve", "finetune.weight_decay=0.5")
    found = json.loads((folder / "transfer.json").read_text())["transfer"]
    assert found["left_out"] == [{"file": "transfer/spots/scratch/finetune.json", "why": "the settings of finetune of scratch changed"}]
    assert [one["protocol"] for one in found["means"]] == ["knn"]
    run(place, both[0], "benchmark=dots", "protocol=knn", "name=twelve", "seeds=1")
    found = json.loads((folder / "transfer.json").read_text())["transfer"]
    assert [(cell["benchmark"], cell["protocol"], cell["seeds"]) for cell in found["cells"]] == [("dots", "knn", 1)]
    assert {one["why"] for one in found["left_out"]} == {
        "seeds= of scratch changed",
        "seeds= and the settings of finetune of scratch changed",
    }
    run(place, *both)
    found = json.loads((folder / "transfer.json").read_text())["transfer"]
    assert found["left_out"] == []
    assert len(found["cells"]) == 4


@pytest.mark.slow
def test_two_architectures_from_scratch_are_two_encoders(place):
    smaller = yaml.safe_load((place / "outputs/mini/config.yaml").read_text())
    smaller["vision"] |= {"format": "scratch", "path": "", "architecture": "vit_base_patch16_224"}
    smaller["vision"]["architecture_kwargs"] = TINY | {"embed_dim": 12}
    (place / "outputs/smaller").mkdir()
    (place / "outputs/smaller/config.yaml").write_text(yaml.safe_dump(smaller))
    folder = run(place, "encoder=[scratch:mini,scratch:smaller]", "benchmark=dots", "protocol=knn", "name=seven")
    found = {cell["encoder"]: cell for cell in json.loads((folder / "transfer.json").read_text())["transfer"]["cells"]}
    assert {label: cell["name"] for label, cell in found.items()} == {"scratch": "scratch:mini", "scratch:smaller": "scratch:smaller"}
    assert found["scratch"]["parameters"] > found["scratch:smaller"]["parameters"]
    run(place, "encoder=scratch:smaller", "benchmark=dots", "protocol=knn", "name=seven")
    cells = json.loads((folder / "transfer.json").read_text())["transfer"]["cells"]
    assert {cell["encoder"]: cell["parameters"] for cell in cells} == {label: cell["parameters"] for label, cell in found.items()}


@pytest.mark.slow
def test_what_an_audit_says_reaches_a_cell_that_is_computed_already(place, monkeypatch):
    folder = run(place, "encoder=run:mini", "benchmark=dots", "name=eight")
    said = {"found": {"a": 3}, "trained_on": True, "start": None}
    monkeypatch.setattr(verb, "training_overlap", lambda *args, **kwargs: said)
    monkeypatch.setattr(verb, "fit_probe", None)
    run(place, "encoder=run:mini", "benchmark=dots", "name=eight")
    assert [cell["overlap"] for cell in json.loads((folder / "transfer.json").read_text())["transfer"]["cells"]] == [said]


@pytest.mark.slow
def test_the_table_knows_which_of_its_sets_are_phantoms(place, monkeypatch):
    paint(place / "raw/drawn")
    (place / "raw/drawn" / PHANTOM_MARKER).touch()
    folder = run(place, "encoder=run:mini", "benchmark=[dots,drawn]", "protocol=few_shot", "name=ten")
    assert json.loads((folder / "transfer.json").read_text())["phantoms"] == ["drawn"]
    monkeypatch.setattr(verb, "fit_probe", None)
    (place / "raw/dots" / PHANTOM_MARKER).touch()
    run(place, "encoder=run:mini", "benchmark=dots", "protocol=few_shot", "name=ten")  # its cells were there before it was marked
    (place / "raw/dots" / PHANTOM_MARKER).unlink()
    assert json.loads((folder / "transfer.json").read_text())["phantoms"] == ["dots", "drawn"]


@pytest.mark.slow
def test_a_sweep_fills_one_table(place, monkeypatch):
    words = ["-m", "encoder=run:mini,scratch:mini", "benchmark=dots,spots", "protocol=knn", "name=nine", "resamples=50", "seeds=1"]
    monkeypatch.setattr(sweep, "failures", {})
    monkeypatch.setattr("sys.argv", ["src/transfer.py", *words, f"outputs={place}/outputs", f"raw={place}/raw"])
    verb.main()
    found = json.loads((place / "outputs/nine/transfer.json").read_text())["transfer"]
    assert [(cell["benchmark"], cell["encoder"]) for cell in found["cells"]] == [
        (benchmark, encoder) for benchmark in ("dots", "spots") for encoder in ("run:mini", "scratch")
    ]
    assert {one["benchmark"] for one in found["differences"]} == {"dots", "spots", "mean"}
