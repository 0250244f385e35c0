"""One writer per raw layout: `write(out, seed=, num=)` fills an empty folder; `SIZES` are the items per split at scale 1."""

from data_prep.phantom.writers import (
    breastmnist,
    busi,
    cxr8,
    healthcaremagic,
    iu_xray,
    malaria,
    medfmc_chest,
    medfmc_colon,
    medfmc_endo,
    medframeqa,
    medical_flashcards,
    medicat,
    medmcqa,
    medqa,
    medxpertqa_mm,
    mimic_cxr,
    mmmu_med,
    octmnist,
    omnimedvqa,
    omnimedvqa_open,
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


UNSEEN = _named(breastmnist, retinamnist, octmnist, pneumoniamnist, organcmnist, pad_ufes_20, sicapv2, malaria)  # for transfer
UNSEEN |= _named(cxr8, medfmc_chest, medfmc_colon, medfmc_endo, busi)  # the transfer sets that the paper names
FULL = _named(pmc_oa, mimic_cxr, pubmedqa, medmcqa, pmc_vqa, omnimedvqa, roco, pathvqa, ubench, vqa_med_2019, medqa, iu_xray, slake)
FULL |= _named(vqa_rad)
FURTHER = _named(quilt_1m, medicat, pubmedvision, rocov2, healthcaremagic, medical_flashcards)  # not in the mix of the paper
EXAMS = _named(omnimedvqa_open, mmmu_med, medxpertqa_mm, medframeqa)  # benchmarks that no mix draws from
MINI = FULL | _named(breastmnist, retinamnist)  # what `make mini` needs
WRITERS = FULL | FURTHER | EXAMS | UNSEEN
