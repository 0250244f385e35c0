"""Answers of our generator, which computes the prefix of questions on one image once, against one `generate` of transformers each.

Both sides have the same random weights and questions. Random weights hardly ever end an answer, so all answers have `MAX_NEW_TOKENS`
tokens. In float32 they must be equal; in bfloat16 rounding may change the most likely token, and the rest of the answer with it.
"""

import torch

from experiments.bench.evaluate import BUDGET, generate_one, make_requests
from experiments.bench.flops import synchronised_time
from experiments.bench.gpu_data import NAMES
from experiments.bench.gpu_setup import Bench
from experiments.bench.gpu_table import Value
from src.model.generate import Generator
from src.release.llava import generation_config

MAX_NEW_TOKENS = 8


def compare_generation(bench: Bench) -> list[Value]:
    model = bench.model(bench.settings("mix", "trainer.activation_checkpointing=none")).eval()
    prompter, scale = model.prompter(budget=BUDGET), bench.scale
    counts = {"images": scale["images"], "questions": scale["questions"], "words": len(bench.tokenizer) - len(NAMES)}
    requests = make_requests(model, **counts, max_new_tokens=MAX_NEW_TOKENS)
    generator = Generator(model, prompter, batch=64, max_new_tokens=MAX_NEW_TOKENS)
    llava = bench.llava(model)
    llava.generation_config = generation_config(model, prompter)
    llava.generation_config.max_new_tokens, llava.generation_config.pad_token_id = MAX_NEW_TOKENS, prompter.eos

    def ours() -> list[str]:
        answers = dict(generator.answers(requests))
        return [answers[n].text for n in range(len(requests))]

    def peer(number: int) -> list[str]:
        return [generate_one(llava, model, request) for request in requests[:number]]

    ours(), peer(2)  # warm-up
    texts, seconds = [], []
    for side in (ours, lambda: peer(len(requests))):
        start = synchronised_time()
        texts.append(side())
        seconds.append(synchronised_time() - start)
    equal = sum(a == b for a, b in zip(*texts, strict=True))
    exact = all(part.dtype == torch.float32 for part in model.parameters())
    assert equal == len(requests) or not exact, f"only {equal} of {len(requests)} answers are equal in float32"
    speed = f"answers/s of {MAX_NEW_TOKENS} tokens, {scale['questions']} questions on each of {scale['images']} images"
    return bench.values(
        "generate",
        ours=(len(requests) / seconds[0], speed),
        transformers=(len(requests) / seconds[1], "answers/s, one question at a time"),
        speedup=(seconds[1] / seconds[0], "times as many answers/s"),
        equal=(equal / len(requests), f"share of {len(requests)} answers that are equal, weights in {model.language.base.dtype}"),
    )
