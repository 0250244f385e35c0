"""`python -m experiments.sweeps.dashboard entity=NAME`: saves a wandb workspace that compares mixes.

It needs `wandb login` and network access.
"""

import sys
from dataclasses import dataclass

import wandb_workspaces.reports.v2 as panels
from wandb_workspaces import workspaces

from src.config.train import LoggerConfig
from src.runtime.arguments import parse_arguments
from src.runtime.cli import CONF, compose
from src.runtime.errors import report_user_errors
from src.runtime.schema import check_choice
from src.tracking import wandb_run

SCORES = {"BLEU-1": "all/bleu1", "exact match": "all/exact", "closed accuracy": "closed/accuracy"}
CONDITIONS = ("real", "shuffled", "blank")
SPEED = {"Samples per second": "samples/s", "Tokens per second": "tokens/s", "Share of time spent waiting for data": "data_wait"}


def workspace(*, entity: str, project: str, mix: str) -> workspaces.Workspace:
    """A workspace of runs that differ in their mix, grouped by sweep: losses per source, scores and throughput."""
    sources = list(compose("train", ["+experiment=mini", f"mix={mix}"]).mix.shares)
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"mixes: {mix}",
        sections=[
            workspaces.Section("Scores", panels=scores(), is_open=True),
            workspaces.Section(
                "Loss per source", panels=[*curves("Loss", "loss", sources), *curves("Validation loss", "val", sources)], is_open=True
            ),
            workspaces.Section("Answers per source", panels=curves("Token F1", "f1", sources)),
            workspaces.Section(
                "Optimisation",
                panels=[curve("Loss", "loss"), curve("Mean validation loss", "val"), grad_norm_panel(), learning_rate_panel()],
            ),
            workspaces.Section("Throughput", panels=[curve(title, key) for title, key in SPEED.items()]),
            workspaces.Section("Predictions", panels=[panels.WeavePanelSummaryTable(table_name="predictions")]),
        ],
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")]),
    )


def scores() -> list:
    """Scores with the correct, shuffled and blank images, and their gaps, which show how much the answers depend on the image."""
    bars = [
        panels.BarPlot(title=f"{name}: real, shuffled, blank", metrics=[f"vqa/pooled/{condition}/{key}" for condition in CONDITIONS])
        for name, key in SCORES.items()
    ]
    gaps = [f"vqa/pooled/real_minus_{other}/all/bleu1" for other in CONDITIONS[1:]]
    return [*bars, panels.BarPlot(title="BLEU-1 gained from the correct image", metrics=gaps)]


def curves(title: str, kind: str, sources: list[str]) -> list:
    return [curve(f"{title}: {source}", f"{kind}/{source}") for source in sources]


def curve(title: str, *keys: str) -> panels.LinePlot:
    return panels.LinePlot(title=title, x="step", y=list(keys))


def grad_norm_panel() -> panels.LinePlot:
    return panels.LinePlot(title="Gradient norm before clipping", x="step", y=["grad_norm"], log_y=True)


def learning_rate_panel() -> panels.LinePlot:
    return curve("Learning rate", *(f"lr/{part}" for part in ("vision", "projector", "language")))


@dataclass
class DashboardConfig:
    """Saves a wandb workspace with panels that compare mixes. It needs `wandb login` and network access.

    python -m experiments.sweeps.dashboard entity=NAME mix=mini

    entity   wandb user or team
    project  wandb project (default openmedq)
    mix      file of conf/mix, whose sources get panels (default mini)
    """

    entity: str
    project: str = "openmedq"
    mix: str = "mini"


@report_user_errors
def main(args: list[str]) -> None:
    config = parse_arguments(DashboardConfig, args)
    check_choice("mix", config.mix, tuple(path.stem for path in (CONF / "mix").glob("*.yaml")))
    wandb_run.check_login(LoggerConfig(wandb="online", project=config.project))
    print(workspace(entity=config.entity, project=config.project, mix=config.mix).save().url)


if __name__ == "__main__":
    main(sys.argv[1:])
