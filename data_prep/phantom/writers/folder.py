"""Shared by the writers: atomic folders, the scenes of a split, and JPEG encoding."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg

from data_prep.phantom import draw
from data_prep.phantom.scene.world import Scene, item_rng, sample_scene
from src.data.record import PHANTOM_MARKER


def write_if_changed(out: Path, settings: dict, write: Callable[[Path], None]) -> bool:
    """Writes `out` with `write(temporary folder)`. Returns False if it exists already with the same settings."""
    stamp = out / PHANTOM_MARKER
    if stamp.exists() and json.loads(stamp.read_text()) == settings:
        return False
    temporary = out.with_name(out.name + ".tmp")
    for old in (temporary, out):
        shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    (temporary / stamp.name).write_text(json.dumps(settings))
    temporary.rename(out)
    return True


def scenes(seed: int, dataset: str, split: str, number: int, modalities) -> Iterator[tuple[Scene, np.random.Generator]]:
    """The scenes of a split, each with the generator of its image and texts. A longer split begins with the items of a shorter one."""
    for item in range(number):
        rng = item_rng(seed, dataset, split, item)
        yield sample_scene(rng, modalities=modalities), rng


def render_jpeg(scene: Scene, rng: np.random.Generator, *, quality: int = 88) -> bytes:
    return simplejpeg.encode_jpeg(draw.render(scene, rng), quality=quality, colorsubsampling="420")
