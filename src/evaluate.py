"""`python -m src.evaluate run=NAME`: answer the test questions, write every prediction, then score the files."""

import hashlib
import json
import zlib
from pathlib import Path

import torch
from omegaconf import OmegaConf

from src import run, team, tracking
from src.cli import verb
from src.config import Evaluate, Train, one_of, typed
from src.data import answers, benchmark, controls
from src.data.answers import Answers
from src.data.benchmark import Questions
from src.data.overlap import mark, overlaps
from src.data.remote import Cache
from src.errors import UserError, nearest
from src.model.generate import Generator, ask
from src.model.vlm import build
from src.progress import Progress
from src.scoring import summary
from src.scoring.predictions import check_references, read_predictions
from src.team import Team
from src.training.checkpoint import choose, load

BENCHMARKS = ["pathvqa", "vqa_med_2019"]


def evaluate(config: Evaluate) -> Path:
    """Every question under every image condition and by every control, then the scores of these benchmarks, and of no earlier ones."""
    folder, stored = run.read_run(config.outputs, config.run or "")
    trained = typed(Train, OmegaConf.create(stored))
    root = config.data_root or trained.data.root
    cache = Cache(trained.data.cache, trained.data.cache_gb)
    tests = [benchmark.read(name, root=root, limit=config.limit, cache=cache) for name in several(config.benchmarks) or BENCHMARKS]
    asked = {test.name: benchmark.conditions(test, config.images, images=trained.data.images) for test in tests}
    path = choose(folder, config.checkpoint)

    with team.joined() as ranks, run.verb(folder, "evaluate") as said:
        said["checkpoint"] = path.name
        model = build(trained)
        load(model, path)
        prompter = model.prompter(budget=config.row_tokens or trained.data.row_tokens)
        decoding = {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "top_p")}
        generator = Generator(model.to(device(config.accelerator, ranks)), prompter, batch=config.batch, **decoding)
        depends_on = {"checkpoint": _digest(path), "row_tokens": prompter.budget, "seed": config.seed, **decoding}
        if ranks.first:  # who writes the files
            said["seen"] = mark_seen(tests, stored, path, outputs=config.outputs)
        for test in tests:
            for condition in asked[test.name]:
                about = {**depends_on, "shards": test.shards.manifest["fingerprint"]}
                about |= {"cycle": benchmark.cycle(test, seed=config.seed)} if condition == "shuffled" else {}
                file = Answers(predictions(folder, test, condition), about, team=ranks)
                answer(test, condition, generator, file, exact=trained.data.exact_decode, seed=config.seed)
            for name, guesses in controls.answer(test).items() if ranks.first else ():
                file = Answers(predictions(folder, test, name), {"shards": test.shards.manifest["fingerprint"]})
                file.add({**item, "prediction": guess} for item, guess in zip(test.items, guesses, strict=True))
                file.finish(test.items)
        if not ranks.first:
            return folder
        said["asked"] = {test.name: len(test.rows) for test in tests}  # those stand first in their files
        found = {test.name: found_by(test, folder, [*asked[test.name], *controls.NAMES]) for test in tests}
        said |= summary.summarise(found, pooled=[test.name for test in tests if test.pooled], resamples=config.resamples, seed=config.seed)
    tracking.update(folder)
    return folder


def mark_seen(tests: list[Questions], stored: dict, checkpoint: Path, *, outputs: str) -> dict[str, dict]:
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


def found_by(test: Questions, folder: Path, conditions: list[str]) -> dict[str, list[dict]]:
    """The answers to the questions of this command, by condition; the files may hold those to more."""
    return {condition: answers.read(predictions(folder, test, condition))[: len(test.rows)] for condition in conditions}


def device(accelerator: str, ranks: Team) -> torch.device:
    """The GPU of this rank, or the CPU. A rank to which Slurm shows its own GPU alone takes that one."""
    found = torch.cuda.is_available() and accelerator != "cpu"
    return torch.device(f"cuda:{ranks.local % torch.cuda.device_count()}" if found else "cpu")


def answer(test: Questions, condition: str, generator: Generator, file: Answers, *, exact: bool, seed: int) -> None:
    """Fills a predictions file; questions that stand in it already are not asked again. Ranks share the images among them."""
    shown, vision = benchmark.shown(condition, test, seed=seed), generator.model.vision
    missing = [n for n in range(len(test.items)) if test.items[n]["id"] not in file.lines]
    missing.sort(key=lambda n: test.items[n]["image"])  # the questions of one image in one block: its pixels are embedded once
    missing = mine(missing, [test.items[n]["image"] or test.items[n]["id"] for n in missing], file.team)
    block = 8 * generator.batch  # bounds the decoded images in memory
    with Progress(total=len(missing), desc=f"{test.name} {condition}", unit="question", disable=not missing) as progress:
        for at in range(0, len(missing), block):
            numbers = missing[at : at + block]
            seen = benchmark.images(test, numbers, condition, shown, mean=vision.mean, size=vision.size, exact=exact)
            records = (test.shards.text(test.rows[n]) for n in numbers)
            questions = [
                ask(record, images=pixels, prefix=name, prompter=generator.prompter, max_new_tokens=generator.max_new_tokens)
                for record, (name, pixels) in zip(records, seen, strict=True)
            ]
            for number, question in zip(numbers, questions, strict=True):  # what a question draws depends on nothing but itself
                question.seed = zlib.crc32(f"{seed} {test.items[number]['id']}".encode())
            options = [test.items[n].get("choices", []) for n in numbers]
            for number, found in generator.choices(questions, options) if test.choices else generator.answers(questions):
                file.add([{**test.items[numbers[number]], **found.line()}])
                progress.update()
    file.finish(test.items)


def mine(numbers: list[int], images: list[str], team: Team) -> list[int]:
    """The questions of this rank: every image, with all its questions, belongs to one rank."""
    order = {image: place for place, image in enumerate(dict.fromkeys(images))}
    return [number for number, image in zip(numbers, images, strict=True) if order[image] % team.world == team.rank]


def score(config: Evaluate) -> Path:
    """Scores of anybody's predictions file, without a model."""
    path, names = Path(config.predictions or ""), several(config.benchmarks)
    if len(names) > 1:
        raise UserError(f"benchmark={names}: a predictions file answers one benchmark, {len(names)} were given")
    name = names[0] if names else "file"
    test = benchmark.read(name, root=config.data_root, limit=config.limit) if names and config.data_root else None
    if names and not test and name not in benchmark.names():
        raise UserError(f"benchmark={name} is not known without data_root={nearest(name, benchmark.names())}")
    items = read_predictions(path, benchmark=name, ids=test.ids if test else None)
    items = [{"source": name, "type": "", "image": "", **item} for item in items]  # as our own files have them
    if test:
        check_references(items, {item["id"]: item["references"] for item in test.items}, path)
    else:
        print(f"{path}: ids not checked; give benchmark= and data_root= to hold them to the questions of a benchmark")
    folder = Path(config.outputs) / (config.name or path.stem)
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is the folder of a trained run; give another name=")
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    with run.verb(folder, "evaluate") as said:
        said["predictions"] = path.name
        answers.write(folder / "predictions" / f"{name}.real.jsonl", items)
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
    if config.temperature < 0 or not 0 < config.top_p <= 1:
        raise UserError(f"temperature={config.temperature:g} and top_p={config.top_p:g}: allowed are 0 or more, and above 0 to 1")
    folder = evaluate(config) if config.run else score(config)
    if not run.first_rank():
        return
    print(summary.text(json.loads((folder / "evaluate.json").read_text())))
    print(f"{folder}/evaluate.json")


if __name__ == "__main__":
    main()
