"""`python -m src.report runs=NAME`: one page about a run: its data, training, scores and significance. Several runs are compared."""

from pathlib import Path

from src.config.report import ReportConfig
from src.reporting.run_data import find_runs
from src.runtime.cli import command


def report(config: ReportConfig) -> Path:
    """Writes `report.html`, `report.md` and `report.csv`; returns the path of the page."""
    runs = find_runs(config.runs, config.outputs)
    from src.commands.report import write_report  # imports pyarrow and scores; a wrong name of a run is reported before

    return write_report(config, runs)


@command("report", ReportConfig)
def main(config: ReportConfig) -> None:
    print(report(config))


if __name__ == "__main__":
    main()
