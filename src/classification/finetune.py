"""Full fine-tuning of an encoder with a linear head, with the same schedule, augmentation, class weights and budget for each encoder.

The loss is the weighted cross-entropy, or in a multi-label set the binary cross-entropy of each label, unweighted: its thresholds are
chosen on validation.

Legend: N images, 3HW channels and pixels, F width of a pooled feature, K classes or labels.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from src.classification.dataset import ClassificationDataset, image_batches
from src.classification.multilabel import f1_thresholds
from src.classification.probe import Fit, validation_score
from src.config.transfer import FineTuneConfig, PaperConfig
from src.model.vision import Vision
from src.runtime.progress import Progress

NUM_VALIDATIONS = 10  # per run
TIMED_STEPS = 3  # training steps that are measured for a plan
HEAD_LR_FACTOR = 10.0  # learning rate of the head divided by that of the encoder


class Classifier(lightning.LightningModule):
    """An encoder with a linear head.

    `best` holds the score, the weights and the thresholds of the best validation: highest macro-F1, then lowest loss. `weights_K` are the
    class weights, or None in a multi-label set.
    """

    weights_K: Tensor | None

    def __init__(self, vision: Vision, *, pooling: str, classes: int, weights_K: Tensor | None, lr: float, config: FineTuneConfig):
        super().__init__()
        self.vision, self.pooling, self.lr, self.config = vision.requires_grad_(True), pooling, lr, config
        with torch.no_grad():
            width = vision.pooled(torch.zeros(1, 3, vision.size, vision.size, dtype=torch.uint8), pooling).shape[1]
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("weights_K", weights_K)
        self.best: tuple[tuple[float, float], dict[str, Tensor], np.ndarray | None] | None = None
        self.val_outputs: list[tuple[Tensor, Tensor]] = []  # (probabilities, labels) per batch

    def forward(self, x_N3HW: Tensor) -> Tensor:
        return self.head(self.vision.pooled(x_N3HW, self.pooling))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x_N3HW, labels = batch
        z_NK = self(augment(x_N3HW)).float()
        if labels.ndim == 2:
            return F.binary_cross_entropy_with_logits(z_NK, labels.float())
        return F.cross_entropy(z_NK, labels, weight=self.weights_K)

    def predict(self, x_N3HW: Tensor) -> Tensor:
        """uint8 pixels -> probabilities p_NK on the CPU, of classes or of labels."""
        z_NK = self(x_N3HW).float()
        return (z_NK.softmax(1) if self.weights_K is not None else z_NK.sigmoid()).cpu()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.val_outputs.append((self.predict(batch[0]), batch[1].cpu()))

    def on_validation_epoch_end(self) -> None:
        p_NK, labels = (torch.cat(parts).numpy() for parts in zip(*self.val_outputs, strict=True))
        self.val_outputs.clear()
        score = validation_score(labels, p_NK)
        if self.best is None or score > self.best[0]:
            thresholds_K = f1_thresholds(labels, p_NK) if labels.ndim == 2 else None
            self.best = score, copy.deepcopy({name: value.cpu() for name, value in self.state_dict().items()}), thresholds_K

    def configure_optimizers(self):
        groups = []
        for module, lr in ((self.vision, self.lr), (self.head, self.lr * HEAD_LR_FACTOR)):
            matrices = [p for p in module.parameters() if p.ndim >= 2]
            vectors = [p for p in module.parameters() if p.ndim < 2]
            groups.append({"params": matrices, "lr": lr, "weight_decay": self.config.weight_decay})
            groups.append({"params": vectors, "lr": lr, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups)
        warmup, steps = self.config.warmup, self.config.steps

        def factor(step: int) -> float:
            return (step + 1) / warmup if step < warmup else 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def augment(x_N3HW: Tensor) -> Tensor:
    """Random rotation by up to 10 degrees, scale and contrast by up to 10%, and shift by up to 5% of the side.

    Images are never mirrored, because left and right may be labels. Pixels remain in 0..255, as floats. The sampling grid is computed in
    float32 under autocast too, because bfloat16 coordinates are wrong by up to a pixel.
    """
    n, device = len(x_N3HW), x_N3HW.device
    angle, scale, dx, dy, contrast = (torch.rand(5, n, device=device) * 2 - 1) * torch.tensor([0.175, 0.1, 0.1, 0.1, 0.1], device=device)[
        :, None
    ]
    cos, sin = torch.cos(angle) * (1 + scale), torch.sin(angle) * (1 + scale)
    theta_N23 = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    with torch.autocast(device.type, enabled=False):
        grid = F.affine_grid(theta_N23, list(x_N3HW.shape), align_corners=False)
        warped_N3HW = F.grid_sample(x_N3HW.float(), grid, padding_mode="border", align_corners=False)
    mean_N = warped_N3HW.mean((1, 2, 3), keepdim=True)
    return ((warped_N3HW - mean_N) * (1 + contrast.view(-1, 1, 1, 1)) + mean_N).clamp(0, 255)


class FineTuneLoader:
    """Batches (x_N3HW uint8, labels) of `rows`, in order; with `steps`, that many batches of successive random permutations."""

    def __init__(
        self, data: ClassificationDataset, rows: np.ndarray, *, size: int, batch: int, threads: int, steps: int = 0, seed: int = 0
    ):
        if steps:
            rng, epochs = np.random.default_rng(seed), -(-steps * batch // len(rows))
            rows = np.concatenate([rng.permutation(rows) for _ in range(epochs)])[: steps * batch]
        self.data, self.rows, self.settings = data, rows, {"size": size, "batch": batch, "threads": threads}

    def __len__(self) -> int:
        return -(-len(self.rows) // self.settings["batch"])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        labels = torch.from_numpy(self.data.labels[self.rows])
        for n, x_N3HW in enumerate(image_batches(self.data, self.rows, **self.settings)):
            yield x_N3HW, labels[n * self.settings["batch"] :][: len(x_N3HW)]


def finetune(
    build: Callable[[], Vision],
    data: ClassificationDataset,
    *,
    pooling: str,
    seed: int,
    config: FineTuneConfig,
    threads: int,
    device: torch.device,
    folder: Path,
) -> Fit:
    """Trains `build()` once per learning rate and predicts the test split with the model that is best on the validation split."""
    results = []
    for lr in config.lr:
        lightning.seed_everything(seed, verbose=False)
        model = build_classifier(build(), data, pooling=pooling, lr=lr, config=config)
        settings = {"size": model.vision.size, "batch": config.batch, "threads": threads}
        train = FineTuneLoader(data, data.rows("train"), steps=config.steps, seed=seed, **settings)
        with Progress(total=config.steps, desc=f"{data.name}: fine-tuning, lr={lr:g}", unit="step", leave=False) as progress:
            trainer = build_finetune_trainer(config, device=device, folder=folder, progress=progress)
            trainer.fit(model, train, FineTuneLoader(data, data.rows("val"), **settings))
        assert model.best is not None  # there are NUM_VALIDATIONS validations, or one per step
        results.append((*model.best, lr, model))
    (f1, _), state, thresholds_K, lr, model = max(results, key=lambda result: result[0])
    model.load_state_dict(state)
    test = FineTuneLoader(data, data.rows("test"), **settings)
    model = model.to(device).eval()
    # The precision of the validation, which chose the thresholds.
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        p_NK = torch.cat([model.predict(x_N3HW.to(device)) for x_N3HW, _ in test])
    return Fit(pooling, {"lr": lr}, f1, p_NK.double().numpy(), thresholds_K)


def build_classifier(vision: Vision, data: ClassificationDataset, *, pooling: str, lr: float, config: FineTuneConfig) -> Classifier:
    """A classifier in training mode, with class weights that are inverse to the class frequencies in train."""
    weights_K = None
    if not data.multilabel:
        counts_K = np.bincount(data.labels[data.rows("train")], minlength=len(data.classes))
        weights_K = torch.tensor(counts_K.sum() / (len(counts_K) * counts_K), dtype=torch.float32)
    return Classifier(vision, pooling=pooling, classes=len(data.classes), weights_K=weights_K, lr=lr, config=config).train()


def paper_pooling(poolings: tuple[str, ...]) -> str:
    """CLS token and mean of the patches (2d wide), after the final norm where there is one.

    The pooled output replaces a CLS token that the encoder lacks: that of the attention pool (PMC-CLIP), or the normalised mean. For an
    encoder with nothing but the mean it is the mean alone (d wide).
    """
    first = next(pooling for pooling in ("cls_norm", "cls", "mean_norm", "mean") if pooling in poolings)
    return "+".join(dict.fromkeys((first, "mean_norm" if first == "cls_norm" else "mean")))


def paper_schedule(config: PaperConfig, images: int) -> FineTuneConfig:
    """The schedule for a training split of `images`: each is seen `epochs` times."""
    steps = math.ceil(config.epochs * images / config.batch)
    return FineTuneConfig(steps, config.batch, config.lr, round(config.warmup * steps), config.weight_decay)


def seconds_per_step(model: Classifier, data: ClassificationDataset, *, threads: int, device: torch.device) -> float:
    """Measured seconds of a training step with its decoding: the mean of `TIMED_STEPS` steps after one that is not counted."""
    settings = {"size": model.vision.size, "batch": model.config.batch, "threads": threads}
    loader = FineTuneLoader(data, data.rows("train"), steps=TIMED_STEPS, **settings)
    model = model.to(device)
    optimizer = model.configure_optimizers()["optimizer"]

    def step(batch: tuple[Tensor, Tensor]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model.training_step((batch[0].to(device), batch[1].to(device)), 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step(next(iter(loader)))
    start = time.perf_counter()
    for batch in loader:
        step(batch)
    return (time.perf_counter() - start) / TIMED_STEPS


def build_finetune_trainer(config: FineTuneConfig, *, device: torch.device, folder: Path, progress: Progress) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        max_steps=config.steps,
        val_check_interval=max(1, config.steps // NUM_VALIDATIONS),
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        callbacks=[LambdaCallback(on_train_batch_end=lambda *_: progress.update())],
        num_sanity_val_steps=0,
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
