"""Reading the data: the training stream against webdataset and LLaVA's loader, and what it costs at 3.35 million samples."""

import itertools
import json
import statistics
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from experiments.bench.data import quietly
from experiments.bench.made import FULL, alone, memory, picture, tiled, write_raw
from experiments.bench.measured import ROUNDS, Measured, in_turn, ratio, single
from src.config.train import DataConfig, MixConfig
from src.data.datamodule import DataModule
from src.data.image_transform import decode_jpeg
from src.data.prompt import IMAGE, Prompter
from src.data.shards import Shards

SIZE, BATCH, WINDOW = 224, 32, 1024
TEXTS = 16_384
WORDS = (  # of the questions and answers that are made here
    "what is shown in picture of pictures texts ? : question answer caption yes no left lung abnormality seen the upper lobe"
)


def measure() -> Iterator[Measured]:
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        yield from images(folder)
        yield from texts(folder)
        yield from full_size(folder)


def images(folder: Path) -> Iterator[Measured]:
    """To uint8 batches of 32 from the same tars, ours with its packing and a word tokenizer; the peers read no text."""
    raw = write_raw(folder / "pictures", WINDOW, size=(384, 512), grain=2.7)
    shards = quietly(raw, folder / "shards", max_side=512)
    kilobytes = statistics.mean(path.stat().st_size for path in raw.glob("*.jpg")) / 1024
    held = [shards[row].images[0] for row in range(len(shards))]
    works = [partial(ours, folder / "shards"), partial(default, shards), partial(llava, raw), partial(bare, held)]
    seconds = in_turn(*works)
    rates = [[WINDOW / s for s in spent] for spent in seconds]
    rng = np.random.default_rng(0)
    away = max(from_exact(held[:100]), from_exact([picture(rng, height=768, width=1024) for _ in range(50)]))
    unit = f"images/s of 512x384, {kilobytes:.0f} KiB, to {SIZE}x{SIZE}"
    yield ratio("stream_image", rates[0], rates[1], f"{unit}, against webdataset's shuffle and decode", target=">= 2.1")
    yield ratio("stream_image_llava", rates[0], rates[2], f"{unit}, against a folder and CLIPImageProcessor", target=">= 3.3")
    yield ratio("stream_of_bare_decode", rates[0], rates[3], f"{unit}, against decoding what is in memory", target=">= 0.85")
    unit = "grey levels of 255 from exact PIL, mean; of 512x384 and of 1024x768 (decoded at half its size) the worse"
    yield single("stream_pixels", away, unit, target="<= 1.5")


def from_exact(pictures: list[bytes]) -> float:
    return statistics.mean(
        float(np.abs(decode_jpeg(data, size=SIZE).astype(int) - decode_jpeg(data, size=SIZE, exact=True)).mean()) for data in pictures
    )


def ours(root: Path) -> None:
    stream = module(root, "pictures").stream()
    seen = sum(len(stream.batch(step, slot=0).images_NCHW) for step in range(WINDOW // BATCH))
    assert seen == WINDOW


def default(shards: Shards) -> None:
    """The pipeline of webdataset's documentation, squashed to the same square."""
    tars = [str(shards.folder / tar["name"]) for tar in shards.manifest["shards"]]
    samples = webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000).decode("pil")
    pixels = (np.asarray(sample["jpg"].resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for sample in samples)
    assert sum(len(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)) for batch in batched(pixels)) == WINDOW


def llava(raw: Path) -> None:
    """As LLaVA's LazySupervisedDataset reads: a list in memory, image files, transformers' processor of that time, on PIL."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE)
    paths = [raw / json.loads(line)["image"] for line in (raw / "train.jsonl").read_text().splitlines()]
    order = np.random.default_rng(0).permutation(len(paths))
    read = (processor(Image.open(paths[n]).convert("RGB"), return_tensors="pt")["pixel_values"][0] for n in order)
    assert sum(len(torch.stack(batch)) for batch in batched(read)) == WINDOW


def bare(held: list[bytes]) -> None:
    for batch in batched(held):
        torch.from_numpy(np.stack([decode_jpeg(data, size=SIZE) for data in batch]))


def batched(items: Iterable) -> Iterator[list]:
    """`itertools.batched` of Python 3.12."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield batch


def texts(folder: Path) -> Iterator[Measured]:
    """Records without images, parsed, in shuffled order; neither side tokenises."""
    shards = quietly(write_raw(folder / "texts", TEXTS), folder / "shards")
    tars = [str(shards.folder / tar["name"]) for tar in shards.manifest["shards"]]
    mixture = module(folder / "shards", "texts").mixture
    (folder / "own").mkdir()
    with webdataset.ShardWriter(str(folder / "own" / "%06d.tar"), maxcount=4096, verbose=0) as sink:
        for row in range(TEXTS):
            sink.write({"__key__": f"r{row}", "json": vars(shards.text(row))})
    own = [str(path) for path in sorted((folder / "own").glob("*.tar"))]

    def read() -> None:
        for start in range(0, TEXTS, WINDOW):
            _, rows = mixture.take(start, start + WINDOW)
            assert sum(len(record.turns) for record in shards.texts(rows.tolist())) == WINDOW

    def default(paths: list[str]) -> None:
        samples = webdataset.WebDataset(paths, shardshuffle=False).shuffle(1000).decode()
        assert sum(len(sample["json"]["turns"]) for sample in samples) == TEXTS

    rates = [[TEXTS / s for s in spent] for spent in in_turn(read, partial(default, tars), partial(default, own))]
    yield ratio("stream_text", rates[0], rates[1], "text records/s, against webdataset on the same tars", target=">= 10")
    yield ratio("stream_text_own_tars", rates[0], rates[2], "text records/s, against webdataset on tars of its ShardWriter")


def full_size(folder: Path) -> Iterator[Measured]:
    one = quietly(write_raw(folder / "hundred", 100, size=(64, 64)), folder / "shards")
    tiled(folder / "many" / "full", one, shards=3350)
    tiled(folder / "few" / "full", one, shards=10)
    large = alone(costs, folder / "many")
    first = large["first"]
    unit = f"CPU s from building the DataModule on {FULL:,} rows, the first time"
    yield Measured("stream_first_batch_seconds", first[0], min(first), max(first), len(first), first[0], None, unit, "<= 1")
    yield single("stream_bytes_per_sample", large["bytes"], "bytes of private memory per sample", target="<= 32")
    places = [statistics.median(spent) for spent in large["seeks"]]
    yield single("stream_seek_seconds", max(places), "CPU s to the first batch at 1%, 50% or 99%, the slowest", target="<= 0.5")
    yield single("stream_seek_ratio", max(places) / min(places), "the slowest of these over the fastest", target="<= 1.2")
    few, many = alone(costs, folder / "few")["worker"], large["worker"]
    unit = "MB of a process that streams from 3,350 shards (ours) and from 10 (peer)"
    yield Measured("worker_memory_growth", many / few, many / few, many / few, 1, many, few, unit, "<= 1.05")


def costs(root: Path) -> dict:
    """What a process of its own spends: seconds to a first batch and at three places of an epoch, private bytes per sample by which
    it grew at the first of them, and MB at the end of two windows."""
    words = prompter()
    found: dict[str, Any] = {"first": [], "seeks": [[], [], []]}
    before = memory("RssAnon")
    for _ in range(ROUNDS):
        begun = time.process_time()
        built = module(root, "full", words)
        built.stream().batch(0, slot=0)
        found["first"].append(time.process_time() - begun)
        found.setdefault("bytes", (memory("RssAnon") - before) * 2**20 / FULL)
        for share, spent in zip((0.01, 0.5, 0.99), found["seeks"], strict=True):
            stream = module(root, "full", words).stream()
            begun = time.process_time()
            stream.batch(int(share * FULL / BATCH), slot=0)
            spent.append(time.process_time() - begun)
    for step in range(2 * WINDOW // BATCH):
        stream.batch(step, slot=0)
    return found | {"worker": memory("VmRSS")}


def module(root: Path, source: str, words: Prompter | None = None) -> DataModule:
    settings = {
        "packing_window": WINDOW,
        "global_batch_size": BATCH,
        "max_seq_len": 2048,
        "workers": 0,
        "exact_decode": False,
        "images": True,
    }
    data = DataConfig(root=str(root), **settings, val_samples=0, val_generations=0)
    mix = MixConfig(shares={source: 1.0}, decontaminate=True)
    return DataModule(mix, data, prompter=words or prompter(), size=SIZE, seed=0, slots=1)


def prompter() -> Prompter:
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", IMAGE, *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return Prompter(wrapped, patches=196, budget=2048)
