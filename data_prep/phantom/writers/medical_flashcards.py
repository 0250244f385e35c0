"""Medical flashcards as on the hub: one JSON array of instruction, input and output; some outputs are empty."""

import json
from pathlib import Path

from data_prep.phantom.scene.clinic import card
from data_prep.phantom.scene.world import MODALITIES
from data_prep.phantom.writers.folder import scenes

SIZES = {"train": 300}  # cards
INSTRUCTION = "Answer this question truthfully"


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    rows = []
    for n, (scene, rng) in enumerate(scenes(seed, "medical_flashcards", "train", num["train"], tuple(MODALITIES))):
        question, answer = card(scene, rng)
        rows.append({"instruction": INSTRUCTION, "input": question, "output": "" if n % 50 == 49 else answer})
    (out / "medical_meadow_wikidoc_medical_flashcards.json").write_text(json.dumps(rows, indent=1))
