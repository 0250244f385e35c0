"""Answering as LLaVA's own evaluation does it, one `generate` per question, against ours; and the time that scoring takes."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from experiments.bench.measured import Measured, in_turn, ratio
from src.config.train import TrainConfig
from src.data.record import Record
from src.evaluation.summary import summarise
from src.model.generate import GenerationRequest, Generator, make_request
from src.model.vlm import VLM, build_vlm
from src.release.llava import generation_config, to_llava
from src.runtime.cli import compose
from src.runtime.schema import to_typed

IMAGES, QUESTIONS = 16, 7  # PathVQA asks about eight questions per image
VOCABULARY = 32_000
LONGEST = 32
BUDGET = 400
END = 4.0  # how much the end of sequence is favoured: random weights then end most answers within four tokens


def measure() -> Iterator[Measured]:
    yield generate_speed()
    yield score_seconds()


def generate_speed() -> Measured:
    """Answers per CPU second: 16 images of 196 tokens with 7 questions each, a LLaMA of width 256 and 6 layers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder))
    prompter = model.prompter(budget=BUDGET)
    asked = questions(model)
    llava = to_llava(model, dtype=torch.float32)
    llava.generation_config = generation_config(model, prompter)
    llava.generation_config.max_new_tokens = LONGEST
    texts: dict[str, list[str]] = {}

    def ours() -> None:
        found = dict(Generator(model, prompter, batch=64, max_new_tokens=LONGEST).answers(asked))
        texts["ours"] = [found[n].text for n in range(len(asked))]

    def peer() -> None:
        texts["peer"] = [one_by_one(llava, model, question) for question in asked]

    seconds = in_turn(ours, peer)
    assert texts["ours"] == texts["peer"], "the two sides do not answer alike"
    lengths = np.array([len(text.split()) for text in texts["ours"]])
    unit = f"answers per CPU second ({len(asked)} questions, {100 * (lengths <= 4).mean():.0f}% of at most 4 tokens, the same strings)"
    return ratio("generate_speed", *([len(asked) / s for s in side] for side in seconds), unit=unit, target=">= 3.0")


@torch.inference_mode()
def one_by_one(llava: LlavaForConditionalGeneration, model: VLM, question: GenerationRequest) -> str:
    ids = torch.tensor([model.prompter(budget=BUDGET).prefix(1) + question.prompt])
    pixels = model.vision.normalise(question.images[0][None])
    found = llava.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    return model.language.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).strip()


def small_model(folder: Path) -> VLM:
    """Random weights through the same doors as real ones: a language folder with one token per word, an encoder from scratch."""
    words = {name: n for n, name in enumerate(["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(VOCABULARY - 4))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, initializer_range=0.1)).save_pretrained(folder)
    keys = [f"language.path={folder}", "vision=scratch", "vision.architecture=vit_tiny_patch16_224", "vision.image_size=224"]
    keys += ["+vision.architecture_kwargs={embed_dim: 128, depth: 4, num_heads: 4}", "projector.hidden=256"]
    model = build_vlm(to_typed(TrainConfig, compose("train", ["+experiment=mini", *keys]))).eval()
    with torch.no_grad():
        model.language.head.weight[2] *= END
        model.projector.linear_2.weight.normal_(0, 0.5)
    return model


def questions(model: VLM) -> list[GenerationRequest]:
    rng = np.random.default_rng(0)
    prompter = model.prompter(budget=BUDGET)
    asked = []
    for n in range(IMAGES):
        pixels = [torch.from_numpy(rng.integers(0, 256, (3, 224, 224), np.uint8))]
        for _ in range(QUESTIONS):
            words = " ".join(f"w{word}" for word in rng.integers(0, VOCABULARY - 4, rng.integers(10, 33)))
            record = Record(key="k", source="s", split="test", turns=[(words, "")])
            asked.append(make_request(record, images=pixels, prefix=str(n), prompter=prompter, max_new_tokens=LONGEST))
    return asked


def score_seconds() -> Measured:
    """All scorers and 10,000 resamples over as many answers as PathVQA's original test set has."""
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
    spent = []
    for seed in range(5):
        begun = time.perf_counter()
        summarise({"pathvqa": {"real": items}}, pooled=[], resamples=10_000, seed=seed)
        spent.append(time.perf_counter() - begun)
    middle = float(np.median(spent))
    return Measured("score_seconds", middle, min(spent), max(spent), 5, middle, None, "s, 6,761 answers, 10,000 resamples", "<= 30")
