"""An S3 server on this machine: training from `s3://` equals training from a folder, also when transfers are slow, cut or corrupt.

`services/s3.sh` makes an environment for moto's server, which checks keys and signatures. A proxy before it damages the transfers.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import httpx

from experiments.soak import small_data
from experiments.soak.small_data import FOLDER as DATA
from experiments.soak.small_data import TRAIN, clear_message, differing_tensors, losses, message_row, run_python
from experiments.soak.trial import Row
from src.demo import free_port

ENVIRONMENT = Path("data/soak/envs/s3")
OUT = Path("data/soak/s3")
SERVICES = Path(__file__).parent / "services"
BUCKET, ROOT = "shards", "s3://shards/small"
TAR = "/shards/small/slake/train-000000.tar"
FAULTS = ("busy", "cut", "corrupt", "slow")  # of the first requests of every file; later ones are served at once
REFUSED = "access was refused"


def trial(model: str) -> list[Row]:
    """`model` is not used."""
    small_data.prepare()
    shutil.rmtree(OUT, ignore_errors=True)
    with s3_server() as (url, key), Proxy(url) as proxy:
        upload(url, key)
        httpx.post(f"{url}/moto-api/reset-auth", content=b"0").raise_for_status()  # from now on, keys and signatures are checked
        return [*compare(proxy, key), *mistakes(proxy, key)]


def train(name: str, **environment: str) -> tuple[int, str]:
    """Trains from the bucket with an empty cache."""
    words = [*TRAIN, f"data.root={environment.pop('root', ROOT)}", f"data.cache={OUT}/cache-{name}", f"outputs={OUT}/out", f"name={name}"]
    return run_python(["src.train", *words], AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true", **environment)


def compare(proxy: "Proxy", key: dict[str, str]) -> list[Row]:
    code, output = run_python(["src.train", *TRAIN, f"data.root={DATA}/shards", f"outputs={OUT}/out", "name=local"])
    assert code == 0, output
    rows = []
    for name, faults in (("s3", ()), ("s3-faulty", FAULTS)):
        proxy.faults, proxy.served = faults, Counter()
        code, output = train(name, AWS_ENDPOINT_URL=proxy.url, **key)
        assert code == 0, output
        left, right = OUT / "out/local", OUT / "out" / name
        differing = differing_tensors(left, right) + ["log.csv"] * (losses(left) != losses(right))
        rows.append(Row(f"training from {name}: tensors and logs that differ", str(len(differing)), "0", not differing))
    rows += [Row(f"transfers that were {fault}", str(proxy.served[fault]), "at least 1", proxy.served[fault] > 0) for fault in FAULTS]
    proxy.faults = ()
    return rows


def mistakes(proxy: "Proxy", key: dict[str, str]) -> list[Row]:
    wrong = key | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    rows = []
    for name, environment, expected in (
        ("a wrong secret", wrong, REFUSED),
        ("an unknown key", wrong | {"AWS_ACCESS_KEY_ID": "unknown"}, REFUSED),
        ("no credentials", {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}, "Unable to locate credentials"),
        ("a missing bucket", key | {"root": "s3://nothing/small"}, "the bucket does not exist"),
        ("a missing folder", key | {"root": "s3://shards/nothing"}, "has no shards of"),
    ):
        code, output = train("mistake", AWS_ENDPOINT_URL=proxy.url, **environment)
        rows.append(message_row(name, code == 2 and clear_message(output, "error: ", expected), output))
    files = bucket_files(proxy.target, key)
    changed = (DATA / "shards/slake/val-000000.tar").read_bytes()
    proxy.before[TAR] = lambda: files.pipe_file(TAR.removeprefix("/"), changed)
    code, output = train("changed", AWS_ENDPOINT_URL=proxy.url, **key)
    clear = code == 2 and clear_message(output, "error: ", "upload this file again")
    return [*rows, message_row("an object that changes during training", clear, output)]


@contextlib.contextmanager
def s3_server() -> Iterator[tuple[str, dict[str, str]]]:
    """(address, environment variables with a key that may read everything) of a server with an empty bucket."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    OUT.mkdir(parents=True)
    with (OUT / "server.log").open("w") as log:
        process = subprocess.Popen([SERVICES / "s3.sh", ENVIRONMENT, str(port)], stdout=log, stderr=log)
        try:
            while True:
                assert process.poll() is None, (OUT / "server.log").read_text()
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(url)
                    break
                time.sleep(0.2)
            yield url, create_reader(url)
        finally:
            process.terminate()
            process.wait(30)


def create_reader(url: str) -> dict[str, str]:
    """Environment variables with the key of a new user who may read and write everything."""
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    scope = "AWS4-HMAC-SHA256 Credential=setup/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=none"
    text = ""
    for action, arguments in (
        ("CreateUser", {}),
        ("PutUserPolicy", {"PolicyName": "all", "PolicyDocument": json.dumps(policy)}),
        ("CreateAccessKey", {}),
    ):
        form = {"Action": action, "Version": "2010-05-08", "UserName": "reader", **arguments}
        text = httpx.post(url, data=form, headers={"Authorization": scope}).raise_for_status().text
    names = {"AWS_ACCESS_KEY_ID": "AccessKeyId", "AWS_SECRET_ACCESS_KEY": "SecretAccessKey"}
    return {variable: re.search(f"<{name}>(.+?)</{name}>", text)[1] for variable, name in names.items()}  # type: ignore[index]


def bucket_files(url: str, key: dict[str, str]):
    names = {"key": key["AWS_ACCESS_KEY_ID"], "secret": key["AWS_SECRET_ACCESS_KEY"]}
    return fsspec.filesystem("s3", endpoint_url=url, client_kwargs={"region_name": "us-east-1"}, **names)


def upload(url: str, key: dict[str, str]) -> None:
    files = bucket_files(url, key)
    httpx.put(f"{url}/{BUCKET}").raise_for_status()
    for path in sorted((DATA / "shards").rglob("*")):
        if path.is_file():
            files.pipe_file(f"{BUCKET}/small/{path.relative_to(DATA / 'shards')}", path.read_bytes())


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `target`. The first requests of every file meet `faults`, in this order."""

    daemon_threads = True

    def __init__(self, target: str):
        self.target, self.faults, self.served = target, (), Counter()
        self.requests: Counter = Counter()
        self.before: dict[str, Callable[[], object]] = {}  # path -> what happens once before it is read
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *args) -> None:
        self.shutdown()
        super().__exit__(*args)

    def next_fault(self, path: str) -> str:
        with self.lock:
            number = self.requests[path, self.faults]
            self.requests[path, self.faults] += 1
            fault = self.faults[number] if number < len(self.faults) else ""
            self.served[fault] += 1
        return fault


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.partition("?")[0]
        with self.server.lock:
            before = self.server.before.pop(path, None)
        if before:
            before()
        response = httpx.request(self.command, self.server.target + self.path, headers=dict(self.headers), timeout=60)
        content, fault = response.content, ""
        if self.command == "GET" and response.is_success and len(content) > 1000:
            fault = self.server.next_fault(path)
        if fault == "busy":
            self.send_error(503)
            return
        self.send_response(response.status_code)
        for name, value in response.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if fault == "cut":
            content = content[: len(content) // 2]
        if fault == "corrupt":
            content = content[:700] + bytes([content[700] ^ 255]) + content[701:]
        for start in range(0, len(content), 1 << 16):
            time.sleep(0.01 if fault == "slow" else 0)
            self.wfile.write(content[start : start + (1 << 16)])

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass
