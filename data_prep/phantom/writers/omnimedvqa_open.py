"""OmniMedVQA as a test set: the files of `omnimedvqa`, with the same images as its training phantom, as in the original."""

from pathlib import Path

from data_prep.phantom.writers import omnimedvqa

SIZES = {"test": 60}  # images


def write(out: Path, *, seed: int, num: dict[str, int]) -> None:
    omnimedvqa.write(out, seed=seed, num={"train": num["test"]})
