import doctest

import numpy as np
import pytest
import torch

from src.data import packing
from src.data.packing import RankBalance, collate, low_utilization_warning, pack, split_by_tokens, split_evenly
from src.data.prompt import IGNORE, EncodedSample
from src.model.vlm import build_vlm
from tests.rounding import float32_norms, rounding


def test_worked_example_of_the_docstring_is_correct():
    failed, attempted = doctest.testmod(packing)
    assert failed == 0
    assert attempted >= 10


@pytest.mark.parametrize("seed", range(5))
def test_pack_uses_every_item_once_and_keeps_to_max_seq_len(seed):
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(4, 0.8, rng.integers(1, 700)), 1, 512).astype(int).tolist()
    sequences = pack(lengths, 512)
    assert sorted(item for sequence in sequences for item in sequence) == list(range(len(lengths)))
    assert max(sum(lengths[item] for item in sequence) for sequence in sequences) <= 512


def test_pack_handles_no_items_and_items_of_full_length():
    assert pack([], 8) == []
    assert pack([8, 8], 8) == [[0], [1]]
    assert sorted(map(sorted, pack([5, 3, 4, 4], 8))) == [[0, 1], [2, 3]]


def test_pack_leaves_at_most_two_percent_padding_for_pretraining_lengths():
    """Visual prefixes of 197 tokens and log-normal texts, 2,048 samples in sequences of 4,096."""
    rng = np.random.default_rng(0)
    lengths = (197 * (rng.random(2048) < 0.8) + np.clip(rng.lognormal(4, 0.9, 2048), 8, 1500)).astype(int).tolist()
    assert sum(lengths) / (len(pack(lengths, 4096)) * 4096) >= 0.98


@pytest.mark.parametrize(("count", "num_parts"), [(0, 3), (1, 4), (7, 3), (12, 4), (5, 8)])
def test_split_evenly_covers_all_items_in_parts_of_equal_size(count, num_parts):
    parts = [split_evenly(count, num_parts, part) for part in range(num_parts)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("num_parts", [1, 2, 7, 8, 32, 200])
def test_split_by_tokens_gives_equal_tokens_and_loses_nothing(num_parts):
    lengths = (197 + np.random.default_rng(0).lognormal(4, 0.9, 128).clip(8, 1500)).astype(int).tolist()
    parts = split_by_tokens(lengths, num_parts)
    tokens = [sum(lengths[item] for item in part) for part in parts]
    assert sorted(item for part in parts for item in part) == list(range(128))
    assert max(tokens) - min(tokens) <= max(lengths)
    assert sum(not part for part in parts) == max(0, num_parts - 128)
    assert split_by_tokens(lengths, num_parts) == parts


def test_ranks_that_split_samples_wait_less_than_a_tenth_of_their_time():
    """128 samples fill about 17 sequences of 2,048: whole sequences would use 8 ranks for 74% and 16 for 56% of their time."""
    lengths = (197 + np.random.default_rng(0).lognormal(4, 0.9, 2048).clip(8, 1500)).astype(int).tolist()
    balance = {world: RankBalance.of(lengths, world, global_batch_size=128, max_seq_len=2048) for world in (1, 8, 16)}
    assert balance[1] == RankBalance(utilization=1.0, empty=0.0)
    assert 0.9 < balance[16].utilization < balance[8].utilization < 1
    assert balance[16].empty == 0


def test_low_utilization_warning_names_the_smallest_sufficient_batch_size(configure):
    """Samples of 10 to 40 tokens: sums of two per rank differ much, sums of eight do not."""
    data = configure("data.packing_window=256", "data.global_batch_size=16").data
    lengths = np.random.default_rng(0).integers(10, 41, 256).tolist()
    sizes = (16, 32, 64, 128, 256)
    utilization = {size: RankBalance.of(lengths, 8, global_batch_size=size, max_seq_len=160).utilization for size in sizes}
    sufficient = next(size for size, share in utilization.items() if share >= 0.9)
    assert low_utilization_warning(lengths, 2, data=data, accumulate=1) is None
    warning = low_utilization_warning(lengths, 8, data=data, accumulate=1)
    assert f"8 processes compute {utilization[16]:.0%} of their time" in warning
    assert "data.global_batch_size=16 gives each 2 samples per step" in warning
    assert f"a new run with data.global_batch_size={sufficient} would compute {utilization[sufficient]:.0%}" in warning
    assert "use fewer processes, or a larger data.packing_window" in low_utilization_warning(
        lengths[:16], 16, data=configure("data.packing_window=16").data, accumulate=1
    )


def test_split_evenly_over_ranks_and_slots_equals_one_split():
    """Ranks x micro-batches divide a step as one finer split does, so 4 x 4 and 16 x 1 have the same sequences in the same order."""
    assert [item for part in range(8) for item in split_evenly(37, 8, part)] == list(range(37))


def samples(model, lengths: list[int], *, images: list[int]) -> list[EncodedSample]:
    """Random samples with `images` images each: the prompt is a third of the text, the answer the rest."""
    rng = np.random.default_rng(5)
    result = []
    for length, count in zip(lengths, images, strict=True):
        image_tokens = [model.image_id] * (model.vision.num_patches * count)
        ids = np.array([1, *image_tokens, *rng.integers(3, 300, length)], np.int32)
        labels = np.where(np.arange(len(ids)) < 1 + len(image_tokens) + length // 3, IGNORE, ids).astype(np.int32)
        result.append(EncodedSample(ids, labels, count))
    return result


def test_packed_samples_have_the_losses_of_separate_samples(configure):
    model = build_vlm(configure()).eval().double()
    images = [1, 0, 2, 1, 0]
    encoded = samples(model, [20, 7, 11, 30, 3], images=images)
    pixels = list(np.random.default_rng(0).integers(0, 256, (sum(images), 3, 32, 32), np.uint8))
    separate, at = [], 0
    for sample in encoded:
        separate.append(losses(model, [[sample]], images=pixels[at : at + sample.num_images]))
        at += sample.num_images
    packed = losses(model, [encoded[:3], encoded[3:]], images=pixels)
    tolerance = rounding(float32_norms(model.language.body.config), packed.max())
    assert (torch.cat(separate) - packed).abs().max() <= tolerance
    # A change of the first sample changes its own losses and no others.
    changed = EncodedSample(encoded[0].ids.copy(), encoded[0].labels, 1)
    changed.ids[-3] = 4 + encoded[0].ids[-3] % 200
    after = losses(model, [[changed, *encoded[1:3]], encoded[3:]], images=[255 - pixels[0], *pixels[1:]])
    first = len(separate[0])
    assert (after[first:] - packed[first:]).abs().max() <= tolerance
    assert not torch.isclose(after[:first], packed[:first]).any()


@torch.no_grad()
def losses(model, sequences, *, images) -> torch.Tensor:
    batch = collate(
        sequences, sources=[[0] * len(sequence) for sequence in sequences], images=images, size=32, pad=2, image_id=330, keys=[]
    )
    return model(batch)[0]


def test_collate_never_supervises_the_first_token_of_a_sample():
    """The token before it belongs to another sample; this holds even for a sample without a prompt."""
    sample = EncodedSample(np.array([5, 6, 7], np.int32), np.array([5, 6, 7], np.int32), 0)
    batch = collate([[sample, sample]], sources=[[0, 1]], images=[], size=32, pad=2, image_id=330, keys=[])
    assert batch.labels_BT.tolist() == [[IGNORE, 6, 7, IGNORE, 6, 7]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.sources_BT.tolist() == [[0, 0, 0, 1, 1, 1]]


def test_collate_treats_padding_as_a_sample_and_an_empty_micro_batch_as_one_pad_token():
    sample = EncodedSample(np.array([5, 6], np.int32), np.array([5, 6], np.int32), 0)
    batch = collate([[sample, sample], [sample]], sources=[[0, 0], [1]], images=[], size=32, pad=2, image_id=330, keys=[])
    assert batch.input_ids_BT[1].tolist() == [5, 6, 2, 2]
    assert batch.position_ids_BT[1].tolist() == [0, 1, 0, 1]
    assert batch.sources_BT[1].tolist() == [1, 1, -1, -1]
    empty = collate([], sources=[], images=[], size=32, pad=2, image_id=330, keys=[])
    assert empty.input_ids_BT.tolist() == [[2]]
    assert empty.labels_BT.tolist() == [[IGNORE]]
    assert empty.images_NCHW.shape == (0, 3, 32, 32)
