"""Real images in place of distilled ones: a few of each class, by chance or by their latents."""

from collections.abc import Iterator

import torch
from torch import Tensor

from distillation.datasets import Split, decode, decode_readable
from distillation.encoding import encode_classes
from distillation.selection import METHODS, random_order
from scripts.cli import InputError, Progress


def at_random(split: Split, labels: list[int], count: int, size_pixels: int, seed: int,
              workers: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (label, uint8 [count, 3, size, size]): images drawn without replacement, a function of (seed, class).

    Where the split skips unreadable images the next of the draw take their places. Raises InputError when there are too few.
    """
    for label in Progress(labels, desc="choose (random)", unit="class"):
        rows = split.rows_of(label)
        order = rows[random_order(len(rows), seed, label)]
        found, taken = torch.empty(0, 3, size_pixels, size_pixels, dtype=torch.uint8), 0
        while len(found) < count and taken < len(order):
            wanted = order[taken:taken + count - len(found)]
            found = torch.cat([found, decode_readable(split, wanted, size_pixels, workers, "centre")[0]])
            taken += len(wanted)
        check_count(found, count, split, label)
        yield label, found


def by_latents(split: Split, labels: list[int], count: int, size_pixels: int, seed: int, workers: int, *, pipeline,
               method: str, encode_at_pixels: int, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (label, uint8 [count, 3, size, size]): images chosen by `method` (selection.METHODS) over the means of their
    latents. Raises InputError when there are too few.
    """
    for label, latents, rows in encode_classes(pipeline, split, labels, encode_at_pixels, seed=seed, latent="mean",
                                               batch_size=batch_size, workers=workers):
        check_count(rows, count, split, label)
        yield label, decode(split, rows[METHODS[method](latents, count)], size_pixels, workers, "centre")


def check_count(found, wanted: int, split: Split, label: int) -> None:
    """Raise InputError when a class has fewer readable images than wanted."""
    if len(found) < wanted:
        raise InputError(f"--ipc: expected at most {len(found)}, the readable images of class {split.classes[label]['name']} "
                         f"of {split.name}, found {wanted}")
