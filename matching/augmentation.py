"""Random resized crop, flip and CutMix or MixUp on whole batches, on whatever device the images lie.

What is random is drawn first and can be stored (`draw_*`, numpy on the CPU); applying it is pure. Teacher and student share
this code, so a view can be made again from what was drawn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.networks import MEAN, STD, normalise

LARGE = 32  # pixels: views beyond this are made one by one on the CPU, where that is faster


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

    What torchvision's functions make of Pillow images, to 1.5/255, or 2/255 where a CPU shrinks large views: all that differs
    is where values and shares are rounded to 8 bits.
    """
    if _large_on_cpu(images, size):
        return torch.stack([crop_one(*each, size) for each in zip(images, crop.tolist(), flip.tolist(), strict=True)]) / 255
    count, channels, height, width = images.shape
    start, length = crop.T.float().view(2, 2, count, 1)  # rows, columns
    y, x = _shares(start, length, flip, max(height, width), size)
    y = y[:, None, :height].expand(-1, channels, -1, -1).reshape(-1, height, size)
    with torch.autocast(images.device.type, enabled=False):  # a view is the same whatever precision a network has
        rows = torch.bmm((images * (1 / 255)).reshape(count, -1, width), x[:, :width])
        return torch.bmm(y.mT, rows.view(-1, height, size)).view(count, channels, size, size)


def _shares(start: Tensor, length: Tensor, flip: Tensor, longest: int, size: int) -> Tensor:
    """What share [2, B, longest, size] each source pixel has in each of `size` outputs of a crop; `start`, `length` [2, B, 1].

    A triangle as wide as two source or two output pixels, whichever are larger, over the crop's pixels alone. The second half
    is flipped where `flip` [B] says so.
    """
    step = length / size
    centre = (torch.arange(size, device=start.device) + 0.5) * step
    if longest <= size:  # nothing shrinks: two pixels share an output, or at the crop's edge one
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
    """`views` image after image, in 8 bits until the last step: what is worked on stays in the processor's cache."""
    mean, std = (torch.tensor(values).repeat(size) for values in (MEAN, STD))  # of a row of pixels, channels innermost
    scale, shift = 1 / (255 * std), -mean / std
    needed = torch.cat([rows, drawn.partner[rows]])
    how = dict(zip(needed.tolist(), zip(drawn.crop[needed].tolist(), drawn.flip[needed].tolist(), strict=True), strict=True))
    made = torch.from_numpy(np.empty((len(rows), size, size, 3), dtype=np.float32))  # numpy asks for large memory pages
    pixels_of = mixed_one_by_one(lambda row: crop_one(images[row], *how[row], size), drawn, rows)
    for view, pixels in zip(made, pixels_of, strict=True):
        flat = view.copy_(pixels.permute(1, 2, 0)).view(size, -1)
        torch.addcmul(shift, flat, scale, out=flat)
    return made.permute(0, 3, 1, 2)


def crop_one(image: Tensor, crop: list[int], flip: bool, size: int) -> Tensor:
    """`crop_resize` of one image uint8 [3, H, W], rounded to uint8 [3, S, S]; fast where channels lie innermost."""
    top, left, height, width = crop
    cut = image.narrow(1, top, height).narrow(2, left, width)[None].contiguous(memory_format=torch.channels_last)
    view = F.interpolate(cut, size=(size, size), mode="bilinear", antialias=True)[0]
    return view.flip(2) if flip else view


def mixed_one_by_one(crop_of: Callable[[int], Tensor], drawn: Drawn, rows: Tensor) -> Iterator[Tensor]:
    """What `mix` makes of crops [3, S, S] (0 to 255, `crop_of(row)`), image after image; uint8 but where it blends."""
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
    place = torch.arange(own.shape[-1], device=own.device)
    top, left, bottom, right = (edge[:, None] for edge in box.unbind(1))
    inside = ((place >= top) & (place < bottom)).float()[:, :, None] * ((place >= left) & (place < right)).float()[:, None, :]
    boxed = ((bottom > top) & (right > left))[:, 0]
    share = torch.where(boxed, 1.0, ratio)[:, None, None] - inside
    return torch.lerp(other, own, share[:, None])
