"""Raw datasets from where they are published: `python -m data_prep.download sources=pathvqa,slake raw=data/raw`."""

import errno
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml

from data_prep import arguments, fetch, hub, sources
from data_prep.atomic import atomic
from data_prep.fetch import Remote, checksum
from data_prep.sources import Source
from data_prep.unpack import unpack
from src.data.record import SPLITS
from src.errors import UserError, command, nearest

LOCK = "sources.lock.yaml"


@dataclass
class Download:
    """Fetches datasets; an interrupted download is continued by the same command.

    python -m data_prep.download sources=pathvqa,slake raw=data/raw

    What sources.yaml leaves unverified (revisions, checksums) is resolved at the first download and written to
    RAW/sources.lock.yaml, which later runs hold. What has to be fetched by hand is explained, then checked.

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
class Plan:
    entry: Source
    revision: str
    remotes: list[tuple[Remote, Callable[[Remote, Path], None]]]  # with how each is fetched


@command
def main(words: list[str]) -> None:
    download_all(arguments.parse(Download, words))


def download_all(config: Download) -> None:
    """Looks everything up, then checks licences and room, then fetches; nothing slow comes before a mistake is told."""
    entries = [_entry(name) for name in config.sources]
    for entry in entries:
        _check_licence(entry, config.accept)
    lock = _read_lock(config.raw)
    plans = [_plan(entry, config, lock.get(entry.name, {})) for entry in entries if not entry.by_hand]
    _check_room(plans, config.raw)
    for plan in plans:
        try:
            _carry_out(plan, config.raw, lock)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"no space is left for {config.raw / plan.entry.name}; free some and run the same command again") from None
    for entry in entries:
        _check_complete(entry, config.raw / entry.name)


def _entry(name: str) -> Source:
    known = {entry.name: entry for entry in sources.load().values() if entry.name not in ("jsonl", "hf_parquet")}
    if name not in known:
        raise UserError(f"source '{name}' is not in sources.yaml{nearest(name, known)}")
    return known[name]


def _check_licence(entry: Source, accepted: list[str]) -> None:
    limits = [
        what
        for what, said in (
            ("non-commercial", entry.licence.non_commercial == "yes"),
            ("not redistributable", entry.licence.redistribute == "no"),
        )
        if said
    ]
    if limits and entry.name not in accepted:
        raise UserError(
            f"source '{entry.name}' is {' and '.join(limits)} ({entry.licence.name}); if you agree to that, give accept={entry.name} "
            f"(ACCEPT={entry.name} with make)"
        )


def _plan(entry: Source, config: Download, locked: dict[str, Any]) -> Plan:
    revision = str(locked.get("revision", "")) or entry.pinned
    known: dict[str, str] = locked.get("files", {})
    plan = Plan(entry, revision, [])
    if entry.hub:
        plan.revision, remotes = hub.listing(entry.hub, revision, entry.patterns, endpoint=config.hub)
        plan.remotes += [(remote, _from_hub(entry.hub, plan.revision, config.hub)) for remote in remotes]
    if entry.zenodo:
        plan.remotes += [(remote, fetch.fetch) for remote in _zenodo(entry.zenodo, config.zenodo)]
    plan.remotes += [(Remote(path, address, checksum=known.get(path, "")), fetch.fetch) for path, address in entry.urls.items()]
    for remote, _ in plan.remotes:
        promised = known.get(remote.path)
        if promised and remote.checksum and promised.partition(":")[0] == remote.checksum.partition(":")[0] and promised != remote.checksum:
            raise UserError(
                f"{remote.path} of {entry.name} is {remote.checksum} at its source, and {config.raw / LOCK} holds {promised}; "
                "remove the entry there if you want the new file"
            )
    return plan


def _from_hub(repo: str, commit: str, endpoint: str) -> Callable[[Remote, Path], None]:
    return lambda remote, folder: hub.fetch(repo, commit, remote, folder, endpoint=endpoint)


def _zenodo(record: int, endpoint: str) -> list[Remote]:
    """The files of a record, with the checksums that Zenodo states (md5)."""
    address = f"{endpoint}/api/records/{record}"
    said: dict[str, Any] = {}

    def look() -> None:
        response = httpx2.get(address, follow_redirects=True, timeout=60)
        response.raise_for_status()
        said.update(response.json())

    fetch.attempt(look, address)
    return [Remote(file["key"], file["links"]["self"], file["size"], file.get("checksum", "")) for file in said["files"]]


def _check_room(plans: list[Plan], raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    needed = sum(remote.size for plan in plans for remote, _ in plan.remotes if not (raw / plan.entry.name / remote.path).exists())
    free = shutil.disk_usage(raw).free
    if needed > free:
        raise UserError(f"the download needs {needed / 1e9:.1f} GB and {raw} has {free / 1e9:.1f} GB free; make room or give another raw=")


def _carry_out(plan: Plan, raw: Path, lock: dict[str, Any]) -> None:
    folder, files = raw / plan.entry.name, {}
    if plan.revision and plan.revision != plan.entry.pinned:
        print(f"{plan.entry.name}: revision {plan.revision}")
    for remote, how in plan.remotes:
        target = folder / remote.path
        if not (target.exists() and remote.checksum and checksum(target, remote.checksum.partition(":")[0]) == remote.checksum):
            how(remote, folder)
        files[remote.path] = remote.checksum or checksum(target)
        if plan.entry.unpack and target.suffix == ".zip":
            unpack(target, folder)
    lock[plan.entry.name] = {"revision": plan.revision, "files": files}
    with atomic(raw / LOCK) as file:
        file.write(yaml.safe_dump(lock, sort_keys=True).encode())


def _read_lock(raw: Path) -> dict[str, Any]:
    path = raw / LOCK
    return yaml.safe_load(path.read_text()) or {} if path.exists() else {}


def _check_complete(entry: Source, folder: Path) -> None:
    """Whether what the reader will ask for is there; by hand or fetched."""
    missing = [pattern for pattern in entry.also if not any(folder.glob(pattern))]
    if not any(entry.tables(folder, split) for split in SPLITS):
        missing = [globs[0] for globs in entry.files.values()] + missing
    if missing and entry.by_hand:
        raise UserError(
            f"source '{entry.name}' has to be fetched by hand into {folder}: {entry.steps} ({', '.join(entry.pages)}); "
            f"not there: {', '.join(missing)}"
        )
    if missing:
        raise UserError(f"source '{entry.name}': {', '.join(missing)} is not in {folder}; {entry.steps or 'its layout has changed'}")
    print(f"{entry.name}: complete in {folder}")
    absent = [split for split in entry.expected if not entry.tables(folder, split)]
    if absent:
        print(f"{entry.name}: no file for {', '.join(absent)}; {entry.steps}")


if __name__ == "__main__":
    main(sys.argv[1:])
