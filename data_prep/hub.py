"""Datasets of the Hugging Face hub, through its own client."""

from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from data_prep.fetch import Remote, attempt, check, refusal
from src.errors import UserError


def listing(repo: str, revision: str, patterns: list[str], *, endpoint: str) -> tuple[str, list[Remote]]:
    """(commit, the files that match a pattern) of a dataset at a revision (`main` where none is known)."""
    page = f"{endpoint}/datasets/{repo}"
    try:
        info = HfApi(endpoint=endpoint).dataset_info(repo, revision=revision or None, files_metadata=True)
    except HfHubHTTPError as error:
        raise UserError(refusal(error.response.status_code, page)) from None
    except (httpx2.TransportError, HFValidationError) as error:
        raise UserError(f"{page} cannot be read ({str(error) or type(error).__name__}); look at the connection and the name") from None
    kept = [file for file in info.siblings or [] if any(fnmatch(file.rfilename, pattern) for pattern in patterns)]
    if not kept:
        raise UserError(f"{page} holds none of the files {', '.join(patterns)}; its layout has changed")
    return str(info.sha), [Remote(file.rfilename, page, file.size or 0, _checksum(file)) for file in kept]


def fetch(repo: str, commit: str, remote: Remote, folder: Path, *, endpoint: str) -> None:
    """One file into `folder/<its path>`; the client resumes what was cut, the checksum is ours to check. A file that is there
    was found wrong, which the client would not notice."""
    wrong = (folder / remote.path).exists()

    def once() -> None:
        hf_hub_download(repo, remote.path, repo_type="dataset", revision=commit, local_dir=folder, endpoint=endpoint, force_download=wrong)

    try:
        attempt(once, f"{endpoint}/datasets/{repo}")
    except HfHubHTTPError as error:
        raise UserError(refusal(error.response.status_code, f"{endpoint}/datasets/{repo}")) from None
    check(folder / remote.path, remote)


def _checksum(file) -> str:
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}" if file.blob_id else ""
