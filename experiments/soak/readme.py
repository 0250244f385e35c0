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
from experiments.soak.interrupt import copy
from experiments.soak.trial import Row
from src.demo import free_port

# The sections of which every command is run, by page.
PAGES = {
    "README.md": ("From your own images",),
    "docs/demo.md": ("Ask on the command line", "Demo in the browser"),
    "docs/export.md": ("Export a run",),
}
ELSEWHERE = re.compile(r"push=|EXECUTOR=slurm")  # needs the network or a cluster
SHORT = " optim.steps=20 optim.warmup=2"  # training is tried, not awaited
SECONDS = 900.0


def trial(model: str) -> list[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        tree = copy(Path(scratch))
        furnish(tree, model.removeprefix("run:"))
        lines = [line for page, sections in PAGES.items() for line in commands(Path(page).read_text(), sections)]
        rows = [tried(line, tree) for line in sorted(lines, key=later)]
        cards = sorted((tree / "exports/mini").glob("*/README.md"))
        return rows + [snippet(card, tree) for card in cards if "```python" in card.read_text()]


def commands(text: str, sections: tuple[str, ...]) -> list[str]:
    """The indented lines of these sections that begin with `make` or `python -m`, without their comments."""
    found = []
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        if title in sections:
            lines = (line.strip().partition("  #")[0].rstrip() for line in body.splitlines() if line.startswith("    "))
            found += [line for line in lines if line.startswith(("make ", "python -m "))]
    return found


def later(line: str) -> bool:
    """The export comes first: what is shown before it in the README uses its folder."""
    return "src.export" not in line


def furnish(tree: Path, run: str) -> None:
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


def tried(line: str, tree: Path) -> Row:
    if ELSEWHERE.search(line):
        return Row(line[:58], "not run", "needs the network")
    serves = line.startswith("make demo") or "src.demo" in line
    words = line.replace("make ", "make -o .venv/.ready ", 1) if line.startswith("make ") else line  # the environment is there
    words += SHORT if "src.train" in line else ""
    if serves:
        return served(line, words, tree)
    log = tree / "log.txt"
    with log.open("w") as out:
        code = start(words, tree, out).wait(SECONDS)
    if code:
        print(log.read_text()[-1500:])
    return Row(line[:58], f"exit {code}", "exit 0", code == 0)


def served(line: str, words: str, tree: Path) -> Row:
    port = free_port("127.0.0.1")
    words += f" ARGS=port={port}" if words.startswith("make") else f" port={port}"
    with (tree / "log.txt").open("w") as out:
        process = start(words, tree, out)
    until, status = time.monotonic() + SECONDS, 0
    while process.poll() is None and time.monotonic() < until and status != 200:
        with contextlib.suppress(httpx.HTTPError):
            status = httpx.get(f"http://127.0.0.1:{port}/", timeout=60).status_code
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    return Row(line[:58], f"HTTP {status}", "HTTP 200", status == 200)


def snippet(card: Path, tree: Path) -> Row:
    """The lines that a card shows, in the folder of the export, where the paths in them lead."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", card.read_text(), re.S))
    shutil.copy(tree / "scan.png", card.parent.parent)
    base = tree / "data"
    link = card.parent.parent / "data"
    if not link.exists():
        link.symlink_to(base)
    found = subprocess.run([sys.executable, "-c", code], cwd=card.parent.parent, capture_output=True, text=True, timeout=SECONDS)
    if found.returncode:
        print(found.stderr[-1500:])
    return Row(f"the lines of {card.parent.name}/README.md", f"exit {found.returncode}", "exit 0", found.returncode == 0)


def start(words: str, tree: Path, out) -> subprocess.Popen:
    path = f"{tree / '.venv/bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(shlex.split(words), cwd=tree, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
