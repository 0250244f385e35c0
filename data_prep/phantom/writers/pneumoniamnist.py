"""PneumoniaMNIST: grey chest X-ray, 0 normal, 1 pneumonia: here a cavity, a shape that no X-ray of the mix has."""

from functools import partial

from data_prep.phantom.writers.unseen import Look, write_npz

SIZES = {"train": 800, "val": 120, "test": 312}  # images; the original has 4,708 / 524 / 624
LOOKS = [Look("disc", 2), Look("ring", 2)]  # normal images have nodules, so that the presence of a mark is not the answer
write = partial(write_npz, flag="pneumoniamnist", looks=LOOKS, modality="xray", weights=[1, 3], grey=True)
