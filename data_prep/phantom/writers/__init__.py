"""One writer per raw layout: `write(out, seed=, num=)` fills an empty folder; `SIZES` are the items per split at scale 1."""

from data_prep.phantom.writers import (
    breastmnist,
    healthcaremagic,
    iu_xray,
    malaria,
    medical_flashcards,
    medicat,
    medmcqa,
    medqa,
    octmnist,
    organcmnist,
    pad_ufes_20,
    pathvqa,
    pmc_oa,
    pmc_vqa,
    pneumoniamnist,
    pubmedqa,
    pubmedvision,
    quilt_1m,
    retinamnist,
    roco,
    rocov2,
    sicapv2,
    slake,
    ubench,
    vqa_med_2019,
    vqa_rad,
)


def _named(*modules) -> dict:
    return {module.__name__.rpartition(".")[2]: module for module in modules}


MINI = _named(pathvqa, vqa_med_2019, pmc_oa, pubmedqa, breastmnist, retinamnist)  # what `make mini` needs
UNSEEN = _named(breastmnist, retinamnist, octmnist, pneumoniamnist, organcmnist, pad_ufes_20, sicapv2, malaria)  # for transfer
CAPTIONS = _named(quilt_1m, medicat, roco, iu_xray, pubmedvision, rocov2)
QUESTIONS = _named(slake, vqa_rad, pmc_vqa, ubench, medqa, medmcqa, medical_flashcards, healthcaremagic)
WRITERS = MINI | UNSEEN | CAPTIONS | QUESTIONS
