"""The mini run fails where the model does not need its images."""

import json

import pytest

from experiments.mini import run


def metrics(shuffled: float, blank: float) -> dict:
    lows = {"shuffled": shuffled, "blank": blank}
    return {f"vqa/pooled/real_minus_{other}/all/bleu1": {"value": 0.3, "low": low, "high": 0.5, "n": 90} for other, low in lows.items()}


def test_own_images_must_beat_both_others():
    assert run.needs_no_image(metrics(0.1, 0.2)) is None
    said = run.needs_no_image(metrics(0.1, 0.0))
    assert said == "own images are not shown to beat blank ones: BLEU-1 of all questions, real - blank, 0.30 [0.00, 0.50]"
    assert "real - shuffled" in run.needs_no_image(metrics(-0.1, 0.2))


def test_where_one_of_them_was_not_asked_nothing_is_said():
    assert run.needs_no_image({}) is None
    found = metrics(-0.1, 0.2)
    found.pop("vqa/pooled/real_minus_blank/all/bleu1")
    assert run.needs_no_image(found) is None


@pytest.mark.parametrize(("words", "low", "code"), [([], 0.1, 0), ([], -0.1, 1), (["small"], -0.1, 0)])
def test_the_exit_code_says_so(tmp_path, monkeypatch, capsys, words, low, code):
    """A small run has no scores worth reading."""
    monkeypatch.setattr(run, "run_command", lambda command: 0)
    monkeypatch.setattr(run, "RESULT", tmp_path / "result.json")
    run.RESULT.write_text(json.dumps({"metrics": metrics(low, 0.2), "peak_rss_mb": 1.0}))
    assert run.main(words) == code
    assert ("error: own images are not shown" in capsys.readouterr().err) == bool(code)
