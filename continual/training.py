"""What every method does alike: augment, forward, backward and step, each under its own timer."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.teaching import Teacher
from continual.timing import Timers
from matching.augmentation import crop_resize, draw_crops, normalise
from scripts.randomness import seed_for
from scripts.training import parameter_groups

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the same for every method of a comparison."""

    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    schedule: str
    batch_size: int
    replay_batch_size: int
    min_scale: float
    flip: float
    bn_momentum: float
    bf16: bool = False  # forward and backward in bfloat16 where that is safe; weights and optimiser stay float32

    def new_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimiser; every task starts with one. Fused: AdamW on ResNet-18 takes 9 ms a step on a CPU instead of 57."""
        groups = parameter_groups(network, self.weight_decay)
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, fused=True)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, fused=True)


def one_cycle(step: int, steps: int, warm_up: float = 0.2) -> float:
    """Learning-rate factor: linear up over the share `warm_up` of the steps, then half a cosine down to zero after the last."""
    rise = max(1, round(warm_up * steps))
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1)))


def constant(step: int, steps: int) -> float:
    """Learning-rate factor 1."""
    return 1.0


SCHEDULES: dict[str, Callable[[int, int], float]] = {"one-cycle": one_cycle, "constant": constant}

BUDGET_STEPS = 1000  # a task of so many seconds has so many places in the schedule
COUNTERS = ("step", "steps_done", "images_seen", "seen", "began_seconds")


class Trainer:
    """A network with its optimiser and timers; with a `teacher`, its logits are the labels.

    A task lasts the steps it begins with or, with `budget_seconds`, until so many seconds of training are used up.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, seed: int, timers: Timers, teacher: Teacher | None = None,
                 budget_seconds: float | None = None):
        self.network, self.recipe, self.seed, self.timers = network, recipe, seed, timers
        self.teacher, self.budget_seconds = teacher, budget_seconds
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.steps_done = self.images_seen = 0
        self.seen: list[int] = []  # classes
        self.passes: Counter = Counter()  # (what, images) -> how often
        for layer in batchnorms(network):
            layer.momentum = recipe.bn_momentum

    def rng(self, *where) -> np.random.Generator:
        """What draws the random numbers of a place other than a step."""
        return np.random.default_rng(seed_for(self.seed, *where))

    def begin(self, classes: Iterable[int], steps: int | None) -> None:
        """Start a task of these classes: a fresh optimiser, the schedule from its beginning."""
        self.optimizer, self.steps, self.step = self.recipe.new_optimizer(self.network), steps, 0
        self.seen += [label for label in classes if label not in self.seen]
        self.began_seconds = self.timers.spent("train")
        self.network.train()

    def place(self) -> tuple[int, int]:
        """How far the task is: steps done and steps in all. A budget's share used counts as so many of BUDGET_STEPS."""
        if self.budget_seconds is None:
            return self.step, self.steps
        share = (self.timers.spent("train") - self.began_seconds) / self.budget_seconds
        return min(int(share * BUDGET_STEPS), BUDGET_STEPS), BUDGET_STEPS

    @property
    def over(self) -> bool:
        """Whether the task has had all its steps or seconds."""
        done, of = self.place()
        return done >= of

    def views(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Augmented, normalised views float [B, 3, H, W] of uint8 images: the same for stream and memory."""
        with self.timers.phase("augment"):
            return augment(images, rng, self.recipe.min_scale, self.recipe.flip)

    def logits(self, views: Tensor) -> Tensor:
        """What the network says, float32 [B, K]."""
        self.images_seen += len(views)
        self.passes["training", len(views)] += 1
        with self.timers.phase("forward"), self.precision(views):
            return self.network(views).float()

    def label_loss(self, logits: Tensor, views: Tensor, labels: Tensor, classes: Iterable[int] | None = None) -> Tensor:
        """Mean loss of logits [B, K] against hard labels or the teacher's answer to the same views.

        The answer is among `classes` if any are given: an expert's. Otherwise any class may be answered, and the teacher's
        probability is shared by the classes seen so far, as hard labels name no others.
        """
        if self.teacher is None:
            with self.timers.phase("forward"):
                return F.cross_entropy(logits if classes is None else only(logits, classes), labels)
        self.passes["teacher", len(views)] += 1
        with self.timers.phase("teacher"), self.precision(views):
            said = self.teacher.logits(views)
        with self.timers.phase("forward"):
            if classes is None:
                return self.teacher.loss(logits, only(said, self.seen))
            return self.teacher.loss(logits[:, list(classes)], said[:, list(classes)])

    def loss(self, views: Tensor, labels: Tensor, classes: Iterable[int] | None = None) -> Tensor:
        """Mean loss of views; `classes` as in `label_loss`."""
        return self.label_loss(self.logits(views), views, labels, classes)

    def precision(self, views: Tensor) -> torch.autocast:
        """The context of a forward."""
        return torch.autocast(views.device.type, torch.bfloat16, enabled=self.recipe.bf16)

    def gradients(self, loss: Tensor) -> None:
        """Put the loss's gradients into the parameters, replacing what is there."""
        with self.timers.phase("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()

    def update(self) -> None:
        """Take one optimiser step at the schedule's learning rate."""
        factor = SCHEDULES[self.recipe.schedule](*self.place())
        with self.timers.phase("update"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.lr * factor
            self.optimizer.step()
        self.step += 1
        self.steps_done += 1

    def descend(self, loss: Tensor) -> None:
        """Gradients and update."""
        self.gradients(loss)
        self.update()

    def state(self) -> dict:
        """Network, optimiser, place in the schedule and counters."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                **{name: getattr(self, name) for name in COUNTERS}, "passes": dict(self.passes)}

    def load(self, state: dict) -> None:
        """Go on from `state`, in the task it was taken in."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.passes = Counter(state["passes"])


def batchnorms(network: nn.Module) -> list[nn.Module]:
    """The network's BatchNorm layers."""
    return [module for module in network.modules() if isinstance(module, BATCHNORMS)]


def augment(images: Tensor, rng: np.random.Generator, min_scale: float, flip: float) -> Tensor:
    """Random resized crops of at least the area share `min_scale`, flipped with probability `flip`, normalised."""
    count, _, height, width = images.shape
    crop = torch.from_numpy(draw_crops(count, (height, width), rng, (min_scale, 1.0))).to(images.device)
    flips = torch.from_numpy(rng.random(count) < flip).to(images.device)
    return normalise(crop_resize(images, crop, flips, height))


def only(logits: Tensor, classes: Iterable[int]) -> Tensor:
    """Logits [N, K] with every class but `classes` impossible (-inf), so that it has neither probability nor gradient."""
    allowed = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    allowed[list(classes)] = True
    return logits.masked_fill(~allowed, -math.inf)
