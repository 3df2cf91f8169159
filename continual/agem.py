"""A-GEM, averaged gradient episodic memory (Chaudhry et al. 2019, arXiv 1812.00420)."""

import torch
from torch import Tensor

from continual.learner import Learner
from continual.streams import Batch, Task
from continual.training import bn_momentum


def projection_coefficient(gradients: list[Tensor], references: list[Tensor]) -> Tensor:
    """The c of g - c g_ref (eq. 11): (g . g_ref) / (g_ref . g_ref) where the product is negative, else 0.

    Both lists hold one tensor per parameter. The result [] stays on their device, so that the host does not wait for it.
    """
    product = sum(torch.dot(g.reshape(-1), r.reshape(-1)) for g, r in zip(gradients, references, strict=True))
    square = sum(torch.dot(r.reshape(-1), r.reshape(-1)) for r in references)
    return torch.where(product < 0, product / square, torch.zeros_like(product))


def project_(gradients: list[Tensor], references: list[Tensor]) -> None:
    """Subtract from `gradients`, in place, the part that raises the buffer's loss, whose gradient is `references`."""
    coefficient = projection_coefficient(gradients, references)
    if coefficient.is_cpu and not coefficient:  # on an accelerator this test would make the host wait
        return
    for gradient, reference in zip(gradients, references, strict=True):
        gradient.addcmul_(reference, coefficient, value=-1)


class AGEM(Learner):
    """The stream's gradient, projected where it conflicts with the gradient of a batch from the buffer."""

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
