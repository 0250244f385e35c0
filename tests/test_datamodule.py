"""src/data/datamodule.py: the samples of a step depend on its number alone, not on workers, ranks and micro-batches."""

import itertools
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from src.data.fingerprint import data_fingerprint
from src.data.image_transform import decode_image
from src.data.prompt import IGNORE
from src.data.record import SPLITS
from src.data.train_val_split import open_sources
from src.runtime.errors import UserError
from src.training.data_warnings import held_out_counts, text_warnings, warn_if_ranks_wait
from tests.fixtures import parts

STEPS = 5


@pytest.fixture
def data(configure):
    return lambda *overrides: parts(configure(*overrides))[1]


def sequences_of(batch) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of every sequence without its padding; nothing for an empty micro-batch."""
    sequences = []
    for ids, labels, sources in zip(batch.input_ids_BT.tolist(), batch.labels_BT.tolist(), batch.sources_BT.tolist(), strict=True):
        length = sum(source >= 0 for source in sources)
        if length:
            sequences.append((ids[:length], labels[:length]))
    return sequences


def batches_of(data, step: int, *, world: int, accumulate: int) -> list[list]:
    """The batches of a step by rank and micro-batch."""
    data.accumulate = accumulate
    streams = [data.stream(rank=rank, world=world) for rank in range(world)]
    return [[stream.batch(step, micro_batch=micro_batch) for micro_batch in range(accumulate)] for stream in streams]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_one_rank_splits_the_sequences_of_a_step_over_its_micro_batches(data, accumulate):
    module = data()
    for step in range(STEPS):
        [[whole]], [split] = batches_of(module, step, world=1, accumulate=1), batches_of(module, step, world=1, accumulate=accumulate)
        assert [sequence for batch in split for sequence in sequences_of(batch)] == sequences_of(whole)
        assert [key for batch in split for key in batch.keys] == whole.keys
        assert torch.equal(torch.cat([batch.images_NCHW for batch in split]), whole.images_NCHW)
        counts = [len(sequences_of(batch)) for batch in split]
        assert max(counts) - min(counts) <= 1


def samples_of(batch) -> list[tuple[str, list[int], list[int], bytes]]:
    """(key, ids, labels, pixels) of each sample."""
    samples, image = [], 0
    cu_seqlens = [*(batch.position_ids_BT.flatten() == 0).nonzero()[:, 0].tolist(), batch.input_ids_BT.numel()]
    spans = [(a, b) for a, b in itertools.pairwise(cu_seqlens) if batch.sources_BT.flatten()[a] >= 0]
    for key, (start, stop) in zip(batch.keys, spans, strict=True):
        ids = batch.input_ids_BT.flatten()[start:stop]
        count = int(torch.isin(torch.arange(start, stop), batch.image_token_index_K).sum()) // 4
        pixels = batch.images_NCHW[image : image + count].numpy().tobytes()
        samples.append((key, ids.tolist(), batch.labels_BT.flatten()[start:stop].tolist(), pixels))
        image += count
    return samples


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (2, 2), (4, 1), (4, 4), (16, 1)])
def test_step_has_the_same_samples_for_any_number_of_ranks_and_micro_batches(data, world, accumulate):
    module = data()
    for step in range(STEPS):
        [[whole]] = batches_of(module, step, world=1, accumulate=1)
        ranks = batches_of(module, step, world=world, accumulate=accumulate)
        assert sorted(sample for batches in ranks for batch in batches for sample in samples_of(batch)) == sorted(samples_of(whole))


def test_ranks_and_micro_batches_get_equal_numbers_of_tokens_without_padding(data):
    """Sixteen samples in about three sequences of 160: whole sequences would leave one of four ranks empty."""
    module = data()
    for step in range(STEPS):
        ranks = batches_of(module, step, world=4, accumulate=2)
        longest = max(len(ids) for batches in ranks for batch in batches for _, ids, _, _ in samples_of(batch))
        tokens = [[batch.input_ids_BT.numel() for batch in batches] for batches in ranks]
        assert all((batch.sources_BT >= 0).all() for batches in ranks for batch in batches)
        assert max(map(sum, tokens)) - min(map(sum, tokens)) <= longest
        assert all(max(counts) - min(counts) <= longest for counts in tokens)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_order_does_not_depend_on_the_number_of_workers(data, workers):
    module = data()
    direct, loaded = module.stream(), module.stream()
    direct.start = loaded.start = 3
    loader = iter(DataLoader(loaded, batch_size=None, num_workers=workers))
    for one, other in zip(direct, [next(loader) for _ in range(STEPS)], strict=False):
        assert one.keys == other.keys
        assert torch.equal(one.input_ids_BT, other.input_ids_BT)
        assert torch.equal(one.images_NCHW, other.images_NCHW)


def test_steps_of_a_window_use_every_position_of_the_mixture_once(data):
    module = data()
    stream = module.stream()
    size = module.data.packing_window
    for window in range(3):
        sources, rows = module.mixture.take(window * size, (window + 1) * size)
        expected = [f"{module.mixture.sources[source]}:{row}" for source, row in zip(sources, rows, strict=True)]
        steps = size // module.data.global_batch_size
        keys = [key for step in range(steps) for key in stream.batch(window * steps + step, micro_batch=0).keys]
        assert sorted(keys) == sorted(expected)


@pytest.mark.slow
def test_seeking_gives_the_same_step_as_reading(data):
    reading, seeking = data(), data()
    for step in range(STEPS):
        reading.stream().batch(step, micro_batch=0)
    assert reading.stream().batch(77, micro_batch=0).keys == seeking.stream().batch(77, micro_batch=0).keys


def test_batch_has_the_pixels_and_answers_of_its_records(data):
    """Images are in the order of their placeholders; labels are the answer and the end of sequence, nothing else."""
    module = data()
    batch = module.stream().batch(0, micro_batch=0)
    tokenizer = module.prompter.tokenizer
    images, answers = [], []
    for key in batch.keys:
        source, _, row = key.partition(":")
        record = module.shards[source][int(row)]
        images += [decode_image(image, size=32) for image in record.images]
        answers.append(record.answer)
    assert np.array_equal(batch.images_NCHW.numpy(), np.stack(images))
    assert int((batch.input_ids_BT == module.prompter.image_id).sum()) == len(images) * 4
    supervised = []
    for labels, positions in zip(batch.labels_BT, batch.position_ids_BT, strict=True):
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(labels)]
        for start, stop in itertools.pairwise(starts):
            targets = labels[start:stop][labels[start:stop] != IGNORE].tolist()
            if targets:
                assert targets[-1] == module.prompter.eos
                supervised.append(tokenizer.decode(targets[:-1]))
    assert supervised == answers


def test_validation_batches_are_the_validation_split_divided_over_ranks(data):
    module = data()
    keys = [key for batch in module.validation_batches() for key in batch.keys]
    assert len(keys) == len(set(keys)) == 12
    for source, opened in module.shards.items():
        rows = [int(key.partition(":")[2]) for key in keys if key.startswith(source)]
        assert sorted(rows) == opened.rows("val")[:4].tolist()
    of_ranks = [key for rank in range(2) for batch in module.validation_batches(rank=rank, world=2) for key in batch.keys]
    assert sorted(of_ranks) == sorted(keys)


@pytest.mark.slow
def test_state_is_the_number_of_steps_and_the_fingerprint(data):
    module, other = data(), data("optim.steps=9")
    module.consumed = 7
    state = json.loads(json.dumps(module.state_dict()))
    other.load_state_dict(state)
    assert other.consumed == 7
    assert set(state) == {"consumed", "fingerprint"}


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=1", "seed"),
        ("mix.shares.beta=2", "shares"),
        ("data.global_batch_size=8", "data.global_batch_size"),
        ("data.packing_window=64", "data.packing_window"),
        ("data.shuffle=blocks", "data.shuffle"),
        ("data.max_seq_len=170", "data.max_seq_len"),
        ("mix.decontaminate=false", "decontaminate"),
    ],
)
@pytest.mark.slow
def test_resume_with_another_order_of_the_data_raises(data, override, key):
    with pytest.raises(UserError, match=rf"cannot resume: .* \({key}\S* was .*, now "):
        data(override).load_state_dict(data().state_dict())


@pytest.mark.slow
def test_resume_with_reordered_shares_continues_the_same_stream(configure):
    config, reordered = configure(), configure()
    reordered.mix.shares = dict(reversed(config.mix.shares.items()))
    one, other = parts(config)[1], parts(reordered)[1]
    other.load_state_dict(one.state_dict())
    for step in range(STEPS):
        assert one.stream().batch(step, micro_batch=0).keys == other.stream().batch(step, micro_batch=0).keys


@pytest.mark.slow
def test_resume_from_a_checkpoint_with_an_earlier_data_order_raises(data):
    state = data().state_dict()
    state["fingerprint"].pop("version")
    with pytest.raises(UserError, match=r"cannot resume: .* version 1 depends on the order of mix\.shares"):
        data().load_state_dict(state)


def test_fingerprint_changes_with_the_shards(configure, shards, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    manifest = json.loads((copy / "beta" / "manifest.json").read_text())
    manifest["fingerprint"] = "changed"
    (copy / "beta" / "manifest.json").write_text(json.dumps(manifest))
    config = configure()
    before, after = (
        data_fingerprint(open_sources(root, config.mix), config.mix, seed=config.seed, data=config.data) for root in (shards, copy)
    )
    assert before["shards"]["alpha"] == after["shards"]["alpha"]
    assert before["shards"]["beta"] != after["shards"]["beta"]


@pytest.mark.slow
def test_audit_changes_the_fingerprint_of_a_run_that_decontaminates(configure, shards, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    mark_as_leaking(copy / "alpha", start=30)

    def fingerprint(root, *overrides: str) -> dict:
        config = configure(*overrides)
        return data_fingerprint(open_sources(root, config.mix), config.mix, seed=config.seed, data=config.data)

    before, after = fingerprint(shards), fingerprint(copy)
    assert before["records"]["alpha"].startswith("60 (")
    assert after["records"]["alpha"].startswith("30 (")
    assert before["records"]["beta"] == after["records"]["beta"]
    assert fingerprint(shards, "mix.decontaminate=false") == fingerprint(copy, "mix.decontaminate=false")


@pytest.mark.slow
def test_source_without_training_records_raises(data, shards, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shards, root)
    mark_as_leaking(root / "gamma")
    with pytest.raises(
        UserError,
        match=r"no training record of 'gamma' may be used, all its training records leak into test sets; set mix.shares.gamma=0",
    ):
        data(f"data.root={root}")
    assert len(data(f"data.root={root}", "mix.decontaminate=false").mixture.rows[2]) == 60


def mark_as_leaking(folder, *, start: int = 0) -> None:
    """Marks the training records from `start` on as records of a test set."""
    with pa.OSFile(str(folder / "index.arrow")) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    at = batch.schema.get_field_index("leaks_into")
    splits = batch.column("split").to_pylist()
    leaks_into = ["pathvqa" if split == SPLITS.index("train") and n >= start else "" for n, split in enumerate(splits)]
    batch = batch.set_column(at, batch.schema.field(at), pa.array(leaks_into))
    with pa.OSFile(str(folder / "index.arrow"), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


@pytest.mark.slow
def test_missing_or_changed_shard_raises(data, shards, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shards, root)
    tar = root / "alpha" / "train-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 4])
    with pytest.raises(UserError, match="does not match its index"):
        [data(f"data.root={root}").stream().batch(step, micro_batch=0) for step in range(4)]
    tar.unlink()
    with pytest.raises(UserError, match="listed in the manifest but missing"):
        [data(f"data.root={root}").stream().batch(step, micro_batch=0) for step in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_seq_len", "message"), [(16, r"2 image\(s\) of 4 tokens .* max_seq_len=16; set it to 17 or more"), (17, None)]
)
def test_images_that_do_not_fit_raise_before_the_first_step(data, max_seq_len, message):
    """The sources have one, two and no images of four tokens; a run without images has none."""
    words = [f"data.max_seq_len={max_seq_len}"]
    data(*words, "data.images=false")
    if message is None:
        data(*words).stream().batch(0, micro_batch=0)
    else:
        with pytest.raises(UserError, match=f"'beta/train[0-9]+': {message}"):
            data(*words)


@pytest.mark.slow
def test_more_ranks_than_a_step_can_fill_print_a_warning(configure, capsys):
    for ranks in (1, 2, 16):
        config = configure(f"trainer.devices={ranks}")
        warn_if_ranks_wait(config, parts(config)[1])
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["warning"]


def test_cut_answers_and_unknown_words_are_reported(configure):
    config = configure()
    data = parts(config)[1]
    assert text_warnings(config, data) == []
    data.prompter.budget = 18  # two images take 8
    (cut,) = text_warnings(config, data)
    assert re.match(r"\d+\.\d% of the supervised tokens of the first 32 samples are cut, because a sample, .*data.max_seq_len=", cut)
    data = parts(config)[1]
    unk = data.prompter.tokenizer.unk_token_id
    message = r"the tokenizer of language\.path=.* does not know 100% of the \d+ words of the first 32 samples"
    for tokens in (lambda text: [unk], lambda text: [7] * len(text)):  # LLaMA's falls back to bytes, BPE to letters
        data.prompter.tokens = lambda texts, tokens=tokens: [tokens(text) for text in texts]
        (unknown,) = text_warnings(config, data)
        assert re.match(message, unknown)


def test_records_held_out_for_validation_are_counted(configure):
    data = parts(configure("data.val_samples=4"))[1]
    without = [source for source, shards in data.shards.items() if not len(shards.rows("val")) and len(data.val_rows[source])]
    assert held_out_counts(data) == [f"{source} {len(data.val_rows[source])}" for source in without]
    assert held_out_counts(parts(configure("data.val_samples=0"))[1]) == []
