"""Downloads against a server on this machine that implements the protocols of the hub and Zenodo, with configurable faults."""

import hashlib
import io
import json
import random
import resource
import runpy
import tarfile
import threading
import zipfile
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from data_prep import sources
from data_prep.download import http, hub
from data_prep.download.datasets import DownloadConfig, download_all
from data_prep.download.http import RemoteFile, checksum
from data_prep.download.unpack import unpack_tar, unpack_zip
from data_prep.phantom.writers import WRITERS
from src.runtime.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """A hub, Zenodo and plain file server with configurable faults; `files` holds the files of each hub repository."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.zenodo: dict[int, dict[str, bytes]] = {}
        self.moved: set[str] = set()  # Zenodo files that are redirected to another path, which sends an ETag
        self.wrong: set[str] = set()  # files with a wrong published checksum
        self.truncate: Counter = Counter()  # file name -> how many of the next responses to truncate
        self.status: dict[str, int] = {}  # part of a path -> status of its responses
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.commit = COMMIT

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.respond(head=True)

    def do_GET(self):
        self.respond(head=False)

    def respond(self, *, head: bool):
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        for piece, status in self.server.status.items():
            if piece in path:
                return self.send(b"{}", status, head=head)
        if path.startswith("/api/datasets/"):
            return self.send(json.dumps(self.info("/".join(path.split("/")[3:5]))).encode(), 200, head=head)
        if path.startswith("/api/records/"):
            return self.send(json.dumps(self.record(int(path.split("/")[3]))).encode(), 200, head=head)
        if path.startswith("/datasets/"):  # large files are redirected, small ones sent directly
            repo, name = "/".join(path.split("/")[2:4]), "/".join(path.split("/")[6:])
            content = self.server.files[repo][name]
            headers = {"X-Repo-Commit": self.server.commit, "ETag": f'"{sha256(content)}"', "Accept-Ranges": "bytes"}
            cdn = f"http://localhost:{self.server.server_port}"
            if len(content) < 1000:
                return self.content(name, content, headers, head=head)
            headers |= {
                "X-Linked-Etag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{cdn}/cdn/{repo}/{name}",
            }
            return self.send(b"", 302, headers, head=head)
        if path.startswith("/cdn/"):
            content = self.server.files["/".join(path.split("/")[2:4])]["/".join(path.split("/")[4:])]
            return self.content(path, content, {"ETag": f'"{sha256(content)}"'}, head=head)
        if path.startswith("/zenodo/"):
            _, _, number, name = path.split("/", 3)
            if name in self.server.moved:
                return self.send(b"", 302, {"Location": f"http://localhost:{self.server.server_port}/elsewhere/{number}/{name}"}, head=head)
            return self.content(name, self.server.zenodo[int(number)][name], {}, head=head)
        if path.startswith("/elsewhere/"):
            _, _, number, name = path.split("/", 3)
            content = self.server.zenodo[int(number)][name]
            return self.content(name, content, {"ETag": f'"{sha256(content)}"'}, head=head)
        return self.send(b"", 404, head=head)

    def info(self, repo: str) -> dict:
        files = []
        for name, content in self.server.files[repo].items():
            digest = sha256(content if name not in self.server.wrong else b"something else")
            large = {"lfs": {"sha256": digest, "size": len(content), "pointerSize": 130}} if len(content) >= 1000 else {}
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            files.append({"rfilename": name, "size": len(content), "blobId": git, **large})
        return {"id": repo, "sha": self.server.commit, "siblings": files, "private": False, "downloads": 0, "likes": 0, "tags": []}

    def record(self, number: int) -> dict:
        address = f"{self.server.address}/zenodo/{number}"
        return {
            "files": [
                {"key": name, "size": len(data), "checksum": f"md5:{hashlib.md5(data).hexdigest()}", "links": {"self": f"{address}/{name}"}}
                for name, data in self.server.zenodo[number].items()
            ]
        }

    def content(self, name: str, content: bytes, headers: dict, *, head: bool):
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0] or 0)
        if self.headers.get("If-Range", headers.get("ETag", "")) != headers.get("ETag", ""):
            start = 0
        if start >= len(content) > 0:
            self.send(b"", 416, {"Content-Range": f"bytes */{len(content)}"}, head=head)
            return
        if start:
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body, truncate = content[start:], not head and self.server.truncate[name] > 0
        if truncate:  # send half of the body, then close the connection
            self.server.truncate[name] -= 1
            self.send(body, 206 if start else 200, headers, head=False, num_bytes=len(body) // 2)
            self.close_connection = True
        else:
            self.send(body, 206 if start else 200, headers, head=head)

    def send(self, body: bytes, status: int, headers: dict | None = None, *, head: bool, num_bytes: int | None = None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(body[:num_bytes])
            self.wfile.flush()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(http, "RETRY_DELAY", 0.01)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    running.files["flaviagiammarino/path-vqa"] = {
        "README.md": b"a card",
        "data/train-00000-of-00001.parquet": bytes(range(256)) * 2000,
        "data/validation-00000-of-00001.parquet": b"small",
        "data/test-00000-of-00001.parquet": b"test" * 1000,
        "other/big.bin": b"not requested",
    }
    yield running
    running.shutdown()
    running.server_close()


def download(server: Server, raw: Path, *names: str, **settings) -> None:
    download_all(DownloadConfig(sources=list(names), raw=raw, hub=server.address, zenodo=server.address, **settings))


LARGE = "data/train-00000-of-00001.parquet"
ON_CDN = f"/cdn/flaviagiammarino/path-vqa/{LARGE}"


def test_hub_dataset_is_verified_and_its_revision_locked(server, tmp_path, capsys):
    download(server, tmp_path, "pathvqa")
    expected = {name: data for name, data in server.files["flaviagiammarino/path-vqa"].items() if name.endswith(".parquet")}
    files = {str(path.relative_to(tmp_path / "pathvqa")): path.read_bytes() for path in (tmp_path / "pathvqa" / "data").iterdir()}
    assert files == expected
    assert f"pathvqa: revision {COMMIT}" in capsys.readouterr().out
    lock = yaml.safe_load((tmp_path / "sources.lock.yaml").read_text())["pathvqa"]
    assert lock["revision"] == COMMIT
    assert lock["files"][LARGE] == f"sha256:{sha256(expected[LARGE])}"
    assert lock["files"]["data/validation-00000-of-00001.parquet"].startswith("git:")
    server.requests.clear()
    download(server, tmp_path, "pathvqa")  # downloads no file again and requests the locked revision
    assert {path for _, path, _ in server.requests} == {f"/api/datasets/flaviagiammarino/path-vqa/revision/{COMMIT}"}


@pytest.mark.slow
def test_interrupted_hub_download_is_resumed(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)  # the client keeps whole chunks of a partial file
    server.truncate[ON_CDN] = 2
    download(server, tmp_path, "pathvqa")
    assert (tmp_path / "pathvqa" / LARGE).read_bytes() == server.files["flaviagiammarino/path-vqa"][LARGE]
    ranges = [range_header for _, path, range_header in server.requests if path == ON_CDN and range_header]
    assert len(ranges) >= 2
    assert all(int(range_header[6:-1]) > 0 for range_header in ranges)


def test_file_with_wrong_checksum_is_removed(server, tmp_path):
    server.wrong.add(LARGE)
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: downloaded with checksum sha256:.*, and removed"):
        download(server, tmp_path, "pathvqa")
    assert not (tmp_path / "pathvqa" / LARGE).exists()
    assert LARGE not in yaml.safe_load((tmp_path / "sources.lock.yaml").read_text())["pathvqa"]["files"]
    server.wrong.clear()
    download(server, tmp_path, "pathvqa")
    assert (tmp_path / "pathvqa" / LARGE).exists()


def test_damaged_file_is_downloaded_again(server, tmp_path):
    download(server, tmp_path, "pathvqa")
    (tmp_path / "pathvqa" / LARGE).write_bytes(b"damaged")
    download(server, tmp_path, "pathvqa")
    assert (tmp_path / "pathvqa" / LARGE).read_bytes() == server.files["flaviagiammarino/path-vqa"][LARGE]


def test_changed_file_at_a_locked_revision_is_rejected(server, tmp_path):
    download(server, tmp_path, "pathvqa")
    server.files["flaviagiammarino/path-vqa"][LARGE] = b"new" * 1000
    with pytest.raises(UserError, match=r"the published file has the checksum sha256:.*, but .*sources\.lock\.yaml holds sha256:"):
        download(server, tmp_path, "pathvqa")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["/api/datasets/", "/datasets/flaviagiammarino"])
def test_access_denied_by_the_hub_is_explained(server, tmp_path, status, where):
    server.status[where] = status
    with pytest.raises(
        UserError, match=rf"/datasets/flaviagiammarino/path-vqa: access denied \({status}\); accept its terms there, log in"
    ):
        download(server, tmp_path, "pathvqa")


def test_missing_repository_or_changed_layout_is_an_error(server, tmp_path):
    server.status["/api/datasets/"] = 404
    with pytest.raises(UserError, match=r"access denied|answers with status 404"):
        download(server, tmp_path, "pathvqa")
    server.status.clear()
    server.files["flaviagiammarino/path-vqa"] = {"README.md": b"moved"}
    with pytest.raises(UserError, match=r"no file matches data/train-\*\.parquet, .*; the layout has changed"):
        download(server, tmp_path, "pathvqa")


def test_connection_error_is_reported(server, tmp_path):
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/datasets/flaviagiammarino/path-vqa: cannot be read"):
        download_all(DownloadConfig(sources=["pathvqa"], raw=tmp_path, hub="http://127.0.0.1:1"))


def zip_bytes(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def vqa_med(split: str) -> str:
    return sources.load_sources()["vqa_med_2019"].files[split][0]


@pytest.mark.slow
def test_zenodo_record_is_downloaded_verified_and_unpacked(server, tmp_path):
    members = {vqa_med("train"): b"synpic1|what?|ct\n" * 500, vqa_med("test"): b"s|modality|what?|ct\n"}
    server.zenodo[10499039] = {"VQA-Med.zip": zip_bytes(members)}
    server.truncate["VQA-Med.zip"] = 1
    download(server, tmp_path, "vqa_med_2019")
    assert {name: (tmp_path / "vqa_med_2019" / name).read_bytes() for name in members} == members
    assert any(range_header for _, path, range_header in server.requests if path.endswith("VQA-Med.zip"))
    lock = yaml.safe_load((tmp_path / "sources.lock.yaml").read_text())["vqa_med_2019"]
    assert lock["files"]["VQA-Med.zip"].startswith("md5:")
    (tmp_path / "vqa_med_2019" / "VQA-Med.zip").write_bytes(b"broken")
    download(server, tmp_path, "vqa_med_2019")
    assert (tmp_path / "vqa_med_2019" / "VQA-Med.zip").read_bytes() == server.zenodo[10499039]["VQA-Med.zip"]


@pytest.mark.slow
def test_server_errors_are_retried(server, tmp_path):
    server.status["/zenodo/"] = 503
    server.zenodo[10499039] = {"VQA-Med.zip": zip_bytes({vqa_med("train"): b"x"})}
    with pytest.raises(UserError, match=r": cannot be read after 6 attempts \(status 503\); run the same command again to continue"):
        download(server, tmp_path, "vqa_med_2019")
    assert sum(path.startswith("/zenodo/") for _, path, _ in server.requests) == 6


def test_hub_errors_are_retried(server, tmp_path, monkeypatch):
    server.status["/api/"] = 503
    monkeypatch.setattr("data_prep.download.http.time.sleep", lambda seconds: server.status.clear())
    download(server, tmp_path, "pathvqa")
    assert (tmp_path / "pathvqa").is_dir()


def test_disk_space_check_subtracts_partial_files(server, tmp_path, monkeypatch):
    with_urls(server, monkeypatch, {"breastmnist_224.npz": b"x" * 1001})
    monkeypatch.setattr("data_prep.download.datasets.shutil.disk_usage", lambda path: type("Usage", (), {"free": 600}))
    (tmp_path / "breastmnist").mkdir()
    (tmp_path / "breastmnist" / "breastmnist_224.npz.part").write_bytes(b"x" * 401)
    download(server, tmp_path, "breastmnist")
    assert (tmp_path / "breastmnist" / "breastmnist_224.npz").stat().st_size == 1001

    (tmp_path / "pathvqa/.cache/huggingface/download/data").mkdir(parents=True)
    (tmp_path / "pathvqa/.cache/huggingface/download/data/x.abc.incomplete").write_bytes(b"x" * 123)
    assert hub.partial_bytes(tmp_path / "pathvqa") == 123


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "C:x"])
def test_zip_member_outside_the_folder_is_rejected_before_writing(tmp_path, name):
    folder = tmp_path / "deep" / "raw"
    folder.mkdir(parents=True)
    (folder / "bad.zip").write_bytes(zip_bytes({"fine.txt": b"fine", name: b"evil"}))
    with pytest.raises(UserError, match=r"bad\.zip: the member '.*' leads out of the folder"):
        unpack_zip(folder / "bad.zip", folder)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["bad.zip"]


DAMAGED_ZIPS = {
    "truncated": lambda whole: whole[:60],
    "overwritten": lambda whole: whole[:40] + bytes(20) + whole[60:],
    "encrypted": lambda whole: whole[:6] + b"\1" + whole[7:].replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1"),
    "unknown compression": lambda whole: (
        whole[:8] + b"\x63" + whole[9:].replace(b"PK\1\2\x14\x03\x14\0\0\0\x08", b"PK\1\2\x14\x03\x14\0\0\0\x63")
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_ZIPS)
def test_damaged_zip_is_reported(tmp_path, damage):
    whole = zip_bytes({"a": b"1" * 5000})
    (tmp_path / "bad.zip").write_bytes(DAMAGED_ZIPS[damage](whole))
    with pytest.raises(UserError, match=r"bad\.zip: damaged or unsupported zip file \(.*\); remove it and run the same"):
        unpack_zip(tmp_path / "bad.zip", tmp_path)
    assert not (tmp_path / "a").exists()


def write_tar(path: Path, members: dict[str, bytes], *, link: str = "") -> Path:
    """Writes `medicat_release.tar.gz`; `link` is the name of a symbolic link to /etc in it."""
    with tarfile.open(path / "medicat_release.tar.gz", "w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            file.addfile(info)
    return path / "medicat_release.tar.gz"


def medicat(path: Path) -> dict[str, bytes]:
    """Writes the phantom dataset; returns its files by name."""
    WRITERS["medicat"].write(make_folder(path), seed=0, num={"train": 6})
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_archive_downloaded_by_hand_is_unpacked_once(server, tmp_path, monkeypatch, capsys):
    members, raw = medicat(tmp_path / "whole"), make_folder(tmp_path / "medicat")
    with pytest.raises(UserError, match=r"copy it to this folder and run this command again to unpack it\. \(.*; missing: release/s2_full"):
        download(server, tmp_path, "medicat", accept=["medicat"])
    archive = write_tar(raw, members, link="release/figures/etc")
    archive.write_bytes((whole := archive.read_bytes())[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"medicat_release\.tar\.gz: truncated or damaged tar\.gz file \(.*\); download it again and run the same"
    ):
        download(server, tmp_path, "medicat", accept=["medicat"])
    archive.write_bytes(whole)
    download(server, tmp_path, "medicat", accept=["medicat"])
    output = capsys.readouterr().out
    assert "medicat_release.tar.gz: skipped 1 members that are neither files nor folders" in output
    assert "complete in" in output
    assert {str(file.relative_to(raw)): file.read_bytes() for file in raw.rglob("*") if file.is_file()} == {
        **members,
        archive.name: whole,
        archive.name + ".unpacked": b"",
    }
    assert not list(raw.rglob("etc"))
    monkeypatch.setattr(tarfile, "open", None)
    download(server, tmp_path, "medicat", accept=["medicat"])


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "release/../../x"])
def test_tar_member_outside_the_folder_is_rejected(tmp_path, name):
    archive = write_tar(make_folder(tmp_path / "deep" / "medicat"), {name: b"x"})
    with pytest.raises(UserError, match=r"the member '.*' leads out of the folder"):
        unpack_tar(archive, archive.parent)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [archive.name]


def test_overwritten_tar_is_rejected(tmp_path):
    content = random.Random(0).randbytes(200_000)
    archive = write_tar(make_folder(tmp_path / "medicat"), {"release/a": content, "release/b": content})
    with archive.open("r+b") as file:
        file.seek(archive.stat().st_size // 2)
        file.write(bytes(50))
    with pytest.raises(UserError, match="truncated or damaged tar"):
        unpack_tar(archive, archive.parent)
    assert not archive.with_name(archive.name + ".unpacked").exists()


def test_disk_space_is_checked_before_the_download(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("data_prep.download.datasets.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"raw=.*: the download needs 0\.0 GB, 0\.0 GB are free; free some space or give another raw="):
        download(server, tmp_path, "pathvqa")
    assert not (tmp_path / "pathvqa").exists()


def test_restricted_licence_must_be_accepted_by_name(server, tmp_path):
    with pytest.raises(UserError, match=r"source 'quilt_1m' is non-commercial and not redistributable .*give accept=quilt_1m \(ACCEPT="):
        download(server, tmp_path, "pathvqa", "quilt_1m")
    assert not server.requests  # licences are checked before any request
    with pytest.raises(
        UserError, match=r"source 'quilt_1m': download it by hand into .*: Request access .*; missing: quilt_1M_lookup\.csv"
    ):
        download(server, tmp_path, "quilt_1m", accept=["quilt_1m"])
    (tmp_path / "quilt_1m" / "quilt_1m").mkdir(parents=True)
    (tmp_path / "quilt_1m" / "quilt_1M_lookup.csv").write_text("caption,image_path\n")
    with pytest.raises(UserError, match=r"missing: quilt_1m$"):  # the folder holds no image
        download(server, tmp_path, "quilt_1m", accept=["quilt_1m"])


def test_unknown_source_exits_with_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["data_prep.download", "sources=pathvaq", f"raw={tmp_path}"])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_module("data_prep.download", run_name="__main__")
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: source 'pathvaq' is not in sources.yaml; did you mean 'pathvqa'?\n"


def test_checksum_matches_sha256_and_git(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    assert checksum(tmp_path / "a", "git") == "git:ce013625030ba8dba906f756967f9e9ca394464a"
    assert checksum(tmp_path / "a") == "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


def test_unusable_partial_file_is_downloaded_again(server, tmp_path):
    server.zenodo[1] = {"a.bin": b"x" * 5000}
    for size in (5000, 0):  # known and unknown size
        (tmp_path / "a.bin.part").write_bytes(b"y" * 9000)  # longer than the file, from another version
        http.download_file(RemoteFile("a.bin", f"{server.address}/zenodo/1/a.bin", size), tmp_path)
        assert (tmp_path / "a.bin").read_bytes() == b"x" * 5000


def test_file_that_changed_after_an_interruption_is_downloaded_again(server, tmp_path, monkeypatch):
    server.zenodo[1] = {"a.bin": b"old" * 4000}
    server.moved.add("a.bin")
    server.truncate["a.bin"] = 1
    remote = RemoteFile("a.bin", f"{server.address}/zenodo/1/a.bin")
    with monkeypatch.context() as patch:
        patch.setattr(http, "ATTEMPTS", 1)
        with pytest.raises(UserError, match=r"a\.bin: cannot be read after 1 attempts"):
            http.download_file(remote, tmp_path)
    assert 0 < (tmp_path / "a.bin.part").stat().st_size < 12_000
    server.zenodo[1]["a.bin"] = b"new" * 4000
    http.download_file(remote, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"new" * 4000
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_progress_starts_at_the_size_of_the_partial_file(server, tmp_path, monkeypatch):
    progress_ranges = []

    class Recorder(http.Progress):
        def __init__(self, **settings):
            progress_ranges.append((settings["initial"], settings["total"]))
            super().__init__(**settings)

    monkeypatch.setattr(http, "Progress", Recorder)
    server.zenodo[1] = {"a.bin": b"x" * 5000}
    server.truncate["a.bin"] = 1
    http.download_file(RemoteFile("a.bin", f"{server.address}/zenodo/1/a.bin"), tmp_path)
    assert progress_ranges == [(0, 5000), (2500, 5000)]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusal_by_another_server_is_explained(server, tmp_path, status):
    server.status["/zenodo/"] = status
    message = rf"access denied \({status}\)" if status != 404 else "answers with status 404; check whether the file has moved"
    with pytest.raises(UserError, match=message):
        http.download_file(RemoteFile("a.bin", f"{server.address}/zenodo/1/a.bin"), tmp_path)
    assert len(server.requests) == 1


def test_interrupted_download_keeps_its_revision(server, tmp_path):
    server.wrong.add(LARGE)
    with pytest.raises(UserError, match="and removed"):
        download(server, tmp_path, "pathvqa")
    server.wrong.clear()
    server.requests.clear()
    download(server, tmp_path, "pathvqa")
    assert {path for _, path, _ in server.requests if path.startswith("/api/")} == {
        f"/api/datasets/flaviagiammarino/path-vqa/revision/{COMMIT}"
    }


def with_urls(server: Server, monkeypatch, files: dict[str, bytes]) -> None:
    """Serves the files of `breastmnist` from the test server."""
    server.zenodo[2] = files
    entry = replace(sources.load_sources()["breastmnist"], urls={name: f"{server.address}/zenodo/2/{name}" for name in files})
    monkeypatch.setattr(sources, "load_sources", lambda: {"breastmnist": entry})


def test_file_at_a_plain_address_must_match_the_locked_checksum(server, tmp_path, monkeypatch):
    with_urls(server, monkeypatch, {"breastmnist_224.npz": b"first" * 100})
    download(server, tmp_path, "breastmnist")
    (tmp_path / "breastmnist" / "breastmnist_224.npz").unlink()
    server.zenodo[2]["breastmnist_224.npz"] = b"other" * 100
    with pytest.raises(UserError, match=r"downloaded with checksum sha256:.*, and removed"):
        download(server, tmp_path, "breastmnist")


def test_disk_space_check_includes_plain_addresses(server, tmp_path, monkeypatch):
    with_urls(server, monkeypatch, {"breastmnist_224.npz": b"x" * 1001})
    monkeypatch.setattr("data_prep.download.datasets.shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"the download needs 0\.0 GB"):
        download(server, tmp_path, "breastmnist")
    assert [method for method, _, _ in server.requests] == ["HEAD"]


@pytest.mark.parametrize("source", ["pathvqa", "vqa_med_2019"])
def test_full_disk_is_reported_and_the_download_resumes(server, tmp_path, source):
    server.zenodo[10499039] = {"VQA-Med.zip": zip_bytes({vqa_med("train"): random.Random(0).randbytes(100_000)})}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(
            UserError, match=rf"no space is left for .*/{source} or for temporary files .*; free some and run the same command again"
        ):
            download(server, tmp_path, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    download(server, tmp_path, source)


def test_all_restrictions_and_steps_are_listed_at_once(server, tmp_path):
    with pytest.raises(UserError, match=r"'quilt_1m' is .*; source 'medicat' is .*give accept=medicat,quilt_1m \(ACCEPT="):
        download(server, tmp_path, "quilt_1m", "medicat", "iu_xray")
    with pytest.raises(UserError, match=r"'quilt_1m': download it by hand .*; source 'iu_xray': download it by hand"):
        download(server, tmp_path, "quilt_1m", "iu_xray", accept=["quilt_1m"])
    with pytest.raises(UserError, match=r"source 'quilt1m' is not in sources\.yaml; did you mean 'quilt_1m'"):
        download(server, tmp_path, "quilt_1m", accept=["quilt1m"])


def test_files_downloaded_by_hand_are_counted_and_locked(server, tmp_path, capsys):
    WRITERS["quilt_1m"].write(make_folder(tmp_path / "quilt_1m"), seed=0, num={"train": 6})
    download(server, tmp_path, "quilt_1m", accept=["quilt_1m"])
    assert "quilt_1m: quilt_1M_lookup.csv has about 9 lines; rows expected in train: 768826" in capsys.readouterr().out
    download(server, tmp_path, "quilt_1m", accept=["quilt_1m"])
    with (tmp_path / "quilt_1m" / "quilt_1M_lookup.csv").open("a") as file:
        file.write("one more,x.jpg\n")
    with pytest.raises(UserError, match=r"quilt_1M_lookup\.csv: has the checksum sha256:.*, but .*sources\.lock\.yaml holds sha256:"):
        download(server, tmp_path, "quilt_1m", accept=["quilt_1m"])


def make_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
