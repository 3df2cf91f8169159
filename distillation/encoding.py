"""Real images to latents, class by class; on an accelerator, threads decode files ahead of the autoencoder."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillation.datasets import Split, decode_readable
from scripts.cli import InputError, Progress, note
from scripts.randomness import generator_for

AHEAD = 3  # batches decoded in advance on an accelerator; on a CPU decoding and encoding share the cores


@dataclass(frozen=True)
class Encoding:
    """How to encode: `latent` is "sample" (of the posterior; its noise is a function of (seed, class)) or "mean"."""

    seed: int
    latent: str = "sample"
    batch_size: int = 64
    workers: int = 4
    fit: str = "squash"


class ClassLatents(NamedTuple):
    """One class: its `label`, `latents` [N, C, h, w] (scaled, on the CPU) and the split's `rows` [N] of these images."""

    label: int
    latents: Tensor
    rows: np.ndarray


def size_to_encode(pipeline, size: int | None) -> int:
    """The resolution to encode at (default: the autoencoder's). Raises InputError where the autoencoder cannot halve it."""
    size, factor = size or pipeline.size_pixels, pipeline.downsampling
    if not pipeline.size_pixels / 2 < size < 2 * pipeline.size_pixels:
        note(f"--size {size}: the checkpoint was made for {pipeline.size_pixels} pixels; images of another size may be poor")
    if size % factor:
        raise InputError(f"--size: expected a multiple of {factor}, by which the autoencoder shrinks an image, found {size}")
    return size


def encode_classes(pipeline, split: Split, labels: list[int], size_pixels: int, how: Encoding,
                   seconds: dict | None = None) -> Iterator[ClassLatents]:
    """Encode the classes `labels` one after the other; memory holds one class at a time.

    Adds to `seconds`: "encode", and its part "wait", for decoded files. Raises InputError for an unreadable image (unless the
    split skips them), for a class without a readable one, and for latents that are not finite.
    """
    seconds = seconds if seconds is not None else {}
    shape = pipeline.latent_shape(size_pixels)
    parts = [(label, indices) for label in labels for indices in np.split(
        np.arange(len(split.rows_of(label))), range(how.batch_size, len(split.rows_of(label)), how.batch_size))]

    def decode(part):
        label, indices = part
        images, readable = decode_readable(split, split.rows_of(label)[indices], size_pixels, how.workers, how.fit)
        return label, indices[np.isin(split.rows_of(label)[indices], readable)], images
    latents: list[Tensor] = []
    rows: list[np.ndarray] = []
    current = None
    with Progress(total=sum(len(indices) for _, indices in parts), desc="encode", unit="img") as bar:
        started = time.perf_counter()
        for batch, (label, indices, images) in enumerate(ahead(decode, parts, seconds, pipeline.device)):
            if label != current:
                current = label
                noise = torch.randn(len(split.rows_of(label)), *shape, generator=generator_for(how.seed, "latent", label))
            if len(indices):
                names = [f"class {split.classes[label]['name']}, image {index}" for index in indices]
                latents.append(pipeline(images, noise[indices] if how.latent == "sample" else None, names).cpu())
                rows.append(split.rows_of(label)[indices])
            bar.update(len(parts[batch][1]))
            if batch + 1 == len(parts) or parts[batch + 1][0] != label:  # the class is complete
                if not rows:
                    raise InputError(f"{split.name}: expected at least one readable image of class "
                                     f"{split.classes[label]['name']}, found none")
                seconds["encode"] = seconds.get("encode", 0.0) + time.perf_counter() - started
                yield ClassLatents(label, torch.cat(latents), np.concatenate(rows))
                latents, rows, started = [], [], time.perf_counter()


def ahead(work: Callable, items: Iterable, seconds: dict, device: torch.device) -> Iterator:
    """`work(item)` for each item, in order; on an accelerator a thread computes up to AHEAD items in advance.

    Adds to `seconds["wait"]` the time spent waiting for it.
    """
    waiting: deque = deque()
    depth = 0 if device.type == "cpu" else AHEAD

    def next_result():
        started = time.perf_counter()
        result = waiting.popleft().result()
        seconds["wait"] = seconds.get("wait", 0.0) + time.perf_counter() - started
        return result
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth:
                yield next_result()
        while waiting:
            yield next_result()
