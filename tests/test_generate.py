import numpy as np
import pytest
import torch

from src.data.record import Record
from src.model.generate import GenerationRequest, Generator, make_request
from src.model.vlm import VLM, build_vlm
from tests.conftest import ORGANS
from tests.rounding import float32_norms, gap, rounding

LONGEST = 12


@pytest.fixture(params=["float64"])
def model(configure, request) -> VLM:
    """Random weights whose answers differ from question to question and end after different numbers of tokens.

    In float64 the answers do not depend on the batch or the CPU unless two tokens are level, which `greedy` excludes.
    """
    exact = request.param == "float64"
    made = build_vlm(configure(f"language.dtype={'float32' if exact else request.param}")).eval()
    made = made.double() if exact else made
    torch.manual_seed(1)
    with torch.no_grad():
        made.projector.linear_2.weight.normal_(0, 2.0)
        for name, parameter in made.language.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05)
        made.language.head.weight[made.language.tokenizer.eos_token_id] *= 2.5
    return made


@pytest.fixture
def asked(model) -> list[GenerationRequest]:
    """Questions of several lengths: four on each of three images, five without an image, three on two images."""
    rng, prompter = np.random.default_rng(0), model.prompter(budget=160)
    pictures = [torch.from_numpy(rng.integers(0, 256, (3, 32, 32), np.uint8)) for _ in range(5)]
    shown = [([pictures[n]], str(n)) for n in range(3) for _ in range(4)] + [([], "")] * 5 + [(pictures[3:], "pair")] * 3
    made = []
    for images, prefix in shown:
        question = " ".join(rng.choice(ORGANS, rng.integers(1, 9)))
        record = Record(key="k", source="s", split="test", turns=[(question, "unknown")])
        made.append(make_request(record, images=images, prefix=prefix, prompter=prompter, max_new_tokens=LONGEST))
    return made


def generator(model: VLM, **settings) -> Generator:
    return Generator(model, model.prompter(budget=160), **({"batch": 64, "max_new_tokens": LONGEST} | settings))


@torch.no_grad()
def logits(model: VLM, question: GenerationRequest, answer: list[int]) -> torch.Tensor:
    """The next token after prompt and answer, by the training pass: no cache, no padding, one question."""
    ids = torch.tensor([model.prompter(budget=160).prefix(len(question.images)) + question.prompt + answer])
    images = torch.stack(question.images) if question.images else torch.empty(0)
    embedded = model.embed(ids, images)
    hidden = model.language.body(inputs_embeds=embedded, position_ids=torch.arange(ids.shape[1])[None], use_cache=False)
    return model.language.head(hidden.last_hidden_state[0])


def apart(model: VLM, scores: torch.Tensor) -> float:
    """How far two computations of a score may be apart: norms compute in float32, and so does the softmax over the vocabulary."""
    steps = float32_norms(model.language.body.config) + scores.shape[-1]
    return rounding(steps, scores[scores.isfinite()].abs().max())


def greedy(model: VLM, question: GenerationRequest) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < LONGEST and (not tokens or tokens[-1] != model.language.tokenizer.eos_token_id):
        scores = logits(model, question, tokens)[-1]
        scores[len(model.language.tokenizer) :] = scores[model.image_id] = -torch.inf
        if scores.dtype == torch.float64:
            assert gap(scores[scores.isfinite()]) > apart(model, scores)
        tokens.append(int(scores.argmax()))
    return tokens


def test_batched_answers_are_greedy_decoding_one_by_one(model, asked):
    tokenizer = model.language.tokenizer
    reference = [greedy(model, question) for question in asked]
    assert len({tuple(tokens) for tokens in reference}) > 10
    lengths = [len(tokens) for tokens in reference]
    assert min(lengths) < LONGEST == max(lengths)
    expected = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in reference]
    for batch in (64, 5, 1):
        found = dict(generator(model, batch=batch).answers(asked))
        assert [found[n].text for n in range(len(asked))] == expected


@pytest.mark.slow
def test_confidence_is_the_mean_log_probability_of_the_answer(model, asked):
    found = dict(generator(model).answers(asked))
    for n in (0, 13, 18):
        tokens = greedy(model, asked[n])
        scores = logits(model, asked[n], tokens)[-len(tokens) - 1 : -1]
        scores[:, len(model.language.tokenizer) :] = scores[:, model.image_id] = -torch.inf
        mean = scores.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).mean().item()
        assert found[n].confidence == pytest.approx(mean, abs=apart(model, scores))


def test_the_answer_depends_on_the_image(model, asked):
    """A prefix shared by mistake would give the answers of the first image."""
    swapped = [GenerationRequest(asked[4].images, question.prompt, asked[4].prefix) for question in asked[:4]]
    here, there = (dict(generator(model).answers(questions)) for questions in (asked[:4], swapped))
    assert [here[n].text for n in range(4)] != [there[n].text for n in range(4)]


@pytest.mark.slow
def test_likelihoods_are_those_of_the_training_pass(model, asked):
    options = [["lung", "the left lung", "a liver"][: 1 + n % 3] for n in range(len(asked))]
    found = generator(model, batch=7).likelihoods(asked, options)
    tokenizer = model.language.tokenizer
    for question, texts, scored in zip(asked, options, found, strict=True):
        for text, (total, count) in zip(texts, scored, strict=True):
            ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            scores = logits(model, question, ids)[-len(ids) - 1 : -1]
            logprobs = scores.log_softmax(-1)
            assert count == len(ids)
            expected = logprobs.gather(1, torch.tensor(ids)[:, None]).sum().item()
            assert total == pytest.approx(expected, abs=len(ids) * apart(model, scores))


@pytest.mark.slow
def test_a_sampled_answer_does_not_depend_on_its_batch(model, asked):
    for n, question in enumerate(asked):
        question.seed = n
    hot = {"temperature": 1.0, "top_p": 0.9}
    together, alone = (dict(generator(model, batch=batch, **hot).answers(asked)) for batch in (64, 1))
    assert {n: answer.text for n, answer in together.items()} == {n: answer.text for n, answer in alone.items()}
    cold = dict(generator(model).answers(asked))
    assert any(cold[n].text != together[n].text for n in cold)


def test_a_long_question_is_cut_to_the_budget_and_keeps_its_end(model):
    record = Record(key="k", source="s", split="test", turns=[("lung " * 300 + "where?", "unknown")])
    prompter = model.prompter(budget=160)
    made = make_request(record, images=[torch.zeros(3, 32, 32, dtype=torch.uint8)], prefix="a", prompter=prompter, max_new_tokens=LONGEST)
    assert len(prompter.prefix(1)) + len(made.prompt) + LONGEST + 1 == 160
    assert model.language.tokenizer.decode(made.prompt).endswith("where?\nAnswer:")


@pytest.mark.slow
def test_a_model_that_never_stops_is_cut(model, asked):
    """Its end of sequence is never the likeliest token: every answer has exactly the allowed length."""
    with torch.no_grad():
        model.language.head.weight[model.language.tokenizer.eos_token_id] = 0
        model.language.head.weight[5] = 1  # some token is above 0 whatever the hidden state is
        model.language.head.weight[6] = -1
    steps = [tokens for tokens, _ in generator(model)._steps(asked[:4])]
    assert len(steps) == LONGEST
    assert [len(tokens) for tokens in steps[-1]] == [LONGEST] * 4
    answers = [answer for _, answer in generator(model).answers(asked)]
    assert all(answer.text and answer.cut and answer.line()["cut"] for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bfloat16"], indirect=True)
@pytest.mark.parametrize("batch", [64, 5, 1])
@torch.inference_mode()
def test_in_bfloat16_answers_part_only_where_two_tokens_are_level(model, asked, batch):
    """A product over another number of rows rounds differently: 2^-4 of the largest logit at most, which decides between near equals."""
    made, equal = generator(model, batch=batch), 0
    assert model.language.base.dtype == torch.bfloat16
    for numbers in made._batches(asked):
        *_, (tokens, _) = made._steps([asked[n] for n in numbers])
        for n, said in zip(numbers, tokens, strict=True):
            expected = greedy(model, asked[n])
            equal += said == expected
            parted = next((at for at, pair in enumerate(zip(said, expected, strict=False)) if pair[0] != pair[1]), None)
            if parted is not None:
                scores = logits(model, asked[n], expected[:parted])[-1].float()
                assert scores[expected[parted]] - scores[said[parted]] <= scores.abs().max() / 16
    assert equal >= len(asked) - 2
