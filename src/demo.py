"""`python -m src.demo model=run:NAME`: ask a trained model in the browser. Research only, not for clinical use."""

import contextlib
import csv
import ipaddress
import os
import signal
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
from src.data.image_io import read_image, to_png
from src.data.shards import Shards
from src.inference.query import ModelSource, find_model
from src.runtime.cli import command
from src.runtime.cli_quoting import quote_free_text
from src.runtime.errors import UserError
from src.serving.limits import Limits

if TYPE_CHECKING:
    from src.serving.handlers import DemoHandlers

EXAMPLES = 6  # of a run's test images


@dataclass
class RunningDemo:
    """A demo that answers at `url`; `folder` holds the pictures of its visitors for a while."""

    url: str
    folder: Path


def serve(found: ModelSource, limits: Limits, **more) -> None:
    """Serves until Ctrl-C or SIGTERM. The page opens before the model is loaded; whoever asks meanwhile is told so and waits."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: else the pictures would stay
    desk: Future[DemoHandlers] = Future()
    with contextlib.suppress(KeyboardInterrupt), running_demo(desk, limits, name=found.name, **more) as demo:
        print(f"{demo.url}   Ctrl-C stops it", flush=True)
        try:
            desk.set_result(_desk(found, limits))
        finally:
            desk.cancel()  # does nothing where it has its result
        print(f"{found.name} is loaded", flush=True)
        while True:
            time.sleep(3600)


def _desk(found: ModelSource, limits: Limits) -> "DemoHandlers":
    """Imports torch and what stands on it only now: that takes longer than opening the page."""
    from src.inference.vqa_model import vqa_model_from_source
    from src.serving.handlers import DemoHandlers

    return DemoHandlers(vqa_model_from_source(found), limits)


@contextlib.contextmanager
def running_demo(
    desk: "Future[DemoHandlers]",
    limits: Limits,
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    public: bool = False,
    examples: list[tuple[Path, str]] | None = None,
) -> Iterator[RunningDemo]:
    """The demo, until the block ends; then every picture is deleted. `desk` may get its result later; `port` None takes a free one.

    `public` takes strangers without a password: for a machine whose platform decides who reaches it.
    """
    if not (is_loopback(host) or auth or public):
        raise UserError(f"host={host} can be reached from other machines; give auth=user:password, or keep host=127.0.0.1")
    with tempfile.TemporaryDirectory(prefix="openmedq-demo-") as temporary:
        folder = Path(temporary).resolve()
        before = os.environ.get("GRADIO_TEMP_DIR", "")
        os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_NUM_PORTS": "1"}
        import gradio as gr  # reads its environment when it is imported
        from starlette.middleware import Middleware

        from src.serving.page import MONO, SANS, STYLE, build
        from src.serving.upload_middleware import UploadCleaner, UploadMiddleware

        ours = is_loopback if is_loopback(host) else (lambda name: True)  # what others call this machine is theirs to choose
        page = build(desk, limits, name=name, examples=[(str(path), question) for path, question in _copied(examples or [], folder)])
        page.queue(max_size=limits.queue, default_concurrency_limit=4, api_open=False)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port or free_port(host),
                auth=auth,
                max_file_size=int(limits.megabytes * 2**20),
                app_kwargs={"middleware": [Middleware(UploadMiddleware, folder=folder, limits=limits, ours=ours)]},
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
            raise UserError(f"port={port} on {host} is taken; give another port=") from None
        sweeper = UploadCleaner(folder, keep_seconds=limits.keep_seconds)
        try:
            yield RunningDemo(url, folder)
        finally:
            sweeper.stop()
            page.close(verbose=False)
            os.environ["GRADIO_TEMP_DIR"] = before  # of a demo around this one: gradio looks it up at every request


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
    """Pictures to start from: `examples.csv` with the columns image and question, else every picture of the folder."""
    table = folder / "examples.csv"
    if table.is_file():
        with table.open(newline="") as file:
            return [(folder / row["image"], row.get("question") or "") for row in csv.DictReader(file)]
    found = [(path, "") for path in sorted(folder.glob("*")) if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]
    if not found:
        raise UserError(f"examples={folder} holds neither examples.csv nor pictures")
    return found


def examples_from_run(config: TrainConfig, folder: Path) -> list[tuple[Path, str]]:
    """Pictures and questions that the run's own sources keep for testing, dealt over the sources; none where the shards are gone."""
    mixed = [Path(config.data.root) / name for name, share in sorted(config.mix.shares.items()) if share > 0]
    opened = [Shards(source) for source in mixed if (source / "manifest.json").exists()]
    rows = [rows[shards.column("num_images")[rows] > 0] for shards in opened for rows in [shards.rows("test")]]
    found: list[tuple[Path, str]] = []
    for number in range(EXAMPLES):
        for shards, mine in zip(opened, rows, strict=True):
            if number < len(mine) and len(found) < EXAMPLES:
                record = shards[int(mine[number * len(mine) // EXAMPLES])]
                found.append((folder / f"{len(found)}.jpg", record.question))
                found[-1][0].write_bytes(record.images[0])
    return found


def _copied(examples: list[tuple[Path, str]], folder: Path) -> Iterator[tuple[Path, str]]:
    """Re-encoded like uploads, so that an example shows pixels only."""
    (folder / "examples").mkdir(exist_ok=True)
    for number, (path, question) in enumerate(examples):
        target = folder / "examples" / f"{number}.png"
        target.write_bytes(to_png(read_image(path)))
        yield target, question


def credentials(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    user, colon, password = auth.partition(":")
    if not (user and colon and len(password) >= 8):
        raise UserError("auth must be user:password with a password of at least 8 characters")
    return user, password


@command("demo", DemoConfig)
def main(config: DemoConfig) -> None:
    auth = credentials(config.auth)
    if not is_loopback(config.host) and auth is None:
        raise UserError(f"host={config.host} can be reached from other machines; give auth=user:password, or keep host=127.0.0.1")
    examples = read_examples(Path(config.examples)) if config.examples else []
    limits = Limits(megapixels=config.max_megapixels, megabytes=config.max_megabytes, queue=config.queue)
    found = find_model(config.model, outputs=config.outputs, checkpoint=config.checkpoint, accelerator=config.accelerator)
    if found.config and not found.config.data.images:
        raise UserError(f"model={config.model} was trained without images (data.images=false); ask it with python -m src.ask")
    with tempfile.TemporaryDirectory() as spare:
        if not config.examples and found.config:
            examples = examples_from_run(found.config, Path(spare))
        serve(found, limits, host=config.host, port=config.port, auth=auth, examples=examples)


if __name__ == "__main__":
    sys.argv[1:] = quote_free_text(sys.argv[1:], texts=("model", "auth", "examples"))
    main()
