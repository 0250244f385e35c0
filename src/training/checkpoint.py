"""Checkpoints: what was trained, the plain config, the data state; nothing that `weights_only=True` would refuse."""

import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from src.model.vlm import VLM
from src.runtime.errors import UserError

RESUMED = {"state_dict", "weights", "DataModule", "global_step", "pytorch-lightning_version"}


def trained_state(model: VLM) -> dict[str, Tensor]:
    """The parameters that differ from the stored weights: trainable ones, and what an earlier stage had trained."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad or name in model.inherited}


def restore_state(model: VLM, state: dict[str, Tensor], *, whole: bool = True) -> None:
    """Copies trained parameters back; an unknown one, one of another shape or, if `whole`, a missing one is an error."""
    params = dict(model.named_parameters())
    needed = {name for name, p in params.items() if p.requires_grad and whole}
    missing, unknown = sorted(needed - set(state)), sorted(set(state) - set(params))
    reshaped = [name for name in state if name in params and params[name].shape != state[name].shape]
    for what, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes for", reshaped)):
        if names:
            some = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            raise UserError(f"the checkpoint {what} {some}; was it made with another model?")
    with torch.no_grad():
        for name, value in state.items():
            params[name].copy_(value)
    model.inherited |= set(state)


def load_checkpoint(model: VLM, path: Path, *, whole: bool = True) -> None:
    """The trained parameters of a checkpoint file into a model that was built from the same configuration.

    `whole=False` is the start of a new stage: what the file holds is taken, other trainable parameters stay as they are.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    check_same_weights(model, stored.get("weights", {}))
    if any("lora_" in name for name in stored["state_dict"]):
        check_same_adapters(model, stored.get("config", {}).get("language", {}).get("lora", {}))
    restore_state(model, stored["state_dict"], whole=whole)


def check_same_weights(model: VLM, stored: dict[str, dict[str, str]]) -> None:
    """Frozen weights are not in a checkpoint, and adapters fit no others; raises `UserError` where they differ."""
    for part, then in stored.items():
        now = model.weights[part]
        if now["sha256"] != then["sha256"]:
            raise UserError(
                f"the checkpoint was trained on {part} weights {then['id']} (revision {then['revision']}, sha256 {then['sha256'][:12]}), "
                f"but {part}.path={now['id']} holds sha256 {now['sha256'][:12]}; give it the weights of then"
            )


def check_same_adapters(model: VLM, then: dict) -> None:
    """Raises `UserError` where adapters would come into others: of another alpha they fit without an error, and weigh more or less."""
    peft = model.language.model.peft_config["default"]
    now = {"rank": peft.r, "alpha": peft.lora_alpha, "targets": sorted(peft.target_modules)}
    for key, value in now.items():
        stored = sorted(then.get(key, value)) if key == "targets" else then.get(key, value)
        if stored != value:
            raise UserError(f"the checkpoint's adapters were trained with language.lora.{key}={stored}, now {value}; set it to that")


def choose_checkpoint(folder: Path, which: str) -> Path:
    """The checkpoint file of a run folder: `best` by validation loss, else, and for `last`, the newest."""
    best = folder / "checkpoints" / "best.ckpt"
    if which == "best" and best.exists():
        fault = checkpoint_damage(best, holds={"state_dict"})
        if fault:  # another one instead would be another model without a word
            raise UserError(f"{best} cannot be read ({fault}); remove it, and the newest checkpoint of the run is taken instead")
        return best
    found = newest_checkpoint(folder / "checkpoints")
    if found is None:
        raise UserError(f"{folder} holds no checkpoint; train it first: python -m src.train name={folder.name} ...")
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole `step=N.ckpt` of a run; damaged ones are passed over with a warning, `None` if there is no other."""
    found = checkpoints_by_step(folder)[::-1]
    for path in found:
        fault = checkpoint_damage(path, holds=RESUMED)
        if not fault:
            return path
        instead = "trying the one before" if path != found[-1] else "there is none before it"
        print(f"warning: {path} cannot be read ({fault}); {instead}")
    return None


def checkpoint_damage(path: Path, *, holds: set[str]) -> str:
    """What keeps a file from being a checkpoint of ours; nothing for a whole one. Torch itself looks at no checksum of its archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any damage: a cut file, a bad zip, a wrong pickle
        return type(error).__name__
    if torn:
        return "its checksums are wrong"
    return "" if isinstance(stored, dict) and stored.keys() >= holds else "it is no checkpoint of a run"


def checkpoints_by_step(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first; copies that somebody keeps under other names are not touched."""
    found = {path: re.fullmatch(r"step=(\d+)\.ckpt", path.name) for path in folder.glob("step=*.ckpt")}
    return sorted((path for path, name in found.items() if name), key=lambda path: int(path.stem[5:]))
