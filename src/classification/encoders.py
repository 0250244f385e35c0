"""Image encoders by their name on the command line.

biomedclip, pmc_clip, ...  a file in conf/vision
run:<name>                 the vision part that a run of this repository trained
scratch:<run or file>      the same architecture with random weights; its label is `scratch`
timm:<id>, hf:<id>         published weights: a timm name; a Hub repository or local folder of open_clip, transformers or timm
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.classification.names import check_encoder_name, encoder_files
from src.config.train import VisionConfig
from src.data.credentialed import exported_sources
from src.data.lineage import credentialed, lineage
from src.model.vision import Vision, identity, load_vision
from src.model.vision_checkpoints import HF_MODELS, untrained_copy
from src.model.weight_files import UNVERIFIED, find_file, read_json
from src.runtime.errors import UserError
from src.runtime.hashing import file_sha256
from src.runtime.run_folder import read_run
from src.runtime.schema import to_typed
from src.training.checkpoint import choose_checkpoint


@dataclass
class Encoder:
    """A named encoder. `label` is its name in metric keys and file names; `ours` is true if a run of this repository trained it."""

    name: str
    label: str
    config: VisionConfig
    checkpoint: Path | None = None
    trained_state: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def ours(self) -> bool:
        return self.checkpoint is not None

    @property
    def random(self) -> bool:
        """Whether the weights depend on the seed."""
        return self.config.format == "scratch" and not self.ours

    @property
    def credentialed(self) -> list[str]:
        """The credentialed sources that the encoder was trained on. Of a hub id they are known after its download."""
        if self.checkpoint:
            return credentialed(lineage(self.checkpoint.parent.parent))
        return exported_sources(self.config.path, revision=self.config.revision) if self.config.format != "scratch" else []

    @cached_property
    def identity(self) -> dict[str, str]:
        """{id, revision, sha256} of the weights. For a run they are those of the checkpoint, and `base` names the initial weights."""
        base = identity(self.config)
        if self.checkpoint is None:
            return base
        return {
            "id": self.name,
            "revision": self.checkpoint.name,
            "sha256": file_sha256(self.checkpoint),
            "base": f"{base['id']} {base['sha256']}".strip(),
        }

    def build(self, *, seed: int) -> Vision:
        """The encoder with its weights, in evaluation mode. `seed` is used for random weights."""
        torch.manual_seed(seed)
        vision = load_vision(self.config)
        state = vision.state_dict()
        wrong = [name for name, value in self.trained_state.items() if name not in state or state[name].shape != value.shape]
        if wrong:
            raise UserError(f"{self.checkpoint}: does not fit the encoder of its run: {', '.join(sorted(wrong)[:3])}; restore the file")
        vision.load_state_dict(self.trained_state, strict=False)
        return vision.eval()


def find_encoder(name: str, *, outputs: str, checkpoint: str) -> Encoder:
    """The encoder with this name. Local files are checked here; Hub files are downloaded by `build`. Raises `UserError` if unknown."""
    kind, colon, rest = name.partition(":")
    check_encoder_name(name, outputs=outputs)
    files = encoder_files()
    if colon and kind == "scratch" and rest in files:
        return Encoder(name, "scratch", untrained_copy(to_typed(VisionConfig, DictConfig(OmegaConf.load(files[rest])))))
    if colon and kind in ("run", "scratch"):
        folder, stored = read_run(outputs, rest)
        vision = to_typed(VisionConfig, DictConfig(stored["vision"]))
        if kind == "scratch":
            return Encoder(name, "scratch", untrained_copy(vision))
        path = choose_checkpoint(folder, checkpoint)
        return Encoder(name, to_label(name), vision, path, vision_state(path))
    if colon and kind == "timm":
        return Encoder(name, to_label(name), VisionConfig(format="timm", architecture=rest))
    if colon and kind == "hf":
        return Encoder(name, to_label(name), detect_format(rest))
    return Encoder(name, to_label(name), to_typed(VisionConfig, DictConfig(OmegaConf.load(files[name]))))


def to_label(name: str) -> str:
    """The name without slashes, which metric keys and file names cannot contain."""
    return name.replace("/", "_")


def vision_state(path: Path) -> dict[str, Tensor]:
    """The trained tensors of the image encoder in a checkpoint, without the prefix `vision.`."""
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    part = {name.removeprefix("vision."): value.clone() for name, value in state.items() if name.startswith("vision.")}
    if not part:
        raise UserError(
            f"{path}: no vision part, because the run froze the encoder (optim.lr.vision=0); give the encoder that it started from"
        )
    return part


def detect_format(path: str) -> VisionConfig:
    """The vision configuration for a repository or folder, from its configuration file. Raises `UserError` for an unknown type."""
    file = find_file(path, ["open_clip_config.json", "config.json"], revision=UNVERIFIED, key="encoder=hf:")
    if file.name == "open_clip_config.json":
        return VisionConfig(format="open_clip", path=path)
    model_config = read_json(file)
    formats = {model_type: name for name, (_, types, _) in HF_MODELS.items() for model_type in types}
    model_type = model_config.get("model_type") or ("timm" if "pretrained_cfg" in model_config else None)
    if model_type != "timm" and model_type not in formats:
        raise UserError(
            f"encoder=hf:{path}: unknown type {model_type!r}; give a CLIP, ViT, SigLIP or DINOv2 of transformers, "
            "or an open_clip or timm model"
        )
    config = VisionConfig(format=formats.get(model_type, "timm"), path=path)
    return replace(config, architecture=model_config["architecture"]) if model_type == "timm" else config
