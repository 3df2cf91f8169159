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
    """Room for `capacity` images of the shape [3, H, W], their labels and, where a method keeps them, `logits` outputs."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], device, logits: int = 0):
        self.images = torch.zeros(capacity, *shape, dtype=torch.uint8, device=device)
        self.labels = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.logits = torch.zeros(capacity, logits, device=device)
        self.held = 0

    def __len__(self) -> int:
        return self.held

    @property
    def bytes(self) -> int:
        """Bytes of the pixels, labels and logits held."""
        return self.held * self.bytes_each

    @property
    def bytes_each(self) -> int:
        """Bytes of one image with what is kept of it."""
        return sum(part[:1].nbytes for part in self.parts())

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and logits, also of the room that is still empty."""
        return self.images, self.labels, self.logits

    def pick(self, count: int, rng: np.random.Generator) -> Tensor:
        """`count` rows to replay; an empty buffer gives none."""
        rows = draw_rows(self.held, count, rng) if self.held else np.empty(0, dtype=np.int64)
        return torch.from_numpy(rows).to(self.labels.device)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`count` images and labels; an empty buffer gives none."""
        rows = self.pick(count, rng)
        return self.images.index_select(0, rows), self.labels[rows]  # fifteen times faster than images[rows] on a CPU

    def everything(self) -> tuple[Tensor, Tensor]:
        """All images and labels held."""
        return self.images[:self.held], self.labels[:self.held]

    def put(self, places: np.ndarray, items: np.ndarray, images: Tensor, labels: Tensor, logits: Tensor | None) -> None:
        """Write the rows `items` of what is offered into `places`."""
        places, items = (torch.from_numpy(rows).to(labels.device) for rows in (places, items))
        self.images[places], self.labels[places] = images.index_select(0, items), labels[items]
        if logits is not None:
            self.logits[places] = logits[items]

    def state(self) -> dict:
        """What is held, and the counters that decide what will be."""
        return {"held": [part[:self.held].clone() for part in self.parts()]}

    def load(self, state: dict) -> None:
        """Hold again what was held in `state`."""
        self.held = len(state["held"][0])
        for part, held in zip(self.parts(), state["held"], strict=True):
            part[:self.held] = held


class Reservoir(Buffer):
    """Every image ever offered is kept with the same probability, capacity / offered."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], device, logits: int = 0):
        super().__init__(capacity, shape, device, logits)
        self.seen = 0

    def offer(self, images: Tensor, labels: Tensor, rng: np.random.Generator, logits: Tensor | None = None) -> None:
        """Offer images [B, 3, H, W], labels [B] and, where they are kept, logits [B, K]."""
        items, places = reservoir_places(self.seen, len(labels), len(self.labels), rng)
        self.put(places, items, images, labels, logits)
        self.seen += len(labels)
        self.held = min(self.seen, len(self.labels))

    def state(self) -> dict:
        """The counter too: without it a resumed run would take every later image as one of the first."""
        return {**super().state(), "seen": self.seen}

    def load(self, state: dict) -> None:
        """Hold and count on."""
        super().load(state)
        self.seen = state["seen"]


class ClassBalanced(Buffer):
    """The room is shared evenly by the classes seen; of each class every image has the same probability of being kept.

    The goal is that of class-balancing reservoir sampling (Chrysakis and Moens 2020), met exactly at every moment: each image
    gets a uniform random key when it is offered, and a class keeps those with its smallest keys (bottom-k sampling), as many
    as its share of the room. Shares only shrink as classes arrive, so that nothing dropped is ever missed; the room that a
    class with fewer images leaves free stays free. Labels and keys are kept on the host: offering waits for the device.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], device, logits: int = 0):
        super().__init__(capacity, shape, device, logits)
        self.arrived: list[int] = []   # classes in the order of their first image, which get the larger shares
        self.keys = np.empty(0)        # of the images held
        self.classes = np.empty(0, dtype=np.int64)

    def offer(self, images: Tensor, labels: Tensor, rng: np.random.Generator, logits: Tensor | None = None) -> None:
        """Offer images [B, 3, H, W], labels [B] and, where they are kept, logits [B, K]."""
        fresh = labels.cpu().numpy()
        self.arrived += [label for label in dict.fromkeys(fresh.tolist()) if label not in self.arrived]
        keys, classes = np.concatenate([self.keys, rng.random(len(fresh))]), np.concatenate([self.classes, fresh])
        room = dict(zip(self.arrived, shares(len(self.labels), len(self.arrived)), strict=True))
        rows = np.flatnonzero(smallest_keys(keys, classes, room))  # of what was held, then of what is new
        edge = min(self.held, len(rows))  # who stays below it stays in place; the others fill the gaps
        moving, places = rows[rows >= edge], np.setdiff1d(np.arange(len(rows)), rows[rows < edge])
        old = moving[moving < self.held]
        for part in self.parts():
            part[places[:len(old)]] = part[old]
        self.put(places[len(old):], moving[len(old):] - self.held, images, labels, logits)
        rows = np.arange(len(rows))
        rows[places] = moving
        self.keys, self.classes, self.held = keys[rows], classes[rows], len(rows)

    def state(self) -> dict:
        """Keys and the order of arrival too."""
        return {**super().state(), "keys": torch.from_numpy(self.keys), "arrived": self.arrived}

    def load(self, state: dict) -> None:
        """Hold and go on drawing as before."""
        super().load(state)
        self.keys, self.arrived = state["keys"].cpu().numpy(), state["arrived"]
        self.classes = self.labels[:self.held].cpu().numpy()


class TaskMemory(Buffer):
    """The whole room is shared by the tasks seen: each new task takes its part from those before."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], device):
        super().__init__(capacity, shape, device)
        self.tasks: list[int] = []  # images of each task

    def add_task(self, memory: ImageSet, rng: np.random.Generator) -> None:
        """Keep a random part of `memory` and cut the earlier tasks down to their new share."""
        quota = shares(len(self.labels), len(self.tasks) + 1)
        starts = np.cumsum([0, *self.tasks])
        kept = [start + np.arange(min(part, room)) for start, part, room in zip(starts, self.tasks, quota, strict=False)]
        fresh = torch.from_numpy(rng.permutation(len(memory))[:quota[-1]]).to(self.labels.device)
        old = torch.from_numpy(np.concatenate([*kept, np.empty(0)]).astype(np.int64)).to(self.labels.device)
        images = torch.cat([self.images[old], memory.images[fresh]])
        labels = torch.cat([self.labels[old], memory.labels[fresh]])
        self.tasks = [len(rows) for rows in kept] + [len(fresh)]
        self.held = len(labels)
        self.images[:self.held], self.labels[:self.held] = images, labels

    def state(self) -> dict:
        """The tasks' parts too."""
        return {**super().state(), "tasks": self.tasks}

    def load(self, state: dict) -> None:
        """Hold, task by task."""
        super().load(state)
        self.tasks = state["tasks"]


def smallest_keys(keys: np.ndarray, classes: np.ndarray, room: dict[int, int]) -> np.ndarray:
    """Which of the items, bool [N], are among the `room[class]` smallest keys [N] of their class, of `classes` [N]."""
    order = np.lexsort((keys, classes))
    names, first, inverse = np.unique(classes[order], return_index=True, return_inverse=True)
    rank = np.arange(len(order)) - first[inverse]
    kept = np.empty(len(order), dtype=bool)
    kept[order] = rank < np.array([room[int(name)] for name in names])[inverse]
    return kept


def shares(total: int, parts: int) -> list[int]:
    """Cut `total` into `parts` whole numbers that differ by one at most and add up to it."""
    return [total // parts + (part < total % parts) for part in range(parts)]
