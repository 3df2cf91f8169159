"""Random crops, flips, CutMix, MixUp and Cutout on whole batches, on the images' device.

Random numbers are drawn first and can be stored (`draw_*`, numpy on the CPU); applying them is pure. Teacher and student share
this code, so stored draws give the same views again.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.networks import MEAN, STD, normalise
from scripts.randomness import seed_for

LARGE = 32  # pixels; on a CPU larger views are made one by one, which is faster there


# draws

@dataclass(frozen=True)
class Views:
    """How the views of a training run are drawn: a function of (seed, epoch).

    `size` in pixels; `scale` the range of a crop's area; `flip` a probability; `mix` is none, cutmix or mixup with `alpha`,
    drawn for each image, or once for each batch of at most `mix_batch` images (0: for each image). With `shifts` a crop has
    `size` pixels and lies anywhere in the image (padded before). `cutout` is the side of a square in pixels (0: none).
    """

    size: int
    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    mix: str = "none"
    alpha: float = 1.0
    shifts: bool = False
    cutout: int = 0
    mix_batch: int = 0


def mix_of(settings) -> dict:
    """The fields of `Views` that the flags of `Parser.add_mix_flags` decide; batches have `batch_size` images."""
    return {"mix": settings.mix_type, "alpha": {"mixup": settings.mixup, "cutmix": settings.cutmix}.get(settings.mix_type, 1.0),
            "mix_batch": settings.batch_size if settings.mix_per == "batch" and settings.mix_type != "none" else 0}


def mix_config(settings, with_alpha: bool = True) -> dict:
    """How images are mixed, for the stored configuration; values that earlier versions always had are left out."""
    mix = mix_of(settings)
    return {**({"mix_alpha": mix["alpha"]} if with_alpha and mix["alpha"] != 1 else {}),
            **({"mix_per": "batch"} if mix["mix_batch"] else {})}


@dataclass(frozen=True)
class Drawn:
    """One epoch's draws by image row.

    `order` [N]: training order; `crop` [N, 4]: top, left, height, width in source pixels; `flip` [N]; `partner` [N]: row of the
    image mixed in; `ratio` [N]: weight of the image itself; `box` [N, 4]: top, left, bottom, right of the pasted part in output
    pixels (empty for MixUp, which blends by `ratio`).
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


def draw_views(views: Views, images, epoch: int) -> Drawn:
    """Draw the views of one epoch of `images` (an ImageSet or FileImages), on their device."""
    rng = np.random.default_rng(seed_for(views.seed, "views", epoch))
    drawn = draw_epoch(len(images), images.source, views.size, rng, scale=views.scale, flip=views.flip, mix=views.mix,
                       alpha=views.alpha, mix_batch=views.mix_batch)
    if views.shifts:
        drawn = replace(drawn, crop=torch.from_numpy(draw_shifts(len(images), images.source, views.size, rng)))
    return drawn.to(images.device)


def draw_epoch(count: int, source: tuple[int, int], size: int, rng: np.random.Generator, *, scale=(0.08, 1.0),
               flip: float = 0.5, mix: str = "none", alpha: float = 1.0, mix_batch: int = 0) -> Drawn:
    """Draw one epoch over `count` images of `source` (height, width) pixels, for views of `size` pixels."""
    order = rng.permutation(count)
    crop = draw_crops(count, source, rng, scale)
    flips = rng.random(count) < flip
    if mix_batch:
        partner, ratio, box = draw_batch_mix(batches_of(order, mix_batch), size, rng, mix, alpha)
    else:
        partner, ratio, box = draw_mix(count, size, rng, mix, alpha)
    return Drawn(torch.from_numpy(order), torch.from_numpy(crop), torch.from_numpy(flips), torch.from_numpy(partner),
                 torch.from_numpy(ratio), torch.from_numpy(box))


def draw_crops(count: int, source: tuple[int, int], rng: np.random.Generator, scale=(0.08, 1.0), aspect=(3 / 4, 4 / 3),
               tries: int = 10) -> np.ndarray:
    """Boxes int32 [N, 4] (top, left, height, width), distributed as in torchvision's RandomResizedCrop.

    The relative area is uniform in `scale`, the aspect ratio log-uniform. After `tries` boxes that do not fit, the whole image
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


def draw_shifts(count: int, source: tuple[int, int], size: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes int32 [N, 4] (top, left, height, width) of `size` pixels anywhere in images of `source` (height, width)."""
    corner = [rng.integers(0, length - size + 1, count) for length in source]
    return np.stack([*corner, *[np.full(count, size)] * 2], axis=1).astype(np.int32)


def draw_mix(count: int, size: int, rng: np.random.Generator, kind: str, alpha: float):
    """Partner int32 [N], ratio float32 [N] and pasted box int32 [N, 4], lambda ~ Beta(alpha, alpha).

    `cutmix` (Yun et al. 2019): a box of area 1 - lambda around a uniform centre, clipped; the ratio is what is left. `mixup`
    (Zhang et al. 2018): no box, the ratio is lambda.
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


def draw_batch_mix(batches: list[np.ndarray], size: int, rng: np.random.Generator, kind: str, alpha: float):
    """`draw_mix` with one ratio and box for each of `batches` (rows [B]), and the partner of a row inside its batch.

    As in FKD (arXiv 2112.01528), SRe2L, D4M and RDED, released code.
    """
    count = sum(map(len, batches))
    partner, ratio, box = np.empty(count, np.int32), np.empty(count, np.float32), np.empty((count, 4), np.int32)
    for rows in batches:
        partner[rows] = rng.permutation(rows)
        _, ratio[rows], box[rows] = draw_mix(1, size, rng, kind, alpha)
    return partner, ratio, box


def batches_of(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut the rows `order` [N] into batches of nearly one size, at most `batch_size`."""
    return np.array_split(order, math.ceil(len(order) / batch_size))


def draw_cutout(count: int, size: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes int32 [N, 4] (top, left, bottom, right) of Cutout (DeVries & Taylor 2017, arXiv 1708.04552).

    Squares of `pixels` around a centre uniform over the `size` pixels of a view, clipped.
    """
    corner = rng.integers(0, size, (count, 2)) - pixels // 2
    return np.concatenate([corner, corner + pixels], axis=1).clip(0, size).astype(np.int32)


# views

def views(images: Tensor, drawn: Drawn, rows: Tensor, size: int) -> Tensor:
    """Normalised, mixed views [B, 3, size, size] of the rows [B] of `images`, uint8 [N, 3, H, W]."""
    if _large_on_cpu(images, size):
        return _views_one_by_one(images, drawn, rows, size)
    partner = drawn.partner[rows].long()
    if torch.equal(partner, rows):
        return normalise(crop_resize(images[rows], drawn.crop[rows], drawn.flip[rows], size))
    both = torch.cat([rows, partner])
    own, other = crop_resize(images[both], drawn.crop[both], drawn.flip[both], size).chunk(2)
    return normalise(mix(own, other, drawn.ratio[rows], drawn.box[rows]))


def crop_resize(images: Tensor, crop: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop uint8 [B, 3, H, W] to `crop` [B, 4], resize bilinearly with antialias, flip: float [B, 3, S, S] in [0, 1].

    Differs from torchvision's functions on Pillow images by rounding to 8 bits alone: at most 1.5/255, or 2/255 where a CPU
    shrinks large views.
    """
    if _large_on_cpu(images, size):
        return torch.stack([crop_one(*each, size) for each in zip(images, crop.tolist(), flip.tolist(), strict=True)]) / 255
    count, channels, height, width = images.shape
    start, length = crop.T.float().view(2, 2, count, 1)  # rows, columns
    y, x = _resize_weights(start, length, flip, max(height, width), size)
    y = y[:, None, :height].expand(-1, channels, -1, -1).reshape(-1, height, size)
    with torch.autocast(images.device.type, enabled=False):  # views do not depend on the network's precision
        rows = torch.bmm((images * (1 / 255)).reshape(count, -1, width), x[:, :width])
        return torch.bmm(y.mT, rows.view(-1, height, size)).view(count, channels, size, size)


def _resize_weights(start: Tensor, length: Tensor, flip: Tensor, longest: int, size: int) -> Tensor:
    """Weight [2, B, longest, size] of each source pixel in each output pixel of a crop, for rows and columns.

    `start`, `length` [2, B, 1]. The filter is a triangle as wide as two source or two output pixels, the larger of both, over
    the crop's pixels alone. Columns are flipped where `flip` [B] is true.
    """
    step = length / size
    centre = (torch.arange(size, device=start.device) + 0.5) * step
    if longest <= size:  # nothing shrinks: an output has two source pixels, or one at the crop's edge
        centre = centre.clamp(min=0.5).minimum(length - 0.5)
    centre[1] = torch.where(flip[:, None], centre[1].flip(1), centre[1])
    pixel = torch.arange(longest, device=start.device)[:, None] + 0.5
    away = (pixel - (centre + start)[:, :, None]).abs_()
    if longest <= size:
        return away.neg_().add_(1).clamp_(min=0)
    within = (pixel > start[..., None]) & (pixel < (start + length)[..., None])
    share = away.div_(-step.clamp(min=1)[..., None]).add_(1).clamp_(min=0).mul_(within)
    return share.div_(share.sum(2, keepdim=True))


def _large_on_cpu(images: Tensor, size: int) -> bool:
    return images.device.type == "cpu" and size > LARGE


def _views_one_by_one(images: Tensor, drawn: Drawn, rows: Tensor, size: int) -> Tensor:
    """`views` image by image, in 8 bits until the last step, so that the data stays in the processor's cache."""
    mean, std = (torch.tensor(values).repeat(size) for values in (MEAN, STD))  # of a row of pixels, channels innermost
    scale, shift = 1 / (255 * std), -mean / std
    needed = torch.cat([rows, drawn.partner[rows]])
    draws = zip(drawn.crop[needed].tolist(), drawn.flip[needed].tolist(), strict=True)
    crop_and_flip = dict(zip(needed.tolist(), draws, strict=True))
    made = torch.from_numpy(np.empty((len(rows), size, size, 3), dtype=np.float32))  # numpy uses large memory pages
    mixed = mixed_one_by_one(lambda row: crop_one(images[row], *crop_and_flip[row], size), drawn, rows)
    for view, pixels in zip(made, mixed, strict=True):
        flat = view.copy_(pixels.permute(1, 2, 0)).view(size, -1)
        torch.addcmul(shift, flat, scale, out=flat)
    return made.permute(0, 3, 1, 2)


def crop_one(image: Tensor, crop: list[int], flip: bool, size: int) -> Tensor:
    """`crop_resize` of one image uint8 [3, H, W], rounded to uint8 [3, S, S]; fast for channels_last images."""
    top, left, height, width = crop
    cut = image.narrow(1, top, height).narrow(2, left, width)[None].contiguous(memory_format=torch.channels_last)
    view = F.interpolate(cut, size=(size, size), mode="bilinear", antialias=True)[0]
    return view.flip(2) if flip else view


def mixed_one_by_one(crop_of: Callable[[int], Tensor], drawn: Drawn, rows: Tensor) -> Iterator[Tensor]:
    """`mix` image by image, on crops `crop_of(row)` uint8 [3, S, S]; float where it blends, else uint8."""
    partner, ratio, box = (each[rows].tolist() for each in (drawn.partner, drawn.ratio, drawn.box))
    for row, other, share, (top, left, bottom, right) in zip(rows.tolist(), partner, ratio, box, strict=True):
        if bottom > top and right > left:
            pasted = crop_of(row).clone()
            pasted[:, top:bottom, left:right] = crop_of(other)[:, top:bottom, left:right]
            yield pasted
        else:
            yield crop_of(row) if share == 1 else torch.lerp(crop_of(other).float(), crop_of(row).float(), share)


def mix(own: Tensor, other: Tensor, ratio: Tensor, box: Tensor) -> Tensor:
    """Paste `other` into `own` [B, 3, S, S] inside `box` [B, 4]; where the box is empty, blend by `ratio` [B]."""
    pixel = torch.arange(own.shape[-1], device=own.device)
    top, left, bottom, right = (edge[:, None] for edge in box.unbind(1))
    inside = ((pixel >= top) & (pixel < bottom)).float()[:, :, None] * ((pixel >= left) & (pixel < right)).float()[:, None, :]
    boxed = ((bottom > top) & (right > left))[:, 0]
    share = torch.where(boxed, 1.0, ratio)[:, None, None] - inside
    return torch.lerp(other, own, share[:, None])


def cut_out(views: Tensor, box: Tensor) -> Tensor:
    """Set normalised views [B, 3, S, S] to zero, the mean, inside `box` [B, 4]."""
    return mix(views, torch.zeros_like(views), torch.ones(len(views), device=views.device), box)
