"""Real images to latents, class by class: files are decoded ahead in threads while the autoencoder works."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distillation.datasets import Split, decode_readable
from scripts.cli import InputError, Progress
from scripts.randomness import generator_for

AHEAD = 3  # batches decoded before they are asked for, beside an accelerator; a CPU is kept busy by either alone


class ClassLatents(NamedTuple):
    """One class: its `label`, `latents` [N, C, h, w] (scaled, on the CPU) and the `rows` [N] of the split they come from."""

    label: int
    latents: Tensor
    rows: np.ndarray


def encode_classes(pipeline, split: Split, labels: list[int], size_pixels: int, *, seed: int, latent: str = "sample",
                   batch_size: int = 64, workers: int = 4, fit: str = "squash",
                   seconds: dict | None = None) -> Iterator[ClassLatents]:
    """Encode the classes `labels` one after the other; one class is in memory at a time.

    `latent` is "sample" (of the posterior, with noise that is a function of (seed, class)) or "mean". Adds to `seconds` what
    was spent encoding ("encode") and, as a part of that, waiting for decoded files ("wait"). Raises InputError when an image
    cannot be read (unless the split skips those) or a class has no readable image.
    """
    seconds = seconds if seconds is not None else {}
    shape = pipeline.latent_shape(size_pixels)
    parts = [(label, place) for label in labels for place in np.split(
        np.arange(len(split.rows_of(label))), range(batch_size, len(split.rows_of(label)), batch_size))]

    def decoded(part):
        label, places = part
        images, kept = decode_readable(split, split.rows_of(label)[places], size_pixels, workers, fit)
        return label, places[np.isin(split.rows_of(label)[places], kept)], images
    found: list[Tensor] = []
    rows: list[np.ndarray] = []
    current = None
    with Progress(total=sum(len(places) for _, places in parts), desc="encode", unit="img") as bar:
        began = time.perf_counter()
        for batch, (label, places, images) in enumerate(ahead(decoded, parts, seconds, pipeline.device)):
            if label != current:
                current = label
                noise = torch.randn(len(split.rows_of(label)), *shape, generator=generator_for(seed, "latent", label))
            if len(places):
                found.append(pipeline(images, noise[places] if latent == "sample" else None).cpu())
                rows.append(split.rows_of(label)[places])
            bar.update(len(parts[batch][1]))
            if batch + 1 == len(parts) or parts[batch + 1][0] != label:
                if not rows:
                    raise InputError(f"{split.name}: expected at least one readable image of class "
                                     f"{split.classes[label]['name']}, found none")
                seconds["encode"] = seconds.get("encode", 0.0) + time.perf_counter() - began
                yield ClassLatents(label, torch.cat(found), np.concatenate(rows))
                found, rows, began = [], [], time.perf_counter()


def ahead(work: Callable, items: Iterable, seconds: dict, device: torch.device) -> Iterator:
    """`work(item)` for each item in order; beside an accelerator computed in a thread up to AHEAD items before it is asked for.

    Adds to `seconds["wait"]` what was spent waiting for it.
    """
    waiting: deque = deque()
    depth = 0 if device.type == "cpu" else AHEAD
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth:
                yield _taken(waiting, seconds)
        while waiting:
            yield _taken(waiting, seconds)


def _taken(waiting: deque, seconds: dict):
    began = time.perf_counter()
    result = waiting.popleft().result()
    seconds["wait"] = seconds.get("wait", 0.0) + time.perf_counter() - began
    return result
