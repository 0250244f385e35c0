"""`python -m src.report runs=NAME`: one page that shows what a run did and what its numbers are worth; several runs are compared."""

import os
from pathlib import Path

from src.config.report import ReportConfig
from src.config.train import MixConfig
from src.reporting import answers, compare, data, definitions, environment, examples, page, training, transfer
from src.reporting.blocks import Section
from src.reporting.run_data import RunData, find_runs, phantom_sources
from src.runtime.cli import command
from src.runtime.errors import UserError
from src.runtime.run_folder import write_atomically


def report(config: ReportConfig) -> Path:
    """Writes `report.html`, `report.md` and `report.csv`; returns the path of the page."""
    runs = find_runs(config.runs, config.outputs)
    if config.blind and len(runs) > 1:
        raise UserError(f"blind={config.blind} stands beside one run, but runs= names {len(runs)}; name one, or add the blind run to runs=")
    if len(runs) == 1:
        title, lead, sections = runs[0].name, report_summary(runs[0]), single_run_report(runs[0], config)
    else:
        title, lead, sections = (
            f"{len(runs)} runs compared",
            compare.summary(runs),
            compare.sections(runs, baseline=config.baseline, resamples=config.resamples, seed=config.seed),
        )
    title = config.title or title
    out = Path(config.out) if config.out else report_folder(runs) / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.html(sections, title=title, lead=lead))
    write_atomically(out.with_suffix(".md"), page.markdown(sections, title=title))
    write_atomically(out.with_suffix(".csv"), compare.csv_text(runs))
    return out


def single_run_report(run: RunData, config: ReportConfig) -> list[Section]:
    """The sections of a single run, in the order in which a reader doubts."""
    result = Section("Result", [answers.tiles(run)]) if run.metrics else None
    blind = _blind(config)
    found = [data.section(run), training.section(run)]
    found += [answers.section(run, blind=blind, resamples=config.resamples, seed=config.seed), examples.section(run, count=config.examples)]
    found += [transfer.section(run), definitions.section(), environment.section(run)]
    return [result, *found] if result else found


def _blind(config: ReportConfig) -> RunData | None:
    found = find_runs(config.blind, config.outputs) if config.blind else []
    if len(found) > 1:
        raise UserError(f"blind={config.blind} stands for {len(found)} runs; allowed is one")
    return found[0] if found else None


def report_summary(run: RunData) -> str:
    """What was run, in one sentence."""
    config = run.config
    if not config and "evaluate" not in run.verbs:
        return f"Image encoders on classification sets, {run.folder.name}; no model was trained here.{phantom_sources(run)}"
    if not config:
        return f"Answers that were scored from a predictions file, {run.folder.name}."
    sources = list(MixConfig(**config["mix"]).sampling_weights)
    vision, language = config["vision"]["path"] or config["vision"]["architecture"], config["language"]["path"]
    return (
        f"A vision-language model trained for {config['optim']['steps']:,} steps of {config['data']['global_batch_size']} samples on "
        f"{', '.join(sources)}; vision encoder {vision}, language model {language} with LoRA rank {config['language']['lora']['rank']}, "
        f"seed {config['seed']}.{phantom_sources(run)}"
    )


def report_folder(runs: list[RunData]) -> Path:
    """The run's folder, or the deepest folder that holds all runs."""
    return Path(os.path.commonpath([run.folder for run in runs]))


@command("report", ReportConfig)
def main(config: ReportConfig) -> None:
    print(report(config))


if __name__ == "__main__":
    main()
