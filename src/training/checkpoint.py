"""Checkpoint files: the trained parameters, the plain config and the data state, readable with `torch.load(weights_only=True)`."""

import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from src.model.vlm import VLM
from src.runtime.errors import UserError
from src.runtime.run_folder import run_name

RESUME_KEYS = {"state_dict", "weights", "DataModule", "global_step", "pytorch-lightning_version"}  # that a resume needs


def trained_state(model: VLM) -> dict[str, Tensor]:
    """The parameters that differ from the stored weights: the trainable ones, and those that an earlier stage trained."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad or name in model.inherited}


def restore_state(model: VLM, state: dict[str, Tensor], *, whole: bool = True) -> None:
    """Copies trained parameters into `model`.

    Raises `UserError` for an unknown parameter, another shape or, if `whole`, a missing trainable parameter.
    """
    params = dict(model.named_parameters())
    needed = {name for name, p in params.items() if p.requires_grad and whole}
    missing, unknown = sorted(needed - set(state)), sorted(set(state) - set(params))
    reshaped = [name for name in state if name in params and params[name].shape != state[name].shape]
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes for", reshaped)):
        if names:
            listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            raise UserError(
                f"the checkpoint {problem} {listed}; use the vision, projector and language settings in config.yaml of that run"
            )
    with torch.no_grad():
        for name, value in state.items():
            params[name].copy_(value)
    model.inherited |= set(state)


def load_checkpoint(model: VLM, path: Path, *, whole: bool = True) -> None:
    """Loads the trained parameters of a checkpoint file into a model that was built from the same configuration.

    With `whole=False`, which starts a new stage, the file may lack trainable parameters; they keep their values.

    Raises `UserError` if the frozen weights, the LoRA settings or the parameters differ.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    check_same_weights(model, stored.get("weights", {}))
    if any("lora_" in name for name in stored["state_dict"]):
        check_same_adapters(model, stored.get("config", {}).get("language", {}).get("lora", {}))
    restore_state(model, stored["state_dict"], whole=whole)


def check_same_weights(model: VLM, stored: dict[str, dict[str, str]]) -> None:
    """Raises `UserError` if the frozen weights differ: a checkpoint does not contain them, and its adapters fit no others."""
    for part, old in stored.items():
        new = model.weights[part]
        if new["sha256"] != old["sha256"]:
            raise UserError(
                f"the checkpoint was trained on {part} weights {old['id']} (revision {old['revision']}, sha256 {old['sha256'][:12]}), "
                f"but {part}.path={new['id']} holds sha256 {new['sha256'][:12]}; point {part}.path at the original weights"
            )


def check_same_adapters(model: VLM, stored: dict) -> None:
    """Raises `UserError` if rank, alpha or targets of the adapters differ. Another alpha would load without an error, but scale them."""
    peft = model.language.model.peft_config["default"]
    current = {"rank": peft.r, "alpha": peft.lora_alpha, "targets": sorted(peft.target_modules)}
    for key, value in current.items():
        old = sorted(stored.get(key, value)) if key == "targets" else stored.get(key, value)
        if old != value:
            raise UserError(
                f"the checkpoint's adapters were trained with language.lora.{key}={old}, now {value}; set language.lora.{key}={old}"
            )


def choose_checkpoint(folder: Path, which: str) -> Path:
    """The checkpoint file of a run folder: for `best` the one with the lowest validation loss, if it exists; else the newest."""
    best = folder / "checkpoints" / "best.ckpt"
    if which == "best" and best.exists():
        damage = checkpoint_damage(best, required={"state_dict"})
        if damage:  # falling back to another file would silently use another model
            raise UserError(f"{best} cannot be read ({damage}); remove it, and the newest checkpoint of the run is taken instead")
        return best
    newest = newest_checkpoint(folder / "checkpoints")
    if newest is None:
        raise UserError(f"{folder} holds no checkpoint; train it first: python -m src.train name={run_name(folder)} ...")
    return newest


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact `step=N.ckpt` of a run, or None. Each damaged file is skipped with a warning."""
    paths = checkpoints_by_step(folder)[::-1]
    for path in paths:
        damage = checkpoint_damage(path, required=RESUME_KEYS)
        if not damage:
            return path
        fallback = "trying the one before" if path != paths[-1] else "there is none before it"
        print(f"warning: {path} cannot be read ({damage}); {fallback}")
    return None


def checkpoint_damage(path: Path, *, required: set[str]) -> str:
    """Why a file cannot be used as a checkpoint with the keys `required`; empty if it can.

    The checksums of the archive are verified here, because `torch.load` does not verify them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            corrupt_member = archive.testzip()
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any damage: a truncated file, a bad zip, a wrong pickle
        return type(error).__name__
    if corrupt_member:
        return "its checksums are wrong"
    return "" if isinstance(stored, dict) and stored.keys() >= required else "it is no checkpoint of a run"


def checkpoints_by_step(folder: Path) -> list[Path]:
    """The files `step=N.ckpt` of a run, oldest first, without copies under other names."""
    matches = {path: re.fullmatch(r"step=(\d+)\.ckpt", path.name) for path in folder.glob("step=*.ckpt")}
    return sorted((path for path, match in matches.items() if match), key=lambda path: int(path.stem[5:]))
