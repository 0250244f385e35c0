"""Where the numbers come from: commands, code, machine, cost."""

from src.reporting.blocks import Code, Section, Table
from src.reporting.run_data import RunData


def section(run: RunData) -> Section:
    costs = [[verb, said["seconds"], said["peak_rss_mb"], said["git"][:12], said.get("data")] for verb, said in run.verbs.items()]
    if costs:
        total = sum(said["seconds"] for said in run.verbs.values())
        costs.append(["all", total, run.peak_rss_mb, None, None])
    rows = [[verb, round(seconds, 1), round(peak), git, data] for verb, seconds, peak, git, data in costs]
    caption = "Seconds sum restarts; memory is the peak over the process tree. A + after the commit: the code had uncommitted changes."
    blocks: list = [Code([said["command"] for said in run.verbs.values()])]
    columns = ["stage", "seconds", "peak memory, MB", "commit", "data fingerprint"]
    blocks.append(Table(columns, rows, caption=caption, rules=[len(rows) - 1]))
    machines = [said["environment"] for said in run.verbs.values() if "environment" in said]
    if machines:
        blocks.append(_machine(machines))
    return Section("Reproduce", blocks)


def _machine(machines: list[dict]) -> Table:
    """One column where every stage ran on the same machine with the same libraries, else one per kind."""
    kinds = list({str(machine): machine for machine in machines}.values())
    names = ["value"] if len(kinds) == 1 else [f"machine {number + 1}" for number in range(len(kinds))]
    rows = [[key, *(_words(kind.get(key)) for kind in kinds)] for key in kinds[0]]
    return Table(["environment", *names], rows)


def _words(value: object) -> str:
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)
