"""`python -m src.evaluate run=NAME`: answer the test questions, write every prediction, then score the files."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from src import run
from src.cli import verb
from src.config import Evaluate, Train, one_of, typed
from src.data import benchmark as benchmarks
from src.data.module import open_sources
from src.data.record import Record
from src.errors import UserError
from src.model import generate
from src.model.vlm import VLM, build
from src.scoring import report
from src.training.checkpoint import load, newest


def evaluate(config: Evaluate) -> Path:
    """Predictions of every benchmark and image condition, then `evaluate.json`."""
    folder, stored = run.read_run(config.outputs, config.run or "")
    trained = typed(Train, OmegaConf.create(stored))
    root = config.data_root or trained.data.root
    for condition in config.images:
        one_of("images", condition, benchmarks.CONDITIONS)
    chosen = {name: benchmarks.read(name, root=root) for name in config.benchmarks}
    checkpoint = _checkpoint(folder, config.checkpoint)

    with run.verb(folder, "evaluate") as said:
        model = build(trained)
        load(model, checkpoint)
        answerer = Answerer(model, config, budget=config.row_tokens or trained.data.row_tokens, exact=trained.data.exact_decode)
        answered: dict[str, dict[str, list[dict]]] = {}
        for name, (known, shards) in chosen.items():
            questions, rows = benchmarks.items(known, shards, limit=config.limit)
            with_images = any(shards.column("num_images")[rows])
            answered[name] = {}
            for condition in config.images if with_images else ["none"]:
                path = folder / "predictions" / f"{name}.{condition}.jsonl"
                shown = benchmarks.shown(condition, questions, rows, seed=config.seed)
                answered[name][condition] = answerer.answer(questions, rows, shown, shards=shards, path=path, title=f"{name} {condition}")
        pooled = [name for name, (known, _) in chosen.items() if known.pooled and "none" not in answered[name]]
        majority = report.training_answers(open_sources(root, trained.mix) if root == trained.data.root else {}, chosen)
        said["checkpoint"] = checkpoint.name
        said["metrics"], said["tables"] = report.metrics(answered, pooled=pooled, majority=majority, resamples=config.resamples, seed=config.seed)
    return folder


class Answerer:
    """Fills a predictions file; questions that stand in it already are not asked again."""

    def __init__(self, model: VLM, config: Evaluate, *, budget: int, exact: bool):
        device = torch.device("cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu")
        self.model, self.config, self.exact = model.to(device), config, exact
        self.prompter = model.prompter(budget=budget)
        self.generator = generate.Generator(self.model, self.prompter, batch=config.batch, max_new_tokens=config.max_new_tokens)

    def answer(self, questions: list[dict], rows: list[int], shown: list[int | None], *, shards, path: Path, title: str) -> list[dict]:
        done = {line["id"]: line for line in read_lines(path)}
        missing = [n for n, question in enumerate(questions) if question["id"] not in done]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file, tqdm(total=len(missing), desc=title, unit="question", dynamic_ncols=True, disable=not missing) as bar:
            # Blocks bound the decoded images in memory; sorting by image keeps the questions of one image in one block.
            missing.sort(key=lambda n: (-1 if shown[n] is None else questions[n]["image"], n) if False else (questions[n]["image"], n))
            for at in range(0, len(missing), 8 * self.config.batch):
                block = missing[at : at + 8 * self.config.batch]
                asked = list(self._ask(block, questions, rows, shown, shards))
                for number, answer in self.generator.answers(asked):
                    question = questions[block[number]]
                    line = {**question, "prediction": answer.text, "confidence": round(answer.confidence, 6)}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    done[question["id"]] = line
                    bar.update()
                file.flush()
        ordered = [done[question["id"]] for question in questions]
        run.write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered))
        return ordered

    def _ask(self, block: list[int], questions: list[dict], rows: list[int], shown: list[int | None], shards) -> Iterator[generate.Asked]:
        size = self.model.vision.size
        cache: dict[int, list] = {}
        empty = benchmarks.blank(self.model.vision.mean.cpu(), size)
        for n in block:
            record: Record = shards.text(rows[n])
            count = int(shards.column("num_images")[rows[n]])
            row = shown[n]
            if row is None:
                images, prefix = [empty] * count, f"blank{count}"
            else:
                # Questions on one image share its first row's pixels, so that their prefix is computed once.
                images = cache.setdefault(row, benchmarks.pixels(shards, row, size=size, exact=self.exact) if row not in cache else [])
                prefix = questions[n]["image"] if count else ""
            yield generate.ask(record, images=images, prefix=prefix, prompter=self.prompter, max_new_tokens=self.config.max_new_tokens)


def read_lines(path: Path) -> list[dict]:
    """The complete lines of a predictions file; a last line that was cut by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    run.write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return lines


def _checkpoint(folder: Path, which: str) -> Path:
    one_of("checkpoint", which, ("best", "last"))
    best = folder / "checkpoints" / "best.ckpt"
    found = best if which == "best" and best.exists() else newest(folder / "checkpoints")
    if found is None:
        raise UserError(f"{folder} holds no checkpoint; train it first: python -m src.train name={folder.name} ...")
    return found
