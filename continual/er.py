"""Experience Replay (Chaudhry et al. 2019, arXiv 1902.10486; Buzzega et al. 2020 for the class-incremental protocol)."""

import torch

from continual.learner import Learner
from continual.streams import Batch, Task


class ExperienceReplay(Learner):
    """Stream and buffer images in one batch, one forward and one loss."""

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
