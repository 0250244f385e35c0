"""`python -m src.export run=NAME out=FOLDER`: a trained run where people already are: transformers, PEFT, timm, a hosted demo."""

import json
import sys
from pathlib import Path

import torch

from src import run
from src.cli import verb
from src.config import Export, Train, one_of
from src.errors import UserError, nearest
from src.model.query import finished
from src.model.vlm import build
from src.overrides import quote_texts
from src.release import card, space, usage
from src.release.check import difference
from src.release.folder import published
from src.release.llava import save_llava
from src.release.parts import save_adapter, save_timm
from src.release.push import check_push, push, target
from src.training.checkpoint import choose, load

PARTS = ("hf", "adapter", "timm", "space")


def export(config: Export) -> Path:
    """Writes `out/hf`, `out/adapter`, `out/timm` and `out/space`, checks the first, and uploads them if asked to."""
    folder, trained = finished(config.outputs, config.run)
    validate(config, trained)
    path = choose(folder, config.checkpoint)
    story = card.tell(folder, trained)
    out = Path(config.out)
    with run.verb(folder, "export") as said, published(out) as partial:
        model = build(trained)
        load(model, path)
        model.eval()
        if "hf" in config.parts:
            dtype = getattr(torch, config.dtype or trained.language.dtype)
            save_llava(model, partial / "hf", dtype=dtype, prompter=model.prompter(budget=trained.data.row_tokens))
            said["logits"] = {"dtype": str(dtype).removeprefix("torch.")} | difference(model, partial / "hf")
        if "adapter" in config.parts:
            save_adapter(model, partial / "adapter", base=trained.language.path, revision=trained.language.revision)
        if "timm" in config.parts:
            save_timm(model.vision, partial / "timm")
        if "space" in config.parts:
            space.save_space(partial / "space")
        for name, text in texts(story, config.parts).items():
            (partial / name).write_text(text)
    if config.push:
        push(out, config.push, parts=config.parts, texts=texts(story, config.parts, repository=config.push))
    return out


def validate(config: Export, trained: Train) -> None:
    """What can be refused before anything is loaded."""
    for part in config.parts:
        if part not in PARTS:
            raise UserError(f"parts names {part!r}{nearest(part, PARTS)}")
    one_of("checkpoint", config.checkpoint, ("best", "last"))
    if config.dtype is not None:
        one_of("dtype", config.dtype, ("float32", "bfloat16", "float16"))
    if not trained.data.images and {"hf", "space"} & set(config.parts):
        raise UserError(f"run '{config.run}' was trained without images (data.images=false); export its adapter alone with parts=[adapter]")
    if "space" in config.parts and "hf" not in config.parts:
        raise UserError("the part space shows the part hf; add hf to parts=")
    if config.push:
        check_push(config.push)


def texts(story: card.Story, parts: list[str], *, repository: str | None = None) -> dict[str, str]:
    """Cards and Space, by path in `out`: for a reader of the folder, or, with `repository`, of the hub."""
    where = {part: target(repository, part) if repository else None for part in PARTS}
    found = {}
    for part, (library, *_) in usage.PARTS.items():
        if part in parts:
            lines = usage.lines(part, base=story.config.language.path, repository=where[part])
            found[f"{part}/README.md"] = card.card(story, library=library, usage=lines)
    if "space" in parts:
        found |= {f"space/{name}": text for name, text in space.texts(story, repository=where["hf"]).items()}
    return found


@verb("export", Export)
def main(config: Export) -> None:
    out = export(config)
    folder, _ = run.read_run(config.outputs, config.run)
    logits = json.loads((folder / "export.json").read_text()).get("logits")
    if logits:
        largest = f"{logits['max_difference']:.2g} ({logits['dtype']}; the largest logit is {logits['largest']:.2g})"
        print(f"logits of the reloaded export differ from the run's by at most {largest}")
    print(out)


if __name__ == "__main__":
    sys.argv[1:] = quote_texts(sys.argv[1:], texts=("run", "out", "push"))
    main()
