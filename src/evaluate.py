"""`python -m src.evaluate run=NAME`: answer the test questions, write every prediction, then score the files."""

import hashlib
import json
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from src import run
from src.cli import verb
from src.config import Evaluate, Train, one_of, typed
from src.data import answers, benchmark, contamination, controls
from src.data.answers import Answers
from src.data.benchmark import Questions
from src.errors import UserError
from src.model.generate import Generator, ask
from src.model.vlm import build
from src.scoring import summary
from src.scoring.predictions import read_predictions
from src.training.checkpoint import choose, load

BENCHMARKS = ["pathvqa", "vqa_med_2019"]


def evaluate(config: Evaluate) -> Path:
    """Every question under every image condition and by every control, then the scores of all prediction files of the run."""
    folder, stored = run.read_run(config.outputs, config.run or "")
    trained = typed(Train, OmegaConf.create(stored))
    root = config.data_root or trained.data.root
    tests = [benchmark.read(name, root=root, limit=config.limit) for name in several(config.benchmarks) or BENCHMARKS]
    asked = {test.name: benchmark.conditions(test, config.images) for test in tests}
    path = choose(folder, config.checkpoint)

    with run.verb(folder, "evaluate") as said:
        said["checkpoint"] = path.name
        device = torch.device("cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu")
        model = build(trained)
        load(model, path)
        prompter = model.prompter(budget=config.row_tokens or trained.data.row_tokens)
        generator = Generator(model.to(device), prompter, batch=config.batch, max_new_tokens=config.max_new_tokens)
        depends_on = {
            "checkpoint": _digest(path),
            "row_tokens": prompter.budget,
            "max_new_tokens": config.max_new_tokens,
            "seed": config.seed,
        }
        for test in tests:
            if not trained.mix.decontaminate and not contamination.mark(test, trained.mix, trained.data.root):
                print(f"{test.name}: whether training has seen its questions is not known, since its sources have no audit.json")
            for condition in asked[test.name]:
                file = Answers(predictions(folder, test, condition), {**depends_on, "shards": test.shards.manifest["fingerprint"]})
                answer(test, condition, generator, file, exact=trained.data.exact_decode, seed=config.seed)
            for name, guesses in controls.answer(test).items():
                file = Answers(predictions(folder, test, name), {"shards": test.shards.manifest["fingerprint"], "limit": config.limit})
                file.add({**item, "prediction": guess} for item, guess in zip(test.items, guesses, strict=True))
                file.finish(test.items)
        found = {test.name: {c: answers.read(predictions(folder, test, c)) for c in [*asked[test.name], *controls.NAMES]} for test in tests}
        said |= summary.summarise(found, pooled=[test.name for test in tests if test.pooled], resamples=config.resamples, seed=config.seed)
    return folder


def answer(test: Questions, condition: str, generator: Generator, file: Answers, *, exact: bool, seed: int) -> None:
    """Fills a predictions file; questions that stand in it already are not asked again."""
    shown, vision = benchmark.shown(condition, test, seed=seed), generator.model.vision
    missing = [n for n in range(len(test.items)) if test.items[n]["id"] not in file.lines]
    missing.sort(key=lambda n: test.items[n]["image"])  # the questions of one image in one block: its pixels are embedded once
    block = 8 * generator.batch  # bounds the decoded images in memory
    with tqdm(total=len(missing), desc=f"{test.name} {condition}", unit="question", dynamic_ncols=True, disable=not missing) as bar:
        for at in range(0, len(missing), block):
            numbers = missing[at : at + block]
            seen = benchmark.images(test, numbers, condition, shown, mean=vision.mean, size=vision.size, exact=exact)
            records = (test.shards.text(test.rows[n]) for n in numbers)
            questions = [
                ask(record, images=pixels, prefix=name, prompter=generator.prompter, max_new_tokens=generator.max_new_tokens)
                for record, (name, pixels) in zip(records, seen, strict=True)
            ]
            options = [test.items[n].get("choices", []) for n in numbers]
            for number, found in generator.choices(questions, options) if test.choices else generator.answers(questions):
                file.add([{**test.items[numbers[number]], **found.line()}])
                bar.update()
    file.finish(test.items)


def score(config: Evaluate) -> Path:
    """Scores of anybody's predictions file, without a model."""
    path, names = Path(config.predictions or ""), several(config.benchmarks)
    if len(names) > 1:
        raise UserError(f"benchmark={names}: a predictions file answers one benchmark, {len(names)} were given")
    name = names[0] if names else "file"
    test = benchmark.read(name, root=config.data_root, limit=config.limit) if names and config.data_root else None
    items = read_predictions(path, benchmark=name, ids=test.ids if test else None)
    folder = Path(config.outputs) / (config.name or path.stem)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is the folder of a trained run; give another name=")
    folder.mkdir(parents=True, exist_ok=True)
    with run.verb(folder, "evaluate") as said:
        said["predictions"] = path.name
        said |= summary.summarise({name: {"real": items}}, pooled=[], resamples=config.resamples, seed=config.seed)
    return folder


def several(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def predictions(folder: Path, test: Questions, condition: str) -> Path:
    return folder / "predictions" / f"{test.name}.{condition}.jsonl"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@verb("evaluate", Evaluate)
def main(config: Evaluate) -> None:
    if (config.run is None) == (config.predictions is None):
        raise UserError("give either run=NAME of a trained model or predictions=FILE")
    one_of("checkpoint", config.checkpoint, ("best", "last"))
    folder = evaluate(config) if config.run else score(config)
    print(summary.text(json.loads((folder / "evaluate.json").read_text())))
    print(f"{folder}/evaluate.json")


if __name__ == "__main__":
    main()
