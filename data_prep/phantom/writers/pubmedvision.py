"""PubMedVision's alignment part as on the hub: one JSON array of conversations and images in several zip archives.

Reproduced faults: a fifth of the rows have several images, a few images are in no archive, and each archive has another
folder.
"""

import json
import zipfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from data_prep.phantom.scene.wording import NUMBERS, caption
from data_prep.phantom.scene.world import MODALITIES, Scene, pick, sample_scene
from data_prep.phantom.writers.folder import render_jpeg, scenes

SIZES = {"train": 400}  # conversations
ARCHIVES = 2
SEVERAL = 0.22  # share of the rows, as its card says
PROMPTS = {
    False: ("Please describe this picture.", "Describe the image in one sentence.", "Write a caption for this medical image."),
    True: ("Please describe these pictures.", "Describe the images one after the other.", "Write a caption for each of the images."),
}


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    rows = []
    with ExitStack() as stack:
        archives = [stack.enter_context(zipfile.ZipFile(out / f"images_{n}.zip", "w", zipfile.ZIP_STORED)) for n in range(ARCHIVES)]
        for n, (scene, rng) in enumerate(scenes(seed, "pubmedvision", "train", num["train"], tuple(MODALITIES))):
            figure = _scenes(scene, rng)
            names = [f"pmc_{n}_{place}.jpg" for place in range(len(figure))]
            for name, one in zip(names, figure, strict=True):
                jpeg = render_jpeg(one, rng)
                if n % 100 != 99:
                    archive = n % ARCHIVES
                    archives[archive].writestr(zipfile.ZipInfo(f"images_{archive}/{name}"), jpeg)
            rows.append(
                {
                    "image": [f"images/{name}" for name in names],
                    "id": f"Alignment_VQA_{n}",
                    "modality": MODALITIES[scene.modality].display_name,
                    "body_part": scene.organ,
                    "conversations": _conversation(figure, rng),
                }
            )
    (out / "PubMedVision_Alignment_VQA.json").write_text(json.dumps(rows, indent=1))


def _scenes(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    more = int(rng.integers(1, 3)) if rng.random() < SEVERAL else 0
    return [scene, *(sample_scene(rng, modalities=[scene.modality]) for _ in range(more))]


def _conversation(scenes: list[Scene], rng: np.random.Generator) -> list[dict[str, str]]:
    captions = [caption(scene, rng) for scene in scenes]
    if len(captions) > 1:
        captions = [f"Image {NUMBERS[n]}: {one}" for n, one in enumerate(captions, start=1)]
    prompt = pick(rng, PROMPTS[len(captions) > 1])
    return [{"from": "human", "value": prompt}, {"from": "gpt", "value": " ".join(captions)}]
