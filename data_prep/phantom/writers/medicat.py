"""MedICaT as unpacked from its archive: one figure per line of a jsonl file in `release/`, images in `release/figures/`.

Reproduced faults: three of four figures are compound, the licence is that of the article and often unknown, the
caption is in one of two fields, some figures are in ROCO too, a few images are missing.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.phantom import draw
from data_prep.phantom.scene.wording import caption
from data_prep.phantom.scene.world import MODALITIES, RADIOLOGY, Scene, sample_scene
from data_prep.phantom.writers.roco import scenes_shared

SIZES = {"train": 500}  # figures
FIGURES = 3  # of one article
TABLE = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
LICENCES = ("CC BY", "CC BY-NC", "CC BY-NC-ND", None)


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    (out / "release" / "figures").mkdir(parents=True)
    lines = []
    for n, (scene, rng) in enumerate(scenes_shared(seed, "medicat", "train", num["train"], tuple(MODALITIES))):
        article, place = divmod(n, FIGURES)
        paper, uri = hashlib.sha1(f"phantom {article}".encode()).hexdigest(), f"{place + 2}-Figure{place + 1}-1.png"
        compound = n % 4 != 3
        pixels, text = _panels(scene, rng) if compound else (draw.render(scene, rng), caption(scene, rng))
        if n % 100 != 99:
            (out / "release" / "figures" / f"{paper}_{uri}").write_bytes(_png(pixels))
        text = f"Figure {place + 1}: {text}"
        lines.append(
            {
                "pdf_hash": paper,
                "fig_key": f"Figure {place + 1}",
                "fig_uri": uri,
                "s2_caption": "" if n % 10 == 7 else text,
                "s2orc_caption": text,
                "s2orc_references": [] if n % 3 else [f"{text.split(': ', 1)[1]} (Fig. {place + 1})."],
                "radiology": scene.modality in RADIOLOGY,
                "scope": compound,
                "predicted_type": "Medical images",
                "oa_info": {"doi": f"10.0000/phantom.{article}", "oa": {"license": LICENCES[article % len(LICENCES)]}},
            }
        )
    (out / "release" / TABLE).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def _panels(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Two images of one modality side by side, and a caption with a part for each."""
    pair = (scene, sample_scene(rng, modalities=[scene.modality]))
    panels = [draw.render(one, rng, sides=(128,)) for one in pair]
    text = [f"({letter}) {caption(one, rng).replace('the image', 'the panel')}" for letter, one in zip("ab", pair, strict=True)]
    return np.concatenate((panels[0], np.full((128, 4, 3), 255, np.uint8), panels[1]), axis=1), " ".join(text)


def _png(pixels_HW3: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels_HW3).save(out, "PNG", compress_level=1)
    return out.getvalue()
