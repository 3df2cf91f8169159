"""Task Arithmetic (Ilharco et al. 2023, arXiv 2212.04089) for class-incremental streams and networks with BatchNorm.

Each task trains an expert from a common start, with a loss over its own classes. A task vector is the expert minus the start.
The merged vectors, times a scale, are added to the start. BatchNorm's statistics are re-estimated on the buffer, each class has
the head row of its own expert, and the scale is the best one on the buffer, which is held out of training where possible.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continual.buffer import Buffer
from continual.methods import Learner
from continual.metrics import masked_accuracy
from continual.streams import Batch, Task
from continual.training import Trainer, augment, bn_momentum, only
from scripts.cli import InputError
from scripts.parallel import batch_norms

STATE = ("vectors", "head_rows", "curves", "start", "expert")
LEAST_VIEWS = 64  # BatchNorm's statistics of fewer are too noisy; a smaller buffer gives several views of each image


# merge rules: pure functions of T task vectors [P]

def merge_sum(vectors: Sequence[Tensor]) -> Tensor:
    """Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): the sum over tasks, [P]."""
    total = vectors[0].clone()  # no stack: copying ten million weights a task takes longer than adding them
    for vector in vectors[1:]:
        total += vector
    return total


def merge_mean(vectors: Sequence[Tensor]) -> Tensor:
    """The mean over tasks, [P]; at scale 1 the average of the experts."""
    return merge_sum(vectors).div_(len(vectors))


def merge_magmax(vectors: Sequence[Tensor]) -> Tensor:
    """MagMax (Marczak et al. 2024, arXiv 2407.06322): per parameter the change of largest magnitude, [P]."""
    changes = torch.stack(list(vectors))
    return changes.gather(0, changes.abs().argmax(0, keepdim=True))[0]


def merge_ties(vectors: Sequence[Tensor], keep: float = 0.2) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708), [P].

    Trim each vector to the fraction `keep` of largest magnitudes, elect the sign of the sum per parameter, and average the
    values of that sign.
    """
    trimmed = torch.stack([_trim(vector, keep) for vector in vectors])
    agreeing = trimmed * (trimmed.sign() == trimmed.sum(0).sign())
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


def _trim(vector: Tensor, keep: float) -> Tensor:
    """`vector` with all but its ceil(keep P) entries of largest magnitude set to zero."""
    rows = vector.abs().topk(math.ceil(keep * len(vector))).indices
    return torch.zeros_like(vector).index_copy(0, rows, vector[rows])


MERGES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": merge_sum, "mean": merge_mean, "magmax": merge_magmax, "ties": merge_ties}


# the method

@dataclass(frozen=True)
class Merging:
    start: str
    start_steps: int
    merge: str
    scales: list[float]
    refit_head: int
    experts: str = "parallel"


class TaskArithmetic(Learner):
    """Within a task the network is an expert; between tasks it is the merged model.

    The common start is the given network or, with `first_is_start`, the first task's expert, whose vector is then zero. With
    `sequential` each expert begins where the last one ended; its vector is still relative to the common start (as in MagMax).
    """

    def __init__(self, trainer: Trainer, buffer: Buffer, merge: str, scales: list[float], refit_steps: int,
                 sequential: bool = False, first_is_start: bool = False):
        super().__init__(trainer, buffer)
        self.merge, self.scales, self.refit_steps = MERGES[merge], scales, refit_steps
        self.sequential, self.first_is_start = sequential, first_is_start
        self.head = head_of(trainer.network)
        self.vectors: list[Tensor] = []
        self.head_rows: dict[int, list[Tensor]] = {}    # by class: of weight and, where the head has one, bias
        self.curves: list[list[dict]] = []
        self.set_start()

    def set_start(self) -> None:
        """Make the current network the common start."""
        self.start = self.expert = copy.deepcopy(self.trainer.network.state_dict())
        self.origin = backbone_vector(self.trainer.network)

    def begin(self, task: Task, steps: int) -> None:
        """Begin at the common start or, if sequential, where the last expert ended."""
        self.trainer.network.load_state_dict(self.expert if self.sequential else self.start)
        super().begin(task, steps)

    def step(self, batch: Batch) -> None:
        """One step of the expert, with the loss over its task's classes."""
        views = self.trainer.views(batch.images, batch.rng)
        self.trainer.descend(self.trainer.loss(views, batch.labels, self.task.classes))

    def end(self, task: Task) -> None:
        """Store the expert's vector and head rows; make the network the merged model of all tasks so far."""
        timers, network = self.trainer.timers, self.trainer.network
        with timers.phase("buffer"):
            self.buffer.offer(task.memory.images, task.memory.labels, self.trainer.rng("memory", task.index))
        with timers.phase("merge"):
            if self.first_is_start and not self.vectors:
                self.set_start()
            if self.sequential:
                self.expert = copy.deepcopy(network.state_dict())
            self.vectors.append(backbone_vector(network) - self.origin)
            for label in task.classes:
                self.head_rows[label] = [parameter[label].detach().clone() for parameter in self.head.parameters()]
            network.load_state_dict(self.start)
            set_head_rows(self.head, self.head_rows)
            self.install(self.merge(self.vectors), task)

    def state(self) -> dict:
        """Vectors, head rows, curves, start and last expert too."""
        return {**super().state(), **{name: getattr(self, name) for name in STATE}}

    def load(self, state: dict) -> None:
        """Continue from `state`. Call `begin` with the task of `state` first."""
        self.trainer.network.load_state_dict(state["start"])
        self.set_start()
        super().load(state)
        for name in STATE:
            setattr(self, name, state[name])

    def install(self, merged: Tensor, task: Task) -> None:
        """Choose the scale of `merged`; give the network the scaled vector, its BatchNorm statistics and a refitted head.

        One forward per scale yields the statistics, the features for the head and the logits that rank the scale.
        """
        network, (views, labels) = self.trainer.network, self.memory_views(task)
        curve, best = [], None
        self.trainer.passes["forward", len(views)] += len(self.scales)
        for scale in self.scales:
            set_backbone(network, torch.add(self.origin, merged, alpha=scale))
            with inputs_of(self.head) as features:
                logits = reestimate_batchnorm(network, views)
            curve.append({"scale": scale, "accuracy": masked_accuracy(logits, labels, self.head_rows),
                          "loss": F.cross_entropy(only(logits, self.head_rows), labels).item()})
            if best is None or rank(curve[-1]) > rank(best[0]):
                best = curve[-1], {name: value.clone() for name, value in network.named_buffers()}, torch.cat(features)
        point, statistics, features = best
        set_backbone(network, torch.add(self.origin, merged, alpha=point["scale"]))
        network.load_state_dict(statistics, strict=False)
        self.curves.append(curve)
        if self.refit_steps:    # the rows of classes without an image in the buffer stay: they would only learn to say no
            refit_head(self.head, features, labels, sorted(set(labels.tolist())), self.refit_steps)

    def memory_views(self, task: Task) -> tuple[Tensor, Tensor]:
        """Augmented views of the whole buffer, at least LEAST_VIEWS of them, and their labels."""
        images, labels = self.buffer.contents()
        rows = torch.arange(max(len(labels), LEAST_VIEWS), device=labels.device) % len(labels)
        rng, recipe = self.trainer.rng("memory-views", task.index), self.trainer.recipe
        return augment(images[rows], rng, recipe.min_scale, recipe.flip), labels[rows]  # timed as `merge`


# head, backbone and BatchNorm of a network

def head_of(network: nn.Module) -> nn.Linear:
    """The last linear layer: one row per class. Raises InputError for a network without one."""
    found = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise InputError(f"--arch: expected a network with a linear head for task_arithmetic, found {type(network).__name__}")
    return found[-1]


def backbone(network: nn.Module) -> list[nn.Parameter]:
    """Every parameter but the head's."""
    head = {id(parameter) for parameter in head_of(network).parameters()}
    return [parameter for parameter in network.parameters() if id(parameter) not in head]


def backbone_vector(network: nn.Module) -> Tensor:
    """The backbone's parameters as one vector [P], without BatchNorm's statistics: their sums would have negative variances."""
    return torch.cat([parameter.detach().flatten() for parameter in backbone(network)])


def set_backbone(network: nn.Module, vector: Tensor) -> None:
    """Write a vector [P] into the backbone."""
    parameters = backbone(network)
    parts = vector.split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


@torch.no_grad()
def set_head_rows(head: nn.Linear, rows: dict[int, list[Tensor]]) -> None:
    """Write the parameters of the classes in `rows`."""
    for label, own in rows.items():
        for parameter, row in zip(head.parameters(), own, strict=True):
            parameter[label] = row


@torch.no_grad()
def reestimate_batchnorm(network: nn.Module, views: Tensor, batch_size: int = 256) -> Tensor:
    """Replace BatchNorm's running statistics by those of `views` [N, 3, H, W]; returns the logits [N, K] of that forward.

    The statistics are the mean over batches (PyTorch's cumulative average).
    """
    network.eval()
    for layer in batch_norms(network):
        layer.reset_running_stats()
        layer.train()
    with bn_momentum(network, None):
        logits = torch.cat([network(part) for part in views.chunk(-(-len(views) // batch_size))])
    network.eval()
    return logits


def rank(point: dict[str, float]) -> tuple[float, float]:
    """Sort key of a scale: higher accuracy, then lower loss."""
    return point["accuracy"], -point["loss"]


@contextlib.contextmanager
def inputs_of(layer: nn.Module):
    """Yield a list that collects the inputs of `layer`."""
    collected: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: collected.append(inputs[0]))
    try:
        yield collected
    finally:
        handle.remove()


def refit_head(head: nn.Linear, features: Tensor, labels: Tensor, classes: list[int], steps: int, lr: float = 0.01) -> None:
    """Train the head alone: `steps` full-batch AdamW steps on `features` [N, D], with the loss over `classes`."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(only(head(features), classes), labels).backward()
        optimizer.step()
