"""src/training/revision_pinning.py: the commit of a hub's weights, which stands in the path of its cache, is the run's from its first start on."""

import json
import shutil
from dataclasses import replace

import yaml

from src.model.weight_files import UNVERIFIED
from src.train import train
from src.training.revision_pinning import restore_revisions

FOUND = "0123456789abcdef0123456789abcdef01234567"


def test_a_run_keeps_the_revision_that_its_first_start_found(configure, language, tmp_path, capsys):
    cached = tmp_path / "snapshots" / FOUND
    shutil.copytree(language, cached)
    config = configure(f"language.path={cached}", "optim.steps=1", "optim.warmup=0")
    assert config.language.revision == UNVERIFIED
    folder = train(config)
    said = f"language.revision: {cached} is at {FOUND}, which this run keeps"
    assert capsys.readouterr().out.count(said) == 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["language"]["revision"] == FOUND
    assert json.loads((folder / "train.json").read_text())["weights"]["language"]["revision"] == FOUND

    assert restore_revisions(config, folder).language.revision == FOUND
    other = replace(config, language=replace(config.language, path="owner/other"))
    assert restore_revisions(other, folder).language.revision == UNVERIFIED
    chosen = replace(config, language=replace(config.language, revision="v1"))
    assert restore_revisions(chosen, folder).language.revision == "v1"

    (folder / "train.json").unlink()
    train(config)  # the same command is still the same configuration
    assert said not in capsys.readouterr().out
