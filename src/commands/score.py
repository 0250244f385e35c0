"""Scores a predictions file of any system; needs neither a model nor torch. The command is `src/evaluate.py`."""

from pathlib import Path

from src.config.evaluate import EvaluateConfig
from src.evaluation import benchmark, judge, predictions_file, summary
from src.evaluation.foreign_predictions import check_references, read_foreign_predictions
from src.runtime import run_folder
from src.runtime.errors import UserError, suggest


def score_predictions(config: EvaluateConfig) -> Path:
    """Scores `config.predictions` in a folder of its own, and returns this folder."""
    path, names = Path(config.predictions or ""), config.benchmark_names
    if len(names) > 1:
        raise UserError(f"benchmarks={names}: a predictions file answers one benchmark, found {len(names)}; give one name")
    name = names[0] if names else "file"
    test = benchmark.read_benchmark(name, root=config.data_root, limit=config.limit) if names and config.data_root else None
    if names and not test and name not in benchmark.benchmark_names():
        raise UserError(f"benchmarks={name}: unknown without data_root={suggest(name, benchmark.benchmark_names())}")
    items = read_foreign_predictions(path, benchmark=name, ids=test.ids if test else None)
    items = [{"source": name, "type": "", "image": "", **item} for item in items]  # fields of predictions files that a run writes
    if test:
        check_references(items, {item["id"]: item["references"] for item in test.items}, path)
    else:
        print(f"{path}: ids not checked; give benchmarks= and data_root= to compare them with the questions of a benchmark")
    folder = Path(config.outputs) / (config.name or path.stem)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder}: is the folder of a trained run; give another name=")
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    verdicts = None
    if config.judge.url:
        sources = {item["source"] for item in items} | {test.source if test else name}
        judge.reject_credentialed(sources, test.shards.manifest if test else {}, config.judge.url)
        items, verdicts = judge.judge_items(items, config.judge, folder / "predictions" / f"{name}.judged.jsonl")
        print(judge.agreement_text(verdicts))
    with run_folder.record(folder, "evaluate") as result:
        result["predictions"] = path.name
        predictions_file.write_predictions(folder / "predictions" / f"{name}.real.jsonl", items)
        result |= {"judge": verdicts} if verdicts else {}
        result |= summary.summarise({name: {"real": items}}, pooled=[], resamples=config.resamples, seed=config.seed)
    return folder
