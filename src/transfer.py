"""`python -m src.transfer encoder=NAME benchmark=NAME`: how well image encoders carry over to classification sets.

Every cell of the table (benchmark x encoder x protocol) is computed once, its predictions are files; the same command again, or
another encoder under the same name=, computes what is missing and rebuilds the table from all cells that exist.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch

from src import run, tracking
from src.cli import verb
from src.config import Transfer, one_of, plain
from src.data import classification
from src.data.cells import CellFile, distinct, read_cells
from src.data.classification import Classification
from src.data.overlap import overlap
from src.data.phantoms import PHANTOM
from src.model import encoders
from src.model.encoders import Encoder
from src.scoring.transfer_table import table
from src.training import probe
from src.training.features import cached, extract
from src.training.finetune import finetune
from src.training.probe import Fit, Split

PROTOCOLS = ("probe", "knn", "few_shot", "finetune")


def transfer(config: Transfer) -> Path:
    """Computes every missing cell and returns the run folder; names are checked and every image is decoded before the first fit."""
    for protocol in several(config.protocol):
        one_of("protocol", protocol, PROTOCOLS)
    one_of("checkpoint", config.checkpoint, ("best", "last"))
    chosen = [encoders.named(name, outputs=config.outputs, checkpoint=config.checkpoint) for name in several(config.encoder)]
    sets = [classification.read(name, raw=config.raw) for name in several(config.benchmarks)]
    folder = Path(config.outputs) / (
        config.name or next((e.name.partition(":")[2] for e in chosen if ":" in e.name and e.ours), "transfer")
    )
    folder.mkdir(parents=True, exist_ok=True)
    distinct(chosen, folder)
    _keep_cost(folder)
    with run.verb(folder, "transfer") as said:
        for data in sets:
            features(folder, data, chosen[0], config, seed=config.seed)  # kept; a broken image shows now, not after hours of fits
        for data in sets:
            for encoder in chosen:
                for protocol in several(config.protocol):
                    for name in [f"probe_{shots}shot" for shots in probe.SHOTS] if protocol == "few_shot" else [protocol]:
                        compute(CellFile(folder, data.name, encoder.label, name), data, encoder, config)
        cells, left_out = read_cells(folder, data={data.name: data.fingerprint for data in sets})
        said |= table(cells, resamples=config.resamples, seed=config.seed)
        said["transfer"]["left_out"] = left_out
        said["phantoms"] = sorted({facts["benchmark"] for facts, _ in cells if facts.get("phantom")})
    tracking.update(folder)
    return folder


def compute(file: CellFile, data: Classification, encoder: Encoder, config: Transfer) -> None:
    """One cell: fits on train, chooses on val, and predicts the test split once per seed."""
    depends_on = {"encoder": encoder.identity, "architecture": plain(encoder.config), "data": data.fingerprint, "seeds": config.seeds}
    depends_on |= {"seed": config.seed} | ({"finetune": plain(config.finetune)} if file.protocol == "finetune" else {})
    seen = None
    if encoder.checkpoint:
        seen = overlap(encoder.run, encoder.checkpoint, data.name, fingerprint=data.fingerprint, outputs=config.outputs)
    now = {"overlap": seen, "phantom": (Path(config.raw) / data.name / PHANTOM).exists()}
    if file.finished(depends_on):
        file.note(**now)  # an audit may have looked since
        return
    start = time.perf_counter()
    # A convex fit on fixed features has nothing to draw: one seed is all there is.
    drawn = encoder.random or file.protocol not in ("probe", "knn")
    fits = [fit(file, data, encoder, config, seed=config.seed + s) for s in range(config.seeds if drawn else 1)]
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


def fit(file: CellFile, data: Classification, encoder: Encoder, config: Transfer, *, seed: int) -> Fit:
    """One seed of one cell. Every protocol needs the features: they choose the pooling."""
    found = features(file.folder, data, encoder, config, seed=seed)
    train, val, test = (
        Split({how: f[rows] for how, f in found.items()}, data.labels_N[rows]) for rows in map(data.rows, classification.SPLITS)
    )
    classes = len(data.classes)
    if file.protocol == "probe":
        return probe.linear(train, val, test, classes=classes)
    if file.protocol == "knn":
        return probe.neighbours(train, val, test, classes=classes)
    if file.protocol == "finetune":
        pooling = probe.linear(train, val, test, classes=classes).pooling
        return finetune(
            lambda: encoder.build(seed=seed),
            data,
            pooling=pooling,
            seed=seed,
            config=config.finetune,
            threads=config.threads,
            device=device_of(config),
            folder=file.folder,
        )
    shots = int(file.protocol.removeprefix("probe_").removesuffix("shot"))
    return probe.few_shot(train, val, test, shots=shots, seed=seed, classes=classes)


def features(folder: Path, data: Classification, encoder: Encoder, config: Transfer, *, seed: int) -> dict[str, np.ndarray]:
    """f_NF of every pooling, of all images; extracted once. Another seed is another encoder only where weights are drawn."""
    drawn = f".{seed}" if encoder.random else ""
    return cached(
        folder / "transfer" / data.name / encoder.label / f"features{drawn}.safetensors",
        {"encoder": encoder.identity, "architecture": plain(encoder.config), "data": data.fingerprint, "seed": drawn},
        lambda: extract(encoder.build(seed=seed), data, device=device_of(config), batch=config.batch, threads=config.threads),
    )


def device_of(config: Transfer) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu")


def several(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _keep_cost(folder: Path) -> None:
    """Cells of an earlier call stay in the table, so their cost stays in the sum."""
    done, partial = folder / "transfer.json", folder / "transfer.partial.json"
    if done.exists() and not partial.exists():
        before = json.loads(done.read_text())
        run.write_atomically(partial, json.dumps({name: before[name] for name in ("seconds", "peak_rss_mb")}))


@verb("transfer", Transfer)
def main(config: Transfer) -> None:
    folder = transfer(config)
    found = json.loads((folder / "transfer.json").read_text())["transfer"]
    for one in found["cells"]:
        line(one["benchmark"], one["encoder"], one["protocol"], one["macro_f1"])
    for one in found["means"]:
        line(f"mean of {len(one['benchmarks'])}", one["encoder"], one["protocol"], one)
    for one in found["differences"]:
        line(one["benchmark"], f"{one['ours']} - {one['other']}", one["protocol"], one)
    print(f"macro-F1 with 95% intervals; more in {folder}/transfer.json")


def line(benchmark: str, encoder: str, protocol: str, of: dict) -> None:
    if "shot" not in protocol:
        print(f"{benchmark:18} {encoder:28} {protocol:10} {of['value']:6.3f}  [{of['low']:.3f}, {of['high']:.3f}]  n={of['n']:,}")


if __name__ == "__main__":
    main()
