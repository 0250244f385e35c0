"""Trains a small ViT on phantom images and their captions, as BiomedCLIP was trained on figures; saved in open_clip's format.

The loss is a sigmoid contrast (Zhai et al., SigLIP, arXiv 2303.15343) between an image and each word of the vocabulary of the captions
instead of whole captions, so that a small batch contains every contrast. A word may depend on a few patches (multiple-instance
learning), and rare words have larger weights. These two and sinusoidal initial positions make a ViT without convolutions detect small
objects within minutes instead of hours.
"""

import math
import re
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.data.image_transform import decode_image
from src.data.shards import Shards
from src.model.vision_checkpoints import CLIP_MEAN, CLIP_STD, save_open_clip
from src.runtime.progress import Progress

ARCHITECTURE = "vit_base_patch16_224"
KWARGS = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
BATCH, RATE, FREQUENT = 32, 2e-3, 20  # BATCH images per step; words in fewer than FREQUENT captions are ignored


def pretrain(out: Path, shards: Shards, *, steps: int, seed: int) -> None:
    """Writes `out` (open_clip_config.json, open_clip_model.safetensors)."""
    torch.manual_seed(seed)
    images_N3HW, words_NW = images_and_words(shards)
    trunk = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, **KWARGS)
    trunk.pos_embed.data[0, 1:] = sine_positions(KWARGS["img_size"] // KWARGS["patch_size"], KWARGS["embed_dim"])
    share_W = words_NW.float().mean(0)
    weight_W = (share_W * (1 - share_W)) ** -0.5
    weight_W *= len(weight_W) / weight_W.sum()
    head = WordHead(KWARGS["embed_dim"], share_W)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (CLIP_MEAN, CLIP_STD))
    parameters = [*trunk.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / (0.1 * steps), (steps - step) / (0.5 * steps)))
    order = torch.cat([torch.randperm(len(images_N3HW)) for _ in range(steps * BATCH // len(images_N3HW) + 1)])
    trunk.train()
    with Progress(range(steps), desc="vision stand-in", unit="step") as progress:
        for step in progress:
            picked = order[step * BATCH : (step + 1) * BATCH]
            x_N3HW = (random_shift(images_N3HW[picked]).float() - mean) / std
            logits_NW = head(trunk.forward_features(x_N3HW)[:, 1:])
            loss = (F.binary_cross_entropy_with_logits(logits_NW, words_NW[picked].float(), reduction="none") * weight_W).sum(1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                progress.set_postfix_str(f"loss {loss.item():.2f}", refresh=False)
    save_open_clip(out, trunk.eval(), timm_model_name=ARCHITECTURE, kwargs=KWARGS)


class WordHead(nn.Module):
    """Patch features (N, P, D) -> a logit per word (N, W): a term of the mean patch plus a soft maximum over patches."""

    def __init__(self, width: int, share_W: Tensor):
        super().__init__()
        self.whole, self.parts = nn.Linear(width, len(share_W)), nn.Linear(width, len(share_W))
        self.whole.bias.data = torch.logit(share_W.clamp(1e-3, 1 - 1e-3))
        nn.init.zeros_(self.parts.bias)

    def forward(self, v_NPD: Tensor) -> Tensor:
        return self.whole(v_NPD.mean(1)) + self.parts(v_NPD).logsumexp(1) - math.log(v_NPD.shape[1])


def sine_positions(grid: int, width: int) -> Tensor:
    """Position embeddings (grid * grid, width) of patches as sines and cosines of x and y (Vaswani et al., arXiv 1706.03762)."""
    at_G = torch.arange(grid) - (grid - 1) / 2
    y_GG, x_GG = torch.meshgrid(at_G, at_G, indexing="ij")
    omega = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    return torch.cat([wave(axis.flatten()[:, None] * omega) for axis in (x_GG, y_GG) for wave in (torch.sin, torch.cos)], 1)


def images_and_words(shards: Shards) -> tuple[Tensor, Tensor]:
    """The training images (N, 3, H, W) in uint8, and the words of the vocabulary in their captions (N, W) in bool."""
    rows = shards.rows("train").tolist()
    records = [shards[row] for row in rows]
    images = np.stack([decode_image(record.images[0], size=KWARGS["img_size"], exact=False) for record in records])
    words_per_caption = [set(re.findall(r"[a-z]+", record.caption.lower())) for record in records]
    everything = sorted(set().union(*words_per_caption))
    vocabulary = [word for word in everything if FREQUENT <= sum(word in words for words in words_per_caption) < len(words_per_caption)]
    return torch.from_numpy(images), torch.tensor([[word in words for word in vocabulary] for words in words_per_caption])


def random_shift(x_N3HW: Tensor, most: int = 3) -> Tensor:
    """Shifts a batch by up to `most` pixels. Images are not flipped, because captions name sides."""
    down, right = torch.randint(-most, most + 1, (2,)).tolist()
    return torch.roll(x_N3HW, (down, right), (2, 3))
