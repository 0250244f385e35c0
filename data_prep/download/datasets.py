"""Downloads raw datasets from their publishers: `python -m data_prep.download sources=pathvqa,slake raw=data/raw`."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from data_prep import sources
from data_prep.download import http, hub, lock, mimic_cxr
from data_prep.download.http import RemoteFile, checksum
from data_prep.download.unpack import unpack_tar, unpack_zip
from data_prep.sources import Source
from src.data.record import SPLITS
from src.runtime.arguments import parse_arguments
from src.runtime.atomic_file import explain_full_disk
from src.runtime.errors import UserError, report_user_errors, suggest


@dataclass
class DownloadConfig:
    """Downloads datasets. To continue an interrupted download, run the same command again.

    python -m data_prep.download sources=pathvqa,slake raw=data/raw

    The first download resolves the revisions and checksums that sources.yaml leaves unverified and writes them to
    RAW/sources.lock.yaml, which later runs follow. For datasets that have to be downloaded by hand, the command prints the
    steps, then checks the files and locks them too.

    sources  names from data_prep/sources.yaml, separated by commas
    raw      folder to write RAW/<source> to
    accept   names of sources whose restricted licence you accept
    images   mimic_cxr only: sample (default) looks for 1,000 of the images, all for each of them
    hub      address of the hub (default: HF_ENDPOINT, else https://huggingface.co)
    zenodo   address of Zenodo (default: https://zenodo.org)
    """

    sources: list[str]
    raw: Path
    accept: list[str] = field(default_factory=list)
    images: str = "sample"
    hub: str = field(default_factory=lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    zenodo: str = "https://zenodo.org"


@dataclass
class DownloadPlan:
    entry: Source
    revision: str
    downloads: list[tuple[RemoteFile, Callable[[RemoteFile, Path], None]]]  # each with the function that downloads it


@report_user_errors
def main(args: list[str]) -> None:
    download_all(parse_arguments(DownloadConfig, args))


def download_all(config: DownloadConfig) -> None:
    """Downloads all sources. Names, licences, remote files and disk space are checked before the first download."""
    if config.images not in ("sample", "all"):
        raise UserError(f"images={config.images}: unknown value{suggest(config.images, ('sample', 'all'))}")
    entries = [_find_entry(name) for name in config.sources]
    _check_licences(entries, [_find_entry(name).name for name in config.accept])
    locked = lock.read_lock(config.raw)
    plans = [_plan(entry, config, locked.get(entry.name, {})) for entry in entries if not entry.by_hand]
    _check_disk_space(plans, config.raw)
    for plan in plans:
        with explain_full_disk(plan.entry.name, config.raw / plan.entry.name):
            _execute(plan, config.raw, locked)
    for entry in entries:
        if entry.by_hand and entry.unpack:
            with explain_full_disk(entry.name, config.raw / entry.name):
                for archive in sorted((config.raw / entry.name).glob("*.tar.gz")):
                    unpack_tar(archive, archive.parent)
    problems = {entry.name: message for entry in entries if (message := _missing_files(entry, config.raw / entry.name))}
    for entry in entries:
        if entry.by_hand and entry.name not in problems:
            if entry.reader == "mimic_cxr":
                mimic_cxr.verify_files(entry, config.raw / entry.name, every_image=config.images == "all")
            lock.lock_tables(entry, config.raw, locked)
    if problems:
        raise UserError("; ".join(problems.values()))


def _find_entry(name: str) -> Source:
    entries = {entry.name: entry for entry in sources.load_sources().values() if entry.name not in sources.OWN_DATA}
    if name not in entries:
        raise UserError(f"source '{name}' is not in sources.yaml{suggest(name, entries)}")
    return entries[name]


def _check_licences(entries: list[Source], accepted: list[str]) -> None:
    restrictions = {entry.name: text for entry in entries if (text := _restrictions(entry)) and entry.name not in accepted}
    if restrictions:
        names = ",".join(sorted({*restrictions, *accepted}))
        raise UserError(f"{'; '.join(restrictions.values())}; if you accept this, give accept={names} (ACCEPT={names} with make)")


def _restrictions(entry: Source) -> str:
    licence = entry.licence
    limits = ["non-commercial"] * (licence.non_commercial == "yes") + ["not redistributable"] * (licence.redistribute == "no")
    limits += ["for credentialed users only"] * (licence.credentialed == "yes")
    return f"source '{entry.name}' is {' and '.join(limits)} ({licence.name})" if limits else ""


def _plan(entry: Source, config: DownloadConfig, locked: dict[str, Any]) -> DownloadPlan:
    revision = str(locked.get("revision", "")) or entry.pinned
    checksums: dict[str, str] = locked.get("files", {})
    plan = DownloadPlan(entry, revision, [])
    if entry.hub:
        plan.revision, remotes = hub.list_files(entry.hub, revision, entry.patterns, endpoint=config.hub)
        download_file = partial(hub.download_file, entry.hub, plan.revision, endpoint=config.hub)
        plan.downloads += [(remote, download_file) for remote in remotes]
    if entry.zenodo:
        plan.downloads += [(remote, http.download_file) for remote in _list_zenodo_files(entry.zenodo, config.zenodo)]
    for path, address in entry.urls.items():
        size = 0 if (config.raw / entry.name / path).exists() else http.remote_size(address)
        plan.downloads.append((RemoteFile(path, address, size, checksums.get(path, "")), http.download_file))
    for remote, _ in plan.downloads:
        expected = checksums.get(remote.path)
        if expected and remote.checksum and expected.partition(":")[0] == remote.checksum.partition(":")[0] and expected != remote.checksum:
            raise UserError(
                f"{remote.path} of {entry.name}: the published file has the checksum {remote.checksum}, but {config.raw / lock.NAME} "
                f"holds {expected}; remove the entry there if you want to use the new file"
            )
    return plan


def _list_zenodo_files(record: int, endpoint: str) -> list[RemoteFile]:
    """The files of a Zenodo record with their published MD5 checksums."""
    address = f"{endpoint}/api/records/{record}"
    metadata: dict[str, Any] = {}

    def request() -> None:
        response = httpx2.get(address, follow_redirects=True, timeout=60)
        response.raise_for_status()
        metadata.update(response.json())

    http.with_retries(request, address)
    return [RemoteFile(file["key"], file["links"]["self"], file["size"], file.get("checksum", "")) for file in metadata["files"]]


def _check_disk_space(plans: list[DownloadPlan], raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    needed = sum(_remaining_bytes(plan, raw / plan.entry.name) for plan in plans)
    free = shutil.disk_usage(raw).free
    if needed > free:
        raise UserError(
            f"raw={raw}: the download needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free some space or give another raw="
        )


def _remaining_bytes(plan: DownloadPlan, folder: Path) -> int:
    """Bytes left to download, without those that an interrupted run has already downloaded."""
    sizes = {folder / remote.path: remote.size for remote, _ in plan.downloads if not (folder / remote.path).exists()}
    return max(0, sum(sizes.values()) - sum(http.partial_bytes(path) for path in sizes) - hub.partial_bytes(folder))


def _execute(plan: DownloadPlan, raw: Path, locked: dict[str, Any]) -> None:
    """Downloads and unpacks the files of a plan. The revision is locked first, so that an interrupted run resumes at the same one."""
    folder = raw / plan.entry.name
    files: dict[str, str] = locked.get(plan.entry.name, {}).get("files", {})
    locked[plan.entry.name] = {"revision": plan.revision, "files": files}
    if plan.revision and plan.revision != plan.entry.pinned:
        print(f"{plan.entry.name}: revision {plan.revision}")
    lock.write_lock(raw, locked)
    for remote, download_file in plan.downloads:
        target = folder / remote.path
        if not (target.exists() and remote.checksum and checksum(target, remote.checksum.partition(":")[0]) == remote.checksum):
            download_file(remote, folder)
        if remote.path not in files:
            files[remote.path] = remote.checksum or checksum(target)
            lock.write_lock(raw, locked)
        if plan.entry.unpack and target.suffix == ".zip":
            unpack_zip(target, folder)


def _missing_files(entry: Source, folder: Path) -> str:
    """An error message if files that the reader needs are missing, else empty. Prints whether the folder is complete."""
    missing = [pattern for pattern in entry.also if not any(_has_content(path) for path in folder.glob(pattern))]
    if not any(entry.tables(folder, split) for split in SPLITS):
        missing = list(dict.fromkeys(globs[0] for globs in entry.files.values())) + missing
    if missing and entry.by_hand:
        pages = ", ".join(entry.pages)
        return f"source '{entry.name}': download it by hand into {folder}: {entry.steps} ({pages}); missing: {', '.join(missing)}"
    if missing:
        return f"source '{entry.name}': {', '.join(missing)} is missing in {folder}; {entry.steps or 'the published layout has changed'}"
    print(f"{entry.name}: complete in {folder}")
    splits = [split for split in entry.expected if not entry.tables(folder, split)]
    if splits:
        print(f"{entry.name}: no file for {', '.join(splits)}; {entry.steps}")
    return ""


def _has_content(path: Path) -> bool:
    return path.is_file() or any(path.iterdir())
