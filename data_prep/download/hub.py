"""Downloads datasets from the Hugging Face hub with its own client."""

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from data_prep.download.http import RemoteFile, verify_checksum, with_retries
from src.runtime.errors import UserError
from src.runtime.progress import Progress


def list_files(repo: str, revision: str, patterns: list[str], *, endpoint: str) -> tuple[str, list[RemoteFile]]:
    """The commit of a dataset at a revision (`main` if empty), and its files that match one of the glob patterns.

    Raises `UserError` if the dataset cannot be read or no file matches.
    """
    page, responses = f"{endpoint}/datasets/{repo}", []

    def request() -> None:
        responses.append(HfApi(endpoint=endpoint).dataset_info(repo, revision=revision or None, files_metadata=True))

    try:
        _with_hub_retries(request, page)
    except HFValidationError as error:
        raise UserError(f"{page}: invalid dataset id ({error}); correct it in sources.yaml") from None
    (info,) = responses
    files = [file for file in info.siblings or [] if any(fnmatch(file.rfilename, pattern) for pattern in patterns)]
    if not files:
        raise UserError(f"{page}: no file matches {', '.join(patterns)}; the layout has changed, adapt the entry in sources.yaml")
    return str(info.sha), [RemoteFile(file.rfilename, page, file.size or 0, _checksum(file)) for file in files]


def download_file(repo: str, commit: str, remote: RemoteFile, folder: Path, *, endpoint: str) -> None:
    """Downloads one file to `folder/<its path>` and verifies its checksum. The client resumes interrupted downloads.

    An existing file has failed its checksum, so it is downloaded again; the client alone would keep it.
    """
    exists = (folder / remote.path).exists()

    def request() -> None:
        hf_hub_download(
            repo,
            remote.path,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            endpoint=endpoint,
            force_download=exists,
            tqdm_class=Progress,
        )

    _with_hub_retries(request, f"{endpoint}/datasets/{repo}")
    verify_checksum(folder / remote.path, remote)


def partial_bytes(folder: Path) -> int:
    """Bytes of unfinished files that the client keeps in its cache."""
    return sum(path.stat().st_size for path in (folder / ".cache/huggingface/download").rglob("*.incomplete"))


def _with_hub_retries(request: Callable[[], None], page: str) -> None:
    """`with_retries` for the hub client, whose errors are translated to HTTP status errors."""

    def translated() -> None:
        try:
            request()
        except HfHubHTTPError as error:
            raise httpx2.HTTPStatusError(str(error), request=error.response.request, response=error.response) from None

    with_retries(translated, page)


def _checksum(file) -> str:
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}" if file.blob_id else ""
