"""Training images with labels and weights: decoded on the device, or read from their files for every batch."""

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import hflip, pad, pil_to_tensor, resized_crop

from distillation.datasets import Split, decode_all, decode_readable, readable_part
from distillation.distilled_set import read_distilled
from distillation.images import fit_image, open_image
from matching.augmentation import LARGE, Drawn, mixed_one_by_one, views
from scripts.cli import InputError
from scripts.networks import normalise

BLOCK = 1024            # images decoded at once for the digest of a set that stays in its files
LARGEST_FRACTION = 0.5  # of the free memory, for a decoded set
AHEAD = 1               # batches read in advance from files


@dataclass(frozen=True)
class ImageSet:
    """`images` uint8 [N, 3, H, W], `labels` int64 [N] into `classes`, `weights` float32 [N] with mean 1.

    `digest` identifies pixels and labels; soft labels of other images are refused by it.
    """

    name: str
    classes: list[dict]
    images: Tensor
    labels: Tensor
    weights: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """The device of images and views."""
        return self.images.device

    @property
    def source(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return tuple(self.images.shape[-2:])

    def to(self, device) -> "ImageSet":
        """The same set on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), weights=self.weights.to(device))

    def rows(self, rows: Tensor) -> "ImageSet":
        """The images `rows` (int64 or bool) as a set of their own."""
        return image_set(self.name, self.classes, self.images[rows], self.labels[rows], self.weights[rows])

    def views(self, drawn: Drawn, rows: Tensor, size: int) -> Tensor:
        """Normalised, mixed views [B, 3, size, size] of the images `rows` [B]."""
        return views(self.images, drawn, rows, size)

    def in_turn(self, drawn: Drawn, parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
        """The views of each of `parts` (rows)."""
        return (self.views(drawn, part, size) for part in parts)


@dataclass(frozen=True)
class FileImages:
    """An ImageSet too large for memory: `read(row)` gives an RGB image, and threads read and crop the images of each batch.

    The digest is that of the decoded set, whose views differ by rounding alone, so soft labels fit both.
    """

    name: str
    classes: list[dict]
    read: Callable[[int], Image.Image]
    source: tuple[int, int]
    labels: Tensor
    weights: Tensor
    digest: str
    workers: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """The device of views."""
        return self.labels.device

    def to(self, device) -> "FileImages":
        """The same set with its views on `device`."""
        return replace(self, labels=self.labels.to(device), weights=self.weights.to(device))

    def views(self, drawn: Drawn, rows: Tensor, size: int) -> Tensor:
        """Normalised, mixed views [B, 3, size, size] of the images `rows` [B]."""
        return next(self.in_turn(drawn, [rows], size))

    def in_turn(self, drawn: Drawn, parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
        """The views of each of `parts` (rows); the next part is read in the background."""
        host = drawn.to("cpu")
        waiting: deque[tuple[Tensor, dict[int, Future]]] = deque()
        with ThreadPoolExecutor(max(1, self.workers)) as pool:
            for part in parts:
                rows = part.cpu()
                needed = torch.cat([rows, host.partner[rows]]).unique().tolist()
                waiting.append((rows, {row: pool.submit(self._crop, host, row, size) for row in needed}))
                if len(waiting) > AHEAD:
                    yield self._mixed(host, *waiting.popleft())
            while waiting:
                yield self._mixed(host, *waiting.popleft())

    def _crop(self, drawn: Drawn, row: int, size: int) -> Tensor:
        """`augmentation.crop_one` by torchvision's functions for Pillow: uint8 [3, S, S]."""
        view = resized_crop(self.read(row), *drawn.crop[row].tolist(), [size, size], InterpolationMode.BILINEAR)
        return pil_to_tensor(hflip(view) if drawn.flip[row] else view)

    def _mixed(self, drawn: Drawn, rows: Tensor, crops: dict[int, Future]) -> Tensor:
        mixed = torch.stack(list(mixed_one_by_one(lambda row: crops[row].result(), drawn, rows)))
        return normalise(mixed.to(self.device) / 255)


def image_set(name: str, classes: list[dict], images: Tensor, labels: Tensor, weights: Tensor | None = None) -> ImageSet:
    """Build a set; weights default to 1 and are scaled to mean 1."""
    labels = labels.long()
    mark = hashlib.sha256()
    for part in images.split(BLOCK):  # not all at once, which would be a copy of the set
        mark.update(np.ascontiguousarray(part.cpu().numpy()))
    if images.shape[-1] > LARGE:
        images = images.contiguous(memory_format=torch.channels_last)  # the fast layout for `crop_one`
    return ImageSet(name, classes, images, labels, _mean_one(weights, labels), _digest(mark, labels))


def _mean_one(weights: Tensor | None, labels: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(len(labels), device=labels.device)
    exact = weights.cpu().double()  # equal weights become 1 to the last bit
    return (exact / exact.mean()).float().to(labels.device)


def _digest(mark, labels: Tensor) -> str:
    """SHA-256 of pixels, already in `mark`, and labels."""
    mark.update(labels.cpu().numpy().tobytes())
    return mark.hexdigest()


def real_images(split: Split, size_pixels: int, workers: int = 2, fit: str = "squash", data_path: str = "device",
                device="cpu") -> ImageSet | FileImages:
    """All readable images of a split at `size_pixels`; `fit` and errors as in `decode_all`.

    `data_path` is "device" (decoded there), "pil" (read from files for every batch), or "auto": decoded if the set takes at
    most half of the free memory of `device`.
    """
    return _load(split, size_pixels, workers, fit, None, data_path, device)


def stored_path(data_path: str, images: ImageSet | FileImages) -> str:
    """`data_path` for a stored configuration: what "auto" chose, where that is Pillow, whose views are rounded differently."""
    return "pil" if data_path == "auto" and isinstance(images, FileImages) else data_path


def distilled_images(folder: str | Path, workers: int = 2, data_path: str = "device", device="cpu") -> ImageSet | FileImages:
    """A distilled set with labels and weights of its manifest; `data_path` as in `real_images`. Mixed sizes are refused."""
    classes, paths, labels, weights = read_distilled(folder)
    sizes = {open_image(path).size for path in paths[:1]}

    def read(row: int):
        image = open_image(paths[row])
        if {image.size} != sizes:
            raise InputError(f"{folder}: expected square images of one size, found {sorted(sizes | {image.size})}")
        return image
    side = min(min(sizes, default=(0, 0)))
    if sizes != {(side, side)}:
        raise InputError(f"{folder}: expected square images of one size, found {sorted(sizes)}")
    split = Split(Path(folder).name, classes, labels.numpy(), read, paths=paths, root=Path(folder))
    return _load(split, side, workers, "squash", weights, data_path, device)


def _load(split: Split, size_pixels: int, workers: int, fit: str, weights: Tensor | None, data_path: str,
          device) -> ImageSet | FileImages:
    needed = len(split.labels) * 3 * size_pixels ** 2
    if data_path == "device" or data_path == "auto" and needed <= LARGEST_FRACTION * free_bytes(torch.device(device)):
        if needed > free_bytes(torch.device("cpu")):
            raise InputError(f"{split.name}: expected images that fit into the free memory, found {needed / 1e9:.1f} GB "
                             f"({len(split.labels)} of {size_pixels} pixels); choose fewer pixels or fewer images")
        images, split = decode_all(split, size_pixels, workers, fit, channels_last=size_pixels > LARGE)
        return image_set(split.name, split.classes, images, torch.from_numpy(split.labels), weights).to(device)
    mark, kept = hashlib.sha256(), []
    for rows in np.array_split(np.arange(len(split.labels)), math.ceil(len(split.labels) / BLOCK)):
        images, readable = decode_readable(split, rows, size_pixels, workers, fit)
        mark.update(images.numpy())
        kept.append(readable)
    split = readable_part(split, np.concatenate(kept))
    labels = torch.from_numpy(split.labels)
    return FileImages(split.name, split.classes, lambda row: fit_image(split.read(row), size_pixels, fit),
                      (size_pixels, size_pixels), labels, _mean_one(weights, labels), _digest(mark, labels), workers).to(device)


def free_bytes(device: torch.device) -> int:
    """Free memory of `device`; for the CPU without swapping."""
    if device.type == "cpu":
        return psutil.virtual_memory().available
    return torch.get_device_module(device).mem_get_info(device)[0]


def pad_images(images: ImageSet, pixels: int) -> ImageSet:
    """Reflect `pixels` at each side of every image; raises InputError for more than an image has."""
    side = min(images.images.shape[-2:])
    if pixels >= side:
        raise InputError(f"--pad: expected less than the images' {side} pixels, found {pixels}")
    return replace(images, images=torch.cat([pad(part, pixels, padding_mode="reflect") for part in images.images.split(4096)]))
