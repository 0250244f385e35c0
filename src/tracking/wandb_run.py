"""wandb: one wandb run per run folder, offline by default.

`wandb.json` in the run's folder keeps what `wandb.init` was told, the id above all, so that a resumed training, the evaluation and the
transfer of a run all continue the same wandb run.
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
from src.runtime.errors import UserError
from src.runtime.run_folder import flatten, is_first_rank, redact_secrets, write_atomically
from src.runtime.schema import to_plain
from src.tracking.wandb_history import read_history

ROWS = 32  # of the table of predictions
LONGEST = 128  # characters of a wandb run's name
LONGEST_TAG = 64  # characters that wandb allows


def check_login(logger: LoggerConfig) -> None:
    """Raises `UserError` where runs are to go online and no key is at hand; asks no server."""
    if logger.wandb == "online" and not _logged_in():
        raise UserError("logger.wandb=online, but nobody is logged in; run `wandb login`, or set logger.wandb=offline and upload later")


class WandbRun:
    """Takes the rows of `log.csv`, each step once: a resumed training does the steps after its checkpoint again, with the same values."""

    def __init__(self, run: Any, *, last: int):
        self.run, self.last = run, last

    def log(self, row: dict) -> None:
        if row["step"] > self.last:
            self.run.log(row)
            self.last = row["step"]


def last_logged_step(run: Any, folder: Path) -> int:
    """The last step that wandb has. Nothing but its own files tells it of a run that was killed; what went online is only what arrived."""
    files = folder.glob("wandb/*run-*/*.wandb" if run.offline else "wandb/offline-run-*/*.wandb")
    steps = [row["step"] for path in files for row in read_history(path) if "step" in row]
    return max([0 if run.offline else int(run.summary.get("step", 0)), *steps])


@contextlib.contextmanager
def training_run(folder: Path, config: TrainConfig) -> Iterator[WandbRun | None]:
    """The board of a training's wandb run, or None. The run is continued if the folder has one, and finished also on failure."""
    if config.logger.wandb == "none" or not is_first_rank():
        yield None
        return
    path = folder / "wandb.json"
    given = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None  # by the agent of a wandb sweep
    known = json.loads(path.read_text()) if path.exists() else {"id": given or secrets.token_hex(4)}
    told = {"project": config.logger.project, "group": _group(config.name), "name": config.name[-LONGEST:], "tags": _tags()}
    write_atomically(path, json.dumps(known | told | {"mode": config.logger.wandb}, indent=1))
    with _opened(folder, config=flatten(redact_secrets(to_plain(config)))) as run:
        run.define_metric("*", step_metric="step")
        yield WandbRun(run, last=last_logged_step(run, folder))
        put_result(run, folder)


def update_run(folder: Path) -> None:
    """Puts the result of a run and a sample of its answers into its wandb run, if it has one."""
    if (folder / "wandb.json").exists() and is_first_rank():
        with _opened(folder) as run:
            put_result(run, folder)
            put_answers(run, folder)


def put_result(run: Any, folder: Path) -> None:
    """`result.json` as the summary: `<key>` is the value, `<key>/low` and `<key>/high` its interval."""
    result = json.loads((folder / "result.json").read_text())
    run.summary.update({key: result[key] for key in ("git", "data", "seconds", "peak_rss_mb")})
    for key, metric in result["metrics"].items():
        run.summary.update({key: metric["value"], f"{key}/low": metric["low"], f"{key}/high": metric["high"]})


def put_answers(run: Any, folder: Path) -> None:
    """A table of test questions drawn by lot, the same as in the report, each with its image and its answers."""
    import wandb
    from PIL import Image

    from src.reporting.examples import sample_examples
    from src.reporting.run_data import RunData

    try:
        examples = sample_examples(RunData(folder.name, folder), count=ROWS)
    except UserError as error:
        print(f"wandb gets no table of predictions: {error}")
        return
    conditions = list(dict.fromkeys(condition for one in examples for condition, _, _ in one.answers))
    table = wandb.Table(columns=["about", "image", "question", "references", *conditions])
    for one in examples:
        picture = Image.open(io.BytesIO(base64.b64decode(one.image.partition(",")[2])))
        answers = {condition: answer for condition, answer, _ in one.answers}
        said = [answers.get(condition, "") for condition in conditions]
        table.add_data(one.about, wandb.Image(picture), one.question, " | ".join(one.references), *said)
    if examples:
        run.log({"predictions": table})


@contextlib.contextmanager
def _opened(folder: Path, **more: Any) -> Iterator[Any]:
    import wandb

    told = json.loads((folder / "wandb.json").read_text())
    if told["mode"] == "online" and not _logged_in():
        print(f"nobody is logged in to wandb: {folder}/wandb keeps what can be uploaded later")
        told["mode"] = "offline"
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").resolve())  # else the pictures of tables are kept in the home folder
    settings = wandb.Settings(console="off", silent=told["mode"] == "offline")
    try:
        run = wandb.init(**told, **more, dir=folder, resume="allow", reinit="finish_previous", save_code=False, settings=settings)
    except wandb.Error as error:
        raise UserError(
            f"wandb cannot be reached ({str(error).splitlines()[0]}); logger.wandb=offline keeps everything for later"
        ) from None
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)


def _logged_in() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.Error as error:  # a key of the wrong form
        raise UserError(f"logger.wandb=online, but {error}") from None


def _group(name: str) -> str:
    """Trials of a sweep, named <name>/<overrides>, stand together."""
    return name.rpartition("/")[0] or name


def _tags() -> list[str]:
    """The experiment and the mix, as they were chosen on the command line; of a trial of a sweep its overrides too."""
    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    trial = sweep.naming_overrides(list(HydraConfig.get().overrides.task)) if sweep.is_multirun() else []
    own = [word.lstrip("+") for word in trial if not word.lstrip("+").startswith(("mix=", "logger", "data.root"))]
    return [f"{key}: {choices[key]}" for key in ("experiment", "mix") if choices.get(key)] + [tag for tag in own if len(tag) <= LONGEST_TAG]
