"""The trials of the breadth experiment: the sources of each encoder, as overrides of `src.train`."""

from dataclasses import dataclass

import numpy as np

IMAGE_SOURCES = ("pmc_oa", "mimic_cxr", "pmc_vqa", "omnimedvqa", "roco", "pathvqa", "ubench", "vqa_med_2019", "iu_xray", "slake", "vqa_rad")
TEXT_SOURCES = ("pubmedqa", "medmcqa", "medqa")
BENCHMARKS = ("pad_ufes_20", "breastmnist", "retinamnist", "octmnist", "pneumoniamnist", "organcmnist", "sicapv2", "malaria")
SIZES = (1, 2, 4, 8, 11)
SEEDS = 4
STEPS, IMAGES, TEXTS = 150, 48, 12  # optimizer steps; samples with and without images per step


@dataclass(frozen=True)
class Trial:
    seed: int
    sources: tuple[str, ...]
    text: bool = False

    @property
    def name(self) -> str:
        label = self.sources[0] if len(self.sources) == 1 else str(len(self.sources))
        return f"breadth/{label}{'+text' if self.text else ''}-seed{self.seed}"

    def overrides(self) -> list[str]:
        """Sources have equal shares, and every trial has the same number of samples with images."""
        batch = IMAGES + TEXTS if self.text else IMAGES
        shares = dict.fromkeys(self.sources, IMAGES / len(self.sources))
        shares |= dict.fromkeys(TEXT_SOURCES, TEXTS / len(TEXT_SOURCES)) if self.text else {}
        left_out = {source: 0.0 for source in (*IMAGE_SOURCES, *TEXT_SOURCES) if source not in shares}
        values = ", ".join(f"{source}: {share:.6g}" for source, share in (shares | left_out).items())
        return [
            "+experiment=mini",
            f"name={self.name}",
            f"seed={self.seed}",
            f"mix.shares={{{values}}}",
            f"optim.steps={STEPS}",
            f"data.global_batch_size={batch}",
            f"data.packing_window={10 * batch}",
            "data.val_samples=0",
            "data.workers=0",
            f"trainer.val_every={STEPS}",
        ]


def source_order(seed: int) -> list[str]:
    """The order in which this seed adds the image sources."""
    return np.random.default_rng(seed).permutation(IMAGE_SOURCES).tolist()


def trials() -> list[Trial]:
    """Nested sets in the order of each seed, all sources plus the text-only ones, and each source alone once."""
    nested = [Trial(seed, tuple(source_order(seed)[:size])) for seed in range(SEEDS) for size in SIZES]
    texts = [Trial(seed, tuple(source_order(seed)), text=True) for seed in range(SEEDS)]
    alone = [Trial(0, (source,)) for source in IMAGE_SOURCES]
    return list(dict.fromkeys([*nested, *texts, *alone]))
