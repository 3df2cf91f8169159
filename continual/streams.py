"""Class-incremental streams: the classes of a data set arrive in T tasks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distillation.images import resized
from matching.image_set import ImageSet, image_set
from scripts.cli import InputError
from scripts.randomness import generator_for, seed_for, seed_network


@dataclass(frozen=True)
class Task:
    """One task: its `classes` (rows of the one head), its training images, the images for the buffer, its test images."""

    index: int
    classes: tuple[int, ...]
    train: ImageSet
    memory: ImageSet
    test: ImageSet

    @property
    def memory_is_stream(self) -> bool:
        """Whether the buffer is filled from the stream's batches."""
        return self.memory is self.train


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, 3, H, W] and labels [B] of one step; the first `new` of them are in their first pass.

    `rng` draws everything else random of the step, so that a step is a function of (seed, task, step).
    """

    images: Tensor
    labels: Tensor
    new: int
    rng: np.random.Generator


def class_order(count: int, kind: str, seed: int) -> list[int]:
    """The order of the classes: `natural`, or `seeded`, a permutation that depends on `seed` alone."""
    if kind == "natural":
        return list(range(count))
    return torch.randperm(count, generator=generator_for(seed, "class-order")).tolist()


def split_classes(order: list[int], tasks: int) -> list[tuple[int, ...]]:
    """Split the class order into `tasks` consecutive, nearly equal parts. Raises InputError for more tasks than classes."""
    if not 1 <= tasks <= len(order):
        raise InputError(f"--tasks: expected between 1 and {len(order)} tasks for {len(order)} classes, found {tasks}")
    return [tuple(int(label) for label in part) for part in np.array_split(order, tasks)]


def make_tasks(train: ImageSet, memory: ImageSet, test: ImageSet, parts: list[tuple[int, ...]]) -> list[Task]:
    """One task per part of the class order. Raises InputError for a task without images."""
    def of(images: ImageSet, part) -> ImageSet:
        chosen = torch.isin(images.labels, torch.tensor(part, device=images.labels.device))
        if not chosen.any():
            raise InputError(f"{images.name}: expected images of the classes {part}, found none")
        return images.rows(chosen)
    tasks = []
    for index, part in enumerate(parts):
        stream = of(train, part)
        tasks.append(Task(index, part, stream, stream if memory is train else of(memory, part), of(test, part)))
    return tasks


def merge_tasks(tasks: list[Task]) -> Task:
    """All tasks as one, for joint training."""
    def together(name):
        sets = [getattr(task, name) for task in tasks]
        return image_set(sets[0].name, sets[0].classes, *(torch.cat([getattr(part, field) for part in sets])
                                                          for field in ("images", "labels", "weights")))
    train = together("train")
    return Task(0, tuple(label for task in tasks for label in task.classes), train, train, together("test"))


def hold_out(tasks: list[Task], count: int, seed: int, least_ratio: int = 5) -> tuple[list[Task], bool]:
    """Take `count` class-balanced images of each task as its memory, and out of its training images.

    Returns the tasks and whether they do not train on their memory: that needs `least_ratio` times as many training images of
    every class as its memory has, in every task. A memory of another source leaves the training images as they are.
    """
    rows = [balanced_rows(task.memory.labels, count, generator_for(seed, "memory", task.index)) for task in tasks]
    remembered = [replace(task, memory=task.memory.rows(chosen)) for task, chosen in zip(tasks, rows, strict=True)]
    for task, smaller in zip(tasks, remembered, strict=True):
        taken, images = (part.labels.bincount(minlength=len(part.classes)) for part in (smaller.memory, task.train))
        if not task.memory_is_stream or (least_ratio * taken > images).any():
            return remembered, False

    def without(images: ImageSet, chosen: Tensor) -> ImageSet:
        rest = torch.ones(len(images), dtype=torch.bool, device=chosen.device)
        rest[chosen] = False
        return images.rows(rest)
    return [replace(task, train=without(task.train, chosen)) for task, chosen in zip(remembered, rows, strict=True)], True


def balanced_rows(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to `count` random rows of `labels` [N], as equal in class as possible; sorted int64 on `labels`' device."""
    shuffled = torch.randperm(len(labels), generator=generator)
    classes = labels.cpu()[shuffled]
    rank = torch.zeros(len(classes), dtype=torch.long)  # within its class
    for label in classes.unique():
        rank[classes == label] = torch.arange(int((classes == label).sum()))
    first = torch.argsort(rank, stable=True)[:count]
    return shuffled[first].sort().values.to(labels.device)


def random_images(real: ImageSet, like: ImageSet, seed: int) -> ImageSet:
    """Random real images, as many of each class as `like` has. Raises InputError where a class is too small."""
    rows = []
    for label in range(len(real.classes)):
        own, count = (real.labels == label).nonzero().flatten(), int((like.labels == label).sum())
        if count > len(own):
            raise InputError(f"{real.name}: expected {count} images of class {real.classes[label]['name']}, found {len(own)}")
        chosen = torch.randperm(len(own), generator=generator_for(seed, "random-images", label))[:count]
        rows.append(own[chosen.to(own.device)])
    return real.rows(torch.cat(rows))


def set_at(images: ImageSet, size_pixels: int) -> ImageSet:
    """The set at `size_pixels`; the set itself where it has that size."""
    if images.images.shape[-1] == size_pixels:
        return images
    return image_set(images.name, images.classes, resized(images.images, size_pixels), images.labels, images.weights)


def batches(images: ImageSet, steps: Iterable[int], batch_size: int, seed: int, task: int) -> Iterator[Batch]:
    """The full batches of `steps`. Each pass over `images` is a new permutation; a batch may span two passes."""
    count, passes = len(images), {}

    def row_at(position: int) -> int:
        number = position // count
        if number not in passes:
            passes[number] = np.random.default_rng(seed_for(seed, "pass", task, number)).permutation(count)
        return int(passes[number][position % count])
    for step in steps:
        first = step * batch_size
        rows = torch.tensor([row_at(first + offset) for offset in range(batch_size)], device=images.labels.device)
        seed_network(seed, task, step)
        yield Batch(images.images.index_select(0, rows), images.labels[rows], min(max(count - first, 0), batch_size),
                    np.random.default_rng(seed_for(seed, "step", task, step)))
