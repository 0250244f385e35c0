"""Raw datasets from where they are published: `python -m data_prep.download sources=pathvqa,slake raw=data/raw`."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from data_prep import sources
from data_prep.download import http, hub, lock
from data_prep.download.complete import lock_tables, missing_files
from data_prep.download.http import RemoteFile, checksum
from data_prep.download.unpack import unpack_tar, unpack_zip
from data_prep.sources import Source
from src.runtime import arguments
from src.runtime.atomic_file import DISK_FULL_ERRNOS
from src.runtime.errors import UserError, report_user_errors, suggest


@dataclass
class DownloadConfig:
    """Fetches datasets; an interrupted download is continued by the same command.

    python -m data_prep.download sources=pathvqa,slake raw=data/raw

    What sources.yaml leaves unverified (revisions, checksums) is resolved at the first download and written to
    RAW/sources.lock.yaml, which later runs hold. What has to be fetched by hand is explained, then checked and held too.

    sources  names out of data_prep/sources.yaml, separated by commas
    raw      folder that gets RAW/<source>
    accept   sources whose restricted licence you agree to, by name
    hub      address of the hub (default: HF_ENDPOINT, else https://huggingface.co)
    zenodo   address of Zenodo (default: https://zenodo.org)
    """

    sources: list[str]
    raw: Path
    accept: list[str] = field(default_factory=list)
    hub: str = field(default_factory=lambda: os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    zenodo: str = "https://zenodo.org"


@dataclass
class DownloadPlan:
    entry: Source
    revision: str
    remotes: list[tuple[RemoteFile, Callable[[RemoteFile, Path], None]]]  # with how each is fetched


@report_user_errors
def main(words: list[str]) -> None:
    download_all(arguments.parse_arguments(DownloadConfig, words))


def download_all(config: DownloadConfig) -> None:
    """Looks everything up, then checks licences and room, then fetches; nothing slow comes before a mistake is told."""
    entries = [_entry(name) for name in config.sources]
    _check_licences(entries, [_entry(name).name for name in config.accept])
    held = lock.read_lock(config.raw)
    plans = [_plan(entry, config, held.get(entry.name, {})) for entry in entries if not entry.by_hand]
    _check_room(plans, config.raw)
    for plan in plans:
        with _full_disk_explained(config.raw / plan.entry.name):
            _carry_out(plan, config.raw, held)
    for entry in entries:
        if entry.by_hand and entry.unpack:
            with _full_disk_explained(config.raw / entry.name):
                for archive in sorted((config.raw / entry.name).glob("*.tar.gz")):
                    unpack_tar(archive, archive.parent)
    problems = {entry.name: sentence for entry in entries if (sentence := missing_files(entry, config.raw / entry.name))}
    for entry in entries:
        if entry.by_hand and entry.name not in problems:
            lock_tables(entry, config.raw, held)
    if problems:
        raise UserError("; ".join(problems.values()))


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        raise UserError(f"no space is left for {folder}; free some and run the same command again") from None


def _entry(name: str) -> Source:
    known = {entry.name: entry for entry in sources.load_sources().values() if entry.name not in ("jsonl", "hf_parquet")}
    if name not in known:
        raise UserError(f"source '{name}' is not in sources.yaml{suggest(name, known)}")
    return known[name]


def _check_licences(entries: list[Source], accepted: list[str]) -> None:
    open_ones = {entry.name: limits for entry in entries if (limits := _limits(entry)) and entry.name not in accepted}
    if open_ones:
        names = ",".join(sorted({*open_ones, *accepted}))
        raise UserError(f"{'; '.join(open_ones.values())}; if you agree to that, give accept={names} (ACCEPT={names} with make)")


def _limits(entry: Source) -> str:
    licence = entry.licence
    told = ["non-commercial"] * (licence.non_commercial == "yes") + ["not redistributable"] * (licence.redistribute == "no")
    return f"source '{entry.name}' is {' and '.join(told)} ({licence.name})" if told else ""


def _plan(entry: Source, config: DownloadConfig, locked: dict[str, Any]) -> DownloadPlan:
    revision = str(locked.get("revision", "")) or entry.pinned
    known: dict[str, str] = locked.get("files", {})
    plan = DownloadPlan(entry, revision, [])
    if entry.hub:
        plan.revision, remotes = hub.list_files(entry.hub, revision, entry.patterns, endpoint=config.hub)
        plan.remotes += [(remote, _from_hub(entry.hub, plan.revision, config.hub)) for remote in remotes]
    if entry.zenodo:
        plan.remotes += [(remote, http.download_file) for remote in _zenodo(entry.zenodo, config.zenodo)]
    for path, address in entry.urls.items():
        size = 0 if (config.raw / entry.name / path).exists() else http.size_of(address)
        plan.remotes.append((RemoteFile(path, address, size, known.get(path, "")), http.download_file))
    for remote, _ in plan.remotes:
        promised = known.get(remote.path)
        if promised and remote.checksum and promised.partition(":")[0] == remote.checksum.partition(":")[0] and promised != remote.checksum:
            raise UserError(
                f"{remote.path} of {entry.name} is {remote.checksum} at its source, and {config.raw / lock.NAME} holds {promised}; "
                "remove the entry there if you want the new file"
            )
    return plan


def _from_hub(repo: str, commit: str, endpoint: str) -> Callable[[RemoteFile, Path], None]:
    return lambda remote, folder: hub.download_file(repo, commit, remote, folder, endpoint=endpoint)


def _zenodo(record: int, endpoint: str) -> list[RemoteFile]:
    """The files of a record, with the checksums that Zenodo states (md5)."""
    address = f"{endpoint}/api/records/{record}"
    said: dict[str, Any] = {}

    def look() -> None:
        response = httpx2.get(address, follow_redirects=True, timeout=60)
        response.raise_for_status()
        said.update(response.json())

    http.with_retries(look, address)
    return [RemoteFile(file["key"], file["links"]["self"], file["size"], file.get("checksum", "")) for file in said["files"]]


def _check_room(plans: list[DownloadPlan], raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    needed = sum(_missing(plan, raw / plan.entry.name) for plan in plans)
    free = shutil.disk_usage(raw).free
    if needed > free:
        raise UserError(f"the download needs {needed / 1e9:.1f} GB and {raw} has {free / 1e9:.1f} GB free; make room or give another raw=")


def _missing(plan: DownloadPlan, folder: Path) -> int:
    """Bytes that are still to come, less what an interrupted run has kept of them."""
    sizes = {folder / remote.path: remote.size for remote, _ in plan.remotes if not (folder / remote.path).exists()}
    return max(0, sum(sizes.values()) - sum(http.partial_bytes(path) for path in sizes) - hub.partial_bytes(folder))


def _carry_out(plan: DownloadPlan, raw: Path, held: dict[str, Any]) -> None:
    """The revision is locked before the first file, so that what an interrupted run has is continued at the same one."""
    folder = raw / plan.entry.name
    files: dict[str, str] = held.get(plan.entry.name, {}).get("files", {})
    held[plan.entry.name] = {"revision": plan.revision, "files": files}
    if plan.revision and plan.revision != plan.entry.pinned:
        print(f"{plan.entry.name}: revision {plan.revision}")
    lock.write_lock(raw, held)
    for remote, how in plan.remotes:
        target = folder / remote.path
        if not (target.exists() and remote.checksum and checksum(target, remote.checksum.partition(":")[0]) == remote.checksum):
            how(remote, folder)
        if remote.path not in files:
            files[remote.path] = remote.checksum or checksum(target)
            lock.write_lock(raw, held)
        if plan.entry.unpack and target.suffix == ".zip":
            unpack_zip(target, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
