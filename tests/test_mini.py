"""experiments/mini: the mini run fails if the model does not need its images."""

import json

import pytest

from experiments.mini import run


def metrics(shuffled: float, blank: float) -> dict:
    lows = {"shuffled": shuffled, "blank": blank}
    return {f"vqa/pooled/real_minus_{other}/all/bleu1": {"value": 0.3, "low": low, "high": 0.5, "n": 90} for other, low in lows.items()}


def test_correct_images_must_beat_shuffled_and_blank_ones():
    assert run.check_images_help(metrics(0.1, 0.2)) is None
    error_text = run.check_images_help(metrics(0.1, 0.0))
    assert error_text == "no significant gain of correct over blank images: BLEU-1 of all questions, real - blank, 0.30 [0.00, 0.50]"
    assert "real - shuffled" in run.check_images_help(metrics(-0.1, 0.2))


def test_no_error_if_a_condition_was_not_evaluated():
    assert run.check_images_help({}) is None
    values = metrics(-0.1, 0.2)
    values.pop("vqa/pooled/real_minus_blank/all/bleu1")
    assert run.check_images_help(values) is None


@pytest.mark.parametrize(("args", "low", "code"), [([], 0.1, 0), ([], -0.1, 1), (["small=true"], -0.1, 0)])
def test_exit_code_is_one_if_images_do_not_help(tmp_path, monkeypatch, capsys, args, low, code):
    """A small run is not checked, because its scores mean nothing."""
    monkeypatch.setattr(run, "run_command", lambda command: 0)
    monkeypatch.setattr(run, "RESULT", tmp_path / "result.json")
    run.RESULT.write_text(json.dumps({"metrics": metrics(low, 0.2), "peak_rss_mb": 1.0}))
    assert run.main(args) == code
    assert ("error: no significant gain of correct over" in capsys.readouterr().err) == bool(code)
