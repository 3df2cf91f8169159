"""What every method does alike: augment, forward, backward and step, each under its own timer."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.timing import Timers
from distillation.optimisation import parameter_groups
from distillation.randomness import seed_for
from matching.augmentation import crop_resize, draw_crops, normalise

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


class Trainer:
    """A network with its optimiser and timers."""

    def __init__(self, network: nn.Module, recipe: Recipe, seed: int, timers: Timers):
        self.network, self.recipe, self.seed, self.timers = network, recipe, seed, timers
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.steps_done = self.images_seen = 0
        for layer in batchnorms(network):
            layer.momentum = recipe.bn_momentum

    def rng(self, *where) -> np.random.Generator:
        """What draws the random numbers of a place other than a step."""
        return np.random.default_rng(seed_for(self.seed, *where))

    def begin(self, steps: int) -> None:
        """Start a task of `steps` steps: a fresh optimiser, the schedule from its beginning."""
        self.optimizer, self.steps, self.step = self.recipe.new_optimizer(self.network), steps, 0
        self.network.train()

    def views(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Augmented, normalised views float [B, 3, H, W] of uint8 images: the same for stream and memory."""
        with self.timers.phase("augment"):
            return augment(images, rng, self.recipe.min_scale, self.recipe.flip)

    def loss(self, views: Tensor, labels: Tensor, classes: Iterable[int] | None = None) -> Tensor:
        """Mean cross-entropy, over the given classes alone if any are given."""
        self.images_seen += len(labels)
        with self.timers.phase("forward"):
            logits = self.network(views)
            return F.cross_entropy(logits if classes is None else only(logits, classes), labels)

    def gradients(self, loss: Tensor) -> None:
        """Put the loss's gradients into the parameters, replacing what is there."""
        with self.timers.phase("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()

    def update(self) -> None:
        """Take one optimiser step at the schedule's learning rate."""
        with self.timers.phase("update"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.lr * SCHEDULES[self.recipe.schedule](self.step, self.steps)
            self.optimizer.step()
        self.step += 1
        self.steps_done += 1

    def descend(self, loss: Tensor) -> None:
        """Gradients and update."""
        self.gradients(loss)
        self.update()


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
