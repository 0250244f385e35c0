"""Writes a trained run as folders for transformers, PEFT, timm and a hosted demo; the command is `src/export.py`."""

from pathlib import Path

import torch

from src.config.export import PARTS, ExportConfig
from src.config.train import TrainConfig
from src.data.credentialed import mark_config
from src.model.vlm import build_vlm
from src.release import card, space, usage
from src.release.folder import atomic_folder, push_folder, repository_name
from src.release.llava import max_logit_difference, save_llava
from src.release.parts import save_adapter, save_timm
from src.runtime import run_folder
from src.training.checkpoint import choose_checkpoint, load_checkpoint


def export_run(config: ExportConfig, folder: Path, trained: TrainConfig) -> Path:
    """Implements `src.export.export` for the finished run in `folder`."""
    path = choose_checkpoint(folder, config.checkpoint)
    facts = card.collect_facts(folder, trained)
    repository, reason = config.push.repository, (config.push.credentialed or "").strip()
    out = Path(config.out)
    with run_folder.record(folder, "export") as result, atomic_folder(out) as partial:
        result["credentialed"] = {"sources": facts.credentialed, "push": repository, "reason": reason if repository else None}
        model = build_vlm(trained)
        load_checkpoint(model, path)
        model.eval()
        if "hf" in config.parts:
            dtype = getattr(torch, config.dtype or trained.language.dtype)
            save_llava(model, partial / "hf", dtype=dtype, prompter=model.prompter(budget=trained.data.max_seq_len))
            result["logits"] = {"dtype": str(dtype).removeprefix("torch.")} | max_logit_difference(model, partial / "hf")
            mark_config(partial / "hf" / "config.json", facts.credentialed)
        if "adapter" in config.parts:
            save_adapter(model, partial / "adapter", base=trained.language.path, revision=trained.language.revision)
        if "timm" in config.parts:
            save_timm(model.vision, partial / "timm")
            mark_config(partial / "timm" / "config.json", facts.credentialed)
        if "space" in config.parts:
            space.save_space(partial / "space")
        for name, text in render_texts(facts, config.parts).items():
            (partial / name).write_text(text)
    if repository:
        facts.push_reason = reason
        push_folder(out, repository, parts=config.parts, texts=render_texts(facts, config.parts, repository=repository))
    return out


def render_texts(facts: card.CardFacts, parts: list[str], *, repository: str | None = None) -> dict[str, str]:
    """Cards and files of the Space by path in `out`, with the addresses of the folder or, with `repository`, of the Hub."""
    repositories = {part: repository_name(repository, part) if repository else None for part in PARTS}
    rendered = {}
    for part, (library, *_) in usage.PARTS.items():
        if part in parts:
            base, template = facts.config.language.path, facts.config.prompt.template
            text = usage.usage_text(part, base=base, repository=repositories[part], template=template)
            rendered[f"{part}/README.md"] = card.model_card(facts, library=library, usage=text)
    if "space" in parts:
        rendered |= {f"space/{name}": text for name, text in space.texts(facts, repository=repositories["hf"]).items()}
    return rendered
