"""Datasets of the Hugging Face hub, through its own client."""

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
    """(commit, the files that match a pattern) of a dataset at a revision (`main` where none is known)."""
    page, found = f"{endpoint}/datasets/{repo}", []

    def look() -> None:
        found.append(HfApi(endpoint=endpoint).dataset_info(repo, revision=revision or None, files_metadata=True))

    try:
        _attempt(look, page)
    except HFValidationError as error:
        raise UserError(f"{page} cannot be read ({error}); look at the name") from None
    (info,) = found
    wanted = [file for file in info.siblings or [] if any(fnmatch(file.rfilename, pattern) for pattern in patterns)]
    if not wanted:
        raise UserError(f"{page} holds none of the files {', '.join(patterns)}; its layout has changed")
    return str(info.sha), [RemoteFile(file.rfilename, page, file.size or 0, _checksum(file)) for file in wanted]


def download_file(repo: str, commit: str, remote: RemoteFile, folder: Path, *, endpoint: str) -> None:
    """One file into `folder/<its path>`; the client resumes what was cut, the checksum is ours to check. A file that is there
    was found wrong, which the client would not notice."""
    wrong = (folder / remote.path).exists()

    def once() -> None:
        hf_hub_download(
            repo,
            remote.path,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            endpoint=endpoint,
            force_download=wrong,
            tqdm_class=Progress,
        )

    _attempt(once, f"{endpoint}/datasets/{repo}")
    verify_checksum(folder / remote.path, remote)


def partial_bytes(folder: Path) -> int:
    """Bytes that the client holds of files that it has not finished."""
    return sum(path.stat().st_size for path in (folder / ".cache/huggingface/download").rglob("*.incomplete"))


def _attempt(action: Callable[[], None], page: str) -> None:
    """`attempt` with the client's own error as the status that it stands for."""

    def once() -> None:
        try:
            action()
        except HfHubHTTPError as error:
            raise httpx2.HTTPStatusError(str(error), request=error.response.request, response=error.response) from None

    with_retries(once, page)


def _checksum(file) -> str:
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}" if file.blob_id else ""
