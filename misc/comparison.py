"""A distilled class beside the real one: nearest training images in the latent space and in pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillation.datasets import Split, decode
from distillation.prototypes import Prototypes
from misc.judge import PIXELS, small


@dataclass(frozen=True)
class Neighbours:
    """For each of some points its nearest training image: `rows` [N] of the split, and the distance to it [N]."""

    rows: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class ClassView:
    """One class, distilled and real.

    `images` are the rows of its distilled images, `prototype_of` names the prototype of each (without prototypes: none).
    Latents are flat, [N, C * h * w]: of real images (at most as many as asked for) and of the first distilled ones.
    """

    label: int
    images: np.ndarray
    prototype_of: list[int]
    centroids: Tensor | None
    real_latents: Tensor
    distilled_latents: Tensor
    by_latents: Neighbours | None    # of the prototypes
    by_pixels: Neighbours            # of the distilled images
    among_real: np.ndarray           # of each training image to the nearest other one, in pixels


def in_batches(work: Callable, split: Split, rows, size_pixels: int, batch_size: int, workers: int, bar) -> Tensor:
    """`work` on the images `rows` at `size_pixels`, a batch in memory at a time, as one tensor on the CPU."""
    parts = []
    for first in range(0, len(rows), batch_size):
        images = decode(split, rows[first:first + batch_size], size_pixels, workers)
        parts.append(work(images).cpu())
        bar.update(len(images))
    return torch.cat(parts)


def compare_class(label: int, split: Split, distilled: Split, prototype_of: list[int], prototypes: Prototypes | None,
                  encode: Callable, look: Callable, latents: int, points: int) -> ClassView:
    """Compare class `label` of the set `distilled` with its training images, all of them.

    `encode` and `look` take a split and rows and give latents [N, C, h, w] and grey pixels [N, PIXELS * PIXELS]. Kept are the
    latents of the first `latents` distilled images and of at most `points` training images, evenly over the class.
    """
    images, rows = distilled.rows_of(label), split.rows_of(label)
    real, pixels = encode(split, rows).flatten(1), look(split, rows)
    centroids = prototypes and prototypes.centroids
    return ClassView(
        label, images, [prototype_of[image] for image in images] if prototypes else [], centroids,
        real[np.linspace(0, len(rows) - 1, min(points, len(rows))).round().astype(int)],
        encode(distilled, images[:latents]).flatten(1),
        nearest(centroids.flatten(1), real, rows) if prototypes else None,
        nearest(look(distilled, images), pixels, rows, PIXELS), nearest_other(pixels) / PIXELS)


def grey_pixels(images: Tensor) -> Tensor:
    """Images uint8 [N, 3, H, W] as the judge sees them, [N, PIXELS * PIXELS] in [0, 1]."""
    return torch.from_numpy(small(images))


def distances(points: Tensor, known: Tensor) -> Tensor:
    """Euclidean distances [N, M], computed by differences: an exact copy has the distance 0."""
    return torch.cdist(points, known, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(points: Tensor, known: Tensor, rows: np.ndarray, scale: float = 1) -> Neighbours:
    """The nearest of `known` [M, P], which are the training images `rows` [M], to each of `points` [N, P]."""
    found, places = distances(points, known).min(1)
    return Neighbours(rows[places.numpy()], (found / scale).numpy())


def nearest_other(known: Tensor) -> np.ndarray:
    """The distance of each of `known` [M, P] to the nearest other one, [M]; of a single one nothing, [0]."""
    found = distances(known, known).fill_diagonal_(torch.inf).amin(1).numpy()
    return found[np.isfinite(found)]


def name_of(split: Split, row: int) -> str:
    """What a training image is called: its folder and file, or its place in the data set."""
    path: Path | None = split.paths[row] if split.paths else None
    return f"{path.parent.name}/{path.name}" if path else f"training image {row}"
