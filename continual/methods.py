"""The continual methods: fine-tuning, joint training, ER, A-GEM and DER++ (Task Arithmetic: `task_arithmetic.py`)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from continual.buffer import Buffer
from continual.streams import Batch, Task
from continual.training import Trainer, bn_momentum
from scripts.networks import predict


class Learner:
    """A network that learns task after task. A method defines the step, and what happens where a task begins and ends."""

    def __init__(self, trainer: Trainer, buffer: Buffer | None = None):
        self.trainer, self.buffer = trainer, buffer

    def begin(self, task: Task, steps: int) -> None:
        self.task = task
        self.trainer.begin(task.classes, steps)

    def step(self, batch: Batch) -> None:
        """Train on one batch of the stream."""
        raise NotImplementedError

    def end(self, task: Task) -> None:
        """End a task. The network is tested next."""

    def state(self) -> dict:
        """Everything a resumed run needs, as tensors and plain values."""
        return {"trainer": self.trainer.state(), "buffer": None if self.buffer is None else self.buffer.state()}

    def load(self, state: dict) -> None:
        """Continue from `state`. Call `begin` with the task of `state` first."""
        self.trainer.load(state["trainer"])
        if self.buffer is not None:
            self.buffer.load(state["buffer"])


class FineTune(Learner):
    """Plain training on each task in turn, without a buffer: the lower bound.

    Joint training, the upper bound, is this method on all tasks merged (`streams.merge_tasks`), with the steps of all tasks.
    """

    def step(self, batch: Batch) -> None:
        views = self.trainer.views(batch.images, batch.rng)
        self.trainer.descend(self.trainer.loss(views, batch.labels))


class ExperienceReplay(Learner):
    """Experience Replay (Chaudhry et al. 2019, arXiv 1902.10486; Buzzega et al. 2020 for the class-incremental protocol).

    Stream and buffer images in one batch, one forward and one loss.
    """

    def step(self, batch: Batch) -> None:
        """One step on the stream's batch and a batch from the buffer. Each stream image is offered to the buffer once."""
        trainer, buffer = self.trainer, self.buffer
        with trainer.timers.phase("buffer"):
            images, labels = buffer.draw(trainer.recipe.replay_batch_size, batch.rng)
            images, labels = torch.cat([batch.images, images]), torch.cat([batch.labels, labels])
        trainer.descend(trainer.loss(trainer.views(images, batch.rng), labels))
        if self.task.memory_is_stream and batch.new:
            with trainer.timers.phase("buffer"):
                buffer.offer(batch.images[:batch.new], batch.labels[:batch.new], batch.rng)

    def end(self, task: Task) -> None:
        """Offer the task's memory images, where they are not the stream's."""
        if not task.memory_is_stream:
            with self.trainer.timers.phase("buffer"):
                self.buffer.offer(task.memory.images, task.memory.labels, self.trainer.rng("memory", task.index))


class AGEM(Learner):
    """A-GEM, averaged gradient episodic memory (Chaudhry et al. 2019, arXiv 1812.00420).

    The stream's gradient, projected where it conflicts with the gradient of a batch from the buffer.
    """

    def step(self, batch: Batch) -> None:
        """One step. In the first task the buffer is empty, and the step is plain training."""
        trainer = self.trainer
        references = self.reference(batch)
        trainer.gradients(trainer.loss(trainer.views(batch.images, batch.rng), batch.labels))
        if references:
            with trainer.timers.phase("projection"):
                project_([parameter.grad for parameter in trainer.parameters], references)
        trainer.update()

    def reference(self, batch: Batch) -> list[Tensor]:
        """The gradient of a batch from the buffer, augmented as the stream is; empty where the buffer is.

        BatchNorm's running statistics are frozen; it still normalises by the batch.
        """
        trainer = self.trainer
        with trainer.timers.phase("buffer"):
            images, labels = self.buffer.draw(trainer.recipe.replay_batch_size, batch.rng)
        if not len(labels):
            return []
        with bn_momentum(trainer.network, 0.0):
            trainer.gradients(trainer.loss(trainer.views(images, batch.rng), labels))
        return [parameter.grad for parameter in trainer.parameters]

    def end(self, task: Task) -> None:
        """Give the task its part of the buffer."""
        with self.trainer.timers.phase("buffer"):
            self.buffer.add_task(task.memory, self.trainer.rng("memory", task.index))


def project_(gradients: list[Tensor], references: list[Tensor]) -> None:
    """Subtract c g_ref (eq. 11) in place from `gradients` g: the part that raises the buffer's loss.

    c = (g . g_ref) / (g_ref . g_ref) where g . g_ref is negative, else 0. `references` g_ref is the gradient of the buffer's
    loss; both lists hold one tensor per parameter.
    """
    product = sum(torch.dot(g.reshape(-1), r.reshape(-1)) for g, r in zip(gradients, references, strict=True))
    square = sum(torch.dot(r.reshape(-1), r.reshape(-1)) for r in references)
    coefficient = torch.where(product < 0, product / square, torch.zeros_like(product))
    if coefficient.is_cpu and not coefficient:  # on an accelerator this test would make the host wait
        return
    for gradient, reference in zip(gradients, references, strict=True):
        gradient.addcmul_(reference, coefficient, value=-1)


class DarkExperienceReplay(Learner):
    """DER++, dark experience replay (Buzzega et al. 2020, arXiv 2004.07211, algorithm 2).

    The buffer stores each image with its logits; loss = CE(stream) + alpha MSE(logits) + beta CE(buffer). The two buffer terms
    have a batch each. Stream and both batches go through the network in one forward.
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
        parts = len(batch.labels), len(first), len(second)
        stream, matched, labelled = logits.split(parts)
        stream_views, _, labelled_views = views.split(parts)
        loss = trainer.label_loss(stream, stream_views, batch.labels)
        if len(first):  # the buffer is not empty
            dark = F.mse_loss(matched, buffer.logits[first])
            loss = loss + self.alpha * dark + self.beta * trainer.label_loss(labelled, labelled_views, buffer.labels[second])
        trainer.descend(loss)
        if self.task.memory_is_stream and batch.new:
            with trainer.timers.phase("buffer"):
                new = slice(0, batch.new)
                buffer.offer(batch.images[new], batch.labels[new], batch.rng, logits.detach()[new])

    def end(self, task: Task) -> None:
        """Offer the task's memory images with the network's logits, where they are not the stream's."""
        if not task.memory_is_stream:
            trainer, buffer = self.trainer, self.buffer
            with trainer.timers.phase("buffer"):
                buffer.offer(task.memory.images, task.memory.labels, trainer.rng("memory", task.index))
                rows = torch.isin(buffer.labels[:len(buffer)], torch.tensor(task.classes, device=buffer.labels.device))
                rows = rows.nonzero().flatten()     # the images that stayed: no other task has these classes
                if len(rows):
                    buffer.logits[rows] = predict(trainer.network, buffer.images[rows])
                    trainer.passes["forward", len(rows)] += 1
