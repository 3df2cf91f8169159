"""Random resized crop, flip and CutMix or MixUp on whole batches, on whatever device the images lie.

What is random is drawn first and can be stored (`draw_*`, numpy on the CPU); applying it is pure. Teacher and student share
this code, so a view can be made again from what was drawn.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distillation.architectures import normalise


@dataclass(frozen=True)
class Drawn:
    """One epoch's draws, addressed by image row.

    `order` [N] the training order; `crop` [N, 4] top, left, height, width in source pixels; `flip` [N]; `partner` [N] the row
    mixed in (its view of the same epoch); `ratio` [N] the share of the image's own pixels; `box` [N, 4] top, left, bottom,
    right of the pasted part in output pixels (empty for MixUp, where `ratio` blends).
    """

    order: Tensor
    crop: Tensor
    flip: Tensor
    partner: Tensor
    ratio: Tensor
    box: Tensor

    def to(self, device) -> "Drawn":
        """The same draws on `device`."""
        return Drawn(*(getattr(self, field.name).to(device) for field in fields(self)))


def draw_epoch(count: int, source: tuple[int, int], size: int, rng: np.random.Generator, *, scale=(0.08, 1.0),
               flip: float = 0.5, mix: str = "none", alpha: float = 1.0) -> Drawn:
    """Draw everything random of one epoch over `count` images of `source` (height, width) pixels, views of `size` pixels."""
    order = rng.permutation(count)
    crop = draw_crops(count, source, rng, scale)
    flips = rng.random(count) < flip
    partner, ratio, box = draw_mix(count, size, rng, mix, alpha)
    return Drawn(torch.from_numpy(order), torch.from_numpy(crop), torch.from_numpy(flips), torch.from_numpy(partner),
                 torch.from_numpy(ratio), torch.from_numpy(box))


def draw_crops(count: int, source: tuple[int, int], rng: np.random.Generator, scale=(0.08, 1.0), aspect=(3 / 4, 4 / 3),
               tries: int = 10) -> np.ndarray:
    """Boxes int32 [N, 4] (top, left, height, width), distributed as torchvision's RandomResizedCrop draws them.

    An area share uniform in `scale` and a log-uniform aspect ratio, tried `tries` times; where none fits, the whole image
    (torchvision's fallback for images whose own aspect ratio is within `aspect`).
    """
    height, width = source
    area = height * width * rng.uniform(*scale, (tries, count))
    ratio = np.exp(rng.uniform(*np.log(aspect), (tries, count)))
    w, h = np.round(np.sqrt(area * ratio)).astype(int), np.round(np.sqrt(area / ratio)).astype(int)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first, columns = fits.argmax(0), np.arange(count)
    w = np.where(fits.any(0), w[first, columns], width)
    h = np.where(fits.any(0), h[first, columns], height)
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    return np.stack([top, left, h, w], axis=1).astype(np.int32)


def draw_mix(count: int, size: int, rng: np.random.Generator, kind: str, alpha: float):
    """Partner int32 [N], own share float32 [N] and pasted box int32 [N, 4] per image.

    `cutmix` (Yun et al. 2019): a box of area 1 - lambda around a uniform centre, clipped, the share re-computed; `mixup`
    (Zhang et al. 2018): no box, the share is lambda; `none`: the image alone. lambda ~ Beta(alpha, alpha).
    """
    box = np.zeros((count, 4), dtype=np.int32)
    if kind == "none":
        return np.arange(count, dtype=np.int32), np.ones(count, dtype=np.float32), box
    partner = rng.permutation(count).astype(np.int32)
    share = rng.beta(alpha, alpha, count)
    if kind == "cutmix":
        side = np.floor(size * np.sqrt(1 - share)).astype(int)
        centre = rng.integers(0, size, (count, 2))
        box[:, :2] = np.clip(centre - side[:, None] // 2, 0, size)
        box[:, 2:] = np.clip(centre + side[:, None] // 2, 0, size)
        share = 1 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / size ** 2
    return partner, share.astype(np.float32), box


def views(images: Tensor, drawn: Drawn, rows: Tensor, size: int) -> Tensor:
    """The normalised, mixed views [B, 3, size, size] of images `rows` [B] as `drawn` says; `images` uint8 [N, 3, H, W]."""
    own = crop_resize(images[rows], drawn.crop[rows], drawn.flip[rows], size)
    partner = drawn.partner[rows].long()
    if torch.equal(partner, rows):
        return normalise(own)
    other = crop_resize(images[partner], drawn.crop[partner], drawn.flip[partner], size)
    return normalise(mix(own, other, drawn.ratio[rows], drawn.box[rows]))


def crop_resize(images: Tensor, crop: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop uint8 [B, 3, H, W] to `crop` [B, 4], resize bilinearly (no antialias), flip: float [B, 3, S, S] in [0, 1]."""
    height, width = images.shape[-2:]
    top, left, h, w = crop.float().unbind(1)
    place = (torch.arange(size, device=images.device) + 0.5) / size
    y = _within(top, h, place) / max(height - 1, 1)
    x = _within(left, w, place) / max(width - 1, 1)
    x = torch.where(flip[:, None], x.flip(1), x)
    grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1) * 2 - 1
    return F.grid_sample(images.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _within(start: Tensor, length: Tensor, place: Tensor) -> Tensor:
    """Source coordinates [B, S] of output pixel centres; clamped to the crop, whose outside a cropped image cannot see."""
    coordinates = start[:, None] + place[None] * length[:, None] - 0.5
    return coordinates.clamp(min=start[:, None]).minimum((start + length - 1)[:, None])


def mix(own: Tensor, other: Tensor, ratio: Tensor, box: Tensor) -> Tensor:
    """Paste `other` into `own` [B, 3, S, S] inside `box` [B, 4]; where the box is empty, blend by `ratio` [B]."""
    size = own.shape[-1]
    place = torch.arange(size, device=own.device)
    top, left, bottom, right = (edge[:, None] for edge in box.unbind(1))
    inside = ((place >= top) & (place < bottom))[:, :, None] & ((place >= left) & (place < right))[:, None, :]
    boxed = (bottom > top) & (right > left)
    blend = torch.where(boxed[:, :, None], 1 - inside.float(), ratio[:, None, None])
    return torch.lerp(other, own, blend[:, None])
