"""Class-incremental streams: the classes of a data set come in T tasks, one after the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from matching.image_set import ImageSet, image_set
from scripts.cli import InputError
from scripts.randomness import generator_for, seed_for


@dataclass(frozen=True)
class Task:
    """One task: its `classes` (rows of the one head), what it trains on, what may be kept of it, what it is tested on.

    `memory` is `train` itself when the buffer is filled from the stream.
    """

    index: int
    classes: tuple[int, ...]
    train: ImageSet
    memory: ImageSet
    test: ImageSet


@dataclass(frozen=True)
class Batch:
    """Images uint8 [B, 3, H, W] and labels [B] of one step; the first `new` of them were never seen before.

    `rng` draws everything else random of the step, so that the step is a function of (seed, task, step).
    """

    images: Tensor
    labels: Tensor
    new: int
    rng: np.random.Generator


def class_order(count: int, kind: str, seed: int) -> list[int]:
    """The order in which classes arrive: `natural`, or `seeded`, a permutation that depends on `seed` alone."""
    if kind == "natural":
        return list(range(count))
    return torch.randperm(count, generator=generator_for(seed, "class-order")).tolist()


def split_classes(order: list[int], tasks: int) -> list[tuple[int, ...]]:
    """Cut the class order into `tasks` consecutive parts, as equal as can be. Raises InputError for more tasks than classes."""
    if not 1 <= tasks <= len(order):
        raise InputError(f"--tasks: expected between 1 and {len(order)} tasks for {len(order)} classes, found {tasks}")
    return [tuple(int(label) for label in part) for part in np.array_split(order, tasks)]


def make_tasks(train: ImageSet, memory: ImageSet, test: ImageSet, parts: list[tuple[int, ...]]) -> list[Task]:
    """One task per part of the class order. Raises InputError when a task has nothing to train on."""
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
    """All tasks at once, as joint training sees them."""
    def together(name):
        sets = [getattr(task, name) for task in tasks]
        return image_set(sets[0].name, sets[0].classes, *(torch.cat([getattr(part, field) for part in sets])
                                                          for field in ("images", "labels", "weights")))
    classes = tuple(label for task in tasks for label in task.classes)
    train = together("train")
    return Task(0, classes, train, train, together("test"))


def hold_out(task: Task, count: int, seed: int, least_ratio: int = 5) -> tuple[Task, bool]:
    """Keep `count` images of a task as its memory, class-balanced.

    They are taken out of training where the task has at least `least_ratio` times as many; a smaller task trains on them too.
    Returns the task and whether its memory is held out.
    """
    kept = balanced_rows(task.memory.labels, count, generator_for(seed, "memory", task.index))
    memory = task.memory.rows(kept)
    if task.memory is not task.train or len(task.train) < least_ratio * count:
        return replace(task, memory=memory), task.memory is not task.train
    rest = torch.ones(len(task.train), dtype=torch.bool, device=kept.device)
    rest[kept] = False
    return replace(task, train=task.train.rows(rest), memory=memory), True


def balanced_rows(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to `count` rows of `labels` [N], drawn without repeats, the classes taking turns; sorted int64 on `labels`' device."""
    shuffled = torch.randperm(len(labels), generator=generator)
    own = labels.cpu()[shuffled]
    turn = torch.zeros(len(own), dtype=torch.long)
    for label in own.unique():
        turn[own == label] = torch.arange(int((own == label).sum()))
    first = torch.argsort(turn, stable=True)[:count]
    return shuffled[first].sort().values.to(labels.device)


def random_images(real: ImageSet, like: ImageSet, seed: int) -> ImageSet:
    """Random real images, as many of each class as `like` has. Raises InputError where a class is too small."""
    rows = []
    for label in range(len(real.classes)):
        own, wanted = (real.labels == label).nonzero().flatten(), int((like.labels == label).sum())
        if wanted > len(own):
            raise InputError(f"{real.name}: expected {wanted} images of class {real.classes[label]['name']}, found {len(own)}")
        drawn = torch.randperm(len(own), generator=generator_for(seed, "random-images", label))[:wanted]
        rows.append(own[drawn.to(own.device)])
    return real.rows(torch.cat(rows))


def resized(images: ImageSet, size_pixels: int) -> ImageSet:
    """The set at `size_pixels`, bilinear with antialias; itself where it has that size already."""
    if images.images.shape[-1] == size_pixels:
        return images
    parts = [F.interpolate(part.float(), (size_pixels, size_pixels), mode="bilinear", antialias=True)
             for part in images.images.split(256)]
    pixels = torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])
    return image_set(images.name, images.classes, pixels, images.labels, images.weights)


def batches(images: ImageSet, steps: Iterable[int], batch_size: int, seed: int, task: int) -> Iterator[Batch]:
    """The batches of `steps`: full ones, in passes over `images` that are each a fresh permutation and follow without a gap."""
    count, passes = len(images), {}

    def row_at(place: int) -> int:
        turn = place // count
        if turn not in passes:
            passes[turn] = np.random.default_rng(seed_for(seed, "pass", task, turn)).permutation(count)
        return int(passes[turn][place % count])
    for step in steps:
        first = step * batch_size
        rows = torch.tensor([row_at(place) for place in range(first, first + batch_size)], device=images.labels.device)
        yield Batch(images.images.index_select(0, rows), images.labels[rows], min(max(count - first, 0), batch_size),
                    np.random.default_rng(seed_for(seed, "step", task, step)))
