import numpy as np
import pytest
import torch

from src.data.packing import Balance, collate, pack, split, split_evenly, starvation
from src.data.prompt import IGNORE, EncodedSample
from src.model.vlm import build_vlm
from tests.rounding import float32_norms, rounding


@pytest.mark.parametrize("seed", range(5))
def test_every_item_once_and_no_row_above_the_budget(seed):
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(4, 0.8, rng.integers(1, 700)), 1, 512).astype(int).tolist()
    rows = pack(lengths, 512)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert max(sum(lengths[item] for item in row) for row in rows) <= 512


def test_items_of_the_whole_budget_and_nothing():
    assert pack([], 8) == []
    assert pack([8, 8], 8) == [[0], [1]]
    assert sorted(map(sorted, pack([5, 3, 4, 4], 8))) == [[0, 1], [2, 3]]


def test_a_window_of_pretraining_lengths_leaves_two_percent_empty_at_most():
    """Visual prefixes of 197 tokens and log-normal texts, 2,048 samples in rows of 4,096."""
    rng = np.random.default_rng(0)
    lengths = (197 * (rng.random(2048) < 0.8) + np.clip(rng.lognormal(4, 0.9, 2048), 8, 1500)).astype(int).tolist()
    assert sum(lengths) / (len(pack(lengths, 4096)) * 4096) >= 0.98


@pytest.mark.parametrize(("rows", "slots"), [(0, 3), (1, 4), (7, 3), (12, 4), (5, 8)])
def test_deal_covers_all_rows_evenly(rows, slots):
    dealt = [split_evenly(rows, slots, slot) for slot in range(slots)]
    assert [row for part in dealt for row in part] == list(range(rows))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("parts", [1, 2, 7, 8, 32, 200])
def test_split_gives_equal_tokens_and_loses_nothing(parts):
    lengths = (197 + np.random.default_rng(0).lognormal(4, 0.9, 128).clip(8, 1500)).astype(int).tolist()
    shares = split(lengths, parts)
    tokens = [sum(lengths[item] for item in share) for share in shares]
    assert sorted(item for share in shares for item in share) == list(range(128))
    assert max(tokens) - min(tokens) <= max(lengths)
    assert sum(not share for share in shares) == max(0, parts - 128)
    assert split(lengths, parts) == shares


def test_ranks_of_a_split_step_wait_less_than_a_tenth_of_their_time():
    """128 samples fill about 17 rows of 2,048: whole rows would use 8 ranks for 74% and 16 for 56% of their time."""
    lengths = (197 + np.random.default_rng(0).lognormal(4, 0.9, 2048).clip(8, 1500)).astype(int).tolist()
    found = {world: Balance.of(lengths, world, global_batch_size=128, max_seq_len=2048) for world in (1, 8, 16)}
    assert found[1] == Balance(used=1.0, empty=0.0)
    assert 0.9 < found[16].used < found[8].used < 1
    assert found[16].empty == 0


def test_ranks_without_enough_samples_are_a_warning_with_the_batch_that_fills_them(configure):
    """Samples of 10 to 40 tokens: two per rank differ much, eight do not."""
    data = configure("data.packing_window=256", "data.global_batch_size=16").data
    lengths = np.random.default_rng(0).integers(10, 41, 256).tolist()
    used = {size: Balance.of(lengths, 8, global_batch_size=size, max_seq_len=160).used for size in (16, 32, 64, 128, 256)}
    fills = next(size for size, share in used.items() if share >= 0.9)
    assert starvation(lengths, 2, data=data, slots=1) is None
    said = starvation(lengths, 8, data=data, slots=1)
    assert f"8 processes compute {used[16]:.0%} of their time" in said
    assert "data.global_batch_size=16 gives each 2 samples per step" in said
    assert f"a new run with data.global_batch_size={fills} would compute {used[fills]:.0%}" in said
    assert "take fewer processes, or a larger data.packing_window" in starvation(
        lengths[:16], 16, data=configure("data.packing_window=16").data, slots=1
    )


def test_dealing_twice_is_dealing_once():
    """Ranks x slots cut a step exactly where a finer cut would, so 4 x 4 and 16 x 1 see the same rows in the same order."""
    assert [row for rank in range(2) for slot in range(4) for row in split_evenly(37, 8, rank * 4 + slot)] == list(range(37))


def samples(model, lengths: list[int], *, images: list[int]) -> list[EncodedSample]:
    """Random samples: a prompt of `images` pictures and a third of text, then the answer."""
    rng = np.random.default_rng(5)
    made = []
    for length, count in zip(lengths, images, strict=True):
        places = [model.image_id] * (model.vision.num_patches * count)
        ids = np.array([1, *places, *rng.integers(3, 300, length)], np.int32)
        labels = np.where(np.arange(len(ids)) < 1 + len(places) + length // 3, IGNORE, ids).astype(np.int32)
        made.append(EncodedSample(ids, labels, count))
    return made


def test_packed_samples_have_the_losses_of_samples_alone(configure):
    model = build_vlm(configure()).eval().double()
    images = [1, 0, 2, 1, 0]
    made = samples(model, [20, 7, 11, 30, 3], images=images)
    pixels = list(np.random.default_rng(0).integers(0, 256, (sum(images), 3, 32, 32), np.uint8))
    alone, at = [], 0
    for sample in made:
        mine = pixels[at : at + sample.num_images]
        at += sample.num_images
        alone.append(losses(model, [[sample]], images=mine))
    packed = losses(model, [made[:3], made[3:]], images=pixels)
    apart = rounding(float32_norms(model.language.body.config), packed.max())
    assert (torch.cat(alone) - packed).abs().max() <= apart
    # Something else in the first sample changes its own losses and no one else's.
    changed = EncodedSample(made[0].ids.copy(), made[0].labels, 1)
    changed.ids[-3] = 4 + made[0].ids[-3] % 200
    other = losses(model, [[changed, *made[1:3]], made[3:]], images=[255 - pixels[0], *pixels[1:]])
    mine = len(alone[0])
    assert (other[mine:] - packed[mine:]).abs().max() <= apart
    assert not torch.isclose(other[:mine], packed[:mine]).any()


@torch.no_grad()
def losses(model, rows, *, images) -> torch.Tensor:
    batch = collate(rows, sources=[[0] * len(row) for row in rows], images=images, size=32, pad=2, image_id=330, keys=[])
    return model(batch)[0]


def test_a_sample_is_never_asked_for_its_first_token():
    """Even a sample without a prompt: what stands before it is its neighbour."""
    bare = EncodedSample(np.array([5, 6, 7], np.int32), np.array([5, 6, 7], np.int32), 0)
    batch = collate([[bare, bare]], sources=[[0, 1]], images=[], size=32, pad=2, image_id=330, keys=[])
    assert batch.labels_BT.tolist() == [[IGNORE, 6, 7, IGNORE, 6, 7]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert batch.sources_BT.tolist() == [[0, 0, 0, 1, 1, 1]]


def test_padding_is_a_sample_of_its_own_and_a_slot_without_rows_is_one_pad():
    bare = EncodedSample(np.array([5, 6], np.int32), np.array([5, 6], np.int32), 0)
    batch = collate([[bare, bare], [bare]], sources=[[0, 0], [1]], images=[], size=32, pad=2, image_id=330, keys=[])
    assert batch.input_ids_BT[1].tolist() == [5, 6, 2, 2]
    assert batch.position_ids_BT[1].tolist() == [0, 1, 0, 1]
    assert batch.sources_BT[1].tolist() == [1, 1, -1, -1]
    empty = collate([], sources=[], images=[], size=32, pad=2, image_id=330, keys=[])
    assert empty.input_ids_BT.tolist() == [[2]]
    assert empty.labels_BT.tolist() == [[IGNORE]]
    assert empty.images_NCHW.shape == (0, 3, 32, 32)
