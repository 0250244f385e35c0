"""`python -m data_prep.phantom out=data/phantom/raw`: writes procedural datasets in the raw layouts of real ones."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_prep.phantom.sheet import sheet
from data_prep.phantom.writers import MINI, WRITERS
from data_prep.phantom.writers.folder import write_if_changed
from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.progress import Progress


@dataclass
class PhantomConfig:
    """Draws procedural medical datasets. Datasets that are complete and have the same settings are not written again.

    python -m data_prep.phantom out=data/phantom/raw sources=pathvqa,pubmedqa seed=0

    out      folder to write OUT/<source> to
    sources  names of datasets; `all` for every one (default: those of `make mini`)
    seed     random seed of images and texts (default 0)
    scale    factor of the size of the training splits (default 1)
    sheet    a PNG to draw instead of datasets: one row per modality, with captions
    """

    out: Path = Path("data/phantom/raw")
    sources: list[str] = field(default_factory=list)
    seed: int = 0
    scale: float = 1.0
    sheet: str = ""


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(PhantomConfig, args)
    if config.sheet:
        sheet(Path(config.sheet), seed=config.seed)
        print(config.sheet)
        return
    chosen = list(WRITERS) if config.sources == ["all"] else config.sources or list(MINI)
    for name in chosen:
        if name not in WRITERS:
            raise UserError(f"sources={name}: no phantom has this name{suggest(name, WRITERS)}")
    for name in Progress(chosen, unit="dataset", desc="phantoms"):
        writer = WRITERS[name]
        num = {split: max(4, round(size * config.scale)) if split == "train" else size for split, size in writer.SIZES.items()}
        settings = {"seed": config.seed, "num": num}
        write_if_changed(config.out / name, settings, partial(writer.write, seed=config.seed, num=num))


if __name__ == "__main__":
    main(sys.argv[1:])
