"""Images ready to train on: a whole set decoded to uint8, with labels and weights, whatever it came from."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillation.datasets import Split, decode_all
from distillation.distilled_set import check_class_names, read_distilled
from distillation.entry import InputError
from distillation.images import open_image


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

    def to(self, device) -> "ImageSet":
        """The same set on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device), weights=self.weights.to(device))

    def rows(self, rows: Tensor) -> "ImageSet":
        """The images `rows` (int64 or bool) as a set of their own."""
        return image_set(self.name, self.classes, self.images[rows], self.labels[rows], self.weights[rows])


def image_set(name: str, classes: list[dict], images: Tensor, labels: Tensor, weights: Tensor | None = None) -> ImageSet:
    """Build a set; weights default to one each and are scaled to mean 1."""
    labels = labels.long()
    weights = torch.ones(len(labels), device=labels.device) if weights is None else weights
    mark = hashlib.sha256(images.cpu().numpy().tobytes())
    mark.update(labels.cpu().numpy().tobytes())
    exact = weights.cpu().double()  # equal weights become 1 to the last bit
    return ImageSet(name, classes, images, labels, (exact / exact.mean()).float().to(labels.device), mark.hexdigest())


def real_images(split: Split, size_pixels: int, workers: int = 2, fit: str = "squash") -> ImageSet:
    """All readable images of a split at `size_pixels`; `fit` and what is raised as in `decode_all`."""
    images, split = decode_all(split, size_pixels, workers, fit)
    return image_set(split.name, split.classes, images, torch.from_numpy(split.labels))


def distilled_images(folder: str | Path, workers: int = 2) -> ImageSet:
    """A distilled set as it lies on disk; labels and weights from its manifest. Raises InputError for mixed sizes."""
    classes, paths, labels, weights = read_distilled(folder)
    with ThreadPoolExecutor(workers) as pool:
        images = list(pool.map(lambda path: torch.from_numpy(np.array(open_image(path))).permute(2, 0, 1), paths))
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) != 1 or len({side for size in sizes for side in size}) != 1:
        raise InputError(f"{folder}: expected square images of one size, found {sorted(sizes)[:3]}")
    return image_set(Path(folder).name, classes, torch.stack(images), labels, weights)


def check_same_classes(train: ImageSet, test: ImageSet) -> None:
    """Raise InputError when two sets do not list the same classes in the same order."""
    check_class_names(train.name, train.classes, test.name, test.classes)
