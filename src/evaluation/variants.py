"""Other ways to ask the questions of a benchmark.

orders   `order1`, `order2`, ...: the cyclic orders of the options after the given one; orderK begins with option K + 1, and asks the
         questions with more than K options
prompts  `prompt1` to `prompt3`: the question in another wording, by its kind

Every variant keeps the ids of the questions and has a predictions file of its own, `<benchmark>.<variant>.jsonl`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from src.data.record import Record
from src.evaluation.benchmark import Benchmark
from src.metrics.vqa import is_closed

PARAPHRASES = {  # kind of question -> wordings. Scores are comparable only between equal wordings, so that these do not change.
    "open": ("{} Answer briefly.", "Please answer this question: {}", "{} Give only the answer, without an explanation."),
    "closed": ("{} Answer yes or no.", "Yes or no: {}", "{} Reply with one word, yes or no."),
    "choice": ("{} Choose one of the options.", "Which option is correct? {}", "{} Only one of these options is right."),
}


def kind(record: Record) -> str:
    """choice with options, closed if the answer is yes or no, else open."""
    return "choice" if record.choices else "closed" if is_closed(record.references or [record.answer]) else "open"


def rotate(record: Record, by: int) -> Record:
    return replace(record, choices=record.choices[by:] + record.choices[:by])


def rephrase(record: Record, number: int) -> Record:
    """The record with its last question in wording `number` of its kind."""
    wording = PARAPHRASES[kind(record)][number]
    question, answer = record.turns[-1]
    return replace(record, turns=[*record.turns[:-1], (wording.replace("{}", question), answer)])


def variants_of(test: Benchmark, requested: list[str]) -> dict[str, Benchmark]:
    """The variants of a benchmark by name. `orders` is left out, with a message, if no question has options."""
    variants = {}
    sizes = [len(item.get("choices", [])) for item in test.items]
    if "orders" in requested and max(sizes) < 2:
        print(f"{test.name}: without variants=[orders], because its questions have no options")
    for by in range(1, max(sizes)) if "orders" in requested else ():
        rows = [row for row, size in zip(test.rows, sizes, strict=True) if size > by]
        variants[f"order{by}"] = _changed(test, f"order{by}", rows, partial(rotate, by=by))
    for number in range(3) if "prompts" in requested else ():
        variants[f"prompt{number + 1}"] = _changed(test, f"prompt{number + 1}", test.rows, partial(rephrase, number=number))
    return variants


def _changed(test: Benchmark, variant: str, rows: list[int], change: Callable[[Record], Record]) -> Benchmark:
    varied = replace(test, name=f"{test.name} {variant}", rows=rows, change=change)
    seen = {item["id"]: item["seen"] for item in test.items if "seen" in item}
    for item in varied.items:
        item |= {"seen": seen[item["id"]]} if item["id"] in seen else {}
    return varied
