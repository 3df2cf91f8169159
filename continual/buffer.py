"""The replay buffer: uint8 images on the device with labels, and logits for DER++."""

import numpy as np
import torch
from torch import Tensor

from matching.image_set import ImageSet


def reservoir_slots(seen: int, count: int, capacity: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The slots of `count` new items after `seen` earlier ones (Vitter 1985, algorithm R, for a whole batch at once).

    Item n (from 0) gets slot n while there is room, and then a uniform slot in [0, n], which counts if it is below `capacity`.
    Of two items in one slot the later wins. Returns the stored items and their slots, both int64 and without repeats.
    """
    numbers = seen + np.arange(count)
    slots = np.where(numbers < capacity, numbers, rng.integers(0, numbers + 1))
    slots, latest = np.unique(slots[::-1], return_index=True)
    items = count - 1 - latest
    return items[slots < capacity], slots[slots < capacity]


def draw_rows(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` random rows of `size`: the numbers of draws of two rows differ by at most one."""
    passes = [rng.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate(passes)[:count]


def split_evenly(total: int, parts: int) -> list[int]:
    """`total` as `parts` whole numbers that differ by at most one, the larger first."""
    return [total // parts + (part < total % parts) for part in range(parts)]


class Buffer:
    """Up to `capacity` images of the shape [3, H, W] with labels; `logits` is the number of logits stored with each."""

    counters: tuple[str, ...] = ()  # attributes of the state beside the contents

    def __init__(self, capacity: int, shape: tuple[int, int, int], device, logits: int = 0):
        self.images = torch.zeros(capacity, *shape, dtype=torch.uint8, device=device)
        self.labels = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.logits = torch.zeros(capacity, logits, device=device)
        self.size = 0

    def __len__(self) -> int:
        return self.size

    @property
    def bytes(self) -> int:
        """Bytes of the stored pixels, labels and logits."""
        return self.size * sum(part[:1].nbytes for part in self.parts())

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and logits of all slots, the empty ones included."""
        return self.images, self.labels, self.logits

    def pick(self, count: int, rng: np.random.Generator) -> Tensor:
        """`count` rows to replay; none from an empty buffer."""
        rows = draw_rows(self.size, count, rng) if self.size else np.empty(0, dtype=np.int64)
        return torch.from_numpy(rows).to(self.labels.device)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`count` images and labels to replay; none from an empty buffer."""
        rows = self.pick(count, rng)
        return self.images.index_select(0, rows), self.labels[rows]  # fifteen times faster than images[rows] on a CPU

    def contents(self) -> tuple[Tensor, Tensor]:
        """All stored images and labels."""
        return self.images[:self.size], self.labels[:self.size]

    def put(self, slots: np.ndarray, items: np.ndarray, images: Tensor, labels: Tensor, logits: Tensor | None) -> None:
        """Write the rows `items` of a batch into `slots`."""
        slots, items = (torch.from_numpy(rows).to(labels.device) for rows in (slots, items))
        self.images[slots], self.labels[slots] = images.index_select(0, items), labels[items]
        if logits is not None:
            self.logits[slots] = logits[items]

    def state(self) -> dict:
        """The contents and counters."""
        return {"held": [part[:self.size].clone() for part in self.parts()],
                **{name: getattr(self, name) for name in self.counters}}

    def load(self, state: dict) -> None:
        """Continue from `state`."""
        self.size = len(state["held"][0])
        for part, stored in zip(self.parts(), state["held"], strict=True):
            part[:self.size] = stored
        for name in self.counters:
            setattr(self, name, state[name])


class Reservoir(Buffer):
    """Stores every image offered so far with the same probability, capacity / offered."""

    counters = ("seen",)  # at 0 a resumed run would store every later image

    def __init__(self, capacity: int, shape: tuple[int, int, int], device, logits: int = 0):
        super().__init__(capacity, shape, device, logits)
        self.seen = 0

    def offer(self, images: Tensor, labels: Tensor, rng: np.random.Generator, logits: Tensor | None = None) -> None:
        """Offer images [B, 3, H, W], labels [B] and, for DER++, logits [B, K]."""
        items, slots = reservoir_slots(self.seen, len(labels), len(self.labels), rng)
        self.put(slots, items, images, labels, logits)
        self.seen += len(labels)
        self.size = min(self.seen, len(self.labels))


class ClassBalanced(Buffer):
    """Splits its capacity evenly among the classes seen; within a class every image is stored with the same probability.

    The aim is that of class-balancing reservoir sampling (Chrysakis and Moens 2020), reached exactly after every batch: each
    offered image gets a uniform random key, and a class stores its smallest keys (bottom-k sampling), up to its quota. Quotas
    only shrink, so no dropped image is missed later. The slots that a small class leaves stay empty. Labels and keys are on
    the host, so an offer waits for the device.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], device, logits: int = 0):
        super().__init__(capacity, shape, device, logits)
        self.arrived: list[int] = []   # classes in the order of their first image; the first get the larger quotas
        self.keys = np.empty(0)        # of the stored images
        self.classes = np.empty(0, dtype=np.int64)

    def offer(self, images: Tensor, labels: Tensor, rng: np.random.Generator, logits: Tensor | None = None) -> None:
        """Offer images [B, 3, H, W], labels [B] and, for DER++, logits [B, K]."""
        new = labels.cpu().numpy()
        self.arrived += [label for label in dict.fromkeys(new.tolist()) if label not in self.arrived]
        keys, classes = np.concatenate([self.keys, rng.random(len(new))]), np.concatenate([self.classes, new])
        quotas = dict(zip(self.arrived, split_evenly(len(self.labels), len(self.arrived)), strict=True))
        rows = np.flatnonzero(smallest_keys(keys, classes, quotas))  # of the stored images, then of the new ones
        # stored images below the new size stay in their slots; the others fill the gaps
        edge = min(self.size, len(rows))
        moving, slots = rows[rows >= edge], np.setdiff1d(np.arange(len(rows)), rows[rows < edge])
        old = moving[moving < self.size]
        for part in self.parts():
            part[slots[:len(old)]] = part[old]
        self.put(slots[len(old):], moving[len(old):] - self.size, images, labels, logits)
        rows = np.arange(len(rows))
        rows[slots] = moving
        self.keys, self.classes, self.size = keys[rows], classes[rows], len(rows)

    def state(self) -> dict:
        """Keys and the order of classes too."""
        return {**super().state(), "keys": torch.from_numpy(self.keys), "arrived": self.arrived}

    def load(self, state: dict) -> None:
        """Continue from `state`."""
        super().load(state)
        self.keys, self.arrived = state["keys"].cpu().numpy(), state["arrived"]
        self.classes = self.labels[:self.size].cpu().numpy()


def smallest_keys(keys: np.ndarray, classes: np.ndarray, quotas: dict[int, int]) -> np.ndarray:
    """Mask, bool [N]: the `quotas[class]` smallest `keys` [N] of each class, for items of `classes` [N]."""
    order = np.lexsort((keys, classes))
    names, first, inverse = np.unique(classes[order], return_index=True, return_inverse=True)
    rank = np.arange(len(order)) - first[inverse]
    chosen = np.empty(len(order), dtype=bool)
    chosen[order] = rank < np.array([quotas[int(name)] for name in names])[inverse]
    return chosen


class TaskMemory(Buffer):
    """Splits its whole capacity evenly among the tasks so far: each new task takes its part from the earlier ones."""

    counters = ("tasks",)

    def __init__(self, capacity: int, shape: tuple[int, int, int], device):
        super().__init__(capacity, shape, device)
        self.tasks: list[int] = []  # images of each task

    def add_task(self, memory: ImageSet, rng: np.random.Generator) -> None:
        """Store a random part of `memory` and cut the earlier tasks down to their new quota."""
        quotas = split_evenly(len(self.labels), len(self.tasks) + 1)
        starts = np.cumsum([0, *self.tasks])
        old = [start + np.arange(min(part, quota)) for start, part, quota in zip(starts, self.tasks, quotas, strict=False)]
        new = torch.from_numpy(rng.permutation(len(memory))[:quotas[-1]]).to(self.labels.device)
        rows = torch.from_numpy(np.concatenate([*old, np.empty(0)]).astype(np.int64)).to(self.labels.device)
        images = torch.cat([self.images[rows], memory.images[new]])
        labels = torch.cat([self.labels[rows], memory.labels[new]])
        self.tasks = [len(part) for part in old] + [len(new)]
        self.size = len(labels)
        self.images[:self.size], self.labels[:self.size] = images, labels
