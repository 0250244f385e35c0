"""Runs the documented commands for own data, questions, the demo and the export on the mini model, in a copy of the tree."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from experiments.soak.images import RAMP, dicom, picture
from experiments.soak.trial import Row, copy_tree
from src.demo import free_port

# The sections of which every command is run, by page.
PAGES = {
    "README.md": ("From your own images",),
    "docs/demo.md": ("Ask on the command line", "Demo in the browser"),
    "docs/export.md": ("Export a run",),
}
ELSEWHERE = re.compile(r"push=|EXECUTOR=slurm")  # needs the network or a cluster
SHORTER = " optim.steps=20 optim.warmup=2"  # keeps the training short
SECONDS = 900.0


def trial(model: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        tree = copy_tree(Path(scratch))
        prepare_tree(tree, model.removeprefix("run:"))
        lines = [line for page, sections in PAGES.items() for line in commands(Path(page).read_text(), sections)]
        rows = [run_command(line, tree) for line in sorted(lines, key=runs_after_export)]
        cards = sorted((tree / "exports/mini").glob("*/README.md"))
        return rows + [run_snippet(card, tree) for card in cards if "```python" in card.read_text()]


def commands(text: str, sections: tuple[str, ...]) -> list[str]:
    """The indented lines of these sections that begin with `make` or `python -m`, without their comments."""
    selected = []
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        if title in sections:
            lines = (line.strip().partition("  #")[0].rstrip() for line in body.splitlines() if line.startswith("    "))
            selected += [line for line in lines if line.startswith(("make ", "python -m "))]
    return selected


def runs_after_export(line: str) -> bool:
    """The export comes first: what is shown before it in the README uses its folder."""
    return "src.export" not in line


def prepare_tree(tree: Path, run: str) -> None:
    """What the lines name: the mini run, pictures, a table of questions, a raw source and the phantoms' own."""
    for name in ("README.md", "Makefile", "requirements.lock"):
        shutil.copy(name, tree)
    (tree / ".venv").symlink_to(Path(sys.prefix).resolve())
    (tree / "data/raw/my_scans/img").mkdir(parents=True)
    (tree / "data/phantom").symlink_to(Path("data/phantom").resolve())
    (tree / "data/raw/pubmedqa").symlink_to(Path("data/phantom/raw/pubmedqa").resolve())
    shutil.copytree(Path("outputs") / run, tree / "outputs/mini")
    for number, split in enumerate(("train", "val", "test")):
        lines = []
        for at in range(40):
            name = f"img/{split}{at}.png"
            (tree / "data/raw/my_scans" / name).write_bytes(picture("PNG", (48 + at, 40 + number)))
            lines.append(
                json.dumps({"image": name, "question": f"which organ is shown, {split} {at}?", "answer": ("lung", "liver")[at % 2]})
            )
        (tree / f"data/raw/my_scans/{split}.jsonl").write_text("\n".join(lines) + "\n")
    (tree / "pictures").mkdir()
    for name in ("a.png", "scan.png", "pictures/a.png"):
        (tree / name).write_bytes(picture("PNG"))
    dicom(tree / "b.dcm", RAMP)
    (tree / "questions.csv").write_text("question,image\nwhich organ is shown?,a.png\nwhich side?,a.png|b.dcm\n")


def run_command(line: str, tree: Path) -> Row:
    if ELSEWHERE.search(line):
        return Row(line[:58], "not run", "needs the network")
    serves = line.startswith("make demo") or "src.demo" in line
    command = line.replace("make ", "make -o .venv/.ready ", 1) if line.startswith("make ") else line  # the environment is there
    command += SHORTER if "src.train" in line else ""
    if serves:
        return run_server(line, command, tree)
    log = tree / "log.txt"
    with log.open("w") as out:
        code = start_process(command, tree, out).wait(SECONDS)
    if code:
        print(log.read_text()[-1500:])
    return Row(line[:58], f"exit {code}", "exit 0", code == 0)


def run_server(line: str, command: str, tree: Path) -> Row:
    port = free_port("127.0.0.1")
    command += f" ARGS=port={port}" if command.startswith("make") else f" port={port}"
    with (tree / "log.txt").open("w") as out:
        process = start_process(command, tree, out)
    deadline, status = time.monotonic() + SECONDS, 0
    while process.poll() is None and time.monotonic() < deadline and status != 200:
        with contextlib.suppress(httpx.HTTPError):
            status = httpx.get(f"http://127.0.0.1:{port}/", timeout=60).status_code
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    return Row(line[:58], f"HTTP {status}", "HTTP 200", status == 200)


def run_snippet(card: Path, tree: Path) -> Row:
    """The lines that a card shows, in the folder of the export, where the paths in them lead."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", card.read_text(), re.S))
    shutil.copy(tree / "scan.png", card.parent.parent)
    base = tree / "data"
    link = card.parent.parent / "data"
    if not link.exists():
        link.symlink_to(base)
    result = subprocess.run([sys.executable, "-c", code], cwd=card.parent.parent, capture_output=True, text=True, timeout=SECONDS)
    if result.returncode:
        print(result.stderr[-1500:])
    return Row(f"the lines of {card.parent.name}/README.md", f"exit {result.returncode}", "exit 0", result.returncode == 0)


def start_process(command: str, tree: Path, out) -> subprocess.Popen:
    path = f"{tree / '.venv/bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(shlex.split(command), cwd=tree, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
