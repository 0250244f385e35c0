"""Reading the data: the training stream against webdataset and LLaVA's loader, and its cost at 3.35 million samples."""

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

from experiments.bench.data import build_shards
from experiments.bench.measurement import ROUNDS, Measurement, ratio, single, single_ratio, time_alternately
from experiments.bench.synthetic_data import FULL_MIX_RECORDS, make_jpeg, memory_mb, replicate_shards, run_in_process, write_raw
from src.config.train import DataConfig, MixConfig
from src.data.datamodule import DataModule
from src.data.image_transform import decode_image
from src.data.prompt import IMAGE, Prompter
from src.data.shards import Shards

SIZE, BATCH, WINDOW = 224, 32, 1024
TEXTS = 16_384
WORDS = (  # of the generated questions and answers
    "what is shown in picture of pictures texts ? : question answer caption yes no left lung abnormality seen the upper lobe"
)


def measure() -> Iterator[Measurement]:
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        yield from measure_images(folder)
        yield from measure_texts(folder)
        yield from measure_full_size(folder)


def measure_images(folder: Path) -> Iterator[Measurement]:
    """uint8 batches of 32 from the same tars. Ours also packs and tokenises; the peers read no text."""
    raw = write_raw(folder / "pictures", WINDOW, size=(384, 512), grain=2.7)
    shards = build_shards(raw, folder / "shards", max_side=512)
    kib = statistics.mean(path.stat().st_size for path in raw.glob("*.jpg")) / 1024
    jpegs = [shards[row].images[0] for row in range(len(shards))]
    readers = [partial(read_ours, folder / "shards"), partial(read_webdataset, shards), partial(read_llava, raw), partial(decode, jpegs)]
    rates = [[WINDOW / s for s in seconds] for seconds in time_alternately(*readers)]
    rng = np.random.default_rng(0)
    error = max(decoding_error(jpegs[:100]), decoding_error([make_jpeg(rng, height=768, width=1024) for _ in range(50)]))
    unit = f"images/s of 512x384, {kib:.0f} KiB, to {SIZE}x{SIZE}"
    yield ratio("stream_image", rates[0], rates[1], f"{unit}, against webdataset's shuffle and decode", target=">= 2.1")
    yield ratio("stream_image_llava", rates[0], rates[2], f"{unit}, against a folder and CLIPImageProcessor", target=">= 3.3")
    yield ratio("stream_of_bare_decode", rates[0], rates[3], f"{unit}, against decoding JPEGs in memory", target=">= 0.85")
    unit = "mean difference from exact PIL, grey levels of 255; the larger of 512x384 and 1024x768 (decoded at half size)"
    yield single("stream_pixels", error, unit, target="<= 1.5")


def decoding_error(jpegs: list[bytes]) -> float:
    return statistics.mean(
        float(np.abs(decode_image(data, size=SIZE).astype(int) - decode_image(data, size=SIZE, exact=True)).mean()) for data in jpegs
    )


def read_ours(root: Path) -> None:
    stream = make_datamodule(root, "pictures").stream()
    assert sum(len(stream.batch(step, micro_batch=0).images_NCHW) for step in range(WINDOW // BATCH)) == WINDOW


def read_webdataset(shards: Shards) -> None:
    """The pipeline of webdataset's documentation, with images resized to the same square."""
    tars = [str(shards.folder / tar["name"]) for tar in shards.manifest["shards"]]
    samples = webdataset.WebDataset(tars, shardshuffle=False).shuffle(1000).decode("pil")
    pixels = (np.asarray(sample["jpg"].resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for sample in samples)
    assert sum(len(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)) for batch in batched(pixels)) == WINDOW


def read_llava(raw: Path) -> None:
    """As LLaVA's LazySupervisedDataset: a list in memory, image files, and the PIL-based image processor of transformers at that time."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SIZE)
    paths = [raw / json.loads(line)["image"] for line in (raw / "train.jsonl").read_text().splitlines()]
    order = np.random.default_rng(0).permutation(len(paths))
    pixels = (processor(Image.open(paths[n]).convert("RGB"), return_tensors="pt")["pixel_values"][0] for n in order)
    assert sum(len(torch.stack(batch)) for batch in batched(pixels)) == WINDOW


def decode(jpegs: list[bytes]) -> None:
    for batch in batched(jpegs):
        torch.from_numpy(np.stack([decode_image(data, size=SIZE) for data in batch]))


def batched(items: Iterable) -> Iterator[list]:
    """`itertools.batched` of Python 3.12."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, BATCH)):
        yield batch


def measure_texts(folder: Path) -> Iterator[Measurement]:
    """Parsed records without images in shuffled order; neither side tokenises."""
    shards = build_shards(write_raw(folder / "texts", TEXTS), folder / "shards")
    tars = [str(shards.folder / tar["name"]) for tar in shards.manifest["shards"]]
    mixture = make_datamodule(folder / "shards", "texts").mixture
    (folder / "peer").mkdir()
    with webdataset.ShardWriter(str(folder / "peer" / "%06d.tar"), maxcount=4096, verbose=0) as sink:
        for row in range(TEXTS):
            sink.write({"__key__": f"r{row}", "json": vars(shards.text(row))})
    peer_tars = [str(path) for path in sorted((folder / "peer").glob("*.tar"))]

    def ours() -> None:
        for start in range(0, TEXTS, WINDOW):
            _, rows = mixture.take(start, start + WINDOW)
            assert sum(len(record.turns) for record in shards.texts(rows.tolist())) == WINDOW

    def peer(paths: list[str]) -> None:
        samples = webdataset.WebDataset(paths, shardshuffle=False).shuffle(1000).decode()
        assert sum(len(sample["json"]["turns"]) for sample in samples) == TEXTS

    rates = [[TEXTS / s for s in seconds] for seconds in time_alternately(ours, partial(peer, tars), partial(peer, peer_tars))]
    yield ratio("stream_text", rates[0], rates[1], "text records/s, against webdataset on the same tars", target=">= 10")
    yield ratio("stream_text_own_tars", rates[0], rates[2], "text records/s, against webdataset on tars of its ShardWriter")


def measure_full_size(folder: Path) -> Iterator[Measurement]:
    shards = build_shards(write_raw(folder / "hundred", 100, size=(64, 64)), folder / "shards")
    replicate_shards(folder / "many" / "full", shards, shards=3350)
    replicate_shards(folder / "few" / "full", shards, shards=10)
    costs = run_in_process(stream_costs, folder / "many")
    first = costs["first"]
    unit = f"CPU s from building the DataModule on {FULL_MIX_RECORDS:,} rows, the first time"
    yield Measurement("stream_first_batch_seconds", first[0], min(first), max(first), len(first), first[0], None, unit, "<= 1")
    yield single("stream_bytes_per_sample", costs["bytes"], "bytes of private memory per sample", target="<= 32")
    seeks = [statistics.median(seconds) for seconds in costs["seeks"]]
    yield single("stream_seek_seconds", max(seeks), "CPU s to the first batch at 1%, 50% or 99%, the slowest", target="<= 0.5")
    yield single("stream_seek_ratio", max(seeks) / min(seeks), "slowest of these seeks over the fastest", target="<= 1.2")
    few = run_in_process(stream_costs, folder / "few")["worker"]
    unit = "MB of a process that streams from 3,350 shards (ours) and from 10 (peer)"
    yield single_ratio("worker_memory_growth", costs["worker"], few, unit, target="<= 1.05")


def stream_costs(root: Path) -> dict:
    """The costs of this process: CPU seconds to a first batch (`first`) and at three positions of an epoch (`seeks`), private bytes per
    sample after the first batch (`bytes`), and MB after two windows (`worker`)."""
    prompter = make_prompter()
    costs: dict[str, Any] = {"first": [], "seeks": [[], [], []]}
    before = memory_mb("RssAnon")
    for _ in range(ROUNDS):
        start = time.process_time()
        datamodule = make_datamodule(root, "full", prompter)
        datamodule.stream().batch(0, micro_batch=0)
        costs["first"].append(time.process_time() - start)
        costs.setdefault("bytes", (memory_mb("RssAnon") - before) * 2**20 / FULL_MIX_RECORDS)
        for share, seconds in zip((0.01, 0.5, 0.99), costs["seeks"], strict=True):
            stream = make_datamodule(root, "full", prompter).stream()
            start = time.process_time()
            stream.batch(int(share * FULL_MIX_RECORDS / BATCH), micro_batch=0)
            seconds.append(time.process_time() - start)
    for step in range(2 * WINDOW // BATCH):
        stream.batch(step, micro_batch=0)
    return costs | {"worker": memory_mb("VmRSS")}


def make_datamodule(root: Path, source: str, prompter: Prompter | None = None) -> DataModule:
    sizes = {"packing_window": WINDOW, "global_batch_size": BATCH, "max_seq_len": 2048}
    data = DataConfig(root=str(root), **sizes, workers=0, exact_decode=False, images=True, val_samples=0, val_generations=0)
    mix = MixConfig(shares={source: 1.0}, decontaminate=True)
    return DataModule(mix, data, prompter=prompter or make_prompter(), size=SIZE, seed=0, accumulate=1)


def make_prompter() -> Prompter:
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", IMAGE, *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return Prompter(wrapped, patches=196, budget=2048)
