"""RetinaMNIST: colour fundus, five ordered grades; here a grade is the number of haemorrhages, a shape that no fundus of the mix has."""

from functools import partial

from data_prep.phantom.writers.unseen import Look, write_npz

SIZES = {"train": 540, "val": 120, "test": 300}  # images; the original has 1,080 / 120 / 400
LOOKS = [Look(), *(Look("rod", count) for count in (1, 2, 3, 4))]
write = partial(write_npz, flag="retinamnist", looks=LOOKS, modality="fundus", weights=[5, 2, 3, 3, 1], grey=False)
