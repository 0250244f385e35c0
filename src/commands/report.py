"""Writes the page about a run or about several; the command is `src/report.py`."""

import os
from pathlib import Path

from src.config.report import ReportConfig
from src.config.train import MixConfig
from src.reporting import answers, compare, data, definitions, environment, examples, page, training, transfer
from src.reporting.blocks import Section
from src.reporting.run_data import RunData, credentialed_sources, find_runs, phantom_sources
from src.runtime.atomic_file import write_atomically
from src.runtime.errors import UserError


def write_report(config: ReportConfig, runs: list[RunData]) -> Path:
    """Implements `src.report.report`."""
    if config.blind and len(runs) > 1:
        raise UserError(f"blind={config.blind} needs one run, but runs= names {len(runs)}; name one run, or add the blind run to runs=")
    if len(runs) == 1:
        title, lead, sections = runs[0].name, report_summary(runs[0]), single_run_report(runs[0], config)
    else:
        title, lead = f"{len(runs)} runs compared", compare.summary(runs)
        sections = compare.sections(runs, baseline=config.baseline, resamples=config.resamples, seed=config.seed)
    title = config.title or title
    out = Path(config.out) if config.out else report_folder(runs) / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.html(sections, title=title, lead=lead))
    write_atomically(out.with_suffix(".md"), page.markdown(sections, title=title))
    write_atomically(out.with_suffix(".csv"), compare.csv_text(runs))
    return out


def single_run_report(run: RunData, config: ReportConfig) -> list[Section]:
    headline = [Section("Result", [answers.tiles(run)])] if run.metrics else []
    trained = [data.section(run), training.section(run)] if run.config else []
    measured = [transfer.section(run)] if run.config or "transfer" in run.results else []
    return [
        *headline,
        *trained,
        answers.section(run, blind=_blind_run(config), resamples=config.resamples, seed=config.seed),
        examples.section(run, count=config.examples),
        *measured,
        definitions.section(),
        environment.section(run),
    ]


def _blind_run(config: ReportConfig) -> RunData | None:
    runs = find_runs(config.blind, config.outputs) if config.blind else []
    if len(runs) > 1:
        raise UserError(f"blind={config.blind} matches {len(runs)} runs; give the name of one run")
    return runs[0] if runs else None


def report_summary(run: RunData) -> str:
    """A sentence that states what the run trained or scored."""
    config = run.config
    if not config and "evaluate" not in run.results:
        return f"Transfer of image encoders to classification sets, {run.name}; no model was trained here.{phantom_sources(run)}"
    if not config:
        return f"Scores of answers from a predictions file, {run.name}."
    sources = list(MixConfig(**config["mix"]).sampling_weights)
    vision, language = config["vision"]["path"] or config["vision"]["architecture"], config["language"]["path"]
    return (
        f"A vision-language model trained for {config['optim']['steps']:,} steps of {config['data']['global_batch_size']} samples on "
        f"{', '.join(sources)}; vision encoder {vision}, language model {language} with LoRA rank {config['language']['lora']['rank']}, "
        f"seed {config['seed']}.{phantom_sources(run)}{credentialed_sources(run)}"
    )


def report_folder(runs: list[RunData]) -> Path:
    """The run's folder, or the deepest folder that holds all runs."""
    return Path(os.path.commonpath([run.folder for run in runs]))
