"""Uploads to the Hugging Face Hub, against a local server that speaks its protocol, with git LFS for large files."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

from src.config.export import ExportConfig
from src.export import export
from src.release.folder import check_push, push_folder
from src.runtime.cli import compose
from src.runtime.errors import UserError
from src.runtime.schema import to_typed
from tests.fixtures import overrides
from tests.runs import finish


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: `store[kind][name] = {path: bytes}`. Every request needs the token, except signed LFS addresses.

    Files of more than `large` bytes use git LFS: batch, one PUT per part of `part` bytes, completion, verification.
    """

    store: dict
    parts: dict[str, dict[int, bytes]]
    verified: set[str]
    rejects_requests = False
    storage_fails = False  # the storage behind LFS
    large, part = 10 * 10**6, 4 * 10**6

    def do_GET(self) -> None:
        self.reply(
            404 if self.rejects_requests else 200,
            {"sha": "0" * 40, "siblings": [], "id": "user/name", "name": "user", "auth": {}, "orgs": []},
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0)) if "content-length" in self.headers else self.chunked()
        path = urlparse(self.path).path
        signed = path.startswith("/lfs/complete/")
        if (not signed and self.headers["authorization"] != "Bearer secret-token") or self.rejects_requests:
            self.reply(403, {"error": "this token may not write"})
        elif path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(filter(None, (request.get("organization"), request["name"])))
            self.store.setdefault(request.get("type") or "model", {}).setdefault(name, {})
            self.reply(200, {"url": f"https://huggingface.co/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.reply(200, {"warnings": [], "errors": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.reply(200, {"transfer": "multipart", "objects": [self.actions(**entry) for entry in json.loads(body)["objects"]]})
        elif path.startswith("/lfs/complete/"):
            request = json.loads(body)
            assert [part["partNumber"] for part in request["parts"]] == sorted(self.parts[request["oid"]])
            self.reply(200, {})
        elif path == "/lfs/verify":
            request = json.loads(body)
            assert request["size"] == len(self.large_file(request["oid"]))
            self.verified.add(request["oid"])
            self.reply(200, {})
        elif "/preupload/" in path:
            sizes = {file["path"]: file["size"] for file in json.loads(body)["files"]}
            modes = {name: "lfs" if size > self.large else "regular" for name, size in sizes.items()}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.reply(200, {"files": files, "commitOid": "0" * 40})
        elif "/commit/" in path:
            kind, owner, name = path.split("/")[2:5]
            files = self.store[kind.removesuffix("s")][f"{owner}/{name}"]
            for line in body.splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    assert value["oid"] in self.verified
                    files[value["path"]] = self.large_file(value["oid"])
            self.reply(200, {"commitUrl": f"https://huggingface.co/{owner}/{name}/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.reply(404, {"error": path})

    def do_PUT(self) -> None:
        _, _, oid, number = self.path.split("/")
        data = self.rfile.read(int(self.headers["content-length"])) if "content-length" in self.headers else self.chunked()
        self.parts.setdefault(oid, {})[int(number)] = data
        self.reply(403 if self.storage_fails else 200, {}, etag=f"part-{number}")

    def actions(self, oid: str, size: int) -> dict:
        base = f"http://{self.headers['host']}/lfs"
        count = -(-size // self.part)
        header = {"chunk_size": str(self.part)} | {str(n + 1): f"{base}/{oid}/{n + 1}" for n in range(count)}
        return {
            "oid": oid,
            "size": size,
            "actions": {"upload": {"href": f"{base}/complete/{oid}", "header": header}, "verify": {"href": f"{base}/verify"}},
        }

    def large_file(self, oid: str) -> bytes:
        data = b"".join(self.parts[oid][number] for number in sorted(self.parts[oid]))
        assert hashlib.sha256(data).hexdigest() == oid
        return data

    def chunked(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def reply(self, status: int, content: dict, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    handler = type("OneHub", (Hub,), {"store": {}, "parts": {}, "verified": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    yield handler
    server.shutdown()


@pytest.fixture
def out(tmp_path):
    for name in ("hf/config.json", "hf/README.md", "adapter/adapter_config.json", "timm/config.json", "space/app.py", "space/src/demo.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    return tmp_path


def test_push_uploads_every_part_to_its_repository(hub, out):
    push_folder(out, "user/name", parts=["hf", "adapter", "timm", "space"], texts={})
    models = hub.store["model"]
    assert models["user/name"] == {"config.json": b"hf/config.json\n", "README.md": b"hf/README.md\n"}
    assert models["user/name-adapter"] == {"adapter_config.json": b"adapter/adapter_config.json\n"}
    assert models["user/name-timm"] == {"config.json": b"timm/config.json\n"}
    assert hub.store["space"]["user/name"] == {"app.py": b"space/app.py\n", "src/demo.py": b"space/src/demo.py\n"}


@pytest.fixture
def large(out, monkeypatch) -> bytes:
    """Weights above the size from which the Hub uses LFS. Xet, the default of huggingface_hub, has no server to test against."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    data = np.random.default_rng(0).bytes(Hub.large + 1)
    (out / "hf" / "model.safetensors").write_bytes(data)
    return data


@pytest.mark.slow
def test_large_files_are_uploaded_in_parts(hub, out, large):
    push_folder(out, "user/name", parts=["hf"], texts={})
    (parts,) = hub.parts.values()
    assert [len(parts[number]) for number in sorted(parts)] == [4_000_000, 4_000_000, 2_000_001]
    assert hub.store["model"]["user/name"]["model.safetensors"] == large
    assert hub.store["model"]["user/name"]["config.json"] == b"hf/config.json\n"


@pytest.mark.slow
def test_storage_failure_is_reported_and_nothing_is_committed(hub, out, large):
    hub.storage_fails = True
    with pytest.raises(UserError, match=r"push=user/name: Error while uploading 'model\.safetensors' to the Hub\. .*403") as caught:
        push_folder(out, "user/name", parts=["hf"], texts={})
    assert "\n" not in str(caught.value)
    assert hub.store["model"]["user/name"] == {}


@pytest.mark.slow
def test_rejection_by_the_hub_is_reported_without_the_token(hub, out):
    hub.rejects_requests = True
    with pytest.raises(UserError, match="push=user/name: the Hugging Face Hub rejected hf") as caught:
        push_folder(out, "user/name", parts=["hf"], texts={})
    assert "\n" not in str(caught.value)
    assert "secret-token" not in str(caught.value)


def test_unreachable_hub_is_reported(out, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    with pytest.raises(UserError, match="push=user/name: the Hugging Face Hub rejected hf"):
        push_folder(out, "user/name", parts=["hf"], texts={})


@pytest.mark.slow
def test_existing_export_can_be_pushed(hub, shards, language, tmp_path):
    """The contents of `out` do not depend on `push`; the cards on the Hub name the repositories of the Hub."""
    folder, _ = finish(overrides(shards, language, tmp_path), "vision.architecture_kwargs.depth=2")
    out = tmp_path / "out"
    export_overrides = [f"run={folder.name}", f"outputs={folder.parent}", f"out={out}"]
    export(to_typed(ExportConfig, compose("export", export_overrides)))
    before = (out / "SHA256SUMS").read_bytes()
    export(to_typed(ExportConfig, compose("export", [*export_overrides, "push.repository=user/name"])))
    assert (out / "SHA256SUMS").read_bytes() == before
    models, space = hub.store["model"], hub.store["space"]["user/name"]
    assert sorted(models) == ["user/name", "user/name-adapter", "user/name-timm"]
    cards = {name: files["README.md"].decode() for name, files in models.items()}
    assert 'LlavaForConditionalGeneration.from_pretrained("user/name")' in cards["user/name"]
    assert f'AutoModelForCausalLM.from_pretrained("{language}")' in cards["user/name-adapter"]
    assert 'PeftModel.from_pretrained(base, "user/name-adapter")' in cards["user/name-adapter"]
    assert 'timm.create_model("hf-hub:user/name-timm", pretrained=True)' in cards["user/name-timm"]
    assert 'timm.create_model("local-dir:timm", pretrained=True)' in (out / "timm" / "README.md").read_text()
    assert 'os.environ.get("MODEL", "user/name")' in space["app.py"].decode()
    assert yaml.safe_load(space["README.md"].decode().split("---")[1])["models"] == ["user/name"]
    for files, part in ((models["user/name"], "hf"), (models["user/name-adapter"], "adapter"), (space, "space")):
        written = {path.relative_to(out / part).as_posix() for path in (out / part).rglob("*") if path.is_file()}
        assert files.keys() == written
        assert all(files[name] == (out / part / name).read_bytes() for name in written - {"README.md", "app.py"})


def test_check_push_refuses_bad_names_and_missing_tokens(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("src.release.folder.get_token", lambda: None)
    for wrong in ("name", "a/b/c", "a b/c"):
        with pytest.raises(UserError, match="is not a repository name"):
            check_push(wrong)
    with pytest.raises(UserError, match="set HF_TOKEN"):
        check_push("user/name")
