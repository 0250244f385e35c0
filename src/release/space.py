"""A folder that runs as a hosted gradio Space: the demo, the source files it needs, pinned requirements and front matter."""

import ast
import shutil
from importlib.metadata import version
from pathlib import Path

from src.release.card import CardFacts, card_front

SRC = Path(__file__).resolve().parent.parent
# The packages that the demo imports besides gradio and its requirements.
REQUIREMENTS: tuple[str, ...] = ("torch", "torchvision", "lightning", "transformers", "peft", "timm", "safetensors", "numpy", "pillow")
REQUIREMENTS += ("simplejpeg", "pydicom", "pyarrow", "xxhash", "msgspec", "fsspec", "aiohttp", "omegaconf", "hydra-core", "psutil")
REQUIREMENTS += ("pyyaml", "tqdm")

APP = '''"""Demo of this model in a browser. Research only, not for clinical use."""

import os

from huggingface_hub import snapshot_download

from src.demo import serve
from src.inference.query import find_model
from src.serving.limits import Limits

MODEL = os.environ.get("MODEL", "HERE")  # a folder or a repository of the Hugging Face Hub

if __name__ == "__main__":
    folder = MODEL if os.path.isdir(MODEL) else snapshot_download(MODEL, token=os.environ.get("HF_TOKEN"))
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), int(os.environ.get("PORT", "7860"))
    serve(find_model(folder), Limits(), host=host, port=port, public=True)  # the Space's own settings control access
'''


def save_space(folder: Path) -> None:
    """Writes everything except `texts`; with both, `python app.py` in the folder serves the demo."""
    folder.mkdir()
    lines = [f"{name}=={_release(name)}" for name in REQUIREMENTS]
    (folder / "requirements.txt").write_text("\n".join(sorted(lines)) + "\n")
    for file in sorted(imported_files("src.demo")):
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SRC.parent / file, target)
    shutil.copyfile(SRC / "serving" / "page.css", folder / "src" / "serving" / "page.css")


def texts(facts: CardFacts, *, repository: str | None) -> dict[str, str]:
    """The files, by name, that depend on the location of the model: `../hf`, or a `repository` of the Hub."""
    front = {
        "title": f"{facts.name}: questions about medical images",
        "sdk": "gradio",
        "sdk_version": _release("gradio"),
        "python_version": "3.11",
        "app_file": "app.py",
        "license": "other",
        "models": [repository] if repository else [],
    }
    warning = "\n".join(["Research only, not for clinical use. Do not upload images of real patients.\n", *facts.warnings])
    text = f"{card_front(facts, front)}# {facts.name}\n\n{warning}"
    return {"app.py": APP.replace("HERE", repository or "../hf"), "README.md": text}


def imported_files(module: str) -> set[str]:
    """The files of this repository that a module imports, directly or indirectly, relative to the root."""
    files: set[str] = set()
    queue: list[str] = [module]
    while queue:
        name = queue.pop()
        path = _file(name)
        if path is None or path in files:
            continue
        files.add(path)
        queue += [name.rpartition(".")[0]] if "." in name else []  # the package of the module
        for node in ast.walk(ast.parse((SRC.parent / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == SRC.name:
                queue += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return files


def _file(module: str) -> str | None:
    path = Path(*module.split("."))
    return next((str(p) for p in (path.with_suffix(".py"), path / "__init__.py") if (SRC.parent / p).is_file()), None)


def _release(name: str) -> str:
    return version(name).partition("+")[0]  # without the suffix of a local build such as +cpu
