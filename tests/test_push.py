"""What goes to the hub, over its protocol: a server on this machine that answers as the hub does for small files."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import pytest

from src.errors import UserError
from src.release.push import check_push, push


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: `store[kind][name] = {path: bytes}`; every request needs the token."""

    store: dict
    refuses = False

    def do_GET(self) -> None:
        self.reply(
            404 if self.refuses else 200, {"sha": "0" * 40, "siblings": [], "id": "user/name", "name": "user", "auth": {}, "orgs": []}
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0)) if "content-length" in self.headers else self.chunked()
        path = urlparse(self.path).path
        if self.headers["authorization"] != "Bearer secret-token" or self.refuses:
            self.reply(403, {"error": "this token may not write"})
        elif path == "/api/repos/create":
            said = json.loads(body)
            name = "/".join(filter(None, (said.get("organization"), said["name"])))
            self.store.setdefault(said.get("type") or "model", {}).setdefault(name, {})
            self.reply(200, {"url": f"https://huggingface.co/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.reply(200, {"warnings": [], "errors": []})
        elif "/preupload/" in path:
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self.reply(200, {"files": files, "commitOid": "0" * 40})
        elif "/commit/" in path:
            kind, owner, name = path.split("/")[2:5]
            kept = self.store[kind.removesuffix("s")][f"{owner}/{name}"]
            for line in body.splitlines():
                said = json.loads(line)
                if said["key"] == "file":
                    kept[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
            self.reply(200, {"commitUrl": f"https://huggingface.co/{owner}/{name}/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.reply(404, {"error": path})

    def chunked(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def reply(self, status: int, said: dict) -> None:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    handler = type("OneHub", (Hub,), {"store": {}})
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


def test_every_part_arrives_in_its_repository(hub, out):
    push(out, "user/name", parts=["hf", "adapter", "timm", "space"])
    models = hub.store["model"]
    assert models["user/name"] == {"config.json": b"hf/config.json\n", "README.md": b"hf/README.md\n"}
    assert models["user/name-adapter"] == {"adapter_config.json": b"adapter/adapter_config.json\n"}
    assert models["user/name-timm"] == {"config.json": b"timm/config.json\n"}
    assert hub.store["space"]["user/name"] == {"app.py": b"space/app.py\n", "src/demo.py": b"space/src/demo.py\n"}


def test_a_refusal_of_the_hub_is_one_sentence(hub, out):
    hub.refuses = True
    with pytest.raises(UserError, match="push=user/name: the hub refused hf") as caught:
        push(out, "user/name", parts=["hf"])
    assert "\n" not in str(caught.value)
    assert "secret-token" not in str(caught.value)


def test_a_hub_that_is_not_there_is_one_sentence(out, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    with pytest.raises(UserError, match="push=user/name: the hub refused hf"):
        push(out, "user/name", parts=["hf"])


def test_names_and_tokens_are_checked_before_anything_is_exported(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("src.release.push.get_token", lambda: None)
    for wrong in ("name", "a/b/c", "a b/c"):
        with pytest.raises(UserError, match="no repository name"):
            check_push(wrong)
    with pytest.raises(UserError, match="set HF_TOKEN"):
        check_push("user/name")
