"""src/training/revision_pinning.py: a run keeps the revision of its first start, which is the commit in the path of the hub's cache."""

import json
import shutil
from dataclasses import replace

import yaml

from src.model.weight_files import UNVERIFIED
from src.train import train
from src.training.revision_pinning import restore_revisions

REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_run_keeps_the_revision_of_its_first_start(configure, language, tmp_path, capsys):
    cached = tmp_path / "snapshots" / REVISION
    shutil.copytree(language, cached)
    config = configure(f"language.path={cached}", "optim.steps=1", "optim.warmup=0")
    assert config.language.revision == UNVERIFIED
    folder = train(config)
    message = f"language.revision: {cached} is at {REVISION}, which this run keeps"
    assert capsys.readouterr().out.count(message) == 1
    assert yaml.safe_load((folder / "config.yaml").read_text())["language"]["revision"] == REVISION
    assert json.loads((folder / "train.json").read_text())["weights"]["language"]["revision"] == REVISION

    assert restore_revisions(config, folder).language.revision == REVISION
    other = replace(config, language=replace(config.language, path="owner/other"))
    assert restore_revisions(other, folder).language.revision == UNVERIFIED
    chosen = replace(config, language=replace(config.language, revision="v1"))
    assert restore_revisions(chosen, folder).language.revision == "v1"

    (folder / "train.json").unlink()
    train(config)  # the same command is still the same configuration
    assert message not in capsys.readouterr().out
