"""Answering with our batched generator against one `generate` call per question as in LLaVA's evaluation, and the time of scoring."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from experiments.bench.measurement import Measurement, ratio, time_alternately
from src.config.train import TrainConfig
from src.data.record import Record
from src.evaluation.summary import summarise
from src.model.generate import GenerationRequest, Generator, make_request
from src.model.vlm import VLM, build_vlm
from src.release.llava import generation_config, to_llava
from src.runtime.cli import compose
from src.runtime.schema import to_typed

IMAGES, QUESTIONS = 16, 7  # PathVQA has about eight questions per image
VOCABULARY = 32_000
MAX_NEW_TOKENS = 32
BUDGET = 400
EOS_SCALE = 4.0  # favours the end of sequence, so that random weights end most answers within four tokens


def measure() -> Iterator[Measurement]:
    yield generate_speed()
    yield score_seconds()


def generate_speed() -> Measurement:
    """Answers per CPU second: 16 images of 196 tokens with 7 questions each, a LLaMA of width 256 and 6 layers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder))
    prompter = model.prompter(budget=BUDGET)
    requests = make_requests(model)
    llava = to_llava(model, dtype=torch.float32)
    llava.generation_config = generation_config(model, prompter)
    llava.generation_config.max_new_tokens = MAX_NEW_TOKENS
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        answers = dict(Generator(model, prompter, batch=64, max_new_tokens=MAX_NEW_TOKENS).answers(requests))
        texts["ours"] = [answers[n].text for n in range(len(requests))]

    def peer() -> None:
        texts["peer"] = [generate_one(llava, model, request) for request in requests]

    seconds = time_alternately(ours, peer)
    assert texts["ours"] == texts["peer"], "the answers of the two sides differ"
    lengths = np.array([len(text.split()) for text in texts["ours"]])
    short = 100 * (lengths <= 4).mean()
    unit = f"answers per CPU second ({len(requests)} questions, {short:.0f}% with at most 4 tokens, identical answers)"
    return ratio("generate_speed", *([len(requests) / s for s in side] for side in seconds), unit=unit, target=">= 3.0")


@torch.inference_mode()
def generate_one(llava: LlavaForConditionalGeneration, model: VLM, request: GenerationRequest) -> str:
    ids = torch.tensor([model.prompter(budget=BUDGET).prefix(1) + request.prompt], device=llava.device)
    pixels = model.vision.normalise(request.images[0][None].to(llava.device)).to(llava.dtype)
    output = llava.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    return model.language.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


def small_model(folder: Path) -> VLM:
    """A model with random weights, built like a real one: from a language folder with one token per word and an encoder from scratch."""
    words = {name: n for n, name in enumerate(["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(VOCABULARY - 4))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, initializer_range=0.1)).save_pretrained(folder)
    overrides = [f"language.path={folder}", "vision=scratch", "vision.architecture=vit_tiny_patch16_224", "vision.image_size=224"]
    overrides += ["+vision.architecture_kwargs={embed_dim: 128, depth: 4, num_heads: 4}", "projector.hidden=256"]
    model = build_vlm(to_typed(TrainConfig, compose("train", ["+experiment=mini", *overrides]))).eval()
    with torch.no_grad():
        model.language.head.weight[2] *= EOS_SCALE
        model.projector.linear_2.weight.normal_(0, 0.5)
    return model


def make_requests(
    model: VLM, *, images: int = IMAGES, questions: int = QUESTIONS, words: int = VOCABULARY - 4, max_new_tokens: int = MAX_NEW_TOKENS
) -> list[GenerationRequest]:
    """Random images with some questions each, of the words w0 to w<words - 1>."""
    rng = np.random.default_rng(0)
    prompter, size = model.prompter(budget=BUDGET), model.vision.size
    requests = []
    for n in range(images):
        pixels = [torch.from_numpy(rng.integers(0, 256, (3, size, size), np.uint8))]
        for _ in range(questions):
            text = " ".join(f"w{word}" for word in rng.integers(0, words, rng.integers(10, 33)))
            record = Record(key="k", source="s", split="test", turns=[(text, "")])
            requests.append(make_request(record, images=pixels, prefix=str(n), prompter=prompter, max_new_tokens=max_new_tokens))
    return requests


def score_seconds() -> Measurement:
    """All scorers and 10,000 resamples on as many answers as the original test set of PathVQA has."""
    rng = np.random.default_rng(0)
    words = np.array(["yes", "no", "liver", "spleen", "the left lung", "a nodule in the right lobe", "hematoxylin and eosin"])
    items = [
        {
            "id": str(n),
            "image": str(n // 8),
            "type": "open" if n % 2 else "closed",
            "question": "what is shown?",
            "references": [str(rng.choice(words))],
            "prediction": str(rng.choice(words)),
        }
        for n in range(6761)
    ]
    seconds = []
    for seed in range(5):
        start = time.perf_counter()
        summarise({"pathvqa": {"real": items}}, pooled=[], resamples=10_000, seed=seed)
        seconds.append(time.perf_counter() - start)
    median = float(np.median(seconds))
    return Measurement("score_seconds", median, min(seconds), max(seconds), 5, median, None, "s, 6,761 answers, 10,000 resamples", "<= 30")
