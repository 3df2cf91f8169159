"""DER++, dark experience replay (Buzzega et al. 2020, arXiv 2004.07211, algorithm 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from continual.buffer import Buffer
from continual.learner import Learner
from continual.streams import Batch, Task
from continual.training import Trainer
from scripts.networks import predict


class DarkExperienceReplay(Learner):
    """Memory keeps what the network said of an image when it came; one draw of it is held to that, another to its labels.

    The loss is that of the stream, plus `alpha` times the mean squared error between the logits of a first draw and those it
    was kept with, plus `beta` times the loss of a second draw. Stream and both draws are one batch and one forward.
    """

    def __init__(self, trainer: Trainer, buffer: Buffer, alpha: float, beta: float):
        super().__init__(trainer, buffer)
        self.alpha, self.beta = alpha, beta

    def begin(self, task: Task, steps: int | None = None) -> None:
        """Start a task."""
        super().begin(task, steps)
        self.from_stream = task.memory is task.train

    def step(self, batch: Batch) -> None:
        """One step on the batch and two draws of memory; new images are offered, with their logits."""
        trainer, buffer = self.trainer, self.buffer
        with trainer.timers.phase("buffer"):
            draws = [buffer.pick(trainer.recipe.replay_batch_size, batch.rng) for _ in range(2)]
            images = torch.cat([batch.images, *(buffer.images.index_select(0, rows) for rows in draws)])
        views = trainer.views(images, batch.rng)
        logits = trainer.logits(views)
        trainer.descend(self.loss(batch, views, logits, *draws))
        if self.from_stream and batch.new:
            with trainer.timers.phase("buffer"):
                new = slice(0, batch.new)
                buffer.offer(batch.images[new], batch.labels[new], batch.rng, logits.detach()[new])

    def loss(self, batch: Batch, views: Tensor, logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The three terms, of which an empty memory leaves the first; `views` and `logits` are those of stream and draws."""
        trainer, parts = self.trainer, (len(batch.labels), len(first), len(second))
        own, matched, labelled = logits.split(parts)
        own_views, _, labelled_views = views.split(parts)
        loss = trainer.label_loss(own, own_views, batch.labels)
        if not len(first):
            return loss
        dark = F.mse_loss(matched, self.buffer.logits[first])
        return loss + self.alpha * dark + self.beta * trainer.label_loss(labelled, labelled_views, self.buffer.labels[second])

    def end(self, task: Task) -> None:
        """A memory of its own (not the stream's images) is offered when the task is over, with what the network then says."""
        if not self.from_stream:
            trainer = self.trainer
            with trainer.timers.phase("buffer"):
                trainer.passes["forward", len(task.memory)] += 1
                said = predict(trainer.network, task.memory.images)
                self.buffer.offer(task.memory.images, task.memory.labels, trainer.rng("memory", task.index), said)
