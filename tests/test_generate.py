from dataclasses import replace

import numpy as np
import pytest
import torch

from src.data.record import Record
from src.model.generate import GenerationRequest, Generator, make_request
from src.model.vlm import VLM, build_vlm
from tests.fixtures import ORGANS
from tests.rounding import float32_norms, gap, rounding
from tests.runs import randomise_adapters

MAX_NEW_TOKENS = 12


@pytest.fixture(params=["float64"])
def model(configure, request) -> VLM:
    """Random weights whose answers differ between questions and end after different numbers of tokens.

    In float64 the answers depend on batch or CPU only where two tokens have equal scores, which `greedy` excludes.
    """
    exact = request.param == "float64"
    vlm = build_vlm(configure(f"language.dtype={'float32' if exact else request.param}")).eval()
    vlm = vlm.double() if exact else vlm
    torch.manual_seed(1)
    with torch.no_grad():
        vlm.projector.linear_2.weight.normal_(0, 2.0)
        randomise_adapters(vlm.language)
        vlm.language.head.weight[vlm.language.tokenizer.eos_token_id] *= 2.5
    return vlm


@pytest.fixture
def requests(model) -> list[GenerationRequest]:
    """Questions of several lengths: four on each of three images, five without an image, three on two images."""
    rng, prompter = np.random.default_rng(0), model.prompter(budget=160)
    pictures = [torch.from_numpy(rng.integers(0, 256, (3, 32, 32), np.uint8)) for _ in range(5)]
    prefixes = [([pictures[n]], str(n)) for n in range(3) for _ in range(4)] + [([], "")] * 5 + [(pictures[3:], "pair")] * 3
    requests = []
    for images, prefix in prefixes:
        question = " ".join(rng.choice(ORGANS, rng.integers(1, 9)))
        record = Record(key="k", source="s", split="test", turns=[(question, "unknown")])
        requests.append(make_request(record, images=images, prefix=prefix, prompter=prompter, max_new_tokens=MAX_NEW_TOKENS))
    return requests


def generator(model: VLM, **settings) -> Generator:
    return Generator(model, model.prompter(budget=160), **({"batch": 64, "max_new_tokens": MAX_NEW_TOKENS} | settings))


@torch.no_grad()
def logits(model: VLM, request: GenerationRequest, answer: list[int]) -> torch.Tensor:
    """Logits of prompt and answer by a forward pass without cache, padding or batching."""
    ids = torch.tensor([request.prefix_ids + request.prompt + answer])
    images = torch.stack(request.images) if request.images else torch.empty(0)
    embedded = model.embed(ids, images)
    hidden = model.language.body(inputs_embeds=embedded, position_ids=torch.arange(ids.shape[1])[None], use_cache=False)
    return model.language.head(hidden.last_hidden_state[0])


def tolerance(model: VLM, scores: torch.Tensor) -> float:
    """Bound on the difference of two computations of a score: norms and the softmax over the vocabulary compute in float32."""
    steps = float32_norms(model.language.body.config) + scores.shape[-1]
    return rounding(steps, scores[scores.isfinite()].abs().max())


def greedy(model: VLM, request: GenerationRequest) -> list[int]:
    tokens: list[int] = []
    ends = model.prompter(budget=160).ends
    while len(tokens) < MAX_NEW_TOKENS and (not tokens or tokens[-1] not in ends):
        scores = logits(model, request, tokens)[-1]
        scores[len(model.language.tokenizer) :] = scores[model.image_id] = -torch.inf
        if scores.dtype == torch.float64:
            assert gap(scores[scores.isfinite()]) > tolerance(model, scores)
        tokens.append(int(scores.argmax()))
    return tokens


def test_batched_answers_match_unbatched_greedy_decoding(model, requests):
    tokenizer = model.language.tokenizer
    reference = [greedy(model, request) for request in requests]
    assert len({tuple(tokens) for tokens in reference}) > 10
    lengths = [len(tokens) for tokens in reference]
    assert min(lengths) < MAX_NEW_TOKENS == max(lengths)
    expected = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in reference]
    for batch in (64, 5, 1):
        answers = dict(generator(model, batch=batch).answers(requests))
        assert [answers[n].text for n in range(len(requests))] == expected


@pytest.mark.slow
def test_confidence_is_the_mean_log_probability_of_the_answer(model, requests):
    answers = dict(generator(model).answers(requests))
    for n in (0, 13, 18):
        tokens = greedy(model, requests[n])
        scores = logits(model, requests[n], tokens)[-len(tokens) - 1 : -1]
        scores[:, len(model.language.tokenizer) :] = scores[:, model.image_id] = -torch.inf
        mean = scores.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).mean().item()
        assert answers[n].confidence == pytest.approx(mean, abs=tolerance(model, scores))


def test_answers_depend_on_the_image(model, requests):
    """A prefix that is shared by mistake would give the answers of the first image."""
    swapped = [replace(request, images=requests[4].images, prefix=requests[4].prefix) for request in requests[:4]]
    answers, swapped_answers = (dict(generator(model).answers(batch)) for batch in (requests[:4], swapped))
    assert [answers[n].text for n in range(4)] != [swapped_answers[n].text for n in range(4)]


@pytest.mark.slow
def test_likelihoods_match_an_unbatched_forward_pass(model, requests):
    options = [["lung", "the left lung", "a liver"][: 1 + n % 3] for n in range(len(requests))]
    likelihoods = generator(model, batch=7).likelihoods(requests, options)
    tokenizer = model.language.tokenizer
    for request, texts, pairs in zip(requests, options, likelihoods, strict=True):
        for text, (total, count) in zip(texts, pairs, strict=True):
            ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            scores = logits(model, request, ids)[-len(ids) - 1 : -1]
            logprobs = scores.log_softmax(-1)
            assert count == len(ids)
            expected = logprobs.gather(1, torch.tensor(ids)[:, None]).sum().item()
            assert total == pytest.approx(expected, abs=len(ids) * tolerance(model, scores))


@pytest.mark.slow
def test_sampled_answers_do_not_depend_on_the_batch(model, requests):
    for n, request in enumerate(requests):
        request.seed = n
    sampling = {"temperature": 1.0, "top_p": 0.9}
    batched, unbatched = (dict(generator(model, batch=batch, **sampling).answers(requests)) for batch in (64, 1))
    assert {n: answer.text for n, answer in batched.items()} == {n: answer.text for n, answer in unbatched.items()}
    greedy_answers = dict(generator(model).answers(requests))
    assert any(greedy_answers[n].text != batched[n].text for n in greedy_answers)


def test_long_question_is_truncated_at_its_beginning(model):
    record = Record(key="k", source="s", split="test", turns=[("lung " * 300 + "where?", "unknown")])
    prompter = model.prompter(budget=160)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    request = make_request(record, images=[image], prefix="a", prompter=prompter, max_new_tokens=MAX_NEW_TOKENS)
    assert len(prompter.prefix(1)) + len(request.prompt) + MAX_NEW_TOKENS + 1 == 160
    assert model.language.tokenizer.decode(request.prompt).endswith("where?\nAnswer:")


@pytest.mark.slow
def test_endless_answers_are_truncated(model, requests):
    """The end of sequence is never the most likely token, so every answer has exactly the maximum length."""
    with torch.no_grad():
        model.language.head.weight[model.language.tokenizer.eos_token_id] = 0
        model.language.head.weight[5] = 1  # some logit is above 0 for every hidden state
        model.language.head.weight[6] = -1
    steps = [tokens for tokens, _ in generator(model)._steps(requests[:4])]
    assert len(steps) == MAX_NEW_TOKENS
    assert [len(tokens) for tokens in steps[-1]] == [MAX_NEW_TOKENS] * 4
    answers = [answer for _, answer in generator(model).answers(requests)]
    assert all(answer.text and answer.truncated and answer.line()["cut"] for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bfloat16"], indirect=True)
@pytest.mark.parametrize("batch", [64, 5, 1])
@torch.inference_mode()
def test_bfloat16_answers_depend_on_the_batch_only_for_nearly_equal_scores(model, requests, batch):
    """A product over another number of rows rounds differently, by at most 2^-4 of the largest logit, which decides near ties."""
    batched, equal = generator(model, batch=batch), 0
    assert model.language.base.dtype == torch.bfloat16
    for indices in batched._batches(requests):
        *_, (answers, _) = batched._steps([requests[n] for n in indices])
        for n, tokens in zip(indices, answers, strict=True):
            expected = greedy(model, requests[n])
            equal += tokens == expected
            first = next((at for at, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), None)
            if first is not None:
                scores = logits(model, requests[n], expected[:first])[-1].float()
                assert scores[expected[first]] - scores[tokens[first]] <= scores.abs().max() / 16
    assert equal >= len(requests) - 2
