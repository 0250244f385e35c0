"""`python -m src.export run=NAME out=FOLDER`: writes a trained run as folders for transformers, PEFT, timm and a hosted demo."""

import json
import sys
from pathlib import Path

from src.config.export import ExportConfig, check_credentialed_push, check_export_config
from src.data.credentialed import credentialed_notice
from src.data.lineage import credentialed, lineage
from src.inference.query import finished_run
from src.runtime import run_folder
from src.runtime.cli import command
from src.runtime.cli_quoting import quote_free_text


def export(config: ExportConfig) -> Path:
    """Writes the folders of `parts=` below `out`, compares the logits of `out/hf` with those of the run, and uploads with `push=`."""
    folder, trained = finished_run(config.outputs, config.run)
    check_export_config(config, images=trained.data.images)
    sources = credentialed(lineage(folder))
    check_credentialed_push(config.push, sources)
    if config.push.repository:
        from src.release.folder import check_push  # imports huggingface_hub

        check_push(config.push.repository)
    if sources:
        print(f"warning: {credentialed_notice(sources)}")
    from src.commands.export import export_run  # imports torch, which takes seconds: mistakes are reported before

    return export_run(config, folder, trained)


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
