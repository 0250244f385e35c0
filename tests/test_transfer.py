import json

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

import src.transfer
from src.classification import features
from src.commands import transfer
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


def write_set(folder, *, truncated=None):
    """A set of 15 bright and 15 dark images; the file `truncated` is cut in half."""
    rng = np.random.default_rng(0)
    for k, kind in enumerate(("bright", "dark")):
        (folder / kind).mkdir(parents=True)
        for n in range(15):
            pixels = (rng.integers(0, 90, (20, 20, 3)) + 100 * (1 - k)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{n}.png")
    if truncated:
        data = (folder / truncated).read_bytes()
        (folder / truncated).write_bytes(data[: len(data) // 2])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run `mini` and two sets of bright and dark images, `dots` and `spots`."""
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
        write_set(root / "raw" / name)
    return root


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    """Fewer penalties for the linear probe, whose fits take most of the time."""
    monkeypatch.setattr("src.classification.probe.GRID", (1e-3, 1e-1, 10))


def run(root, *overrides):
    defaults = [
        f"outputs={root}/outputs",
        f"raw={root}/raw",
        "resamples=200",
        "threads=1",
        "seeds=2",
        "finetune.steps=2",
        "finetune.warmup=1",
    ]
    config = to_typed(TransferConfig, compose("transfer", [*defaults, *(word.replace("benchmark=", "benchmarks=") for word in overrides)]))
    return src.transfer.transfer(config)


@pytest.mark.slow
def test_transfer_writes_progress_lines_without_a_terminal(root, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    run(root, "encoder=run:mini", "benchmark=dots", "name=lines", "protocol=[probe,finetune]", "seeds=1")
    printed = capsys.readouterr().err
    for line in ("dots: features: image 30/30, ", "logistic on mean: fit 3, ", "dots: fine-tuning, lr=3e-05: step 2/2, "):
        assert line in printed


@pytest.mark.slow
def test_results_accumulate_and_are_computed_once(root, monkeypatch):
    folder = run(root, "encoder=run:mini", "benchmark=dots", "name=one")
    first = json.loads((folder / "transfer.json").read_text())
    assert first["metrics"].keys() == {
        f"transfer/dots/run:mini/probe/{score}" for score in ("macro_f1", "balanced_accuracy", "auroc", "ece")
    }
    assert first["metrics"]["transfer/dots/run:mini/probe/macro_f1"]["n"] == 6
    calls = []
    monkeypatch.setattr(
        transfer, "extract_features", lambda *args, **kwargs: calls.append(args) or features.extract_features(*args, **kwargs)
    )
    run(root, "encoder=[run:mini,scratch:mini]", "benchmark=[dots,spots]", "name=one")
    assert len(calls) == 5  # run:mini on spots, two seeds of scratch on both sets
    both = json.loads((folder / "transfer.json").read_text())
    for key, value in first["metrics"].items():
        assert both["metrics"][key] == value
    for key in ("dots/scratch", "spots/run:mini", "mean/run:mini", "mean/scratch", "mean/run:mini_minus_scratch"):
        assert f"transfer/{key}/probe/macro_f1" in both["metrics"]
    assert [len(cell["per_seed"]) for cell in both["transfer"]["cells"] if cell["benchmark"] == "dots"] == [1, 2]
    assert json.loads((folder / "result.json").read_text())["metrics"] == both["metrics"]
    assert both["seconds"] > first["seconds"]


@pytest.mark.slow
def test_results_are_written_into_the_run_folder(root):
    folder = run(root, "encoder=run:mini", "benchmark=dots", "protocol=[knn,few_shot]")
    assert folder == root / "outputs/mini"
    lines = [json.loads(line) for line in (folder / "transfer/dots/run:mini/probe_5shot.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert lines[0].keys() == {"id", "source", "group", "label", "prediction", "seed", "probabilities"}
    assert sum(lines[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    shots = json.loads((folder / "transfer.json").read_text())["transfer"]["few_shot"]
    assert [row["shots"] for row in shots] == [10, 1, 50, 5]


@pytest.mark.slow
def test_results_of_a_changed_checkpoint_are_computed_again(root):
    folder = run(root, "encoder=run:mini", "benchmark=dots", "name=two")
    before = (folder / "transfer/dots/run:mini/probe.jsonl").read_text()
    path = root / "outputs/mini/checkpoints/best.ckpt"
    original = path.read_bytes()
    state = torch.load(path, weights_only=True)
    for value in state["state_dict"].values():
        value += torch.randn(value.shape)
    torch.save(state, path)
    run(root, "encoder=run:mini", "benchmark=dots", "name=two")
    path.write_bytes(original)
    assert (folder / "transfer/dots/run:mini/probe.jsonl").read_text() != before


@pytest.mark.slow
def test_finetune_writes_the_same_result_files(root):
    folder = run(root, "encoder=scratch:mini", "benchmark=dots", "protocol=finetune", "name=three")
    (cell,) = json.loads((folder / "transfer.json").read_text())["transfer"]["cells"]
    assert len(cell["per_seed"]) == 2
    assert {"lr"} == cell["setting"][0].keys()
    assert np.array(cell["confusion"]).sum() == 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("protocol=prob", "protocol='prob'; did you mean 'probe'?"),
        ("checkpoint=lst", "checkpoint='lst'; did you mean 'last'?"),
        ("benchmark=dotts", "did you mean 'dots'"),
        ("encoder=run:none", "no run 'none'"),
        ("resample=3", "unknown config key 'resample'; did you mean 'resamples'"),
    ],
)
def test_invalid_override_is_reported_before_anything_is_computed(root, override, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        run(root, "encoder=run:mini", "benchmark=dots", "name=four", override)
    assert not (root / "outputs/four").exists()


def test_unreadable_image_is_reported_before_the_first_fit(root, monkeypatch):
    """Its header is intact, so only decoding detects the truncation."""
    write_set(root / "raw/cut", truncated="dark/7.png")
    fits = []
    monkeypatch.setattr(transfer, "fit_probe", lambda *args, **kwargs: fits.append(args))
    with pytest.raises(UserError, match=r"benchmark 'cut': cannot read dark/7\.png as images"):
        run(root, "encoder=run:mini", "benchmark=[dots,cut]", "name=five")
    assert fits == []


@pytest.mark.slow
def test_results_on_changed_images_are_left_out(root, capsys):
    write_set(root / "raw/moving")
    folder = run(root, "encoder=[run:mini,scratch:mini]", "benchmark=[moving,dots]", "name=six")
    (root / "raw/moving/dark/0.png").unlink()
    run(root, "encoder=run:mini", "benchmark=moving", "name=six")
    path = folder / "transfer/moving/scratch/probe.json"
    assert f"left out, because the images of moving changed: {path}; compute it again, or remove it" in capsys.readouterr().out
    result = json.loads((folder / "transfer.json").read_text())
    assert "transfer/moving/scratch/probe/macro_f1" not in result["metrics"]
    assert [row["benchmark"] for row in result["transfer"]["differences"]] == ["dots"]
    run(root, "encoder=run:mini", "benchmark=dots", "name=six")  # the newest result decides if the changed set is not given
    assert "left out, because the images of moving" in capsys.readouterr().out
    run(root, "encoder=scratch:mini", "benchmark=moving", "name=six")
    assert "left out" not in capsys.readouterr().out


@pytest.mark.slow
def test_results_with_other_weights_are_left_out(root, capsys):
    folder = run(root, "encoder=[run:mini,scratch:mini]", "benchmark=[dots,spots]", "protocol=knn", "name=eleven")
    path = root / "outputs/mini/checkpoints/best.ckpt"
    original = path.read_bytes()
    state = torch.load(path, weights_only=True)
    torch.save({"state_dict": {name: value * 2 for name, value in state["state_dict"].items()}}, path)
    capsys.readouterr()
    run(root, "encoder=run:mini", "benchmark=dots", "protocol=knn", "name=eleven")
    path.write_bytes(original)
    old = "transfer/spots/run:mini/knn.json"
    why = "the weights of run:mini changed"
    assert f"left out, because {why}: {folder / old}; compute it again, or remove it" in capsys.readouterr().out
    result = json.loads((folder / "transfer.json").read_text())
    assert result["transfer"]["left_out"] == [{"file": old, "why": why}]
    assert "transfer/spots/run:mini/knn/macro_f1" not in result["metrics"]
    assert "transfer/spots/scratch/knn/macro_f1" in result["metrics"]
    assert "transfer/mean/run:mini/knn/macro_f1" not in result["metrics"]


@pytest.mark.slow
def test_results_with_other_seeds_or_settings_are_left_out(root):
    both = ["encoder=scratch:mini", "benchmark=[dots,spots]", "protocol=[knn,finetune]", "name=twelve"]
    folder = run(root, *both)
    run(root, both[0], "benchmark=dots", "protocol=finetune", "name=twelve", "finetune.weight_decay=0.5")
    result = json.loads((folder / "transfer.json").read_text())["transfer"]
    assert result["left_out"] == [{"file": "transfer/spots/scratch/finetune.json", "why": "the settings of finetune of scratch changed"}]
    assert [row["protocol"] for row in result["means"]] == ["knn"]
    run(root, both[0], "benchmark=dots", "protocol=knn", "name=twelve", "seeds=1")
    result = json.loads((folder / "transfer.json").read_text())["transfer"]
    assert [(cell["benchmark"], cell["protocol"], cell["seeds"]) for cell in result["cells"]] == [("dots", "knn", 1)]
    assert {row["why"] for row in result["left_out"]} == {
        "seeds= of scratch changed",
        "seeds= and the settings of finetune of scratch changed",
    }
    run(root, *both)
    result = json.loads((folder / "transfer.json").read_text())["transfer"]
    assert result["left_out"] == []
    assert len(result["cells"]) == 4


@pytest.mark.slow
def test_two_scratch_architectures_have_distinct_labels(root):
    smaller = yaml.safe_load((root / "outputs/mini/config.yaml").read_text())
    smaller["vision"] |= {"format": "scratch", "path": "", "architecture": "vit_base_patch16_224"}
    smaller["vision"]["architecture_kwargs"] = TINY | {"embed_dim": 12}
    (root / "outputs/smaller").mkdir()
    (root / "outputs/smaller/config.yaml").write_text(yaml.safe_dump(smaller))
    folder = run(root, "encoder=[scratch:mini,scratch:smaller]", "benchmark=dots", "protocol=knn", "name=seven")
    result = {cell["encoder"]: cell for cell in json.loads((folder / "transfer.json").read_text())["transfer"]["cells"]}
    assert {label: cell["name"] for label, cell in result.items()} == {"scratch": "scratch:mini", "scratch:smaller": "scratch:smaller"}
    assert result["scratch"]["parameters"] > result["scratch:smaller"]["parameters"]
    run(root, "encoder=scratch:smaller", "benchmark=dots", "protocol=knn", "name=seven")
    cells = json.loads((folder / "transfer.json").read_text())["transfer"]["cells"]
    assert {cell["encoder"]: cell["parameters"] for cell in cells} == {label: cell["parameters"] for label, cell in result.items()}


@pytest.mark.slow
def test_overlap_is_updated_in_existing_results(root, monkeypatch):
    folder = run(root, "encoder=run:mini", "benchmark=dots", "name=eight")
    overlap = {"found": {"a": 3}, "trained_on": True, "start": None}
    monkeypatch.setattr(transfer, "training_overlap", lambda *args, **kwargs: overlap)
    monkeypatch.setattr(transfer, "fit_probe", None)
    run(root, "encoder=run:mini", "benchmark=dots", "name=eight")
    assert [cell["overlap"] for cell in json.loads((folder / "transfer.json").read_text())["transfer"]["cells"]] == [overlap]


@pytest.mark.slow
def test_external_test_scores_the_classifier_of_one_set_on_another(root, tmp_path, monkeypatch):
    config = {"layout": "external", "train": "dots", "test": "spots", "labels": {"bright": ["dark"], "dark": ["bright"]}}
    (tmp_path / "dots_to_spots.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("src.classification.names.FOLDER", tmp_path)
    monkeypatch.setattr("src.classification.reader.FOLDER", tmp_path)
    checked = []
    monkeypatch.setattr(transfer, "training_overlap", lambda checkpoint, name, **kwargs: checked.append(name))
    folder = run(root, "encoder=run:mini", "benchmark=[dots,dots_to_spots]", "name=external")
    tables = json.loads((folder / "transfer.json").read_text())["transfer"]
    assert tables["means"] == []  # an external test is no second benchmark
    cells = {cell["benchmark"]: cell for cell in tables["cells"]}
    assert cells["dots"]["macro_f1"]["value"] == 1
    assert cells["dots_to_spots"]["macro_f1"]["value"] == 0  # the labels of the test set are exchanged
    assert cells["dots_to_spots"]["counts"]["train"] == cells["dots"]["counts"]["train"]
    assert [cell["parts"] for cell in cells.values()] == [["dots"], ["dots", "spots"]]
    assert checked == ["dots", "spots"]


@pytest.mark.slow
def test_phantom_sets_are_listed(root, monkeypatch):
    write_set(root / "raw/drawn")
    (root / "raw/drawn" / PHANTOM_MARKER).touch()
    folder = run(root, "encoder=run:mini", "benchmark=[dots,drawn]", "protocol=few_shot", "name=ten")
    assert json.loads((folder / "transfer.json").read_text())["phantoms"] == ["drawn"]
    monkeypatch.setattr(transfer, "fit_probe", None)
    (root / "raw/dots" / PHANTOM_MARKER).touch()
    run(root, "encoder=run:mini", "benchmark=dots", "protocol=few_shot", "name=ten")  # its results existed before the mark
    (root / "raw/dots" / PHANTOM_MARKER).unlink()
    assert json.loads((folder / "transfer.json").read_text())["phantoms"] == ["dots", "drawn"]


@pytest.mark.slow
def test_sweep_fills_one_table(root, monkeypatch):
    words = ["-m", "encoder=run:mini,scratch:mini", "benchmark=dots,spots", "protocol=knn", "name=nine", "resamples=50", "seeds=1"]
    monkeypatch.setattr(sweep, "failures", {})
    monkeypatch.setattr("sys.argv", ["src/transfer.py", *words, f"outputs={root}/outputs", f"raw={root}/raw"])
    src.transfer.main()
    result = json.loads((root / "outputs/nine/transfer.json").read_text())["transfer"]
    assert [(cell["benchmark"], cell["encoder"]) for cell in result["cells"]] == [
        (benchmark, encoder) for benchmark in ("dots", "spots") for encoder in ("run:mini", "scratch")
    ]
    assert {row["benchmark"] for row in result["differences"]} == {"dots", "spots", "mean"}
