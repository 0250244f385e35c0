"""Weight files on disk or on the Hugging Face hub: finding, reading (tensors only), strict loading and identification."""

import contextlib
import hashlib
import json
import pickle
import re
import socket
import ssl
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener, getproxies, proxy_bypass

import safetensors.torch
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from src.runtime.errors import UserError
from src.runtime.hashing import file_sha256
from src.runtime.progress import Progress

UNVERIFIED = "unverified"  # a revision that is not pinned to a commit
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
REACH_SECONDS = 5  # for the attempt to reach the hub
PROXY_REFUSALS = (403, 407, 502, 503, 504)  # status codes by which a proxy says that it does not let us through
PORTS = {"https": 443, "http": 80} | dict.fromkeys(("socks4", "socks4a", "socks5", "socks5h", "socks"), 1080)
_HUB_ID = re.compile(r"(datasets/)?(?!\.)[\w.-]+/[\w.-]+")


def find_file(path: str, names: Sequence[str], *, revision: str, key: str) -> Path:
    """The first of `names` that exists in a local folder or in a hub repository (`owner/name`, `datasets/owner/name`).

    A `path` that is a file is returned unchanged. Downloads go through huggingface_hub, which respects HF_ENDPOINT and
    HF_HUB_OFFLINE and uses its cache. Raises `UserError`, which names the config key `key`, if there is no such file.
    """
    local, expected = Path(path).expanduser(), " or ".join(names)
    if local.is_file():
        return local
    if local.is_dir():
        for name in names:
            if (local / name).is_file():
                return local / name
        raise UserError(f"{key}={path} is a folder without {expected}; it holds {_listing(local)}")
    if not _HUB_ID.fullmatch(path):
        raise UserError(f"{key}={path!r} is neither a file, nor a folder, nor a hub id of the form owner/name")
    return _from_hub(path, names, revision=revision, key=key)


def _from_hub(path: str, names: Sequence[str], *, revision: str, key: str) -> Path:
    repo_type = "dataset" if path.startswith("datasets/") else "model"
    commit = None if revision == UNVERIFIED else revision
    reason, reached = "the repository does not hold it", is_reachable(constants.ENDPOINT)
    for name in names:
        try:
            # A connection that breaks down takes half a minute of retries, so only one is attempted.
            file = hf_hub_download(
                path.removeprefix("datasets/"),
                name,
                repo_type=repo_type,
                revision=commit,
                local_files_only=not reached,
                tqdm_class=Progress,
            )
            return Path(file)
        except LocalEntryNotFoundError:
            reason, reached = "not in the local cache, and the hub was not reached", False
        except EntryNotFoundError:
            continue
        except GatedRepoError:
            reason = "the repository is gated: accept its terms and set HF_TOKEN"
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
    expected = " or ".join(names)
    raise UserError(
        f"{key}={path} is no local folder and {expected} could not be downloaded from the hub ({reason}); give a folder that holds it"
    )


@lru_cache
def is_reachable(address: str) -> bool:
    """Whether a host can be reached within 5 seconds, through the proxy of the environment if it names one; the client of the hub would
    retry for most of a minute. Names are looked up in a thread, because that has no timeout. Of a SOCKS proxy only its own port is tried.
    """
    scheme, host, proxies = urlsplit(address).scheme, urlsplit(address).hostname or "", getproxies()
    proxy = "" if proxy_bypass(host) else proxies.get(scheme) or proxies.get("all") or ""
    reached = threading.Event()

    def connect() -> None:
        if _answers(address, proxy) if proxy and not proxy.startswith("socks") else _accepts(proxy or address):
            reached.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return reached.is_set()


def _accepts(address: str) -> bool:
    """Whether a host accepts a connection."""
    parts = urlsplit(address)
    with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port or PORTS[parts.scheme]), timeout=REACH_SECONDS):
        return True
    return False


def _answers(address: str, proxy: str) -> bool:
    """Whether a host answers through a proxy. A certificate that Python does not accept comes after the proxy has let us through."""
    opener = build_opener(ProxyHandler({urlsplit(address).scheme: proxy}))
    try:
        opener.open(Request(address, method="HEAD"), timeout=REACH_SECONDS).close()
    except HTTPError as error:
        return error.code not in PROXY_REFUSALS
    except (OSError, HTTPException) as error:
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch file, on the CPU. A torch file may wrap it as {'state_dict': ...}.

    Raises `UserError` for a file that holds other objects than tensors (torch files are read with `weights_only=True`), or is truncated.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{file}: holds Python objects besides tensors, or is no torch file; store only the state dict in it") from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{file}: cannot be read as tensors ({str(error).splitlines()[0]}) and may be truncated; download or copy it again"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: holds no state dict (a mapping of names to tensors); save model.state_dict() as this file")
    return state


def load_exactly(module: nn.Module, state: dict[str, Tensor], *, origin: str) -> None:
    """`load_state_dict` with a `UserError` that names the first missing, unknown or differently shaped tensors."""
    expected = module.state_dict()
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    raise_mismatches(
        {"lacks": expected.keys() - state.keys(), "has unknown": state.keys() - expected.keys(), "has wrong shapes:": shapes}, origin=origin
    )
    module.load_state_dict(state, strict=True)


def raise_mismatches(mismatches: dict[str, Collection[str]], *, origin: str) -> None:
    """Raises a `UserError` with the first three tensors of each kind of mismatch ("lacks", "has unknown", ...), if there are any."""
    clauses = []
    for verb, names in mismatches.items():
        if names:
            clauses.append(f"{verb} {', '.join(sorted(names)[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else ""))
    if clauses:
        raise UserError(f"the weights in {origin} do not fit the model: the file {'; it '.join(clauses)}")


def identity_of(path: str, files: Sequence[Path], *, revision: str) -> dict[str, str]:
    """{id, revision, sha256}, by which a checkpoint identifies weights that it does not hold.

    For one file, `sha256` is that of its content; for several files, that of the lines `<name> <sha256>`. `revision` of files in the
    hub's cache is their commit.
    """
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda file: _sha256(file, file.stat().st_size, file.stat().st_mtime_ns), files))
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", files[0].as_posix())
    return {"id": path, "revision": commit[1] if commit else revision, "sha256": digest}


def weight_files(path: str, names: Sequence[str], *, revision: str, key: str) -> list[Path]:
    """The first of `names` that exists at `path`; for an index file, the shards that it lists."""
    file = find_file(path, names, revision=revision, key=key)
    if file.suffix != ".json":
        return [file]
    shards = sorted(set(read_json(file)["weight_map"].values()))
    return [find_file(path, [shard], revision=revision, key=key) for shard in shards]


@lru_cache(maxsize=64)
def _sha256(file: Path, size: int, modified: int) -> str:
    return file_sha256(file)


def read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a JSON {type(content).__name__}, not an object of names and values")
    return content


def one_line(error: Exception) -> str:
    """A library's error about files that it cannot load, as one clause."""
    if isinstance(error, pickle.UnpicklingError):  # the message of torch recommends loading it anyway
        return "its weights hold Python objects besides tensors, or are no torch file"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
