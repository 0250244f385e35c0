"""The section for reproduction: commands, code, machine, cost."""

from src.reporting.blocks import Code, Section, Table
from src.reporting.run_data import RunData


def section(run: RunData) -> Section:
    rows = [
        [command, round(result["seconds"], 1), round(result["peak_rss_mb"]), result["git"][:12], result.get("data")]
        for command, result in run.results.items()
    ]
    if rows:
        rows.append(["all", round(run.seconds, 1), round(run.peak_rss_mb), None, None])
    caption = "Seconds include restarts. Memory is the peak over the process tree. A + after the commit means uncommitted changes."
    columns = ["stage", "seconds", "peak memory, MB", "commit", "data fingerprint"]
    blocks: list = [Code([result["command"] for result in run.results.values()])]
    blocks.append(Table(columns, rows, caption=caption, rules=[len(rows) - 1]))
    environments = [result["environment"] for result in run.results.values() if "environment" in result]
    if environments:
        blocks.append(_environment_table(environments))
    return Section("Reproduce", blocks)


def _environment_table(environments: list[dict]) -> Table:
    """One column per distinct environment (machine and library versions)."""
    distinct = list({str(environment): environment for environment in environments}.values())
    names = ["value"] if len(distinct) == 1 else [f"machine {index + 1}" for index in range(len(distinct))]
    rows = [[key, *(_to_text(environment.get(key)) for environment in distinct)] for key in distinct[0]]
    return Table(["environment", *names], rows)


def _to_text(value: object) -> str:
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)
