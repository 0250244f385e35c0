"""`python -m data_prep.phantom out=data/phantom/raw`: the procedural datasets, each in the raw layout of the one it stands for."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.phantom.sheet import sheet
from data_prep.phantom.writers import MINI, WRITERS
from data_prep.phantom.writers.folder import complete
from src.runtime.arguments import parse_arguments
from src.runtime.errors import UserError, report_user_errors, suggest
from src.runtime.progress import Progress


@dataclass
class PhantomConfig:
    """Draws procedural medical datasets; what is complete is kept.

    python -m data_prep.phantom out=data/phantom/raw sources=pathvqa,pubmedqa seed=0

    out      folder that gets OUT/<source>
    sources  names of datasets, separated by commas; `all` is every one (default: those of `make mini`)
    seed     of everything that is drawn and written (default 0)
    scale    size of the training splits, 1 = default
    sheet    a PNG to draw instead: one row per modality, with captions
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
            raise UserError(f"sources names '{name}', which no phantom stands for{suggest(name, WRITERS)}")
    for name in Progress(chosen, unit="dataset", desc="phantoms"):
        writer = WRITERS[name]
        num = {split: max(4, round(size * config.scale)) if split == "train" else size for split, size in writer.SIZES.items()}
        complete(config.out / name, {"seed": config.seed, "num": num}, lambda folder: writer.write(folder, seed=config.seed, num=num))  # noqa: B023


if __name__ == "__main__":
    main(sys.argv[1:])
