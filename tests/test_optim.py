import pytest

from src.model.vlm import build_vlm
from src.training.optim import epochs_to_steps, lr_factor, optimizer


def test_each_part_has_its_learning_rate_and_only_matrices_decay(configure):
    config = configure("optim.weight_decay=0.1", "optim.lr={vision: 1e-5, projector: 0, language: 2e-4}")
    model = build_vlm(config)
    groups = optimizer(model, config.optim).param_groups
    assert {(group["part"], group["lr"]) for group in groups} == {("vision", 1e-5), ("language", 2e-4)}
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.1) for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_cosine_schedule_warms_up_and_decays_to_a_tenth(configure):
    optim = configure("optim.steps=1000", "optim.warmup=100").optim
    factors = [lr_factor(step, optim) for step in range(1000)]
    assert factors[0] == 0.01
    assert factors[99] == factors[100] == max(factors) == 1.0
    assert factors[:100] == sorted(factors[:100])
    assert factors[100:] == sorted(factors[100:], reverse=True)
    assert lr_factor(550, optim) == pytest.approx(0.55)
    assert lr_factor(1000, optim) == pytest.approx(0.1)


def test_constant_schedule_keeps_the_peak(configure):
    optim = configure("optim.steps=50", "optim.warmup=0", "optim.schedule=constant").optim
    assert {lr_factor(step, optim) for step in range(50)} == {1.0}


@pytest.mark.parametrize(("warmup", "shortened"), [(5, 5), (6, 0), (500, 0)])
def test_warmup_that_is_not_shorter_than_the_run_is_shortened_with_a_note(configure, capsys, warmup, shortened):
    assert epochs_to_steps(configure(f"optim.warmup={warmup}")).optim.warmup == shortened
    assert (f"optim.warmup={warmup} is not shorter than the 6 steps of the run" in capsys.readouterr().out) == (warmup != shortened)
