"""Runs every documented command (README.md and docs/*.md) on phantoms and the mini model, in a copy of the tree.

`NOT_RUN` lists what this machine cannot run, with the reason. `REPLACEMENTS` and `OVERRIDES` make the other commands small.
"""

import contextlib
import csv
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

PAGES = ("README.md", "docs/export.md", "docs/data.md", "docs/training.md", "docs/evaluation.md", "docs/transfer.md")  # run first
COMMAND = re.compile(r"(?:\$ )?((?:make|python -m|torchrun|srun) .*)")
NOT_RUN = {  # pattern of a command: reason
    r"^make setup": "installs packages from the network",
    r"^make test": "takes minutes and is no part of the pipeline",
    r"^make mini": "this trial starts from its result",
    r"^make download|soak\.environments": "needs the network",
    r"push=": "needs the network",
    r"sweeps\.dashboard": "needs a wandb account",
    r"^srun|EXECUTOR=slurm|submitit_slurm": "needs Slurm",
    r"s3://": "needs an S3 server",
    r"judge\.url=": "needs a server with a language model",
    r"--nnodes=": "needs several machines",
    r"hydra/sweeper=optuna": "needs hydra-optuna-sweeper, which is not in the lock",
}
REPLACEMENTS = {  # pattern: what this machine has instead
    r"--nproc_per_node=8": "--nproc_per_node=2",
    r"vision\.path=FOLDER": "vision.path=exports/mini/timm vision.image_size=64",
    r"data\.root=https://host/shards": "data.root=data/shards",
    r"language\.path=FOLDER": "language.path=data/phantom/weights/language",
}
# In place of the downloads. The rare classes of PAD-UFES-20 need more images, so that each is in every split.
PHANTOMS = (["sources=all", "scale=0.1"], ["sources=pad_ufes_20"])
SMALL_PARTS = "vision=phantom language=phantom optim.epochs=null trainer.accumulate=1 data.workers=1"
SMALL_PARTS += " data.global_batch_size=16 data.packing_window=64"
OVERRIDES = {  # pattern: overrides that are appended; all that match
    r"^make shards": "quarantine_limit=0.3",  # the faulty rows of a phantom are a larger share of few rows
    r"^make ablation": "small=true",
    r"src\.train(?!.*experiment=mini$)(?!.*(--help|--cfg|sed=))": "optim.steps=2 optim.warmup=1 data.val_samples=4 data.val_generations=1",
    r"src\.train.*=(recommended|modern|full_mix|finetune_pathvqa|small)\b(?!.*FOLDER)": SMALL_PARTS,
    r"src\.train.*=(recommended|modern|full_mix|finetune_pathvqa)\b(?!.*trainer=)": "trainer=cpu",
    r"src\.train.*trainer=ddp": "name=ddp trainer.accelerator=cpu trainer.devices=2 trainer.precision=32-true",
    r"src\.evaluate.*run=": "limit=4 batch=4 resamples=100 images=[real,none]",
    r"src\.transfer": "seeds=1 resamples=100 paper.epochs=1",
    r"src\.transfer.*biomedclip": "encoder=[run:recommended,scratch:mini]",
    r"src\.transfer.*protocol=paper": "encoder=[run:full_mix]",
}
SECONDS = 1800.0


def trial(model: str) -> list[Row]:
    pages = dict.fromkeys([*PAGES, *sorted(str(path) for path in Path("docs").glob("*.md"))])
    documented = dict.fromkeys(command for page in pages for command in find_commands(Path(page).read_text()))
    with tempfile.TemporaryDirectory() as scratch:
        tree = copy_tree(Path(scratch))
        prepare_tree(tree, model.removeprefix("run:"))
        rows = []
        # The ablation builds smaller phantoms in the place of those of the mini run.
        for command, error in sorted(documented, key=lambda item: item[0].startswith("make ablation")):
            rows.append(run_command(command, error, tree))
            print(rows[-1].line(), flush=True)
        cards = sorted((tree / "exports/mini").glob("*/README.md"))
        return rows + [run_snippet(card, tree) for card in cards if "```python" in card.read_text()]


def find_commands(text: str) -> list[tuple[str, str]]:
    """(command, error that the page shows below it, or "") of every command in the code blocks of a page, without comments."""
    commands: list[tuple[str, str]] = []
    fenced = False
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        fenced ^= line.startswith("```")
        code = line.strip() if fenced or line.startswith("    ") else ""
        if match := COMMAND.fullmatch(re.split(r"\s{2,}[#(]", code)[0]):
            commands += [(command.strip(), "") for command in match[1].split(" && ")]
        elif code.startswith("error: ") and commands:
            commands[-1] = commands[-1][0], code
    return commands


def prepare_tree(tree: Path, run: str) -> None:
    """Makes the files that the documentation names: the mini run, raw data of every source (phantoms), images, tables of questions."""
    for name in ("README.md", "Makefile", "requirements.lock"):
        shutil.copy(name, tree)
    (tree / ".venv").symlink_to(Path(sys.prefix).resolve())
    shutil.copytree("data/phantom", tree / "data/phantom")
    shutil.copytree(Path("outputs") / run, tree / "outputs/mini")
    for words in PHANTOMS:
        with (tree / "log.txt").open("w") as out:
            code = start_process(["python", "-m", "data_prep.phantom", "out=data/raw", *words], tree, out).wait(SECONDS)
        assert code == 0, (tree / "log.txt").read_text()
    (tree / "data/raw/my_scans/img").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        lines = []
        for at in range(40):
            name = f"img/{split}{at}.png"
            (tree / "data/raw/my_scans" / name).write_bytes(picture("PNG", (48 + at, 40 + number)))
            question = f"which organ is shown, {split} {at}?"
            lines.append(json.dumps({"image": name, "question": question, "answer": ("lung", "liver")[at % 2]}))
        (tree / f"data/raw/my_scans/{split}.jsonl").write_text("\n".join(lines) + "\n")
    classes = ("brain/glioma", "brain/meningioma", "brain/no tumour", "cells/Platelets", "cells/RBC", "cells/WBC")
    for number, name in enumerate(classes):
        (tree / "data/raw" / name).mkdir(parents=True)
        for at in range(12):
            (tree / "data/raw" / name / f"{at}.png").write_bytes(picture("PNG", (60 + at, 50 + number)))
    (tree / "pictures").mkdir()
    for name in ("a.png", "scan.png", "pictures/a.png"):
        (tree / name).write_bytes(picture("PNG"))
    dicom(tree / "b.dcm", RAMP)
    (tree / "questions.csv").write_text("question,image\nwhich organ is shown?,a.png\nwhich side?,a.png|b.dcm\n")
    answers = [
        {"id": f"{n}", "question": "which organ is shown?", "references": "lung", "prediction": ("lung", "liver")[n % 2]} for n in range(8)
    ]
    (tree / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    with (tree / "theirs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, answers[0])
        writer.writeheader()
        writer.writerows(answers)


def shorten(command: str) -> list[str]:
    """The words of a command with `REPLACEMENTS` and `OVERRIDES` applied. For `make`, overrides go into ARGS."""
    extra = [words for pattern, words in OVERRIDES.items() if re.search(pattern, command)]
    for pattern, replacement in REPLACEMENTS.items():
        command = re.sub(pattern, replacement, command)
    words = shlex.split(command)
    if words[0] != "make":
        return [*words, *" ".join(extra).split()]
    args = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    words = [word for word in words if not word.startswith("ARGS=")]
    return ["make", "-o", ".venv/.ready", *words[1:], *([f"ARGS={' '.join([*args, *extra])}"] if args or extra else [])]


def run_command(command: str, error: str, tree: Path) -> Row:
    """Runs one documented command. It must end with exit code 0, or, if the page shows an error, with code 2 and that error."""
    for pattern, reason in NOT_RUN.items():
        if re.search(pattern, command):
            return Row(command[:58], "not run:", reason)
    if command.startswith("make demo") or "src.demo" in command:
        return run_server(command, tree)
    log = tree / "log.txt"
    with log.open("w") as out:
        code = start_process(shorten(command), tree, out).wait(SECONDS)
    expected = 2 if error else 0
    passed = code == expected and error in log.read_text()
    if not passed:
        print(log.read_text()[-1500:])
    return Row(command[:58], f"exit {code}", f"exit {expected}", passed)


def run_server(command: str, tree: Path) -> Row:
    """Starts a demo; its first page must be served."""
    port = free_port("127.0.0.1")
    words = [*shorten(command), f"ARGS=port={port}" if command.startswith("make") else f"port={port}"]
    with (tree / "log.txt").open("w") as out:
        process = start_process(words, tree, out)
    deadline, status = time.monotonic() + SECONDS, 0
    while process.poll() is None and time.monotonic() < deadline and status != 200:
        with contextlib.suppress(httpx.HTTPError):
            status = httpx.get(f"http://127.0.0.1:{port}/", timeout=60).status_code
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)  # SIGINT is ignored where the trial itself runs in the background
    process.wait(SECONDS)
    return Row(command[:58], f"HTTP {status}", "HTTP 200", status == 200)


def run_snippet(card: Path, tree: Path) -> Row:
    """Runs the Python code of an exported card in the folder of the export, to which its paths are relative."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", card.read_text(), re.S))
    shutil.copy(tree / "scan.png", card.parent.parent)
    link = card.parent.parent / "data"
    if not link.exists():
        link.symlink_to(tree / "data")
    result = subprocess.run([sys.executable, "-c", code], cwd=card.parent.parent, capture_output=True, text=True, timeout=SECONDS)
    if result.returncode:
        print(result.stderr[-1500:])
    return Row(f"Python code of {card.parent.name}/README.md", f"exit {result.returncode}", "exit 0", result.returncode == 0)


def start_process(words: list[str], tree: Path, out) -> subprocess.Popen:
    environment = os.environ | {"PATH": f"{tree / '.venv/bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(words, cwd=tree, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
