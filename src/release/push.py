"""Uploads the parts of an export to the Hugging Face hub."""

import os
import re
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from src.runtime.errors import UserError

# part -> what its repository has behind user/name, and its kind
TARGETS = {"hf": ("", "model"), "adapter": ("-adapter", "model"), "timm": ("-timm", "model"), "space": ("", "space")}


def push_target(repository: str, part: str) -> str:
    """The repository of a part of the export that is pushed to `repository`."""
    return f"{repository}{TARGETS[part][0]}"


def push_folder(out: Path, repository: str, *, parts: list[str], texts: dict[str, str]) -> None:
    """`out/hf` to the model repository `user/name`, adapter and encoder to `-adapter` and `-timm`, the demo to the Space of that name.

    `texts` are the files, relative to `out`, that say something else on the hub than in `out`. Asks huggingface_hub, so HF_ENDPOINT and
    HF_TOKEN hold.
    """
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=get_token())
    for part in parts:
        name, kind = push_target(repository, part), TARGETS[part][1]
        try:
            sdk = "gradio" if kind == "space" else None
            api.create_repo(name, repo_type=kind, exist_ok=True, private=True, space_sdk=sdk)
            api.create_commit(name, _added(out, part, texts), repo_type=kind, commit_message=f"Export of {part}")
        except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
            raise UserError(f"push={repository}: the hub refused {part} ({_first_line(error)})") from None
        except RuntimeError as error:  # of one large file, with its reason behind it
            raise UserError(f"push={repository}: {_first_line(error)} {_first_line(error.__cause__ or error)}") from None


def _added(out: Path, part: str, texts: dict[str, str]) -> list[CommitOperationAdd]:
    names = sorted(path.relative_to(out).as_posix() for path in (out / part).rglob("*") if path.is_file())
    return [CommitOperationAdd(name.partition("/")[2], texts[name].encode() if name in texts else out / name) for name in names]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_push(repository: str) -> None:
    """What can be refused before anything is exported."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"push={repository!r} is no repository name; give user/name")
    if get_token() is None:
        raise UserError("push= needs a token of the hub with write access; set HF_TOKEN")
