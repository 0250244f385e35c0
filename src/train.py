"""`python -m src.train +experiment=NAME`: train the vision-language model; the same command again resumes."""

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import lightning
import torch

from src.config.train import TrainConfig, check_train_config
from src.data import lineage
from src.data.datamodule import DataModule, fingerprint_id
from src.data.packing import low_utilization_warning
from src.data.shards import Shards
from src.model.vlm import build_vlm, parameter_summary, summary_table
from src.plan import memory_advice
from src.runtime import run_folder, sweep
from src.runtime.cli import command
from src.runtime.errors import UserError
from src.runtime.schema import to_plain
from src.tracking import wandb_run
from src.training.callbacks.checkpoint import CheckpointCallback
from src.training.callbacks.csv_log import CSVLog
from src.training.callbacks.validation import Validation
from src.training.checkpoint import choose_checkpoint, load_checkpoint, newest_checkpoint
from src.training.epochs import epochs_to_steps
from src.training.lightning_module import VLMLightningModule
from src.training.revision_pinning import pin_revisions, restore_revisions


def train(config: TrainConfig) -> Path:
    """Starts or resumes the run and returns its folder."""
    check_train(config)
    check_devices(config)
    folder = Path(config.outputs) / config.name
    config = restore_revisions(epochs_to_steps(config), folder)
    run_folder.open_run(folder, to_plain(config))
    if (folder / "train.json").exists():
        print(f"{folder} is trained already; choose another name=... to train again")
        return folder

    lightning.seed_everything(config.seed, verbose=False)
    with run_folder.exclusive_lock(folder), wandb_run.training_run(folder, config) as board, run_folder.record(folder, "train") as said:
        model = build_vlm(config)
        config = pin_revisions(config, folder, model.weights)
        data = DataModule(
            config.mix,
            config.data,
            prompter=model.prompter(budget=config.data.max_seq_len),
            size=model.vision.size,
            seed=config.seed,
            slots=config.trainer.accumulate,
        )
        if config.init:
            load_checkpoint(model, choose_checkpoint(Path(config.outputs) / config.init.removeprefix("run:"), "best"), whole=False)
        said |= {"parts": parameter_summary(model, config), "weights": model.weights}
        print(summary_table(said["parts"]))
        said["audits"] = audits(data.shards, config)
        counts = (f"{source} {len(rows):,}" for source, rows in zip(data.mixture.sources, data.mixture.rows, strict=True))
        print(f"data {fingerprint_id(data.fingerprint)}: {', '.join(counts)}")
        warn_if_ranks_wait(config, data)

        module = VLMLightningModule(model, config, sources=data.mixture.sources, folder=folder)
        every = config.trainer.log_every
        log = CSVLog(folder / "log.csv", sources=module.sources, parts=list(model.parts()), log_every=every, board=board)
        saver = CheckpointCallback(
            folder / "checkpoints",
            config=to_plain(config),
            val_every=config.trainer.val_every,
            keep=config.trainer.keep_last,
            validate=Validation(module, data, log),
        )
        resume = newest_checkpoint(folder / "checkpoints")
        if resume:
            print(f"resuming from {resume}")
        if run_folder.is_first_rank() and not (resume and (folder / lineage.FILE).exists()):
            manifests = {source: opened.manifest for source, opened in data.shards.items()}
            lineage.write_lineage(folder, fingerprint=data.fingerprint, manifests=manifests)
        module.train()
        trainer = build_trainer(config, callbacks=[saver, log])
        try:
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
        except (RuntimeError, MemoryError, OSError) as error:
            found = explain_failure(error, config, folder)
            if found is None:
                raise
            raise UserError(found) from None
        finally:
            for worker in multiprocessing.active_children():
                if worker.daemon:  # of data: they pass over the SIGTERM with which Python ends children, and it would wait for ever
                    worker.kill()
        if trainer.global_step < trainer.max_steps:
            number = saver.stopped or signal.SIGTERM
            print(f"stopped by {signal.Signals(number).name} at step {trainer.global_step} and saved; the same command resumes")
            raise SystemExit(128 + number)
        said |= {"data": fingerprint_id(data.fingerprint), "shards": data.fingerprint["shards"], "records": data.fingerprint["records"]}
        said["phantoms"] = lineage.phantoms(lineage.lineage(folder))
        said["metrics"] = throughput(log.totals)
    return folder


def audits(shards: dict[str, Shards], config: TrainConfig) -> dict[str, str | None]:
    """The fingerprint of each source's audit, by which an evaluation tells a later one; warns of sources that have none."""
    found = {source: opened.audit["fingerprint"] if opened.audit else None for source, opened in shards.items()}
    absent = ", ".join(source for source, audit in found.items() if audit is None)
    if absent and run_folder.is_first_rank():
        root = config.data.root
        print(
            f"warning: no audit has compared the present build of {absent} with the test sets, so records that stand in one may be trained "
            f"on whatever mix.decontaminate says; run `python -m data_prep.audit out={root} raw=data/raw` "
            f"(or `make audit OUT={root} RAW=data/raw`) before training"
        )
    return found


def explain_failure(error: Exception, config: TrainConfig, folder: Path) -> str | None:
    """What the machine lacks or has lost, for people; None for an error of another kind."""
    said = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in said:  # the latter is torch's on a CPU
        return f"out of memory with trainer.accumulate={config.trainer.accumulate}; {memory_advice(config)}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder} cannot be written ({error.strerror}); make room and run the same command again: it resumes"
    if isinstance(error, OSError) and error.filename and folder in (path := Path(str(error.filename))).parents:
        return f"{path} cannot be used ({error.strerror}); make it readable and writable, or choose another name=... or outputs=..."
    if is_rank_failure(error):
        return "another process of this run has ended or cannot be reached; run the same command again: it resumes"
    return None


def is_rank_failure(error: Exception) -> bool:
    """Whether a rank stopped answering: what NCCL raises, and Gloo, which has only words for it."""
    gloo = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")
    return isinstance(error, torch.distributed.DistBackendError) or any(words in str(error) for words in gloo)


def build_trainer(config: TrainConfig, *, callbacks: list) -> lightning.Trainer:
    settings = config.trainer
    return lightning.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=settings.strategy if settings.devices * settings.nodes > 1 else "auto",
        precision=settings.precision,
        max_steps=config.optim.length,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=config.optim.clip or None,
        callbacks=callbacks,
        logger=False,
        default_root_dir=config.outputs,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )


def warn_if_ranks_wait(config: TrainConfig, data: DataModule) -> None:
    """Prints a warning if the samples of the first window cannot keep the ranks busy."""
    world = config.trainer.devices * config.trainer.nodes
    if world > 1 and run_folder.is_first_rank():
        lengths = [len(sample.ids) for row in data.stream().window(0) for sample, _, _ in row]
        if warning := low_utilization_warning(lengths, world, data=config.data, slots=config.trainer.accumulate):
            print(warning)


def throughput(totals: dict) -> dict:
    seconds = max(totals["seconds"], 1e-9)
    values = {
        "train/samples_per_second": totals["samples"] / seconds,
        "train/tokens_per_second": totals["tokens"] / seconds,
        "train/fill": totals["tokens"] / max(totals["places"], 1),
    }
    return {key: {"value": value, "low": value, "high": value, "n": totals["samples"]} for key, value in values.items()}


def check_devices(config: TrainConfig) -> None:
    """Told here and not with the configuration, which a sweep checks on a machine that trains nothing."""
    settings, found = config.trainer, torch.cuda.device_count()
    if settings.accelerator == "gpu" and found < settings.devices:
        raise UserError(
            f"trainer.accelerator=gpu and trainer.devices={settings.devices}, and torch finds {found} GPUs on this machine; "
            f"set {'trainer=cpu' if not found else f'trainer.devices={found}'}"
        )
    if settings.nodes > 1 and not any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "MASTER_ADDR")):
        raise UserError(
            f"trainer.nodes={settings.nodes}, and nothing tells this process of the other nodes, for which it would wait; start the same "
            "command on each node with torchrun or srun, or set trainer.nodes=1"
        )
    started, asked = int(os.environ.get("WORLD_SIZE", 1)), settings.devices * settings.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ and started != asked:
        raise UserError(
            f"torchrun started {started} processes, but trainer.devices x trainer.nodes = {settings.devices} x {settings.nodes}, so that "
            "each would train a run of its own in the same folder; set them to --nproc-per-node and --nnodes"
        )


def check_train(config: TrainConfig) -> None:
    check_train_config(config)
    wandb_run.check_login(config.logger)


@command("train", TrainConfig, validate=check_train)
def main(config: TrainConfig) -> None:
    config.name = sweep.trial_name(config.name)
    folder = train(config)
    if not run_folder.is_first_rank():
        return
    result = json.loads((folder / "result.json").read_text())
    print(f"{folder}/result.json: {result['metrics']['train/samples_per_second']['value']:.1f} samples/s")


if __name__ == "__main__":
    main()
