"""Answers the test questions with the model of a run, writes every prediction, then scores the files; the command is `src/evaluate.py`."""

import zlib
from pathlib import Path

import torch

from src.config.evaluate import EvaluateConfig
from src.config.train import TrainConfig
from src.data import lineage
from src.data.credentialed import is_credentialed
from src.evaluation import baselines, benchmark, predictions_file, summary
from src.evaluation.benchmark import Benchmark
from src.evaluation.condition_images import condition_images
from src.evaluation.overlap import checkpoint_overlaps, mark_items
from src.evaluation.predictions_file import PredictionsFile
from src.evaluation.variants import PARAPHRASES, variants_of
from src.model.generate import Generator, make_request
from src.model.vlm import build_vlm
from src.runtime import distributed, run_folder
from src.runtime.distributed import Ranks
from src.runtime.hashing import file_sha256
from src.runtime.progress import Progress
from src.tracking import wandb_run
from src.training.checkpoint import choose_checkpoint, load_checkpoint


def evaluate_run(
    config: EvaluateConfig, folder: Path, trained: TrainConfig, tests: list[Benchmark], conditions: dict[str, list[str]]
) -> None:
    """Answers every question of `tests` under its image `conditions` and with every baseline, then scores these benchmarks only."""
    checkpoint = choose_checkpoint(folder, config.checkpoint)

    with distributed.join_ranks() as ranks, run_folder.record(folder, "evaluate") as result:
        result["checkpoint"] = checkpoint.name
        model = build_vlm(trained)
        load_checkpoint(model, checkpoint)
        prompter = model.prompter(budget=config.max_seq_len or trained.data.max_seq_len)
        decoding = {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "top_p")}
        generator = Generator(model.to(select_device(config.accelerator, ranks)), prompter, batch=config.batch, **decoding)
        settings = {"checkpoint": file_sha256(checkpoint), "row_tokens": prompter.budget, "seed": config.seed, **decoding}
        if ranks.is_first:  # only this rank writes the files
            result["seen"] = mark_seen(tests, checkpoint)
        varied = {test.name: variants_of(test, config.variants) for test in tests}  # after mark_seen, whose marks they take over
        for test in tests:
            for condition in conditions[test.name]:
                depends_on = {**settings, "shards": test.shards.manifest["fingerprint"]}
                depends_on |= {"cycle": benchmark.shuffle_cycle(test, seed=config.seed)} if condition in benchmark.SHUFFLED else {}
                file = PredictionsFile(predictions_path(folder, test, condition), depends_on, ranks=ranks)
                answer_condition(test, condition, generator, file, exact=trained.data.exact_decode, seed=config.seed)
            main = main_condition(conditions[test.name])
            for name, variant in varied[test.name].items():
                depends_on = {**settings, "shards": test.shards.manifest["fingerprint"], "variant": [name, main, PARAPHRASES]}
                file = PredictionsFile(predictions_path(folder, test, name), depends_on, ranks=ranks)
                answer_condition(variant, main, generator, file, exact=trained.data.exact_decode, seed=config.seed)
            for name, answers in baselines.baseline_answers(test).items() if ranks.is_first else ():
                file = PredictionsFile(predictions_path(folder, test, name), {"shards": test.shards.manifest["fingerprint"]})
                file.add({**item, "prediction": answer} for item, answer in zip(test.items, answers, strict=True))
                file.finish(test.items)
        if not ranks.is_first:
            return
        result["asked"] = {test.name: len(test.rows) for test in tests}  # this many lines at the start of each predictions file
        files, variants = {}, {}
        for test in tests:
            files[test.name] = read_answers(test, folder, dict.fromkeys([*conditions[test.name], *baselines.BASELINES], len(test.rows)))
            variants[test.name] = read_answers(test, folder, {name: len(variant.rows) for name, variant in varied[test.name].items()})
        pooled = [test.name for test in tests if test.pooled]
        result |= summary.summarise(files, pooled=pooled, variants=variants, resamples=config.resamples, seed=config.seed)
    wandb_run.update_run(folder)
    warn_of_credentialed_texts(folder, tests)


def warn_of_credentialed_texts(folder: Path, tests: list[Benchmark]) -> None:
    """Predictions files need the texts, because the scores are computed from them. Nothing uploads these files."""
    sources = {test.source for test in tests if is_credentialed(test.source, test.shards.manifest)}
    if names := ", ".join(sorted(sources.union(lineage.credentialed(lineage.lineage(folder))))):
        print(f"{folder}/predictions: sensitive, may hold texts of credentialed data ({names}); keep these files on this machine")


def mark_seen(tests: list[Benchmark], checkpoint: Path) -> dict[str, dict]:
    """Marks the questions that the run was trained on, by the present audits; prints and returns what is known per benchmark."""
    overlaps = checkpoint_overlaps(checkpoint, {test.set_name: test.shards.manifest["fingerprint"] for test in tests})
    overlap_of = {test.name: overlaps[test.set_name] for test in tests}
    names_by_note: dict[str, list[str]] = {}
    for test in tests:
        mark_items(test, overlap_of[test.name])
        for note in overlap_of[test.name].notes:
            names_by_note.setdefault(note, []).append(test.name)
    for note, names in names_by_note.items():
        print(f"{', '.join(names)}: {note}")
    incomplete = [name for name, overlap in overlap_of.items() if not overlap.complete]
    if incomplete:
        print(f"{', '.join(incomplete)}: questions that are not marked as seen may still be in the training data")
    return {name: {"records": one.records, "complete": one.complete, "notes": one.notes} for name, one in overlap_of.items()}


def read_answers(test: Benchmark, folder: Path, counts: dict[str, int]) -> dict[str, list[dict]]:
    """The answers to the questions of this command, by condition or variant, which asks `counts` questions. The files may hold more."""
    return {name: predictions_file.read_predictions(predictions_path(folder, test, name))[:count] for name, count in counts.items()}


def select_device(accelerator: str, ranks: Ranks) -> torch.device:
    """The GPU of this rank, or the CPU. The modulo serves Slurm jobs in which each rank can see only its own GPU."""
    use_gpu = torch.cuda.is_available() and accelerator != "cpu"
    return torch.device(f"cuda:{ranks.local % torch.cuda.device_count()}" if use_gpu else "cpu")


def main_condition(conditions: list[str]) -> str:
    """The image condition of the main scores, under which variants are asked."""
    return "real" if "real" in conditions else "none"


def answer_condition(test: Benchmark, condition: str, generator: Generator, file: PredictionsFile, *, exact: bool, seed: int) -> None:
    """Completes a predictions file. Questions that it already answers are skipped; the ranks divide the images among them."""
    source_rows, vision = benchmark.image_rows(condition, test, seed=seed), generator.model.vision
    missing = [n for n in range(len(test.items)) if test.items[n]["id"] not in file.lines]
    missing.sort(key=lambda n: test.items[n]["image"])  # all questions of one image in one block: its pixels are embedded once
    missing = questions_of_rank(missing, [test.items[n]["image"] or test.items[n]["id"] for n in missing], file.ranks)
    block_size = 8 * generator.batch  # bounds the decoded images in memory
    with Progress(total=len(missing), desc=f"{test.name} {condition}", unit="question", disable=not missing) as progress:
        for start in range(0, len(missing), block_size):
            numbers = missing[start : start + block_size]
            images = condition_images(test, numbers, condition, source_rows, mean=vision.mean, size=vision.size, exact=exact)
            records = map(test.record, numbers)
            requests = [
                make_request(record, images=pixels, prefix=name, prompter=generator.prompter, max_new_tokens=generator.max_new_tokens)
                for record, (name, pixels) in zip(records, images, strict=True)
            ]
            for number, request in zip(numbers, requests, strict=True):  # sampling depends on the question alone, not on its batch
                request.seed = zlib.crc32(f"{seed} {test.items[number]['id']}".encode())
            options = [test.items[n].get("choices", []) if test.choices else [] for n in numbers]
            for number, answer in generator.chosen_or_free(requests, options):
                file.add([{**test.items[numbers[number]], **answer.line()}])
                progress.update()
    file.finish(test.items)


def questions_of_rank(numbers: list[int], images: list[str], ranks: Ranks) -> list[int]:
    """The questions of this rank: each image, with all its questions, belongs to one rank."""
    index_of_image = {image: index for index, image in enumerate(dict.fromkeys(images))}
    return [number for number, image in zip(numbers, images, strict=True) if index_of_image[image] % ranks.world == ranks.rank]


def predictions_path(folder: Path, test: Benchmark, condition: str) -> Path:
    return folder / "predictions" / f"{test.name}.{condition}.jsonl"
