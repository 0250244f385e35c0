"""`python -m src.demo model=run:NAME`: a web page to question a trained model. Research only, not for clinical use."""

import contextlib
import csv
import inspect
import ipaddress
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.config.demo import DemoConfig
from src.config.train import TrainConfig
from src.data.credentialed import credentialed_notice, is_credentialed
from src.data.image_io import read_image, to_png
from src.inference.query import ModelSource, find_model, trained_on
from src.runtime.cli import command
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError
from src.serving.limits import Limits
from src.serving.stop_signals import handle_stop_signals

if TYPE_CHECKING:
    from src.serving.handlers import DemoHandlers

NUM_EXAMPLES = 6  # test images of a run
EXPOSED_HOST = "host={} can be reached from other machines; give auth=user:password, or keep host=127.0.0.1"


@dataclass
class RunningDemo:
    """A demo at `url`; `folder` holds the uploaded images until they expire."""

    url: str
    folder: Path


def serve(source: ModelSource, limits: Limits, **options) -> None:
    """Serves until Ctrl-C or SIGTERM. The page opens before the model is loaded; earlier questions wait and show a message."""
    stopped = handle_stop_signals()
    handlers: Future[DemoHandlers] = Future()
    options |= {"name": source.name, "note": trained_on(source), "notice": credentialed_notice(source.credentialed)}
    with contextlib.suppress(KeyboardInterrupt), running_demo(handlers, limits, **options) as demo:
        if options["notice"]:
            print(options["notice"], flush=True)
        print(f"{demo.url}   (stop with Ctrl-C)", flush=True)
        try:
            handlers.set_result(_load_handlers(source, limits))
        finally:
            handlers.cancel()  # no effect on a future that has a result
        print(f"{source.name} is loaded", flush=True)
        while not stopped:
            time.sleep(1)


def _load_handlers(source: ModelSource, limits: Limits) -> "DemoHandlers":
    """Imports torch here, because the import takes longer than opening the page."""
    from src.inference.vqa_model import vqa_model_from_source
    from src.serving.handlers import DemoHandlers

    return DemoHandlers(vqa_model_from_source(source), limits)


@contextlib.contextmanager
def running_demo(
    handlers: "Future[DemoHandlers]",
    limits: Limits,
    *,
    name: str,
    note: str = "",
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    public: bool = False,
    examples: list[tuple[Path, str]] | None = None,
    notice: str = "",
) -> Iterator[RunningDemo]:
    """Runs the demo until the block ends, then deletes every uploaded image.

    `note` is a sentence on the data of the model, `notice` a line above the title about its terms. `handlers` may get its result later.
    `port=None` selects a free port. `public=True` admits visitors from other machines without a password, for hosts whose platform controls
    access. Raises `UserError` for a reachable host without `auth` or `public`, and for a port that is in use.
    """
    if not (is_loopback(host) or auth or public):
        raise UserError(EXPOSED_HOST.format(host))
    with tempfile.TemporaryDirectory(prefix="openmedq-demo-") as temporary:
        folder = Path(temporary).resolve()
        previous_folder = os.environ.get("GRADIO_TEMP_DIR", "")
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_NUM_PORTS": "1"}
        with without_source_files():
            import gradio as gr  # reads the environment at import
        from starlette.middleware import Middleware

        from src.serving.page import MONO, SANS, STYLE, build
        from src.serving.upload_middleware import UploadCleaner, UploadMiddleware

        is_own_host = is_loopback if is_loopback(host) else (lambda name: True)  # other machines may know this one by any name
        copies = [(str(path), question) for path, question in _copy_examples(examples or [], folder)]
        page = build(handlers, limits, name=name, note=note, examples=copies, notice=notice)
        page.queue(max_size=limits.queue, default_concurrency_limit=4, api_open=False)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port or free_port(host),
                auth=auth,
                max_file_size=int(limits.megabytes * 2**20),
                app_kwargs={"middleware": [Middleware(UploadMiddleware, folder=folder, limits=limits, is_own_host=is_own_host)]},
                theme=gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=SANS, font_mono=MONO),
                css=STYLE,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                show_error=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                run_history=False,
                strict_cors=True,
                state_session_capacity=200,
                allowed_paths=[],
                footer_links=[],
            )
        except OSError:
            raise UserError(f"port={port} is in use on {host}; give another port=") from None
        cleaner = UploadCleaner(folder, keep_seconds=limits.keep_seconds)
        try:
            yield RunningDemo(url, folder)
        finally:
            cleaner.stop()
            page.close(verbose=False)
            os.environ["GRADIO_TEMP_DIR"] = previous_folder  # gradio reads it at every request, also for an enclosing demo


@contextlib.contextmanager
def without_source_files() -> Iterator[None]:
    """For the import of gradio, which would parse the source of each of its components to write stub files for editors. This takes half
    of the import: 3.1 s of processor time with it, 1.6 s without."""
    get_file = inspect.getfile

    def no_file(_: object) -> str:
        raise OSError("not looked up")  # as for a class that was defined without a file

    inspect.getfile = no_file  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getfile = get_file


def free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_examples(folder: Path) -> list[tuple[Path, str]]:
    """Example images: those in `examples.csv` (columns image and question) if it exists, else every image of the folder."""
    table = folder / "examples.csv"
    if table.is_file():
        with table.open(newline="") as file:
            return [(folder / row["image"], row.get("question") or "") for row in csv.DictReader(file)]
    examples = [(path, "") for path in sorted(folder.glob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]
    if not examples:
        raise UserError(f"examples={folder} holds neither examples.csv nor images; give a folder with PNG, JPEG or WebP files")
    return examples


def examples_from_run(config: TrainConfig, folder: Path) -> list[tuple[Path, str]]:
    """Test images and questions of the run's sources that are not credentialed, in turn; empty if the shards are missing."""
    from src.data.shards import Shards  # imports pyarrow

    folders = [Path(config.data.root) / name for name, share in sorted(config.mix.shares.items()) if share > 0]
    opened = [Shards(source) for source in folders if (source / "manifest.json").exists()]
    sources = [shards for shards in opened if not is_credentialed(shards.folder.name, shards.manifest)]
    test_rows = [rows[shards.column("num_images")[rows] > 0] for shards in sources for rows in [shards.rows("test")]]
    examples: list[tuple[Path, str]] = []
    for index in range(NUM_EXAMPLES):
        for shards, rows in zip(sources, test_rows, strict=True):
            if index < len(rows) and len(examples) < NUM_EXAMPLES:
                record = shards[int(rows[index * len(rows) // NUM_EXAMPLES])]
                path = folder / f"{len(examples)}.jpg"
                path.write_bytes(record.images[0])
                examples.append((path, record.question))
    return examples


def _copy_examples(examples: list[tuple[Path, str]], folder: Path) -> Iterator[tuple[Path, str]]:
    """Re-encodes examples like uploads, so that they hold no metadata."""
    (folder / "examples").mkdir(exist_ok=True)
    for index, (path, question) in enumerate(examples):
        target = folder / "examples" / f"{index}.png"
        target.write_bytes(to_png(read_image(path)))
        yield target, question


def credentials(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and len(password) >= 8):
        raise UserError("auth= must be user:password with a password of at least 8 characters")
    return user, password


@command("demo", DemoConfig)
def main(config: DemoConfig) -> None:
    auth = credentials(config.auth)
    if not is_loopback(config.host) and auth is None:
        raise UserError(EXPOSED_HOST.format(config.host))
    examples = read_examples(Path(config.examples)) if config.examples else []
    limits = Limits(megapixels=config.max_megapixels, megabytes=config.max_megabytes, queue=config.queue)
    source = find_model(config.model, outputs=config.outputs, checkpoint=config.checkpoint, accelerator=config.accelerator)
    if source.config and not source.config.data.images:
        raise UserError(f"model={config.model} was trained without images (data.images=false); question it with python -m src.ask")
    with tempfile.TemporaryDirectory() as temporary:
        if not config.examples and source.config:
            examples = examples_from_run(source.config, Path(temporary))
        serve(source, limits, host=config.host, port=config.port, auth=auth, examples=examples)


if __name__ == "__main__":
    sys.argv[1:] = quote_free_text(sys.argv[1:], texts=("model", "auth", "examples"))
    main()
