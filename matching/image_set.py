"""Images ready to train on, with labels and weights, whatever they came from: decoded on the device, or read batch by batch."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from distillation.datasets import Split, decode_all, decode_readable, readable_part
from distillation.distilled_set import check_class_names, read_distilled
from distillation.images import fit_image, open_image
from matching.augmentation import LARGE, Drawn, views
from matching.file_images import FileImages
from scripts.cli import InputError

BLOCK = 1024         # images decoded at once for the digest of a set that stays in its files
LARGEST_SHARE = 0.5  # of the free memory, that a decoded set may take


@dataclass(frozen=True)
class ImageSet:
    """`images` uint8 [N, 3, H, W], `labels` int64 [N] into `classes`, `weights` float32 [N] with mean 1.

    `digest` identifies the pixels and labels, so that soft labels find out when they meet other images.
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
        """Where the images lie and views come out."""
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
        """The normalised, mixed views [B, 3, size, size] of images `rows` [B] as `drawn` says."""
        return views(self.images, drawn, rows, size)

    def in_turn(self, drawn: Drawn, parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
        """The views of each of `parts`, one after the other."""
        return (self.views(drawn, part, size) for part in parts)


def image_set(name: str, classes: list[dict], images: Tensor, labels: Tensor, weights: Tensor | None = None) -> ImageSet:
    """Build a set; weights default to one each and are scaled to mean 1."""
    labels = labels.long()
    mark = hashlib.sha256(images.cpu().numpy().tobytes())
    if images.shape[-1] > LARGE:
        images = images.contiguous(memory_format=torch.channels_last)  # as `crop_one` likes it
    return ImageSet(name, classes, images, labels, _mean_one(weights, labels), _digest(mark, labels))


def _mean_one(weights: Tensor | None, labels: Tensor) -> Tensor:
    if weights is None:
        return torch.ones(len(labels), device=labels.device)
    exact = weights.cpu().double()  # equal weights become 1 to the last bit
    return (exact / exact.mean()).float().to(labels.device)


def _digest(mark, labels: Tensor) -> str:
    """Of pixels, which `mark` has seen, and labels."""
    mark.update(labels.cpu().numpy().tobytes())
    return mark.hexdigest()


def real_images(split: Split, size_pixels: int, workers: int = 2, fit: str = "squash", data_path: str = "device",
                device="cpu") -> ImageSet | FileImages:
    """All readable images of a split at `size_pixels` on `device`; `fit` and what is raised as in `decode_all`.

    `data_path` is "device" (decoded), "pil" (read from their files for every batch), or "auto": the former where the decoded
    set takes at most half of the memory that is free on `device`.
    """
    return _load(split, size_pixels, workers, fit, None, data_path, device)


def distilled_images(folder: str | Path, workers: int = 2, data_path: str = "device", device="cpu") -> ImageSet | FileImages:
    """A distilled set as it lies on disk; labels and weights from its manifest; `data_path` as in `real_images`.

    Raises InputError for mixed sizes.
    """
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
    if data_path == "device" or data_path == "auto" and needed <= LARGEST_SHARE * free_bytes(torch.device(device)):
        images, split = decode_all(split, size_pixels, workers, fit)
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
    """Memory of `device` that nothing uses; of the CPU, what can be had without swapping."""
    return psutil.virtual_memory().available if device.type == "cpu" else torch.accelerator.get_memory_info(device)[0]


def check_same_classes(train: ImageSet, test: ImageSet) -> None:
    """Raise InputError when two sets do not list the same classes in the same order."""
    check_class_names(train.name, train.classes, test.name, test.classes)
