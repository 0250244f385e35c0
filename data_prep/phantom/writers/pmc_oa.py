"""PMC-OA as on the hub: `pmc_oa.jsonl` and `images.zip`, several figure parts per article.

Reproduced faults: a few images are missing in the archive, some figure parts have two captions.
"""

import json
import zipfile
from pathlib import Path

from data_prep.phantom.scene.wording import caption
from data_prep.phantom.scene.world import MODALITIES
from data_prep.phantom.writers.folder import render_jpeg, scenes

SIZES = {"train": 5000}  # figure parts
FOLDER = "caption_T060_filtered_top4_sep_v0_subfigures"
PARTS = 4  # figure parts per article


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    lines = []
    with zipfile.ZipFile(out / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for n, (scene, rng) in enumerate(scenes(seed, "pmc_oa", "train", num["train"], tuple(MODALITIES))):
            name = f"PMC{1_000_000 + n // PARTS}_Fig{n % PARTS + 1}_{n % PARTS}.jpg"
            jpeg = render_jpeg(scene, rng)
            if n % 400 != 399:
                archive.writestr(zipfile.ZipInfo(f"{FOLDER}/{name}"), jpeg)
            captions = [caption(scene, rng) for _ in range(1 + (n % 50 == 49))]
            lines += [
                json.dumps({"image": name, "pmcid": name.split("_")[0], "alignment_type": "dual", "caption": text}) for text in captions
            ]
    (out / "pmc_oa.jsonl").write_text("".join(f"{line}\n" for line in lines))
