"""Weights on disk or on the hub: find the file, read tensors and nothing else, load them exactly, name them for good."""

import hashlib
import json
import pickle
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from src.runtime.errors import UserError
from src.runtime.progress import Progress

UNVERIFIED = "unverified"  # a revision that nobody read at a named source
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_ID = re.compile(r"(datasets/)?(?!\.)[\w.-]+/[\w.-]+")


def find_file(path: str, names: Sequence[str], *, revision: str, key: str) -> Path:
    """The first of `names` that exists in a local folder or in a hub repository (`owner/name`, `datasets/owner/name`).

    A `path` that is itself a file is returned as it is. The hub is asked through huggingface_hub, so HF_ENDPOINT,
    HF_HUB_OFFLINE and its cache hold. `key` is the config key to name in the error.
    """
    local, wanted = Path(path).expanduser(), " or ".join(names)
    if local.is_file():
        return local
    if local.is_dir():
        for name in names:
            if (local / name).is_file():
                return local / name
        raise UserError(f"{key}={path} is a folder without {wanted}; it holds {_listing(local)}")
    if not _HUB_ID.fullmatch(path):
        raise UserError(f"{key}={path!r} is neither a file, nor a folder, nor a hub id of the form owner/name")
    return _from_hub(path, names, revision=revision, key=key)


def _from_hub(path: str, names: Sequence[str], *, revision: str, key: str) -> Path:
    kind = "dataset" if path.startswith("datasets/") else "model"
    pinned = None if revision == UNVERIFIED else revision
    reason, reached = "the repository does not hold it", True
    for name in names:
        try:
            # Each vain attempt to connect takes half a minute of retries: one is enough.
            file = hf_hub_download(
                path.removeprefix("datasets/"),
                name,
                repo_type=kind,
                revision=pinned,
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
    wanted = " or ".join(names)
    raise UserError(f"{key}={path} is no local folder and {wanted} did not come from the hub ({reason}); give a folder that holds it")


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "nothing"


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or a torch file, on the CPU; a torch file may wrap it as {'state_dict': ...}.

    Torch files are read with `weights_only=True`: one that carries other objects is refused.
    """
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{file} holds Python objects besides tensors (or is no torch file) and is not loaded") from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{file} cannot be read as tensors, perhaps it is cut short: {str(error).splitlines()[0]}") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{file} holds no state dict (a mapping of names to tensors)")
    return found


def load_exactly(module: nn.Module, state: dict[str, Tensor], *, origin: str) -> None:
    """`load_state_dict` that names the first missing, unknown or differently shaped tensors in one sentence."""
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


def raise_mismatches(faults: dict[str, Collection[str]], *, origin: str) -> None:
    """Raises one `UserError` that names the first three of each kind of fault; nothing when there is none."""
    told = []
    for verb, names in faults.items():
        if names:
            told.append(f"{verb} {', '.join(sorted(names)[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else ""))
    if told:
        raise UserError(f"the weights in {origin} do not fit the model: the file {'; it '.join(told)}")


def identity_of(path: str, files: Sequence[Path], *, revision: str) -> dict[str, str]:
    """{id, revision, sha256}: what a checkpoint stores about weights that it does not hold.

    One file gives its own sha256, several that of the lines `<name> <sha256>`. The revision of files that came from the
    hub is the commit under which the hub's cache keeps them.
    """
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda file: _sha256(file, file.stat().st_size, file.stat().st_mtime_ns), files))
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(lines.encode()).hexdigest()
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", files[0].as_posix())
    return {"id": path, "revision": commit[1] if commit else revision, "sha256": digest}


def weight_files(path: str, names: Sequence[str], *, revision: str, key: str) -> list[Path]:
    """The file of `names` that stands at `path`, or the shards that it lists where it is an index."""
    file = find_file(path, names, revision=revision, key=key)
    if file.suffix != ".json":
        return [file]
    shards = sorted(set(read_json(file)["weight_map"].values()))
    return [find_file(path, [shard], revision=revision, key=key) for shard in shards]


@lru_cache(maxsize=64)
def _sha256(file: Path, size: int, modified: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(file: Path) -> dict:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds a JSON {type(found).__name__} where names and values are needed")
    return found


def one_line(error: Exception) -> str:
    """What a library says of files that it cannot load, as one clause."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own words recommend to load it all the same
        return "its weights hold Python objects besides tensors, or are no torch file"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
