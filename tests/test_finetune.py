import numpy as np
import pytest
import torch

from src.classification.dataset import build_dataset
from src.classification.finetune import FineTuneLoader, augment, finetune
from src.classification.layouts import Example
from src.config.train import VisionConfig
from src.config.transfer import FineTuneConfig
from src.model.vision import load_vision

SCRATCH = VisionConfig(
    format="scratch",
    architecture="vit_tiny_patch16_224",
    image_size=16,
    architecture_kwargs={"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
)


def bright_or_dark(n=60):
    rng = np.random.default_rng(0)
    examples = []
    for k in range(n):
        pixels = (rng.integers(0, 60, (16, 16)) + 150 * (k % 2)).astype(np.uint8)
        examples.append(Example(str(k), ("train", "train", "train", "val", "test")[k // 2 % 5], "ab"[k % 2], str(k), pixels))
    return build_dataset("x", examples, classes=[])


def build():
    torch.manual_seed(0)
    return load_vision(SCRATCH)


def run(tmp_path, **changes):
    config = FineTuneConfig(**({"steps": 30, "batch": 8, "lr": [1e-6, 3e-3], "warmup": 3, "weight_decay": 0.0} | changes))
    data = bright_or_dark()
    return data, finetune(build, data, pooling="cls", seed=0, config=config, threads=1, device=torch.device("cpu"), folder=tmp_path)


@pytest.mark.slow
def test_finetune_chooses_the_learning_rate_on_the_validation_split(tmp_path):
    data, fit = run(tmp_path)
    assert fit.setting == {"lr": 3e-3}
    assert fit.validation == 1.0
    assert (fit.probabilities_NK.argmax(1) == data.labels[data.rows("test")]).all()


def test_finetune_is_deterministic_for_a_seed(tmp_path):
    a, b = (run(tmp_path, steps=4, lr=[1e-3])[1].probabilities_NK for _ in range(2))
    assert np.array_equal(a, b)


def test_loader_yields_the_given_number_of_batches_of_permutations():
    data = bright_or_dark()
    loader = FineTuneLoader(data, data.rows("train"), size=16, batch=8, threads=1, steps=9, seed=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 9
    labels = torch.cat([labels_N for _, labels_N in batches])
    assert len(labels) == 72
    rows = loader.rows
    assert sorted(rows[:36]) == sorted(rows[36:]) == data.rows("train").tolist()
    assert torch.equal(labels, torch.from_numpy(data.labels[rows]))


def test_augment_shifts_slightly_and_never_mirrors():
    torch.manual_seed(0)
    x = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    x[..., 12:20, 4:10] = 200  # a mark on the left
    augmented = augment(x)
    assert augmented.shape == x.shape
    assert augmented.min() >= 0
    assert augmented.max() <= 255
    assert (augmented[..., :16].sum((1, 2, 3)) > 3 * augmented[..., 16:].sum((1, 2, 3))).all()
    assert not torch.equal(augmented[0], augmented[1])


def test_augment_is_float32_under_autocast():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8))
    torch.manual_seed(0)
    expected = augment(x)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(x), expected)
