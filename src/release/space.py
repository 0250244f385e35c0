"""A folder that a hosted gradio Space runs as it is: the demo of this project, its code, pinned requirements and front matter."""

import re
import shutil
from importlib.metadata import version
from pathlib import Path

import yaml

from src.release.card import CardFacts

SRC = Path(__file__).resolve().parent.parent
# What the demo imports; a Space needs neither the logger nor the tests.
NEEDED: tuple[str, ...] = ("torch", "torchvision", "lightning", "transformers", "peft", "timm", "safetensors", "numpy", "pillow")
NEEDED += ("simplejpeg", "pydicom", "pyarrow", "xxhash", "msgspec", "fsspec", "aiohttp", "omegaconf", "hydra-core", "psutil")
NEEDED += ("pyyaml", "tqdm")

IMPORT = re.compile(r"^\s*from (src[\w.]*) import \(?([^)\n]*)", re.MULTILINE)

APP = '''"""Shows this model in a browser. Research only, not for clinical use."""

import os

from huggingface_hub import snapshot_download

from src.demo import serve
from src.model.query import source
from src.serving.limits import Limits

MODEL = os.environ.get("MODEL", "HERE")  # a folder or a hub id

if __name__ == "__main__":
    folder = MODEL if os.path.isdir(MODEL) else snapshot_download(MODEL, token=os.environ.get("HF_TOKEN"))
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(os.environ.get("PORT", "7860"))
    serve(source(folder), Limits(), host=host, port=port, public=True)  # who may come is the Space's own setting
'''


def save_space(folder: Path) -> None:
    """All but what `texts` gives: `python app.py` there serves the demo."""
    folder.mkdir()
    lines = [f"{name}=={_release(name)}" for name in NEEDED]
    (folder / "requirements.txt").write_text("\n".join(sorted(lines)) + "\n")
    for module in sorted(needed("src.demo")):
        path = SRC.parent / module
        target = folder / module
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.copyfile(SRC / "serving" / "page.css", folder / "src" / "serving" / "page.css")


def texts(story: CardFacts, *, repository: str | None) -> dict[str, str]:
    """name -> content of what depends on where the model lies: in `../hf`, or in a `repository` of the hub."""
    front = {
        "title": f"{story.name}: questions about medical images",
        "sdk": "gradio",
        "sdk_version": _release("gradio"),
        "python_version": "3.11",
        "app_file": "app.py",
        "license": "other",
        "models": [repository] if repository else [],
    }
    warning = "\n".join(filter(None, ["Research only, not for clinical use; send no picture of a real patient.\n", story.warning]))
    text = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {story.name}\n\n{warning}"
    return {"app.py": APP.replace("HERE", repository or "../hf"), "README.md": text}


def needed(start: str) -> set[str]:
    """The files of this project that a module imports, directly or through others, relative to the root."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None or path in found:
            continue
        found.add(path)
        waiting += [name.rpartition(".")[0]] if "." in name else []  # its package
        for module, names in IMPORT.findall((SRC.parent / path).read_text()):
            waiting += [module, *(f"{module}.{part.strip()}" for part in names.split(","))]
    return found


def _file(module: str) -> str | None:
    path = Path(*module.split("."))
    return next((str(p) for p in (path.with_suffix(".py"), path / "__init__.py") if (SRC.parent / p).is_file()), None)


def _release(name: str) -> str:
    return version(name).partition("+")[0]  # without the name of a local build
