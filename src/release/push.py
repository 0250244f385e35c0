"""Uploads the parts of an export to the Hugging Face hub."""

import os
import re
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from src.errors import UserError

TARGETS = {"hf": ("", "model"), "adapter": ("-adapter", "model"), "timm": ("-timm", "model"), "space": ("", "space")}


def push(out: Path, repository: str, *, parts: list[str]) -> None:
    """`out/hf` to the model repository `user/name`, adapter and encoder to `-adapter` and `-timm`, the demo to the Space of that name.

    Asks huggingface_hub, so HF_ENDPOINT and HF_TOKEN hold.
    """
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=get_token())
    for part in parts:
        suffix, kind = TARGETS[part]
        try:
            sdk = "gradio" if kind == "space" else None
            api.create_repo(f"{repository}{suffix}", repo_type=kind, exist_ok=True, private=True, space_sdk=sdk)
            api.upload_folder(folder_path=out / part, repo_id=f"{repository}{suffix}", repo_type=kind, commit_message=f"Export of {part}")
        except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
            raise UserError(f"push={repository}: the hub refused {part} ({_first_line(error)})") from None
        except RuntimeError as error:  # of one large file, with its reason behind it
            raise UserError(f"push={repository}: {_first_line(error)} {_first_line(error.__cause__ or error)}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_push(repository: str) -> None:
    """What can be refused before anything is exported."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"push={repository!r} is no repository name; give user/name")
    if get_token() is None:
        raise UserError("push= needs a token of the hub with write access; set HF_TOKEN")
