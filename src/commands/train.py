"""Trains the vision-language model in a run folder; the command is `src/train.py`."""

import contextlib
import errno
import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning
import torch

from src.commands.plan import memory_advice
from src.config.train import TrainConfig
from src.data import lineage
from src.data.credentialed import credentialed_notice
from src.data.datamodule import DataModule
from src.data.fingerprint import fingerprint_id
from src.data.subsets import mix_usage, with_default_exclusions
from src.model.vlm import VLM, build_vlm, parameter_summary, summary_table
from src.runtime import run_folder
from src.runtime.environment import busy_cores_note
from src.runtime.errors import UserError
from src.runtime.schema import to_plain
from src.runtime.silence_libraries import silence_libraries
from src.tracking import wandb_run
from src.training.callbacks.checkpoint import CheckpointCallback
from src.training.callbacks.configured import configured_callbacks
from src.training.callbacks.csv_log import CSVLog
from src.training.callbacks.validation import ValidationScores
from src.training.checkpoint import choose_checkpoint, load_checkpoint, newest_checkpoint
from src.training.data_warnings import audits, held_out_counts, text_warnings, warn_if_ranks_wait
from src.training.lightning_module import VLMLightningModule
from src.training.optim import epochs_to_steps
from src.training.revision_pinning import pin_revisions, restore_revisions
from src.training.run_logger import RunLogger
from src.training.trainer import build_trainer


def start_training(config: TrainConfig, callbacks: Sequence[lightning.Callback]) -> Path:
    """Implements `src.train.train` for a checked configuration."""
    silence_libraries()
    check_devices(config)
    if config.trainer.accelerator == "cpu" and run_folder.is_first_rank() and (note := busy_cores_note(torch.get_num_threads())):
        print(note)
    folder = Path(config.outputs) / config.name
    if config.trainer.extra.get("fast_dev_run"):
        with tempfile.TemporaryDirectory() as temporary:
            _train(replace(config, logger=replace(config.logger, wandb="none")), Path(temporary), callbacks)
        print(f"fast_dev_run={config.trainer.extra['fast_dev_run']}: training, validation and checkpoints work; nothing was kept")
        return folder
    return _train(config, folder, callbacks)


def _train(config: TrainConfig, folder: Path, callbacks: Sequence[lightning.Callback]) -> Path:
    config = replace(config, mix=with_default_exclusions(config.mix))
    config = restore_revisions(epochs_to_steps(config), folder)
    run_folder.open_run(folder, to_plain(config))
    if (folder / "train.json").exists():
        print(f"{folder} is trained already; choose another name=... to train again")
        return folder

    lightning.seed_everything(config.seed, verbose=False)
    with (
        run_folder.exclusive_lock(folder),
        wandb_run.training_run(folder, config) as wandb,
        run_folder.record(folder, "train") as result,
    ):
        model = build_vlm(config)
        config = pin_revisions(config, folder, model.weights)
        data = build_data(config, model)
        if config.init:
            load_checkpoint(model, choose_checkpoint(Path(config.outputs) / config.init.removeprefix("run:"), "best"), whole=False)
        result |= {"parts": parameter_summary(model, config), "weights": model.weights}
        print(summary_table(result["parts"]))
        result["audits"] = audits(data.shards, config)
        counts = (f"{source} {len(rows):,}" for source, rows in zip(data.mixture.sources, data.mixture.rows, strict=True))
        print(f"data {fingerprint_id(data.fingerprint)}: {', '.join(counts)}")
        subsets = mix_usage(data.shards, dict(zip(data.mixture.sources, data.mixture.rows, strict=True)), config.mix)
        if held_out := held_out_counts(data):
            print(f"held out of training for validation: {', '.join(held_out)} (data.val_samples={config.data.val_samples})")
        vocabulary = model.language.body.config.vocab_size
        print(f"loss: nats per supervised token; {math.log(vocabulary):.1f} for a model that knows nothing ({vocabulary:,} tokens)")
        warn_if_ranks_wait(config, data)
        if run_folder.is_first_rank():
            for warning in text_warnings(config, data):
                print(f"warning: {warning}")

        module = VLMLightningModule(model, config, sources=data.mixture.sources, folder=folder).train()
        every = config.trainer.log_every
        log = CSVLog(folder / "log.csv", sources=module.sources, parts=list(model.parts()), log_every=every, wandb_run=wandb)
        checkpoints = CheckpointCallback(folder / "checkpoints", config=to_plain(config), keep_last=config.trainer.keep_last)
        trainer = build_trainer(
            config,
            callbacks=[ValidationScores(data), log, *configured_callbacks(config.callbacks), *callbacks, checkpoints],
            logger=RunLogger(folder, wandb=wandb),
        )
        resume = newest_checkpoint(folder / "checkpoints")
        if resume:
            print(f"resuming from {resume}")
        if run_folder.is_first_rank() and not (resume and (folder / lineage.FILE).exists()):
            manifests = {source: opened.manifest for source, opened in data.shards.items()}
            lineage.write_lineage(folder, fingerprint=data.fingerprint, manifests=manifests, subsets=subsets)
            if notice := credentialed_notice(lineage.credentialed(lineage.lineage(folder))):
                print(notice)
        with explained_failures(config, folder):
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        if checkpoints.stop_signal and trainer.global_step < trainer.max_steps:
            number = checkpoints.stop_signal
            print(f"stopped by {signal.Signals(number).name} at step {trainer.global_step} and saved; the same command resumes")
            raise SystemExit(128 + number)
        if trainer.global_step < trainer.max_steps and not trainer.fast_dev_run:
            print(f"stopped by a callback at step {trainer.global_step} of {trainer.max_steps} and saved; the run is finished")
        result |= {"data": fingerprint_id(data.fingerprint), "shards": data.fingerprint["shards"], "records": data.fingerprint["records"]}
        result["phantoms"] = lineage.phantoms(lineage.lineage(folder))
        result["credentialed"] = lineage.credentialed(lineage.lineage(folder))
        result["metrics"] = throughput(log.totals)
    return folder


def build_data(config: TrainConfig, model: VLM) -> DataModule:
    return DataModule(
        config.mix,
        config.data,
        prompter=model.prompter(budget=config.data.max_seq_len),
        size=model.vision.size,
        seed=config.seed,
        accumulate=config.trainer.accumulate,
    )


@contextlib.contextmanager
def explained_failures(config: TrainConfig, folder: Path):
    """Turns failures of the machine into `UserError`, and ends the data workers."""
    try:
        yield
    except SystemExit:  # Lightning's translation of a second Ctrl-C
        raise KeyboardInterrupt from None
    except (RuntimeError, MemoryError, OSError) as error:
        explanation = explain_failure(error, config, folder)
        if explanation is None:
            raise
        raise UserError(explanation) from None
    finally:
        for worker in multiprocessing.active_children():
            if worker.daemon:  # data workers ignore SIGTERM, and Python would wait for them at exit
                worker.kill()


def explain_failure(error: Exception, config: TrainConfig, folder: Path) -> str | None:
    """The message for an error that the machine causes: memory, disk, or a lost rank; None for any other error."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:  # the latter is torch's on a CPU
        return f"out of memory with trainer.accumulate={config.trainer.accumulate}; {memory_advice(config)}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder} cannot be written ({error.strerror}); free some space and run the same command again: it resumes"
    if isinstance(error, OSError) and error.filename and folder in (path := Path(str(error.filename))).parents:
        return f"{path} cannot be used ({error.strerror}); make it readable and writable, or choose another name=... or outputs=..."
    if is_rank_failure(error):
        return "another process of this run has ended or cannot be reached; run the same command again: it resumes"
    return None


def is_rank_failure(error: Exception) -> bool:
    """Whether a rank stopped answering. NCCL has a class of errors for it; Gloo has only messages."""
    messages = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")
    return isinstance(error, torch.distributed.DistBackendError) or any(message in str(error) for message in messages)


def throughput(totals: dict) -> dict:
    seconds = max(totals["seconds"], 1e-9)
    values = {
        "train/samples_per_second": totals["samples"] / seconds,
        "train/tokens_per_second": totals["tokens"] / seconds,
        "train/fill": totals["tokens"] / max(totals["places"], 1),
    }
    return {key: {"value": value, "low": value, "high": value, "n": totals["samples"]} for key, value in values.items()}


def check_devices(config: TrainConfig) -> None:
    """Raises `UserError` if this machine or its launcher does not match `config.trainer`.

    Not part of `check_train` (`src/train.py`), which a sweep calls on a machine that trains nothing.
    """
    settings, num_gpus = config.trainer, torch.cuda.device_count()
    if settings.accelerator == "gpu" and num_gpus < settings.devices:
        raise UserError(
            f"trainer.accelerator=gpu and trainer.devices={settings.devices}, and torch finds {num_gpus} GPUs on this machine; "
            f"set {'trainer=cpu' if not num_gpus else f'trainer.devices={num_gpus}'}"
        )
    if settings.nodes > 1 and not any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR")):
        raise UserError(
            f"trainer.nodes={settings.nodes}, but no launcher has set the address of the other nodes, and this process would wait for "
            "them; start the same command on each node with torchrun or srun, or set trainer.nodes=1"
        )
    started, expected = int(os.environ.get("WORLD_SIZE", 1)), settings.devices * settings.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ and started != expected:
        raise UserError(
            f"torchrun started {started} processes, but trainer.devices x trainer.nodes = {settings.devices} x {settings.nodes}, so each "
            "would train its own run in the same folder; set them to --nproc-per-node and --nnodes"
        )
