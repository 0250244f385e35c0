"""Training data of a run and of its ancestors, the runs whose weights it continued (`init=run:NAME`).

Each run folder holds a `lineage.json`: the training record of the run, then copies of the records of its ancestors, nearest first. So a
run can be published and checked for leaks after its parents or their data have been deleted. A record has the keys

    name         of the run
    config       content of its config.yaml
    fingerprint  of its data: "shards" and "records" per source; empty if unknown
    sources      [{name, share, licence, licences, records, phantom, credentialed}] from the manifests of the shards; None if unknown. A
                 source with sub-sets has also `subsets`, see `src.data.subsets.subset_usage`
    pretrained_on  credentialed sources of the exported models that the run took as its encoder or language model
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.config.train import MixConfig
from src.data.credentialed import exported_sources, is_credentialed
from src.runtime.atomic_file import write_atomically
from src.runtime.run_folder import read_config
from src.runtime.schema import to_typed

FILE = "lineage.json"


def write_lineage(folder: Path, *, fingerprint: dict, manifests: dict[str, dict], subsets: dict[str, dict] | None = None) -> None:
    """Writes `lineage.json` of a run that starts from the weights of its parent. `subsets` are the sub-sets of each source."""
    config = read_config(folder)
    parent = parent_folder(folder, config)
    record = training_record(config, fingerprint=fingerprint, manifests=manifests, subsets=subsets)
    records = [record, *(lineage(parent) if parent else [])]
    write_atomically(folder / FILE, json.dumps(records, indent=1))


def lineage(folder: Path) -> list[dict[str, Any]]:
    """The records of a run and of its ancestors, nearest first.

    Copied records are used first. A parent without a copied record is read from its own folder. The list stops early if the parent's
    folder is missing, or if following `init` would loop (two runs that name each other). `missing_parent` then returns the parent's name.
    """
    records: list[dict[str, Any]] = []
    next_folder: Path | None = folder
    while next_folder:
        if (next_folder / FILE).exists():
            own = json.loads((next_folder / FILE).read_text())
        elif (next_folder / "config.yaml").exists():
            own = [_record_of_folder(next_folder)]  # the run was trained before lineage.json was written
        else:
            break
        records += own
        init = records[-1]["config"].get("init")
        if init and init.removeprefix("run:") in {record["name"] for record in records}:
            break
        next_folder = parent_folder(next_folder, {"name": own[0]["name"], "init": init})
    return records


def ancestors(folder: Path) -> list[dict[str, Any]]:
    """The records of the runs whose weights a run continued, the parent first."""
    return lineage(folder)[1:]


def missing_parent(records: list[dict[str, Any]]) -> str | None:
    """`run:NAME` of the parent at which a lineage ends early; None for a complete lineage."""
    return records[-1]["config"].get("init") if records else None


def phantoms(records: list[dict[str, Any]]) -> list[str]:
    """The sources of these records that are synthetic (see `data_prep.phantom`)."""
    return sorted({source["name"] for record in records for source in record["sources"] if source["phantom"]})


def credentialed(records: list[dict[str, Any]]) -> list[str]:
    """The sources of these records that are credentialed (see `src.data.credentialed`). Records of older code are looked up by name."""
    trained = {source["name"] for record in records for source in record["sources"] if is_credentialed(source["name"], source)}
    return sorted(trained.union(*(record.get("pretrained_on", []) for record in records)))


def parent_folder(folder: Path, config: dict) -> Path | None:
    """The folder of the run in `config["init"]`. It is in the same `outputs` as `folder`, which may have been moved."""
    if not config.get("init"):
        return None
    outputs = folder.absolute().parents[len(Path(config.get("name", folder.name)).parts) - 1]
    return outputs / config["init"].removeprefix("run:")


def training_record(
    config: dict, *, fingerprint: dict, manifests: dict[str, dict], subsets: dict[str, dict] | None = None
) -> dict[str, Any]:
    """The record of one run, from its configuration and the manifests and sub-sets of its sources."""
    shares = to_typed(MixConfig, DictConfig(config["mix"])).sampling_weights
    sources = []
    for name, share in sorted(shares.items()):
        manifest = manifests.get(name, {})
        sources.append(
            {
                "name": name,
                "share": share / sum(shares.values()),
                "licence": manifest.get("licence"),
                "licences": manifest.get("licences", {}),
                "records": manifest.get("counts", {}).get("train", {}).get("written"),
                "phantom": manifest.get("phantom"),
                "credentialed": is_credentialed(name, manifest),
                **({"subsets": subsets[name]} if subsets and subsets.get(name) else {}),
            }
        )
    parts = (config.get(part, {}) for part in ("vision", "language"))
    pretrained = {name for part in parts for name in exported_sources(part.get("path"), revision=part.get("revision"))}
    return {
        "name": config.get("name"),
        "config": config,
        "fingerprint": fingerprint,
        "sources": sources,
        "pretrained_on": sorted(pretrained),
    }


def _record_of_folder(folder: Path) -> dict[str, Any]:
    """The record of a run without `lineage.json`, from `train.json` and the manifests that still exist."""
    config = read_config(folder)
    config.setdefault("name", folder.name)
    manifests = {}
    for name in to_typed(MixConfig, DictConfig(config["mix"])).sampling_weights:
        path = Path(config["data"]["root"]) / name / "manifest.json"
        manifests[name] = json.loads(path.read_text()) if path.exists() else {}
    path = folder / "train.json"
    trained = json.loads(path.read_text()) if path.exists() else {}
    for name in trained.get("phantoms", []):
        manifests[name]["phantom"] = True
    fingerprint = {key: trained[key] for key in ("shards", "records") if key in trained}
    return training_record(config, fingerprint=fingerprint, manifests=manifests)
