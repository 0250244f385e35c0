"""OCTMNIST: grey optical coherence tomography, four classes; a modality that no source of the mix has."""

from functools import partial

from data_prep.phantom.writers.unseen import Look, write_npz

SIZES = {"train": 800, "val": 120, "test": 400}  # images; the original has 97,477 / 10,832 / 1,000
LOOKS = [Look("star"), Look("ring"), Look("disc", 3, size="small"), Look()]  # neovascularization, edema, drusen, normal
write = partial(write_npz, flag="octmnist", looks=LOOKS, modality="oct", weights=[2, 1, 1, 3], grey=True)
