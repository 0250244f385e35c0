"""`python -m data_prep.phantom.weights`: small replacements of PMC-LLaMA and BiomedCLIP, in their formats."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.phantom.weights import language, vision
from data_prep.phantom.writers.folder import write_if_changed
from src.data.shards import Shards
from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors, suggest

PARTS = ("language", "vision")


@dataclass
class PhantomWeightsConfig:
    """Trains a small language model and image encoder in place of the real weights. Parts that are complete are not trained again.

    python -m data_prep.phantom.weights out=data/phantom/weights shards=data/phantom/shards

    out             folder to write OUT/language and OUT/vision to
    shards          folder of the phantom shards; only their training splits are read
    parts           language, vision (default: both)
    language_steps  optimizer steps of the language model (default 260)
    vision_steps    optimizer steps of the image encoder (default 1200)
    seed            random seed of both (default 0)
    """

    out: Path = Path("data/phantom/weights")
    shards: Path = Path("data/phantom/shards")
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    language_steps: int = 260
    vision_steps: int = 1200
    seed: int = 0


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(PhantomWeightsConfig, args)
    for part in config.parts:
        if part not in PARTS:
            raise UserError(f"parts={part}: unknown part{suggest(part, PARTS)}")
    sources = sorted(path.parent for path in config.shards.glob("*/manifest.json"))
    if config.shards / "pmc_oa" not in sources:
        raise UserError(f"shards={config.shards}: no pmc_oa, on whose captions the image encoder is trained; build its shards")
    if "language" in config.parts:
        all_shards = [Shards(folder) for folder in sources]
        settings = {"steps": config.language_steps, "seed": config.seed, "shards": [one.manifest["fingerprint"] for one in all_shards]}
        train_if_missing(
            config.out / "language",
            settings,
            lambda folder: language.pretrain(folder, all_shards, steps=config.language_steps, seed=config.seed),
        )
    if "vision" in config.parts:
        captions = Shards(config.shards / "pmc_oa")
        settings = {"steps": config.vision_steps, "seed": config.seed, "shards": captions.manifest["fingerprint"]}
        train_if_missing(
            config.out / "vision", settings, lambda folder: vision.pretrain(folder, captions, steps=config.vision_steps, seed=config.seed)
        )


def train_if_missing(out: Path, settings: dict, write: Callable[[Path], None]) -> None:
    started = time.perf_counter()
    written = write_if_changed(out, settings, write)
    print(f"{out} written in {time.perf_counter() - started:.0f} s" if written else f"{out} exists already")


if __name__ == "__main__":
    main(sys.argv[1:])
