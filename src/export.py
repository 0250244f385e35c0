"""`python -m src.export run=NAME out=FOLDER`: writes a trained run as folders for transformers, PEFT, timm and a hosted demo."""

import json
import sys
from pathlib import Path

import torch

from src.config.export import ExportConfig
from src.config.train import TrainConfig
from src.data.credentialed import credentialed_notice
from src.inference.query import finished_run
from src.model.vlm import build_vlm
from src.release import card, space, usage
from src.release.folder import atomic_folder, check_push, push_folder, repository_name
from src.release.llava import max_logit_difference, save_llava
from src.release.parts import save_adapter, save_timm
from src.runtime import run_folder
from src.runtime.cli import command
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError, suggest
from src.runtime.schema import check_choice
from src.training.checkpoint import choose_checkpoint, load_checkpoint

PARTS = ("hf", "adapter", "timm", "space")
MIN_REASON_WORDS = 5


def export(config: ExportConfig) -> Path:
    """Writes the folders of `parts=` below `out`, compares the logits of `out/hf` with those of the run, and uploads with `push=`."""
    folder, trained = finished_run(config.outputs, config.run)
    check_export_config(config, trained)
    facts = card.collect_facts(folder, trained)
    repository, reason = config.push.repository, (config.push.credentialed or "").strip()
    if facts.credentialed:
        check_credentialed_push(config, facts.credentialed)
        print(f"warning: {credentialed_notice(facts.credentialed)}")
    path = choose_checkpoint(folder, config.checkpoint)
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
        if "adapter" in config.parts:
            save_adapter(model, partial / "adapter", base=trained.language.path, revision=trained.language.revision)
        if "timm" in config.parts:
            save_timm(model.vision, partial / "timm")
        if "space" in config.parts:
            space.save_space(partial / "space")
        for name, text in render_texts(facts, config.parts).items():
            (partial / name).write_text(text)
    if repository:
        facts.push_reason = reason
        push_folder(out, repository, parts=config.parts, texts=render_texts(facts, config.parts, repository=repository))
    return out


def check_export_config(config: ExportConfig, trained: TrainConfig) -> None:
    """Raises `UserError` for settings that cannot work, before anything is loaded."""
    for part in config.parts:
        if part not in PARTS:
            raise UserError(f"parts={part!r} is unknown{suggest(part, PARTS)}")
    check_choice("checkpoint", config.checkpoint, ("best", "last"))
    if config.dtype is not None:
        check_choice("dtype", config.dtype, ("float32", "bfloat16", "float16"))
    if not trained.data.images and {"hf", "space"} & set(config.parts):
        raise UserError(f"run '{config.run}' was trained without images (data.images=false); export only its adapter with parts=[adapter]")
    if "space" in config.parts and "hf" not in config.parts:
        raise UserError("parts=: the part space runs the part hf; add hf to parts=")
    if config.push.repository:
        check_push(config.push.repository)


def check_credentialed_push(config: ExportConfig, sources: list[str]) -> None:
    """Raises `UserError` for an upload of any part without a reason. A sentence is at least five words, so that no `yes` passes."""
    if config.push.repository and len((config.push.credentialed or "").split()) < MIN_REASON_WORDS:
        raise UserError(
            f"push={config.push.repository}: the run was trained on credentialed data ({', '.join(sources)}), and what is derived from it "
            "may be shared only under the same agreement; leave push= out, or state in a sentence why this upload is permitted with "
            "push.credentialed='...', which export.json and the cards will hold"
        )


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


@command("export", ExportConfig)
def main(config: ExportConfig) -> None:
    out = export(config)
    folder, _ = run_folder.read_run(config.outputs, config.run)
    logits = json.loads((folder / "export.json").read_text()).get("logits")
    if logits:
        difference = f"{logits['max_difference']:.2g} ({logits['dtype']}; the largest logit is {logits['largest']:.2g})"
        print(f"logits of the reloaded export differ from those of the run by at most {difference}")
    print(out)


if __name__ == "__main__":
    sys.argv[1:] = quote_free_text(sys.argv[1:], texts=("run", "out", "push", "push.repository", "push.credentialed"))
    main()
