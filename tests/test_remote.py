"""src/data/remote.py: an address gives the same stream as a folder, also with a faulty server."""

import itertools
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data_prep.audit.leaks import AuditConfig, audit_all
from data_prep.build import chunking
from data_prep.shards import BuildConfig, build_all
from src.config.train import MixConfig
from src.config.train_rules import check_train_config, missing_files
from src.data import remote, token_budget
from src.data.remote import CacheConfig, RemoteShards
from src.evaluation import benchmark
from src.runtime.errors import UserError
from src.training.optim import epochs_to_steps
from tests.fixtures import parts

TAR = "/alpha/train-000000.tar"


class Server(ThreadingHTTPServer):
    """Serves `folder`. `faults[path]` lists the faults of its first requests; later requests succeed."""

    daemon_threads = True

    def __init__(self, folder: Path):
        self.folder, self.faults, self.requests = folder, {}, Counter()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        faults = self.server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else ""
        if fault == "busy":
            self.send_error(503)
            return
        content = path.read_bytes() + (b"?" if fault == "longer" else b"")
        self.send_response(200)
        if fault != "cut without a length":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault.startswith("cut"):
            self.wfile.write(content[: len(content) // 2])
            self.connection.close()
            return
        if fault == "corrupt":
            content = content[: len(content) // 2] + b"?" + content[len(content) // 2 + 1 :]
        for at in range(0, len(content), 1 << 14):
            time.sleep(0.02 if fault == "slow" else 0)
            self.wfile.write(content[at : at + (1 << 14)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(shards, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.01)
    server = Server(shards)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def data(configure, server, tmp_path):
    def module(*overrides: str):
        return parts(configure(f"data.root={server.url}", f"data.cache={tmp_path / 'cache'}", *overrides))[1]

    return module


def tars(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("*/*.tar"))


@pytest.mark.slow
def test_stream_from_an_address_equals_the_stream_from_the_folder(data, configure, server, tmp_path):
    local, served = parts(configure())[1], data()
    assert served.fingerprint == local.fingerprint
    for step in range(4):
        one, other = local.stream().batch(step, micro_batch=0), served.stream().batch(step, micro_batch=0)
        assert one.keys == other.keys
        assert torch.equal(one.images_NCHW, other.images_NCHW)
    for tar in tars(tmp_path):
        name = tar.parent.name.partition("-")[0]
        assert tar.read_bytes() == (server.folder / name / tar.name).read_bytes()
    assert not list(tmp_path.glob("cache/*/*.part"))
    before = server.requests.copy()
    again = data()
    again.stream().batch(0, micro_batch=0)
    assert {path.rpartition("/")[2] for path in server.requests - before} == {"manifest.json", "audit.json"}  # everything else is cached


@pytest.mark.slow
def test_audit_removed_at_the_address_is_removed_from_the_cache(data, shards, server, tmp_path):
    server.folder = Path(shutil.copytree(shards, tmp_path / "served"))
    audit_all(AuditConfig(out=server.folder))
    assert data().shards["alpha"].audit
    (server.folder / "alpha" / "audit.json").unlink()
    again = data()
    assert again.shards["alpha"].audit is None
    assert again.shards["beta"].audit


@pytest.mark.slow
def test_corrupt_index_of_audited_shards_is_fetched_again(shards, server, tmp_path):
    server.folder = Path(shutil.copytree(shards, tmp_path / "served"))
    audit_all(AuditConfig(out=server.folder))
    server.faults["/alpha/index.arrow"] = ["corrupt"]
    RemoteShards(f"{server.url}/alpha", CacheConfig(str(tmp_path / "cache")))
    (cached,) = tmp_path.glob("cache/*/index.arrow")
    assert cached.read_bytes() == (server.folder / "alpha" / "index.arrow").read_bytes()


@pytest.mark.slow
def test_workers_fetch_each_tar_once(data, server):
    stream = data().stream()
    loader = iter(DataLoader(stream, batch_size=None, num_workers=2))
    keys = [next(loader).keys for _ in range(4)]
    assert keys == [data().stream().batch(step, micro_batch=0).keys for step in range(4)]
    assert max(count for path, count in server.requests.items() if path.endswith(".tar")) == 1


@pytest.mark.parametrize("faults", [["slow"], ["cut", "cut"], ["busy", "cut"], ["corrupt"]])
@pytest.mark.slow
def test_failed_download_is_repeated(server, tmp_path, faults):
    server.faults[TAR] = list(faults)
    shards = RemoteShards(f"{server.url}/alpha", CacheConfig(str(tmp_path / "cache")))
    assert shards[0].key == "train0"
    assert server.requests[TAR] == len(faults) + (faults != ["slow"])


@pytest.mark.parametrize("fault", ["cut", "cut without a length"])
def test_truncated_index_is_fetched_again(server, tmp_path, fault):
    server.faults |= {"/alpha/index.arrow": [fault], "/alpha/manifest.json": [fault]}
    assert len(RemoteShards(f"{server.url}/alpha", CacheConfig(str(tmp_path / "cache")))) == 77


@pytest.mark.parametrize("name", ["train-000000.tar", "manifest.json", "index.arrow"])
def test_truncated_file_in_the_cache_is_fetched_again(server, tmp_path, name):
    cache = CacheConfig(str(tmp_path / "cache"))
    expected = RemoteShards(f"{server.url}/alpha", cache)[0]
    (cached,) = (tmp_path / "cache").glob(f"*/{name}")
    content = cached.read_bytes()
    cached.unlink()  # open and mapped files stay unchanged
    cached.write_bytes(content[: len(content) // 2])
    assert RemoteShards(f"{server.url}/alpha", cache)[0] == expected
    assert cached.read_bytes() == content


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (["corrupt"] * 2, f"{TAR}: the checksum differs from the manifest in two downloads"),
        (["longer"] * 2, rf"{TAR}: it has [\d,]+ instead of [\d,]+ bytes in two downloads; it was changed or damaged"),
        (["cut"] * remote.ATTEMPTS, f"{TAR}: not fetched in {remote.ATTEMPTS} attempts"),
    ],
)
@pytest.mark.slow
def test_download_that_keeps_failing_raises(server, tmp_path, faults, message):
    server.faults[TAR] = list(faults)
    shards = RemoteShards(f"{server.url}/alpha", CacheConfig(str(tmp_path / "cache")))
    with pytest.raises(UserError, match=message):
        shards[0]
    assert not tars(tmp_path)


class NoCredentialsError(Exception):
    """Stands for botocore's."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError("The request signature does not match"),
            r"access was refused \(The request .*\); check the credentials, for s3://",
        ),
        (NoCredentialsError("Unable to locate credentials"), r"access was refused \(Unable to locate credentials\); check the credentials"),
        (FileNotFoundError("The specified bucket does not exist"), "the bucket does not exist; correct the address"),
    ],
)
def test_refused_access_and_a_missing_bucket_are_reported_at_the_first_attempt(tmp_path, monkeypatch, error, message):
    attempts = []

    class Files:
        def get_file(self, *names) -> None:
            attempts.append(names)
            raise error

    monkeypatch.setattr(remote, "_filesystem", lambda url: (Files(), url))
    with pytest.raises(UserError, match=f"^s3://bucket/a.tar: {message}"):
        remote.fetch_file("s3://bucket/a.tar", tmp_path / "a.tar")
    assert len(attempts) == 1


@pytest.mark.slow
def test_small_cache_holds_the_last_used_tar(server, tmp_path):
    shards = RemoteShards(f"{server.url}/alpha", CacheConfig(str(tmp_path / "cache"), 0))
    for row in (0, 60, 70):  # one of each split
        assert shards[row].images
    assert [path.name for path in tars(tmp_path)] == ["test-000000.tar"]
    links = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()]
    deleted = [link for link in links if link.startswith(str(tmp_path)) and "tar" in link and link.endswith("(deleted)")]
    assert [Path(link).name for link in deleted] == ["val-000000.tar (deleted)"]  # is closed when the next tar is opened
    fresh = RemoteShards(f"{server.url}/alpha", CacheConfig(str(tmp_path / "cache"), 0))
    assert fresh[0].key == "train0"
    assert [path.name for path in tars(tmp_path)] == ["train-000000.tar"]
    assert server.requests[TAR] == 2


@pytest.mark.slow
def test_blocks_fetch_each_shard_once_into_a_cache_of_5_percent(configure, tmp_path, monkeypatch):
    """An epoch of a source of 400 shards of two records. Two ranks, which seek, get the samples of one rank, which reads."""
    monkeypatch.setattr(chunking, "SHARD_ROWS", 2)
    (tmp_path / "raw" / "many").mkdir(parents=True)
    lines = [json.dumps({"question": f"which organ {n}?", "answer": "liver", "id": f"r{n}"}) for n in range(800)]
    (tmp_path / "raw" / "many" / "train.jsonl").write_text("\n".join(lines))
    build_all(BuildConfig(sources=["many"], raw=tmp_path / "raw", out=tmp_path / "out", workers=1))
    size = sum(path.stat().st_size for path in tmp_path.glob("out/many/*.tar"))
    fetched: Counter = Counter()
    fetch = remote.fetch_file
    monkeypatch.setattr(
        remote, "fetch_file", lambda url, *args, **keys: (fetched.update([url.rpartition(".")[2]]), fetch(url, *args, **keys))
    )
    words = [
        "+mix.shares.many=1",
        "mix.only=[many]",
        "data.shuffle=blocks",
        "data.packing_window=8",
        "data.global_batch_size=8",
        "data.val_samples=0",
    ]
    cache = [f"data.root=file://{tmp_path}/out", f"data.cache={tmp_path / 'cache'}", f"data.cache_gb={0.05 * size / 1e9}"]
    reading = parts(configure(*words, *cache))[1].stream()
    epoch = [reading.batch(step, micro_batch=0).keys for step in range(100)]
    assert sorted(itertools.chain(*epoch)) == sorted(f"many:{row}" for row in range(800))
    assert 400 <= fetched["tar"] <= 420
    local = parts(configure(*words, f"data.root={tmp_path}/out"))[1]
    ranks = [local.stream(rank=rank, world=2) for rank in range(2)]
    for step in (70, 7):
        assert sorted(key for stream in ranks for key in stream.batch(step, micro_batch=0).keys) == sorted(epoch[step])


def read_rows(url: str, cache: CacheConfig, seed: int, connection) -> None:
    """Sends the keys of 60 random rows."""
    shards = RemoteShards(url, cache)
    connection.send([(row, shards[row].key) for row in np.random.default_rng(seed).permutation(60).tolist()])


@pytest.mark.slow
def test_processes_read_while_each_removes_the_tars_of_the_other(shards, tmp_path):
    """The cache has room for one tar, so every other read removes a tar that the other process reads or has just fetched."""
    root, cache = f"file://{shards}/alpha", CacheConfig(str(tmp_path / "cache"), 0)
    expected = RemoteShards(root, CacheConfig(str(tmp_path / "other")))
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(duplex=False) for _ in range(2)]
    processes = [fork.Process(target=read_rows, args=(root, cache, seed, pipes[seed][1])) for seed in range(2)]
    for process in processes:
        process.start()
    for receiver, _ in pipes:
        assert receiver.poll(60)
        assert all(expected[row].key == key for row, key in receiver.recv())
    for process in processes:
        process.join()
    assert len(tars(tmp_path)) <= 2


def test_tar_that_another_process_removes_before_it_is_opened_is_fetched_again(shards, tmp_path, monkeypatch):
    fetched, fetch = [], remote.fetch_file

    def fetch_and_remove(url: str, path: Path, **keys) -> None:
        fetch(url, path, **keys)
        if path.suffix == ".tar" and not fetched:
            fetched.append(path)
            path.unlink()

    monkeypatch.setattr(remote, "fetch_file", fetch_and_remove)
    assert RemoteShards(f"file://{shards}/alpha", CacheConfig(str(tmp_path / "cache")))[0].key == "train0"
    assert fetched == tars(tmp_path)


@pytest.mark.slow
def test_cache_smaller_than_the_mix_prints_one_warning_with_the_required_size(data, server, monkeypatch, capsys):
    """Training and validation shards of three sources are required, those of test splits are not."""
    required = sum(tar["bytes"] for path in server.folder.glob("*/manifest.json") for tar in json.loads(path.read_text())["shards"][:2])
    stream = data(f"data.cache_gb={required / 1e9 - 1e-9}").stream()
    stream.batch(0, micro_batch=0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: data.cache_gb=")
    assert line.endswith("at a time with data.shuffle=global, so they are fetched again and again; data.cache_gb=0.1 holds them all")
    data(f"data.cache_gb={required / 1e9}")
    monkeypatch.setenv("LOCAL_RANK", "1")
    data("data.cache_gb=0")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_prefetch_fetches_a_shard_before_it_is_read(server, tmp_path):
    shards = RemoteShards(f"{server.url}/alpha", CacheConfig(str(tmp_path / "cache")))
    shards.prefetch(np.array([0, 2]))
    deadline = time.monotonic() + 20
    while not tars(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    shards.prefetch(np.array([1]))
    assert shards[0].key == "train0"
    assert server.requests[TAR] == 1


@pytest.mark.slow
def test_another_build_at_the_same_address_replaces_the_cached_one(server, shards, tmp_path):
    server.folder = tmp_path / "served"
    shutil.copytree(shards / "alpha", server.folder / "alpha")
    cache = CacheConfig(str(tmp_path / "cache"))
    assert RemoteShards(f"{server.url}/alpha", cache)[0].images
    shutil.rmtree(server.folder / "alpha")
    shutil.copytree(shards / "gamma", server.folder / "alpha")
    other = RemoteShards(f"{server.url}/alpha", cache)
    assert not tars(tmp_path)
    assert (other[0].source, other[0].images) == ("gamma", [])


@pytest.mark.slow
def test_address_is_not_treated_as_a_path(configure, data, server):
    assert missing_files(configure("data.root=https://example.org/shards")) == []
    check_train_config(configure(f"data.root={server.url}"))
    with pytest.raises(UserError, match=r"has no shards of 'delta': .*delta/manifest.json does not exist"):
        data("+mix.shares.delta=1")
    with pytest.raises(UserError, match="unknown scheme 'ssss'"):
        RemoteShards("ssss://bucket/alpha", CacheConfig())


@pytest.mark.slow
def test_benchmarks_are_read_from_an_address(server, tmp_path):
    read = benchmark.read_benchmark("alpha", root=server.url, cache=CacheConfig(str(tmp_path / "cache")))
    assert len(read.items) == 8
    assert json.loads((server.folder / "alpha" / "manifest.json").read_text()) == read.shards.manifest


def test_plan_and_epochs_read_remote_indexes(configure, server, tmp_path):
    config = configure(f"data.root={server.url}", f"data.cache={tmp_path / 'cache'}", "optim.steps=null", "optim.epochs=2")
    alpha, missing = token_budget.source_budgets(
        MixConfig({"alpha": 3, "medmcqa": 1}, decontaminate=True), config.data, steps=10, tokenizer={"id": "own"}
    )
    assert (alpha.built, missing.built) == (True, False)
    assert epochs_to_steps(config).optim.steps == round(2 * 180 / 16)
    assert list((tmp_path / "cache").glob("alpha-*"))
