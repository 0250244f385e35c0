"""`python -m src.evaluate run=NAME`: answers the test questions, writes every prediction, then scores the files."""

import json
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from src.config.evaluate import EvaluateConfig, check_evaluate_config
from src.config.train import TrainConfig
from src.runtime import run_folder
from src.runtime.cli import command
from src.runtime.run_names import follow_up, match_runs
from src.runtime.schema import to_typed


def evaluate(config: EvaluateConfig) -> Path:
    """Answers every question under every image condition and with every baseline, scores these benchmarks only, and returns the run."""
    folder, stored = run_folder.read_run(config.outputs, config.run or "")
    trained = to_typed(TrainConfig, OmegaConf.create(stored))
    from src.data.remote import CacheConfig
    from src.evaluation import benchmark  # imports pyarrow, which a wrong name of a run need not wait for

    root, cache = config.data_root or trained.data.root, CacheConfig(trained.data.cache, trained.data.cache_gb)
    names = config.benchmark_names or benchmark.benchmarks_of_mix(trained.mix, root, cache=cache)
    tests = [benchmark.read_benchmark(name, root=root, limit=config.limit, cache=cache) for name in names]
    conditions = {test.name: benchmark.image_conditions(test, config.images, images=trained.data.images) for test in tests}
    from src.commands.evaluate import evaluate_run  # imports torch, which takes seconds: mistakes are reported before

    evaluate_run(config, folder, trained, tests, conditions)
    return folder


@command("evaluate", EvaluateConfig, validate=check_evaluate_config)
def main(config: EvaluateConfig) -> None:
    if config.predictions:
        from src.commands.score import score_predictions

        folder = score_predictions(config)
        print_scores(folder, config.outputs, protocols=True)
        return
    for name in match_runs(config.outputs, config.run or ""):
        folder = evaluate(replace(config, run=name))
        if run_folder.is_first_rank():
            print_scores(folder, config.outputs)


def print_scores(folder: Path, outputs: str, *, protocols: bool = False) -> None:
    from src.evaluation import summary

    result = json.loads((folder / "evaluate.json").read_text())
    print(summary.summary_text(result))
    if protocols:
        print(summary.protocol_text(result))
    print(f"{folder}/evaluate.json; next: {follow_up('report', str(folder.relative_to(outputs)), outputs)}")


if __name__ == "__main__":
    main()
