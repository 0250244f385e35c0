"""The pixels that the model gets with the questions of a benchmark under each image condition."""

import torch
import xxhash
from torch import Tensor

from src.data.image_transform import decode_image
from src.evaluation.benchmark import Benchmark


def condition_images(
    test: Benchmark, numbers: list[int], condition: str, source_rows: list[int] | None, *, mean: Tensor, size: int, exact: bool
) -> list[tuple[str, list[Tensor]]]:
    """(name, pixels) of the images for each of the questions `numbers`. Equal images have equal names and are decoded once.

    `source_rows` is the result of `image_rows`, `mean` and `size` are those of the image encoder.
    """
    decoded: dict[str, list[Tensor]] = {"none": []}
    names = []
    for number in numbers:
        if source_rows:
            data = test.shards[source_rows[number]].images
            name = xxhash.xxh3_128_hexdigest(b"".join(xxhash.xxh3_128_digest(image) for image in data))
            if name not in decoded:
                decoded[name] = [torch.from_numpy(decode_image(image, size=size, exact=exact)) for image in data]
        else:
            count = int(test.shards.column("num_images")[test.rows[number]]) if condition == "blank" else 0
            name = f"blank {count}" if count else "none"
            decoded.setdefault(name, [blank_image(mean, size)] * count)
        names.append(name)
    return [(name, decoded[name]) for name in names]


def blank_image(mean: Tensor, size: int) -> Tensor:
    """An image (uint8 3HW) of the encoder's mean colour, which the encoder normalises to zero."""
    return (mean.flatten().cpu() * 255).round().to(torch.uint8)[:, None, None].expand(3, size, size).contiguous()
