"""Data of the GPU benchmark: synthetic shards from the real build, and the same samples in random batches for the peer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_prep.build.source import BuildConfig
from data_prep.shards import build_all
from experiments.bench.synthetic_data import make_jpeg
from experiments.bench.workload import sample_lengths
from src.config.train import TrainConfig
from src.data.datamodule import DataModule
from src.data.prompt import IMAGE, EncodedSample, Prompter

NAMES = ("<unk>", "<s>", "</s>", IMAGE, "Question:", "Answer:")  # the first words of the tokenizer; w0, w1, ... follow


def make_shards(folder: Path, lengths: str, scale: dict[str, Any]) -> None:
    """Records whose words are one token each. Eight images are shared by all records that have one."""
    raw = folder / "raw" / lengths
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(8):
        (raw / f"{n}.jpg").write_bytes(make_jpeg(rng, height=384, width=512))

    def words(count: int) -> str:
        return " ".join(f"w{word}" for word in rng.integers(0, scale["vocabulary"] // 2, count))

    with (raw / "train.jsonl").open("w") as file:
        for n in range(scale["records"]):
            images, prompt, answer = (1, 30, 29) if lengths == "even" else sample_lengths(rng)
            row = {"question": words(prompt - 2), "answer": words(answer), "id": f"r{n}"} | ({"image": f"{n % 8}.jpg"} if images else {})
            file.write(json.dumps(row) + "\n")
    build_all(BuildConfig(sources=[lengths], raw=folder / "raw", out=folder / "shards", workers=1))


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = {name: n for n, name in enumerate([*NAMES, *(f"w{n}" for n in range(vocabulary - len(NAMES)))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sample_batches(settings: TrainConfig, tokenizer, batch: int, *, size: int, patches: int) -> list[list[EncodedSample]]:
    """Random batches of the samples of the stream, as many samples as our run trains on."""
    prompter = Prompter(tokenizer, patches=patches, budget=settings.data.max_seq_len)
    data = DataModule(settings.mix, settings.data, prompter=prompter, size=size, seed=0, accumulate=1)
    stream, rng = data.stream(), np.random.default_rng(0)
    samples = [sample for number in range(2) for sequence in stream.window(number) for sample, _, _ in sequence]
    order = rng.permutation(len(samples))[: settings.data.global_batch_size * settings.optim.length]
    return [[samples[n] for n in order[at : at + batch]] for at in range(0, len(order) - batch + 1, batch)]
