"""One writer per raw layout: `write(out, seed=, num=)` fills an empty folder; `SIZES` are the items per split at scale 1."""

from data_prep.phantom.writers import breastmnist, pathvqa, pmc_oa, pubmedqa, vqa_med_2019

WRITERS = {module.__name__.rpartition(".")[2]: module for module in (pathvqa, vqa_med_2019, pmc_oa, pubmedqa, breastmnist)}
