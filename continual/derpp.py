"""DER++, dark experience replay (Buzzega et al. 2020, arXiv 2004.07211, algorithm 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from continual.buffer import Buffer
from continual.learner import Learner
from continual.streams import Batch, Task
from continual.training import Trainer
from scripts.networks import predict


@dataclass(frozen=True)
class Dark:
    """DER++'s settings."""

    alpha: float
    beta: float


class DarkExperienceReplay(Learner):
    """The buffer stores each image with its logits; loss = CE(stream) + alpha MSE(logits) + beta CE(buffer).

    The two buffer terms have a batch each. Stream and both batches go through the network in one forward.
    """

    def __init__(self, trainer: Trainer, buffer: Buffer, alpha: float, beta: float):
        super().__init__(trainer, buffer)
        self.alpha, self.beta = alpha, beta

    def step(self, batch: Batch) -> None:
        """One step on the stream's batch and two batches from the buffer. New images are offered with their logits."""
        trainer, buffer = self.trainer, self.buffer
        with trainer.timers.phase("buffer"):
            first, second = (buffer.pick(trainer.recipe.replay_batch_size, batch.rng) for _ in range(2))
            images = torch.cat([batch.images, *(buffer.images.index_select(0, rows) for rows in (first, second))])
        views = trainer.views(images, batch.rng)
        logits = trainer.logits(views)
        trainer.descend(self.loss(batch, views, logits, first, second))
        if self.task.memory_is_stream and batch.new:
            with trainer.timers.phase("buffer"):
                new = slice(0, batch.new)
                buffer.offer(batch.images[new], batch.labels[new], batch.rng, logits.detach()[new])

    def loss(self, batch: Batch, views: Tensor, logits: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The three terms; only the first while the buffer is empty. `views` and `logits` are of stream, `first`, `second`."""
        trainer, parts = self.trainer, (len(batch.labels), len(first), len(second))
        stream, matched, labelled = logits.split(parts)
        stream_views, _, labelled_views = views.split(parts)
        loss = trainer.label_loss(stream, stream_views, batch.labels)
        if not len(first):
            return loss
        dark = F.mse_loss(matched, self.buffer.logits[first])
        return loss + self.alpha * dark + self.beta * trainer.label_loss(labelled, labelled_views, self.buffer.labels[second])

    def end(self, task: Task) -> None:
        """Offer the task's memory images with the network's logits, where they are not the stream's."""
        if not task.memory_is_stream:
            trainer = self.trainer
            with trainer.timers.phase("buffer"):
                trainer.passes["forward", len(task.memory)] += 1
                logits = predict(trainer.network, task.memory.images)
                self.buffer.offer(task.memory.images, task.memory.labels, trainer.rng("memory", task.index), logits)
