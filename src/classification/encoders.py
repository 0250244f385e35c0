"""Image encoders by the name that a command line gives them.

biomedclip, pmc_clip, ...  a file of conf/vision
run:<name>                 the vision part that a run of ours trained
scratch:<run or file>      the same architecture, freshly drawn; reported as `scratch`
timm:<id>, hf:<id>         published weights: a timm name; a hub repository or local folder of open_clip, transformers or timm
"""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.config.train import VisionConfig
from src.model.vision import Vision, identity, load_vision
from src.model.vision_checkpoints import untrained_copy
from src.model.weight_files import UNVERIFIED, find_file, read_json
from src.runtime.cli import CONF
from src.runtime.errors import UserError, suggest
from src.runtime.run_folder import read_run
from src.runtime.schema import to_typed
from src.training.checkpoint import choose_checkpoint

ENCODER_KINDS = ("run:NAME", "scratch:NAME", "timm:ID", "hf:ID")


@dataclass
class Encoder:
    """A named encoder. `label` is its part of metric keys and file names; `ours` marks what a run trained."""

    name: str
    label: str
    config: VisionConfig
    checkpoint: Path | None = None
    trained: dict[str, Tensor] = field(default_factory=dict, repr=False)
    run: dict = field(default_factory=dict, repr=False)  # configuration of the run that trained it

    @property
    def ours(self) -> bool:
        return self.checkpoint is not None

    @property
    def random(self) -> bool:
        """Whether another seed gives other weights."""
        return self.config.format == "scratch" and not self.ours

    @cached_property
    def identity(self) -> dict[str, str]:
        """{id, revision, sha256} of the weights; for a run those of its checkpoint, `base` naming what it started from."""
        base = identity(self.config)
        if self.checkpoint is None:
            return base
        with self.checkpoint.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"id": self.name, "revision": self.checkpoint.name, "sha256": digest, "base": f"{base['id']} {base['sha256']}".strip()}

    def build(self, *, seed: int) -> Vision:
        """The encoder with its weights, in evaluation mode; `seed` matters where they are drawn."""
        torch.manual_seed(seed)
        vision = load_vision(self.config)
        known = vision.state_dict()
        wrong = [name for name, value in self.trained.items() if name not in known or known[name].shape != value.shape]
        if wrong:
            raise UserError(f"{self.checkpoint} does not fit the encoder of its run: {', '.join(sorted(wrong)[:3])}")
        vision.load_state_dict(self.trained, strict=False)
        return vision.eval()


def find_encoder(name: str, *, outputs: str, checkpoint: str) -> Encoder:
    """The encoder of that name. Hub files are fetched when it is built, everything local is checked here."""
    kind, found, rest = name.partition(":")
    files = {path.stem: path for path in (CONF / "vision").glob("*.yaml")}
    if found and kind == "scratch" and rest in files:
        return Encoder(name, "scratch", untrained_copy(to_typed(VisionConfig, DictConfig(OmegaConf.load(files[rest])))))
    if found and kind in ("run", "scratch"):
        folder, stored = read_run(outputs, rest)
        vision = to_typed(VisionConfig, DictConfig(stored["vision"]))
        if kind == "scratch":
            return Encoder(name, "scratch", untrained_copy(vision))
        path = choose_checkpoint(folder, checkpoint)
        return Encoder(name, to_label(name), vision, path, vision_state(path), stored)
    if found and kind == "timm":
        return Encoder(name, to_label(name), VisionConfig(format="timm", architecture=rest))
    if found and kind == "hf":
        return Encoder(name, to_label(name), detect_format(rest))
    if name not in files:
        raise UserError(f"encoder={name}{suggest(name, [*files, *ENCODER_KINDS])}")
    return Encoder(name, to_label(name), to_typed(VisionConfig, DictConfig(OmegaConf.load(files[name]))))


def to_label(name: str) -> str:
    """Metric keys and file names have no room for a slash."""
    return name.replace("/", "_")


def vision_state(path: Path) -> dict[str, Tensor]:
    """What a checkpoint trained of its image encoder, without the prefix `vision.`."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    part = {name.removeprefix("vision."): value.clone() for name, value in state.items() if name.startswith("vision.")}
    if not part:
        raise UserError(f"{path} has no vision part: its run froze the encoder (optim.lr.vision=0); name the encoder that it started from")
    return part


def detect_format(path: str) -> VisionConfig:
    """Which format a repository or folder is of, told by its configuration file."""
    file = find_file(path, ["open_clip_config.json", "config.json"], revision=UNVERIFIED, key="encoder=hf:")
    if file.name == "open_clip_config.json":
        return VisionConfig(format="open_clip", path=path)
    described = read_json(file)
    formats = {"clip": "hf_clip", "clip_vision_model": "hf_clip", "vit": "hf_vit"}
    found = described.get("model_type") or ("timm" if "pretrained_cfg" in described else None)
    if found != "timm" and found not in formats:
        raise UserError(f"encoder=hf:{path} is of type {found!r}; CLIP and ViT of transformers, open_clip and timm models can be read")
    config = VisionConfig(format=formats.get(found, "timm"), path=path)
    return replace(config, architecture=described["architecture"]) if found == "timm" else config
