import numpy as np
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
    found = []
    for k in range(n):
        pixels = (rng.integers(0, 60, (16, 16)) + 150 * (k % 2)).astype(np.uint8)
        found.append(Example(str(k), ("train", "train", "train", "val", "test")[k // 2 % 5], "ab"[k % 2], str(k), pixels))
    return build_dataset("x", found, classes=[])


def build():
    torch.manual_seed(0)
    return load_vision(SCRATCH)


def run(tmp_path, **changes):
    config = FineTuneConfig(**({"steps": 30, "batch": 8, "lr": [1e-6, 3e-3], "warmup": 3, "weight_decay": 0.0} | changes))
    data = bright_or_dark()
    return data, finetune(build, data, pooling="cls", seed=0, config=config, threads=1, device=torch.device("cpu"), folder=tmp_path)


def test_it_learns_and_the_learning_rate_is_chosen_on_validation(tmp_path):
    data, found = run(tmp_path)
    assert found.setting == {"lr": 3e-3}
    assert found.validation == 1.0
    assert (found.probabilities_NK.argmax(1) == data.labels_N[data.rows("test")]).all()


def test_the_same_seed_gives_the_same_answers(tmp_path):
    a, b = (run(tmp_path, steps=4, lr=[1e-3])[1].probabilities_NK for _ in range(2))
    assert np.array_equal(a, b)


def test_training_batches_are_permutations_of_the_split_and_a_given_number():
    data = bright_or_dark()
    loader = FineTuneLoader(data, data.rows("train"), size=16, batch=8, threads=1, steps=9, seed=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 9
    labels = torch.cat([labels_N for _, labels_N in batches])
    assert len(labels) == 72
    rows = loader.rows
    assert sorted(rows[:36]) == sorted(rows[36:]) == data.rows("train").tolist()
    assert torch.equal(labels, torch.from_numpy(data.labels_N[rows]))


def test_jitter_moves_a_little_and_never_mirrors():
    torch.manual_seed(0)
    x = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    x[..., 12:20, 4:10] = 200  # a mark on the left
    moved = augment(x)
    assert moved.shape == x.shape
    assert moved.min() >= 0
    assert moved.max() <= 255
    assert (moved[..., :16].sum((1, 2, 3)) > 3 * moved[..., 16:].sum((1, 2, 3))).all()
    assert not torch.equal(moved[0], moved[1])


def test_jitter_is_float32_under_autocast():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8))
    torch.manual_seed(0)
    expected = augment(x)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(x), expected)
