"""What CIFAR's classifiers are trained with: crops of the padded image, and Cutout."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matching.augmentation import draw_epoch, mix
from matching.image_set import ImageSet
from scripts.cli import InputError
from scripts.randomness import seed_for


def pad_images(images: ImageSet, pixels: int) -> ImageSet:
    """The set with `pixels` reflected at each side of every image; raises InputError for more than an image has to reflect."""
    side = min(images.images.shape[-2:])
    if pixels >= side:
        raise InputError(f"--pad: expected less than the images' {side} pixels, found {pixels}")
    padded = torch.cat([F.pad(part.float(), (pixels,) * 4, mode="reflect").to(torch.uint8)
                        for part in images.images.split(4096)])
    return replace(images, images=padded)


def draw_shifts(count: int, source: tuple[int, int], size: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes int32 [N, 4] (top, left, height, width) of `size` pixels, anywhere in images of `source` (height, width)."""
    places = [rng.integers(0, length - size + 1, count) for length in source]
    return np.stack([*places, *[np.full(count, size)] * 2], axis=1).astype(np.int32)


def shifted_views(padded: ImageSet, size: int, seed: int, *, flip: float, mix: str = "none"):
    """Views of `size` pixels anywhere in the padded images, drawn anew every epoch: `drawn_views` with another kind of crop."""
    def epoch_of(epoch: int):
        rng = np.random.default_rng(seed_for(seed, "views", epoch))
        drawn = draw_epoch(len(padded), padded.source, size, rng, flip=flip, mix=mix)
        shifts = torch.from_numpy(draw_shifts(len(padded), padded.source, size, rng))
        return replace(drawn, crop=shifts).to(padded.device), None
    return epoch_of


def draw_cutout(count: int, size: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes int32 [N, 4] (top, left, bottom, right) of Cutout (DeVries & Taylor 2017, arXiv 1708.04552) in `size` pixels.

    Squares of `pixels` around a centre uniform over the image; what lies outside is clipped off.
    """
    corner = rng.integers(0, size, (count, 2)) - pixels // 2
    return np.concatenate([corner, corner + pixels], axis=1).clip(0, size).astype(np.int32)


def cut_out(views: Tensor, box: Tensor) -> Tensor:
    """Normalised views [B, 3, S, S] with zeros, which is the mean, inside `box` [B, 4]."""
    return mix(views, torch.zeros_like(views), torch.ones(len(views), device=views.device), box)


def drawn_cutout(count: int, size: int, pixels: int, seed: int):
    """An `alter` for `train`: Cutout drawn anew every epoch, a function of (seed, epoch)."""
    boxes = {}

    def alter(views: Tensor, epoch: int, rows: Tensor) -> Tensor:
        if epoch not in boxes:
            boxes.clear()
            drawn = draw_cutout(count, size, pixels, np.random.default_rng(seed_for(seed, "cutout", epoch)))
            boxes[epoch] = torch.from_numpy(drawn).to(views.device)
        return cut_out(views, boxes[epoch][rows])
    return alter
