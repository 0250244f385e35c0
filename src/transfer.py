"""`python -m src.transfer encoder=NAME benchmark=NAME`: how well image encoders carry over to classification sets.

Every cell of the table (benchmark x encoder x protocol) is computed once, its predictions are files; the same command again, or
another encoder under the same name=, computes what is missing and rebuilds the table from all cells that exist.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch

from src.classification import dataset, encoders, probe
from src.classification.dataset import ClassificationDataset
from src.classification.encoders import Encoder
from src.classification.features import cached_arrays, extract_features
from src.classification.finetune import finetune
from src.classification.probe import Fit, Split
from src.classification.results import TransferResultFile, check_distinct_labels, read_results
from src.classification.table import transfer_table
from src.config.transfer import TransferConfig
from src.data.record import PHANTOM_MARKER
from src.evaluation.overlap import training_overlap
from src.runtime import run_folder
from src.runtime.cli import command
from src.runtime.schema import check_choice, to_plain
from src.tracking import wandb_run

PROTOCOLS = ("probe", "knn", "few_shot", "finetune")


def transfer(config: TransferConfig) -> Path:
    """Computes every missing cell and returns the run folder; names are checked and every image is decoded before the first fit."""
    for protocol in to_list(config.protocol):
        check_choice("protocol", protocol, PROTOCOLS)
    check_choice("checkpoint", config.checkpoint, ("best", "last"))
    chosen = [encoders.find_encoder(name, outputs=config.outputs, checkpoint=config.checkpoint) for name in to_list(config.encoder)]
    sets = [dataset.read_dataset(name, raw=config.raw) for name in to_list(config.benchmarks)]
    folder = Path(config.outputs) / (
        config.name or next((e.name.partition(":")[2] for e in chosen if ":" in e.name and e.ours), "transfer")
    )
    folder.mkdir(parents=True, exist_ok=True)
    check_distinct_labels(chosen, folder)
    _keep_cost(folder)
    with run_folder.record(folder, "transfer") as said:
        for data in sets:
            encoder_features(folder, data, chosen[0], config, seed=config.seed)  # kept; a broken image shows now, not after hours of fits
        for data in sets:
            for encoder in chosen:
                for protocol in to_list(config.protocol):
                    for name in [f"probe_{shots}shot" for shots in probe.SHOTS] if protocol == "few_shot" else [protocol]:
                        compute_result(TransferResultFile(folder, data.name, encoder.label, name), data, encoder, config)
        cells, left_out = read_results(folder, data={data.name: data.fingerprint for data in sets})
        said |= transfer_table(cells, resamples=config.resamples, seed=config.seed)
        said["transfer"]["left_out"] = left_out
        said["phantoms"] = sorted({facts["benchmark"] for facts, _ in cells if facts.get("phantom")})
    wandb_run.update_run(folder)
    return folder


def compute_result(file: TransferResultFile, data: ClassificationDataset, encoder: Encoder, config: TransferConfig) -> None:
    """One cell: fits on train, chooses on val, and predicts the test split once per seed."""
    depends_on = {"encoder": encoder.identity, "architecture": to_plain(encoder.config), "data": data.fingerprint, "seeds": config.seeds}
    depends_on |= {"seed": config.seed} | ({"finetune": to_plain(config.finetune)} if file.protocol == "finetune" else {})
    seen = None
    if encoder.checkpoint:
        seen = training_overlap(encoder.run, encoder.checkpoint, data.name, fingerprint=data.fingerprint, outputs=config.outputs)
    now = {"overlap": seen, "phantom": (Path(config.raw) / data.name / PHANTOM_MARKER).exists()}
    if file.finished(depends_on):
        file.note(**now)  # an audit may have looked since
        return
    start = time.perf_counter()
    # A convex fit on fixed features has nothing to draw: one seed is all there is.
    drawn = encoder.random or file.protocol not in ("probe", "knn")
    fits = [fit_probe(file, data, encoder, config, seed=config.seed + s) for s in range(config.seeds if drawn else 1)]
    vision = encoder.build(seed=config.seed)
    facts = {
        "ours": encoder.ours,
        "name": encoder.name,
        **now,
        "weights": encoder.identity,
        "input": {"size": vision.size, "mean": vision.mean.flatten().tolist(), "std": vision.std.flatten().tolist()},
        "parameters": sum(p.numel() for p in vision.parameters()),
        "pooling": [one.pooling for one in fits],
        "setting": [one.setting for one in fits],
        "validation": [one.validation for one in fits],
        "seeds": len(fits),
        "counts": data.counts(),
        "split": "ours, 60/20/20 by group" if data.made else "given",
        "seconds": time.perf_counter() - start,
        "depends_on": depends_on,
    }
    file.write(data, np.stack([one.probabilities_NK for one in fits]), facts)
    print(f"{data.name:16} {encoder.label:24} {file.protocol:12} {facts['seconds']:6.1f} s")


def fit_probe(file: TransferResultFile, data: ClassificationDataset, encoder: Encoder, config: TransferConfig, *, seed: int) -> Fit:
    """One seed of one cell. Every protocol needs the features: they choose the pooling."""
    found = encoder_features(file.folder, data, encoder, config, seed=seed)
    train, val, test = (Split({how: f[rows] for how, f in found.items()}, data.labels_N[rows]) for rows in map(data.rows, dataset.SPLITS))
    classes = len(data.classes)
    if file.protocol == "probe":
        return probe.linear_probe(train, val, test, classes=classes)
    if file.protocol == "knn":
        return probe.knn_probe(train, val, test, classes=classes)
    if file.protocol == "finetune":
        pooling = probe.linear_probe(train, val, test, classes=classes).pooling
        return finetune(
            lambda: encoder.build(seed=seed),
            data,
            pooling=pooling,
            seed=seed,
            config=config.finetune,
            threads=config.threads,
            device=select_device(config),
            folder=file.folder,
        )
    shots = int(file.protocol.removeprefix("probe_").removesuffix("shot"))
    return probe.few_shot_probe(train, val, test, shots=shots, seed=seed, classes=classes)


def encoder_features(
    folder: Path, data: ClassificationDataset, encoder: Encoder, config: TransferConfig, *, seed: int
) -> dict[str, np.ndarray]:
    """f_NF of every pooling, of all images; extracted once. Another seed is another encoder only where weights are drawn."""
    drawn = f".{seed}" if encoder.random else ""
    return cached_arrays(
        folder / "transfer" / data.name / encoder.label / f"features{drawn}.safetensors",
        {"encoder": encoder.identity, "architecture": to_plain(encoder.config), "data": data.fingerprint, "seed": drawn},
        lambda: extract_features(encoder.build(seed=seed), data, device=select_device(config), batch=config.batch, threads=config.threads),
    )


def select_device(config: TransferConfig) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu")


def to_list(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _keep_cost(folder: Path) -> None:
    """Cells of an earlier call stay in the table, so their cost stays in the sum."""
    done, partial = folder / "transfer.json", folder / "transfer.partial.json"
    if done.exists() and not partial.exists():
        before = json.loads(done.read_text())
        run_folder.write_atomically(partial, json.dumps({name: before[name] for name in ("seconds", "peak_rss_mb")}))


@command("transfer", TransferConfig)
def main(config: TransferConfig) -> None:
    folder = transfer(config)
    found = json.loads((folder / "transfer.json").read_text())["transfer"]
    for one in found["cells"]:
        print_result(one["benchmark"], one["encoder"], one["protocol"], one["macro_f1"])
    for one in found["means"]:
        print_result(f"mean of {len(one['benchmarks'])}", one["encoder"], one["protocol"], one)
    for one in found["differences"]:
        print_result(one["benchmark"], f"{one['ours']} - {one['other']}", one["protocol"], one)
    print(f"macro-F1 with 95% intervals; more in {folder}/transfer.json")


def print_result(benchmark: str, encoder: str, protocol: str, of: dict) -> None:
    if "shot" not in protocol:
        print(f"{benchmark:18} {encoder:28} {protocol:10} {of['value']:6.3f}  [{of['low']:.3f}, {of['high']:.3f}]  n={of['n']:,}")


if __name__ == "__main__":
    main()
