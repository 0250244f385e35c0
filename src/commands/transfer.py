"""Evaluates image encoders on classification sets; the command is `src/transfer.py`.

Each result (benchmark x encoder x protocol) is computed once and stored with its predictions. The same command again, or another encoder
under the same name=, computes only the missing results and rebuilds the table from all of them.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from src.classification import dataset, encoders, probe
from src.classification.dataset import ClassificationDataset
from src.classification.encoders import Encoder
from src.classification.features import cached_arrays, extract_features
from src.classification.finetune import TIMED_STEPS, build_classifier, finetune, paper_pooling, paper_schedule, seconds_per_step
from src.classification.names import set_parts
from src.classification.probe import Fit, Split
from src.classification.reader import read_dataset
from src.classification.results import TransferResultFile, make_labels_distinct, read_results
from src.classification.table import transfer_table
from src.config.transfer import TransferConfig, to_list
from src.data.credentialed import credentialed_notice
from src.data.record import PHANTOM_MARKER
from src.evaluation.overlap import training_overlap
from src.runtime import run_folder
from src.runtime.atomic_file import write_atomically
from src.runtime.schema import to_plain
from src.runtime.silence_libraries import silence_libraries
from src.runtime.tables import print_table
from src.tracking import wandb_run


def transfer(config: TransferConfig) -> Path:
    """Computes the missing results and returns the run folder. All names are checked and all images decoded before the first fit."""
    silence_libraries()
    selected = [encoders.find_encoder(name, outputs=config.outputs, checkpoint=config.checkpoint) for name in to_list(config.encoder)]
    datasets = [read_dataset(name, raw=config.raw, lists=config.benchmark_lists) for name in config.benchmark_names]
    for data in datasets:
        warn_of_absent_labels(data)
    folder = Path(config.outputs) / (
        config.name or next((e.name.partition(":")[2] for e in selected if ":" in e.name and e.ours), "transfer")
    )
    folder.mkdir(parents=True, exist_ok=True)
    make_labels_distinct(selected, folder)
    _carry_over_cost(folder)
    with run_folder.record(folder, "transfer") as record:
        for data in datasets:
            encoder_features(
                folder, data, selected[0], config, seed=config.seed
            )  # cached; an unreadable image is reported now, not after hours of fits
        if "paper" in to_list(config.protocol):
            print_paper_plan(folder, datasets, selected, config)
        for data in datasets:
            for encoder in selected:
                for protocol in to_list(config.protocol):
                    for name in [f"probe_{shots}shot" for shots in probe.SHOTS] if protocol == "few_shot" else [protocol]:
                        compute_result(TransferResultFile(folder, data.name, encoder.label, name), data, encoder, config)
        results, left_out = read_results(folder, data={data.name: data.fingerprint for data in datasets})
        record |= transfer_table(results, resamples=config.resamples, seed=config.seed)
        record["transfer"]["left_out"] = left_out
        record["credentialed"] = sorted({name for encoder in selected for name in encoder.credentialed})
        if notice := credentialed_notice(record["credentialed"]):
            print(notice)
        record["phantoms"] = sorted({metadata["benchmark"] for metadata, _ in results if metadata.get("phantom")})
    wandb_run.update_run(folder)
    return folder


def compute_result(file: TransferResultFile, data: ClassificationDataset, encoder: Encoder, config: TransferConfig) -> None:
    """Computes one result: fits on train, chooses the setting on val, and predicts the test split once per seed."""
    depends_on = settings_of(file.protocol, data, encoder, config)
    overlap = None
    if encoder.checkpoint:
        test_set, fingerprint = data.test_set
        overlap = training_overlap(encoder.checkpoint, test_set, fingerprint=fingerprint)
    parts = set_parts(data.name)
    phantom = any((Path(config.raw) / part / PHANTOM_MARKER).exists() for part in parts)
    current = {"overlap": overlap, "phantom": phantom}
    if file.is_current(depends_on):
        file.update_metadata(**current)  # there may be a new audit
        return
    start = time.perf_counter()
    # A convex fit on fixed features does not depend on the seed.
    random = encoder.random or file.protocol not in ("probe", "knn")
    fits = [fit_probe(file, data, encoder, config, seed=config.seed + s) for s in range(config.seeds if random else 1)]
    vision = encoder.build(seed=config.seed)
    metadata = {
        "ours": encoder.ours,
        "name": encoder.name,
        **current,
        "weights": encoder.identity,
        "input": {"size": vision.size, "mean": vision.mean.flatten().tolist(), "std": vision.std.flatten().tolist()},
        "parameters": sum(p.numel() for p in vision.parameters()),
        "pooling": [fit.pooling for fit in fits],
        "setting": [fit.setting for fit in fits],
        "validation": [fit.validation for fit in fits],
        "seeds": len(fits),
        "counts": data.counts(),
        "absent": data.absent_classes(),
        "split": data.split_note,
        "parts": parts,
        "seconds": time.perf_counter() - start,
        "depends_on": depends_on,
    }
    file.write(data, fits, metadata)
    print(f"{data.name:16} {encoder.label:24} {file.protocol:12} {metadata['seconds']:6.1f} s")


def settings_of(protocol: str, data: ClassificationDataset, encoder: Encoder, config: TransferConfig) -> dict:
    """What a result depends on; it is computed again when this changes."""
    settings: dict[str, object] = {"encoder": encoder.identity, "architecture": to_plain(encoder.config), "data": data.fingerprint}
    settings |= {"seeds": config.seeds, "seed": config.seed}
    return settings | ({protocol: to_plain(getattr(config, protocol))} if protocol in ("finetune", "paper") else {})


def print_paper_plan(folder: Path, datasets: list[ClassificationDataset], selected: list[Encoder], config: TransferConfig) -> None:
    """Prints the steps and hours of the missing results of protocol paper, from a few training steps that are measured on this device."""
    table = Table("benchmark", "encoder", "features", box=None)
    for name in ("width", "images", "steps", "runs", "s/step", "hours"):
        table.add_column(name, justify="right")
    hours = []
    for data in datasets:
        for encoder in selected:
            if TransferResultFile(folder, data.name, encoder.label, "paper").is_current(settings_of("paper", data, encoder, config)):
                continue
            vision, images, device = encoder.build(seed=config.seed), len(data.rows("train")), select_device(config)
            pooling, schedule = paper_pooling(vision.poolings()), paper_schedule(config.paper, images)
            model = build_classifier(vision, data, pooling=pooling, lr=schedule.lr[0], config=schedule)
            runs, seconds = config.seeds * len(schedule.lr), seconds_per_step(model, data, threads=config.threads, device=device)
            hours.append(schedule.steps * runs * seconds / 3600)
            numbers = (f"{model.head.in_features}", f"{images:,}", f"{schedule.steps:,}", f"{runs}", f"{seconds:.3g}", f"{hours[-1]:.3g}")
            table.add_row(data.name, encoder.label, pooling, *numbers)
    if hours:
        print_table(table)
        print(
            f"protocol paper: {config.paper.epochs} epochs take about {sum(hours):.3g} h on this device, without the validations; from "
            f"{TIMED_STEPS} measured training steps per line, decoding included. Runs: seeds x learning rates"
        )


def warn_of_absent_labels(data: ClassificationDataset) -> None:
    for split, names in data.absent_classes().items():
        if names:
            effect = "their thresholds are 0.5" if split == "val" else f"scores are means over the other {len(data.classes) - len(names)}"
            print(f"warning: benchmark '{data.name}': the {split} split has no image of {', '.join(map(repr, names))}; {effect}")


def fit_probe(file: TransferResultFile, data: ClassificationDataset, encoder: Encoder, config: TransferConfig, *, seed: int) -> Fit:
    """One seed of one result."""
    if file.protocol in ("finetune", "paper"):
        return fit_encoder(file, data, encoder, config, seed=seed)
    train, val, test = feature_splits(file.folder, data, encoder, config, seed=seed)
    classes = len(data.classes)
    if file.protocol == "probe":
        return probe.linear_probe(train, val, test, classes=classes)
    if file.protocol == "knn":
        return probe.knn_probe(train, val, test, classes=classes)
    shots = int(file.protocol.removeprefix("probe_").removesuffix("shot"))
    return probe.few_shot_probe(train, val, test, shots=shots, seed=seed, classes=classes)


def fit_encoder(file: TransferResultFile, data: ClassificationDataset, encoder: Encoder, config: TransferConfig, *, seed: int) -> Fit:
    """One seed of the protocols that train the encoder. They differ in pooling and schedule."""
    if file.protocol == "paper":
        pooling = paper_pooling(encoder.build(seed=seed).poolings())
        schedule = paper_schedule(config.paper, len(data.rows("train")))
    else:
        splits = feature_splits(file.folder, data, encoder, config, seed=seed)
        pooling, schedule = probe.linear_probe(*splits, classes=len(data.classes)).pooling, config.finetune
    return finetune(
        lambda: encoder.build(seed=seed),
        data,
        pooling=pooling,
        seed=seed,
        config=schedule,
        threads=config.threads,
        device=select_device(config),
        folder=file.folder,
    )


def feature_splits(
    folder: Path, data: ClassificationDataset, encoder: Encoder, config: TransferConfig, *, seed: int
) -> tuple[Split, Split, Split]:
    features = encoder_features(folder, data, encoder, config, seed=seed)
    train, val, test = (
        Split({pooling: f_NF[rows] for pooling, f_NF in features.items()}, data.labels[rows]) for rows in map(data.rows, dataset.SPLITS)
    )
    return train, val, test


def encoder_features(
    folder: Path, data: ClassificationDataset, encoder: Encoder, config: TransferConfig, *, seed: int
) -> dict[str, np.ndarray]:
    """Features f_NF of each pooling for all images, extracted once. They depend on the seed only for random weights."""
    suffix = f".{seed}" if encoder.random else ""
    return cached_arrays(
        folder / "transfer" / data.name / encoder.label / f"features{suffix}.safetensors",
        {"encoder": encoder.identity, "architecture": to_plain(encoder.config), "data": data.fingerprint, "seed": suffix},
        lambda: extract_features(encoder.build(seed=seed), data, device=select_device(config), batch=config.batch, threads=config.threads),
    )


def select_device(config: TransferConfig) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu")


def _carry_over_cost(folder: Path) -> None:
    """Adds the cost of earlier calls to this one, because their results stay in the table."""
    finished, partial = folder / "transfer.json", folder / "transfer.partial.json"
    if finished.exists() and not partial.exists():
        previous = json.loads(finished.read_text())
        write_atomically(partial, json.dumps({name: previous[name] for name in ("seconds", "peak_rss_mb")}))
