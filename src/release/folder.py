"""Export folders: written completely or not at all, and uploaded to the Hugging Face Hub."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from src.runtime.errors import UserError
from src.runtime.hashing import file_sha256

CHECKSUMS = "SHA256SUMS"  # in the format of `sha256sum -c`
# part -> (suffix of its repository name, kind of repository)
REPOSITORIES = {"hf": ("", "model"), "adapter": ("-adapter", "model"), "timm": ("-timm", "model"), "space": ("", "space")}


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `out` at the end, or is dropped if `out` has the same bytes already.

    Raises `UserError` if `out` holds anything else, because a published folder must not change.
    """
    if out.exists() and not (out / CHECKSUMS).is_file():
        raise UserError(f"out={out} exists and was not written by export; choose another out=")
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        (partial / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(file_digests(partial).items())))
        if out.exists():
            _check_equal(out, partial)
        else:
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path of every file, without the list of checksums."""
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _check_equal(out: Path, partial: Path) -> None:
    old, new = file_digests(out), file_digests(partial)
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if different:
        names = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise UserError(f"out={out} exists and differs from this export in {names}; remove it or choose another out=")


def repository_name(push: str, part: str) -> str:
    """The repository of a part of an export with `push=user/name`."""
    return f"{push}{REPOSITORIES[part][0]}"


def check_push(push: str) -> None:
    """Raises `UserError` for an invalid name or a missing token, before anything is exported."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise UserError(f"push={push!r} is not a repository name; give user/name")
    if get_token() is None:
        raise UserError("push= needs a Hugging Face token with write access; set HF_TOKEN")


def push_folder(out: Path, push: str, *, parts: list[str], texts: dict[str, str]) -> None:
    """Uploads `out/hf` to the model repository `user/name`, adapter and encoder to `-adapter` and `-timm`, the demo to a Space `user/name`.

    `texts` replaces files, by path relative to `out`, whose text on the Hub differs from that in `out`. Respects HF_ENDPOINT and HF_TOKEN.
    """
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=get_token())
    for part in parts:
        repository, kind = repository_name(push, part), REPOSITORIES[part][1]
        try:
            sdk = "gradio" if kind == "space" else None
            api.create_repo(repository, repo_type=kind, exist_ok=True, private=True, space_sdk=sdk)
            api.create_commit(repository, _operations(out, part, texts), repo_type=kind, commit_message=f"Export of {part}")
        except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
            raise UserError(
                f"push={push}: the Hugging Face Hub rejected {part} ({_first_line(error)}); check the network and that HF_TOKEN can write"
            ) from None
        except RuntimeError as error:  # huggingface_hub names the large file here and gives the reason as the cause
            raise UserError(f"push={push}: {_first_line(error)} {_first_line(error.__cause__ or error)}; repeat the command") from None


def _operations(out: Path, part: str, texts: dict[str, str]) -> list[CommitOperationAdd]:
    names = sorted(path.relative_to(out).as_posix() for path in (out / part).rglob("*") if path.is_file())
    return [CommitOperationAdd(name.partition("/")[2], texts[name].encode() if name in texts else out / name) for name in names]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
