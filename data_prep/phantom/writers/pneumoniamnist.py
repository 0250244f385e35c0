"""PneumoniaMNIST: grey chest X-ray, 0 normal, 1 pneumonia: here a cavity, a shape that the mix has no X-ray with."""

from functools import partial

from data_prep.phantom.writers.unseen import Look, write_npz

SIZES = {"train": 800, "val": 120, "test": 312}  # images; the original has 4,708 / 524 / 624
LOOKS = [Look("disc", 2), Look("ring", 2)]  # the normal ones have nodules, so that any mark at all does not answer
write = partial(write_npz, flag="pneumoniamnist", looks=LOOKS, modality="xray", weights=[1, 3], grey=True)
