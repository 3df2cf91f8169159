"""What a learner keeps of the past: uint8 images on the device, with what they cost in bytes."""

import numpy as np
import torch
from torch import Tensor

from matching.image_set import ImageSet


def reservoir_places(seen: int, count: int, capacity: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where `count` new items go when `seen` went before (Vitter 1985, algorithm R, for a whole batch at once).

    Item n (from 0) takes place n while there is room and then a uniform place in [0, n], if that is below `capacity`. Of two
    items with one place the later wins. Returns the items kept and their places, both int64 and without repeats.
    """
    numbers = seen + np.arange(count)
    places = np.where(numbers < capacity, numbers, rng.integers(0, numbers + 1))
    places, latest = np.unique(places[::-1], return_index=True)
    items = count - 1 - latest
    return items[places < capacity], places[places < capacity]


def draw_rows(held: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` rows of `held` items, without repeats until every item was drawn: none is drawn twice more than another."""
    turns = [rng.permutation(held) for _ in range(-(-count // held))]
    return np.concatenate(turns)[:count]


class Buffer:
    """Room for `capacity` images of the shape [3, H, W]."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], device):
        self.images = torch.zeros(capacity, *shape, dtype=torch.uint8, device=device)
        self.labels = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.held = 0

    def __len__(self) -> int:
        return self.held

    @property
    def bytes(self) -> int:
        """Bytes of the pixels and labels held."""
        each = self.images[0].nbytes + self.labels[0].nbytes if len(self.images) else 0
        return self.held * each

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`count` images and labels; an empty buffer gives none."""
        rows = draw_rows(self.held, count, rng) if self.held else np.empty(0, dtype=np.int64)
        rows = torch.from_numpy(rows).to(self.labels.device)
        return self.images[rows], self.labels[rows]

    def everything(self) -> tuple[Tensor, Tensor]:
        """All images and labels held."""
        return self.images[:self.held], self.labels[:self.held]


class Reservoir(Buffer):
    """Every image ever offered is kept with the same probability, capacity / offered."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], device):
        super().__init__(capacity, shape, device)
        self.seen = 0

    def offer(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> None:
        """Offer images [B, 3, H, W] and labels [B]."""
        items, places = (torch.from_numpy(part).to(labels.device)
                         for part in reservoir_places(self.seen, len(labels), len(self.labels), rng))
        self.images[places], self.labels[places] = images[items], labels[items]
        self.seen += len(labels)
        self.held = min(self.seen, len(self.labels))


class TaskMemory(Buffer):
    """The whole room is shared by the tasks seen: each new task takes its part from those before."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], device):
        super().__init__(capacity, shape, device)
        self.parts: list[int] = []

    def add_task(self, memory: ImageSet, rng: np.random.Generator) -> None:
        """Keep a random part of `memory` and cut the earlier tasks down to their new share."""
        quota = shares(len(self.labels), len(self.parts) + 1)
        starts = np.cumsum([0, *self.parts])
        kept = [start + np.arange(min(part, room)) for start, part, room in zip(starts, self.parts, quota, strict=False)]
        fresh = torch.from_numpy(rng.permutation(len(memory))[:quota[-1]]).to(self.labels.device)
        old = torch.from_numpy(np.concatenate([*kept, np.empty(0)]).astype(np.int64)).to(self.labels.device)
        images = torch.cat([self.images[old], memory.images[fresh]])
        labels = torch.cat([self.labels[old], memory.labels[fresh]])
        self.parts = [len(rows) for rows in kept] + [len(fresh)]
        self.held = len(labels)
        self.images[:self.held], self.labels[:self.held] = images, labels


def shares(total: int, parts: int) -> list[int]:
    """Cut `total` into `parts` whole numbers that differ by one at most and add up to it."""
    return [total // parts + (part < total % parts) for part in range(parts)]
