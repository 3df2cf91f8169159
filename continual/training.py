"""The parts of a training step that all methods share, each with its own timer; and the teacher for soft labels."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.metrics import Timers
from distillation.distilled_set import check_class_names
from matching.augmentation import crop_resize, draw_crops, normalise
from matching.soft_labels import soft_loss
from scripts.artefact import identity
from scripts.cli import InputError
from scripts.files import DIVERGED, check_finite
from scripts.networks import load_model
from scripts.parallel import batch_norms
from scripts.randomness import seed_for
from scripts.training import CURVES, half_precision, load_optimizer, new_optimizer, parameter_groups

COUNTERS = ("step", "steps_done", "images_seen", "seen")


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
    bf16: bool = False  # autocast of forward and backward; weights and optimiser stay float32


def settings(record) -> dict:
    """The fields of a dataclass that decide a result. A field at its default is left out.

    So a folder that was begun before a field existed is still the same run.
    """
    values = {one.name: getattr(record, one.name) for one in fields(record)
              if one.compare and (one.default is MISSING or getattr(record, one.name) != one.default)}
    return {name: settings(value) if is_dataclass(value) else value for name, value in values.items()}


# soft labels

@dataclass(frozen=True)
class Teacher:
    """A trained network in evaluation mode. It labels the same augmented views that the network is trained on."""

    network: nn.Module
    arch: str
    stem: str
    temperature: float
    digest: str  # of the weights

    @torch.no_grad()
    def logits(self, views: Tensor) -> Tensor:
        """Logits float32 [B, K] of views [B, 3, H, W]."""
        return self.network(views).float()

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T^2 KL(teacher || student) of logits [B, K] at the temperature T, averaged over images.

        Softening divides the gradient by about T^2. The factor (Hinton et al. 2015, section 2) restores its size, so that hard
        and soft labels share a learning rate.
        """
        ones = torch.ones(len(teacher), device=teacher.device)
        return soft_loss(student, teacher, self.temperature, ones, teacher.shape[1]) * self.temperature ** 2

    @property
    def bytes(self) -> int:
        """Bytes of the weights and statistics."""
        return sum(value.nbytes for value in self.network.state_dict().values())


def read_teacher(folder: str | Path, temperature: float, classes: list[dict], size: int, device) -> Teacher:
    """Read a teacher of `matching.train_teacher`. Raises InputError where classes or image size differ."""
    network, manifest = load_model(folder, "teacher")
    check_class_names(str(folder), manifest["classes"], "the stream", classes)
    config = manifest["config"]
    if config["input_size"] != size:
        raise InputError(f"--teacher {folder}: expected a teacher of {size} pixels, found one of {config['input_size']}")
    network = network.requires_grad_(False).to(device)
    return Teacher(network, config["arch"], config["stem"], temperature, identity(Path(folder)))


# the network under training

class Trainer:
    """A network with its optimiser and timers. With a `teacher`, labels are soft."""

    def __init__(self, network: nn.Module, recipe: Recipe, seed: int, timers: Timers, teacher: Teacher | None = None):
        self.network, self.recipe, self.seed, self.timers, self.teacher = network, recipe, seed, timers, teacher
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.steps_done = self.images_seen = 0
        self.seen: list[int] = []  # classes
        self.passes: Counter = Counter()  # (kind of pass, images) -> count
        for layer in batch_norms(network):
            layer.momentum = recipe.bn_momentum

    def rng(self, *where) -> np.random.Generator:
        """The generator of everything random outside a step."""
        return np.random.default_rng(seed_for(self.seed, *where))

    def begin(self, classes: Iterable[int], steps: int) -> None:
        """Begin a task of `steps` steps on these classes, with a new optimiser."""
        recipe = self.recipe
        self.optimizer = new_optimizer(recipe.optimizer, parameter_groups(self.network, recipe.weight_decay), recipe.lr,
                                       momentum=recipe.momentum)
        self.steps, self.step = steps, 0
        self.seen += [label for label in classes if label not in self.seen]
        self.network.train()

    @property
    def over(self) -> bool:
        return self.step >= self.steps

    def views(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Augmented, normalised views float [B, 3, H, W] of uint8 images, of stream and buffer alike."""
        with self.timers.phase("augment"):
            return augment(images, rng, self.recipe.min_scale, self.recipe.flip)

    def logits(self, views: Tensor) -> Tensor:
        """The network's logits, float32 [B, K]."""
        self.images_seen += len(views)
        self.passes["training", len(views)] += 1
        with self.timers.phase("forward"), self.precision(views):
            return self.network(views).float()

    def label_loss(self, logits: Tensor, views: Tensor, labels: Tensor, classes: Iterable[int] | None = None) -> Tensor:
        """Mean loss of logits [B, K] against hard labels, or against the teacher's logits of the same views.

        `classes` restricts the loss to those of an expert. Otherwise hard labels compete with all classes, and soft ones are
        compared among the classes seen so far: at a high temperature the logits of coming classes would be pushed down far.
        """
        if self.teacher is None:
            with self.timers.phase("forward"):
                return F.cross_entropy(logits if classes is None else only(logits, classes), labels)
        self.passes["teacher", len(views)] += 1
        with self.timers.phase("teacher"), self.precision(views):
            targets = self.teacher.logits(views)
        with self.timers.phase("forward"):
            compared = list(self.seen if classes is None else classes)
            return self.teacher.loss(logits[:, compared], targets[:, compared])

    def loss(self, views: Tensor, labels: Tensor, classes: Iterable[int] | None = None) -> Tensor:
        """Forward and mean loss; `classes` as in `label_loss`."""
        return self.label_loss(self.logits(views), views, labels, classes)

    def precision(self, views: Tensor) -> torch.autocast:
        """The autocast context of a forward."""
        return half_precision(views.device, self.recipe.bf16)

    def gradients(self, loss: Tensor) -> None:
        """Replace the parameters' gradients by those of `loss`."""
        with self.timers.phase("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.last_loss = loss.detach()

    def check_loss(self, name: str) -> float:
        """The last loss, read from the device. Raises InputError where the run `name` has diverged."""
        check_finite({f"loss at step {self.steps_done}": self.last_loss}, name, DIVERGED)
        return float(self.last_loss)

    def update(self) -> None:
        """Take one optimiser step at the current learning rate."""
        factor = CURVES[self.recipe.schedule](self.step, self.steps)
        with self.timers.phase("update"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.lr * factor
            self.optimizer.step()
        self.step += 1
        self.steps_done += 1

    def descend(self, loss: Tensor) -> None:
        self.gradients(loss)
        self.update()

    def state(self) -> dict:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                **{name: getattr(self, name) for name in COUNTERS}, "passes": dict(self.passes)}

    def load(self, state: dict) -> None:
        """Continue from `state`. Call `begin` with the task of `state` first."""
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"], "state.pt")
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.passes = Counter(state["passes"])


@contextlib.contextmanager
def bn_momentum(network: nn.Module, momentum: float | None):
    """For the block, set the momentum of BatchNorm's running statistics: 0 freezes them, None averages over batches."""
    layers = batch_norms(network)
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = momentum
    yield
    for layer, earlier in zip(layers, before, strict=True):
        layer.momentum = earlier


def augment(images: Tensor, rng: np.random.Generator, min_scale: float, flip: float) -> Tensor:
    """Random resized crops of at least `min_scale` of the area, flipped with probability `flip`, normalised."""
    count, _, height, width = images.shape
    crop = torch.from_numpy(draw_crops(count, (height, width), rng, (min_scale, 1.0))).to(images.device)
    flips = torch.from_numpy(rng.random(count) < flip).to(images.device)
    return normalise(crop_resize(images, crop, flips, height))


def only(logits: Tensor, classes: Iterable[int]) -> Tensor:
    """Logits [N, K] with -inf for every class outside `classes`, which then has no probability and no gradient."""
    allowed = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    allowed[list(classes)] = True
    return logits.masked_fill(~allowed, -math.inf)
