"""src/data/token_budget.py: sizes come from the shards, or from sources.yaml for sources that are not built."""

import pytest
from rich.console import Console

from src.config.train import MixConfig
from src.data.shards import Shards
from src.data.token_budget import CHARACTERS_PER_TOKEN, budget_table, source_budgets


def test_source_budgets_of_built_and_missing_sources(configure, shards):
    mix = MixConfig({"alpha": 3, "beta": 1, "quilt_1m": 1, "medmcqa": 0}, decontaminate=True)
    alpha, beta, quilt = source_budgets(mix, configure().data, steps=1000, tokenizer={"id": "own"})
    opened = Shards(shards / "beta")
    rows = opened.rows("train")
    assert (beta.records, beta.images) == (len(rows), opened.column("num_images")[rows].sum())
    assert beta.text == pytest.approx(opened.column("text_length")[rows].mean() / CHARACTERS_PER_TOKEN)
    assert beta.disk == sum(path.stat().st_size for path in (shards / "beta").glob("*.tar"))
    assert alpha.draws == 1000 * 16 * 3 / 5
    assert alpha.epochs == pytest.approx(alpha.draws / 60)
    assert alpha.tokens(patches=4) == pytest.approx(alpha.draws * (alpha.text + 4))
    assert (quilt.built, quilt.records, quilt.images, quilt.text, quilt.tokens(4)) == (False, 768_826, 768_826, None, None)


def test_source_budgets_of_text_only_sources_need_little_disk(configure):
    mix = MixConfig({"medmcqa": 1, "slake": 1, "my_own": 1}, decontaminate=True)
    medmcqa, slake, own = source_budgets(mix, configure().data, steps=10, tokenizer={"id": "own"})
    assert medmcqa.images == 0
    assert medmcqa.disk / medmcqa.records < 0.1 * slake.disk / slake.records
    assert (own.records, own.disk, own.shards) == (0, 0, 0)
    console = Console(width=140, record=True)
    console.print(budget_table([medmcqa, slake, own], patches=4))
    assert "medmcqa (not built)" in console.export_text()
