"""OrganCMNIST: grey coronal CT, eleven organs, three of them with a side. Here an organ is a shape on a side."""

from functools import partial

from data_prep.phantom.writers.unseen import Look, write_npz

SIZES = {"train": 1100, "val": 220, "test": 440}  # images; the original has 12,975 / 2,392 / 8,216
PAIRED = {"femur": "rod", "kidney": "crescent", "lung": "specks"}
femur, kidney, lung = ([Look(shape, side=side) for side in ("left", "right")] for shape in PAIRED.values())
LOOKS = [Look("disc", size="small"), *femur, Look("star"), *kidney, Look("disc"), *lung, Look("spiculated"), Look("ring")]
write = partial(write_npz, flag="organcmnist", looks=LOOKS, modality="ct", weights=[1] * 11, grey=True)
