"""Experience Replay (Chaudhry et al. 2019, arXiv 1902.10486; Buzzega et al. 2020 for the class-incremental protocol)."""

import torch

from continual.learner import Learner
from continual.streams import Batch, Task


class ExperienceReplay(Learner):
    """Stream and memory in one batch, one forward and one loss."""

    def begin(self, task: Task, steps: int | None = None) -> None:
        """Start a task."""
        super().begin(task, steps)
        self.from_stream = task.memory is task.train

    def step(self, batch: Batch) -> None:
        """One step on the batch and as many memory images as the recipe says; each image is offered once, when it is new."""
        with self.trainer.timers.phase("buffer"):
            images, labels = self.buffer.draw(self.trainer.recipe.replay_batch_size, batch.rng)
            images, labels = torch.cat([batch.images, images]), torch.cat([batch.labels, labels])
        self.trainer.descend(self.trainer.loss(self.trainer.views(images, batch.rng), labels))
        if self.from_stream and batch.new:
            with self.trainer.timers.phase("buffer"):
                self.buffer.offer(batch.images[:batch.new], batch.labels[:batch.new], batch.rng)

    def end(self, task: Task) -> None:
        """A memory of its own (not the stream's images) is offered when the task is over."""
        if not self.from_stream:
            with self.trainer.timers.phase("buffer"):
                self.buffer.offer(task.memory.images, task.memory.labels, self.trainer.rng("memory", task.index))
