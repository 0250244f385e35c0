"""One wandb run per run folder, offline by default.

`wandb.json` in the run folder holds the arguments of `wandb.init`, above all the id, so that a resumed training, the evaluation and the
transfer of a run continue the same wandb run.
"""

import base64
import contextlib
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from src.config.train import LoggerConfig, TrainConfig
from src.runtime import sweep
from src.runtime.atomic_file import write_atomically
from src.runtime.errors import UserError
from src.runtime.run_folder import flatten, is_first_rank, redact_secrets, run_name
from src.runtime.schema import to_plain
from src.tracking.wandb_history import read_history

ROWS = 32  # of the table of predictions
MAX_NAME_LENGTH = 128  # characters; a limit of wandb
MAX_TAG_LENGTH = 64  # characters; a limit of wandb


def check_login(logger: LoggerConfig) -> None:
    """Raises `UserError` if logger.wandb=online and there is no API key; does not contact the server."""
    if logger.wandb == "online" and not _is_logged_in():
        raise UserError("logger.wandb=online, but nobody is logged in; run `wandb login`, or set logger.wandb=offline and upload later")


class WandbRun:
    """Logs the rows of `log.csv`, each step once: a resumed training repeats the steps after its checkpoint, with the same values."""

    def __init__(self, run: Any, *, last: int):
        self.run, self.last = run, last

    def log(self, row: dict) -> None:
        if row["step"] > self.last:
            self.run.log(row)
            self.last = row["step"]


def last_logged_step(run: Any, folder: Path) -> int:
    """The last step that wandb has: from the run files of an offline run, which survive a kill, or from the server's summary."""
    files = folder.glob("wandb/*run-*/*.wandb" if run.offline else "wandb/offline-run-*/*.wandb")
    steps = [row["step"] for path in files for row in read_history(path) if "step" in row]
    return max([0 if run.offline else int(run.summary.get("step", 0)), *steps])


@contextlib.contextmanager
def training_run(folder: Path, config: TrainConfig) -> Iterator[WandbRun | None]:
    """The wandb run of a training, or None. Continues the run of the folder if there is one; finishes it also after a failure."""
    if config.logger.wandb == "none" or not is_first_rank():
        yield None
        return
    path = folder / "wandb.json"
    agent_id = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None  # set by the agent of a wandb sweep
    settings = json.loads(path.read_text()) if path.exists() else {"id": agent_id or secrets.token_hex(4)}
    settings |= {"project": config.logger.project, "group": _group(config.name), "name": config.name[-MAX_NAME_LENGTH:], "tags": _tags()}
    write_atomically(path, json.dumps(settings | {"mode": config.logger.wandb}, indent=1))
    with _open_run(folder, config=flatten(redact_secrets(to_plain(config)))) as run:
        run.define_metric("*", step_metric="step")
        yield WandbRun(run, last=last_logged_step(run, folder))
        log_result(run, folder)


def update_run(folder: Path) -> None:
    """Logs the result of a run and a sample of its answers to its wandb run, if it has one."""
    if (folder / "wandb.json").exists() and is_first_rank():
        with _open_run(folder) as run:
            log_result(run, folder)
            log_answers(run, folder)


def log_result(run: Any, folder: Path) -> None:
    """Writes `result.json` to the summary: `<key>` is the value, `<key>/low` and `<key>/high` are its interval."""
    result = json.loads((folder / "result.json").read_text())
    run.summary.update({key: result[key] for key in ("git", "data", "seconds", "peak_rss_mb")})
    for key, metric in result["metrics"].items():
        run.summary.update({key: metric["value"], f"{key}/low": metric["low"], f"{key}/high": metric["high"]})


def log_answers(run: Any, folder: Path) -> None:
    """Logs a table of the test questions that the report also shows, each with its image and its answers."""
    import wandb
    from PIL import Image

    from src.reporting.examples import sample_examples
    from src.reporting.run_data import RunData

    try:
        examples = sample_examples(RunData(run_name(folder), folder), count=ROWS)
    except UserError as error:
        print(f"wandb: no table of predictions was logged; {error}")
        return
    conditions = list(dict.fromkeys(condition for one in examples for condition, _, _ in one.answers))
    table = wandb.Table(columns=["about", "image", "question", "references", *conditions])
    for one in examples:
        picture = wandb.Image(Image.open(io.BytesIO(base64.b64decode(one.image.partition(",")[2])))) if one.image else None
        predictions = {condition: answer for condition, answer, _ in one.answers}
        columns = [predictions.get(condition, "") for condition in conditions]
        table.add_data(one.about, picture, one.question, " | ".join(one.references), *columns)
    if examples:
        run.log({"predictions": table})


@contextlib.contextmanager
def _open_run(folder: Path, **more: Any) -> Iterator[Any]:
    import wandb

    arguments = json.loads((folder / "wandb.json").read_text())
    if arguments["mode"] == "online" and not _is_logged_in():
        print(f"wandb: no login on this machine; the run is stored in {folder}/wandb for a later upload")
        arguments["mode"] = "offline"
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").resolve())  # the default for images of tables is the home folder
    settings = wandb.Settings(console="off", silent=arguments["mode"] == "offline")
    try:
        run = wandb.init(**arguments, **more, dir=folder, resume="allow", reinit="finish_previous", save_code=False, settings=settings)
    except wandb.Error as error:
        raise UserError(f"wandb cannot be reached ({str(error).splitlines()[0]}); set logger.wandb=offline and upload later") from None
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)


def _is_logged_in() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.Error as error:  # malformed API key
        raise UserError(f"logger.wandb=online, but {error}") from None


def _group(name: str) -> str:
    """`<name>` for trials of a sweep, which are named `<name>/<overrides>`."""
    return name.rpartition("/")[0] or name


def _tags() -> list[str]:
    """Experiment and mix as chosen on the command line, and the overrides of a trial of a sweep."""
    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    tags = [f"{key}: {hydra.runtime.choices[key]}" for key in ("experiment", "mix") if hydra.runtime.choices.get(key)]
    overrides = sweep.naming_overrides(list(hydra.overrides.task)) if sweep.is_multirun() else []
    overrides = [override.lstrip("+") for override in overrides]
    return tags + [text for text in overrides if not text.startswith(("mix=", "logger", "data.root")) and len(text) <= MAX_TAG_LENGTH]
