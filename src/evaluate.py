"""`python -m src.evaluate run=NAME`: answer the test questions, write every prediction, then score the files."""

import hashlib
import json
import zlib
from pathlib import Path

import torch
from omegaconf import OmegaConf

from src.config.evaluate import EvaluateConfig
from src.config.train import TrainConfig
from src.data.remote import CacheConfig
from src.evaluation import baselines, benchmark, predictions_file, summary
from src.evaluation.benchmark import Benchmark
from src.evaluation.foreign_predictions import check_references, read_foreign_predictions
from src.evaluation.overlap import mark, overlaps
from src.evaluation.predictions_file import PredictionsFile
from src.model.generate import Generator, make_request
from src.model.vlm import build_vlm
from src.runtime import distributed, run_folder
from src.runtime.cli import command
from src.runtime.distributed import Ranks
from src.runtime.errors import UserError, suggest
from src.runtime.progress import Progress
from src.runtime.schema import check_choice, to_typed
from src.tracking import wandb_run
from src.training.checkpoint import choose_checkpoint, load_checkpoint

BENCHMARKS = ["pathvqa", "vqa_med_2019"]


def evaluate(config: EvaluateConfig) -> Path:
    """Every question under every image condition and by every control, then the scores of these benchmarks, and of no earlier ones."""
    folder, stored = run_folder.read_run(config.outputs, config.run or "")
    trained = to_typed(TrainConfig, OmegaConf.create(stored))
    root = config.data_root or trained.data.root
    cache = CacheConfig(trained.data.cache, trained.data.cache_gb)
    tests = [
        benchmark.read_benchmark(name, root=root, limit=config.limit, cache=cache) for name in to_list(config.benchmarks) or BENCHMARKS
    ]
    asked = {test.name: benchmark.image_conditions(test, config.images, images=trained.data.images) for test in tests}
    path = choose_checkpoint(folder, config.checkpoint)

    with distributed.join_ranks() as ranks, run_folder.record(folder, "evaluate") as said:
        said["checkpoint"] = path.name
        model = build_vlm(trained)
        load_checkpoint(model, path)
        prompter = model.prompter(budget=config.max_seq_len or trained.data.max_seq_len)
        decoding = {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "top_p")}
        generator = Generator(model.to(select_device(config.accelerator, ranks)), prompter, batch=config.batch, **decoding)
        depends_on = {"checkpoint": _digest(path), "row_tokens": prompter.budget, "seed": config.seed, **decoding}
        if ranks.is_first:  # who writes the files
            said["seen"] = mark_seen(tests, stored, path, outputs=config.outputs)
        for test in tests:
            for condition in asked[test.name]:
                about = {**depends_on, "shards": test.shards.manifest["fingerprint"]}
                about |= {"cycle": benchmark.shuffle_cycle(test, seed=config.seed)} if condition == "shuffled" else {}
                file = PredictionsFile(predictions_path(folder, test, condition), about, team=ranks)
                answer_condition(test, condition, generator, file, exact=trained.data.exact_decode, seed=config.seed)
            for name, guesses in baselines.baseline_answers(test).items() if ranks.is_first else ():
                file = PredictionsFile(predictions_path(folder, test, name), {"shards": test.shards.manifest["fingerprint"]})
                file.add({**item, "prediction": guess} for item, guess in zip(test.items, guesses, strict=True))
                file.finish(test.items)
        if not ranks.is_first:
            return folder
        said["asked"] = {test.name: len(test.rows) for test in tests}  # those stand first in their files
        found = {test.name: read_conditions(test, folder, [*asked[test.name], *baselines.BASELINES]) for test in tests}
        said |= summary.summarise(found, pooled=[test.name for test in tests if test.pooled], resamples=config.resamples, seed=config.seed)
    wandb_run.update_run(folder)
    return folder


def mark_seen(tests: list[Benchmark], stored: dict, checkpoint: Path, *, outputs: str) -> dict[str, dict]:
    """Marks the questions that the run was trained on, by the audits as they are now. Prints and gives what is known per benchmark."""
    found = overlaps(stored, checkpoint, {test.set_name: test.shards.manifest["fingerprint"] for test in tests}, outputs=outputs)
    named: dict[str, list[str]] = {}  # note -> benchmarks
    for test in tests:
        mark(test, found[test.set_name])
        for note in found[test.set_name].notes:
            named.setdefault(note, []).append(test.name)
    for note, names in named.items():
        print(f"{', '.join(names)}: {note}")
    partly = [test.name for test in tests if not found[test.set_name].complete]
    if partly:
        print(f"{', '.join(partly)}: whether training has seen the questions that are not marked as seen is unknown")
    about = {test.name: found[test.set_name] for test in tests}
    return {name: {"records": one.found, "complete": one.complete, "notes": one.notes} for name, one in about.items()}


def read_conditions(test: Benchmark, folder: Path, conditions: list[str]) -> dict[str, list[dict]]:
    """The answers to the questions of this command, by condition; the files may hold those to more."""
    return {
        condition: predictions_file.read_predictions(predictions_path(folder, test, condition))[: len(test.rows)]
        for condition in conditions
    }


def select_device(accelerator: str, ranks: Ranks) -> torch.device:
    """The GPU of this rank, or the CPU. A rank to which Slurm shows its own GPU alone takes that one."""
    found = torch.cuda.is_available() and accelerator != "cpu"
    return torch.device(f"cuda:{ranks.local % torch.cuda.device_count()}" if found else "cpu")


def answer_condition(test: Benchmark, condition: str, generator: Generator, file: PredictionsFile, *, exact: bool, seed: int) -> None:
    """Fills a predictions file; questions that stand in it already are not asked again. Ranks share the images among them."""
    shown, vision = benchmark.shown_rows(condition, test, seed=seed), generator.model.vision
    missing = [n for n in range(len(test.items)) if test.items[n]["id"] not in file.lines]
    missing.sort(key=lambda n: test.items[n]["image"])  # the questions of one image in one block: its pixels are embedded once
    missing = questions_of_rank(missing, [test.items[n]["image"] or test.items[n]["id"] for n in missing], file.team)
    block = 8 * generator.batch  # bounds the decoded images in memory
    with Progress(total=len(missing), desc=f"{test.name} {condition}", unit="question", disable=not missing) as progress:
        for at in range(0, len(missing), block):
            numbers = missing[at : at + block]
            seen = benchmark.condition_images(test, numbers, condition, shown, mean=vision.mean, size=vision.size, exact=exact)
            records = (test.shards.text(test.rows[n]) for n in numbers)
            questions = [
                make_request(record, images=pixels, prefix=name, prompter=generator.prompter, max_new_tokens=generator.max_new_tokens)
                for record, (name, pixels) in zip(records, seen, strict=True)
            ]
            for number, question in zip(numbers, questions, strict=True):  # what a question draws depends on nothing but itself
                question.seed = zlib.crc32(f"{seed} {test.items[number]['id']}".encode())
            options = [test.items[n].get("choices", []) for n in numbers]
            for number, found in generator.choices(questions, options) if test.choices else generator.answers(questions):
                file.add([{**test.items[numbers[number]], **found.line()}])
                progress.update()
    file.finish(test.items)


def questions_of_rank(numbers: list[int], images: list[str], team: Ranks) -> list[int]:
    """The questions of this rank: every image, with all its questions, belongs to one rank."""
    order = {image: place for place, image in enumerate(dict.fromkeys(images))}
    return [number for number, image in zip(numbers, images, strict=True) if order[image] % team.world == team.rank]


def score_predictions(config: EvaluateConfig) -> Path:
    """Scores of anybody's predictions file, without a model."""
    path, names = Path(config.predictions or ""), to_list(config.benchmarks)
    if len(names) > 1:
        raise UserError(f"benchmark={names}: a predictions file answers one benchmark, {len(names)} were given")
    name = names[0] if names else "file"
    test = benchmark.read_benchmark(name, root=config.data_root, limit=config.limit) if names and config.data_root else None
    if names and not test and name not in benchmark.benchmark_names():
        raise UserError(f"benchmark={name} is not known without data_root={suggest(name, benchmark.benchmark_names())}")
    items = read_foreign_predictions(path, benchmark=name, ids=test.ids if test else None)
    items = [{"source": name, "type": "", "image": "", **item} for item in items]  # as our own files have them
    if test:
        check_references(items, {item["id"]: item["references"] for item in test.items}, path)
    else:
        print(f"{path}: ids not checked; give benchmark= and data_root= to hold them to the questions of a benchmark")
    folder = Path(config.outputs) / (config.name or path.stem)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is the folder of a trained run; give another name=")
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    with run_folder.record(folder, "evaluate") as said:
        said["predictions"] = path.name
        predictions_file.write_predictions(folder / "predictions" / f"{name}.real.jsonl", items)
        said |= summary.summarise({name: {"real": items}}, pooled=[], resamples=config.resamples, seed=config.seed)
    return folder


def to_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def predictions_path(folder: Path, test: Benchmark, condition: str) -> Path:
    return folder / "predictions" / f"{test.name}.{condition}.jsonl"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@command("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    if (config.run is None) == (config.predictions is None):
        raise UserError("give either run=NAME of a trained model or predictions=FILE")
    check_choice("checkpoint", config.checkpoint, ("best", "last"))
    if config.temperature < 0 or not 0 < config.top_p <= 1:
        raise UserError(f"temperature={config.temperature:g} and top_p={config.top_p:g}: allowed are 0 or more, and above 0 to 1")
    folder = evaluate(config) if config.run else score_predictions(config)
    if not run_folder.is_first_rank():
        return
    print(summary.summary_text(json.loads((folder / "evaluate.json").read_text())))
    print(f"{folder}/evaluate.json")


if __name__ == "__main__":
    main()
