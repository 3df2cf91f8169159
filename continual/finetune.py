"""Fine-tuning: each task in turn and nothing else, the lower bound."""

from continual.streams import Batch, Task
from continual.training import Trainer


class FineTune:
    """Keeps nothing."""

    buffer = None

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def begin(self, task: Task, steps: int) -> None:
        """Start a task."""
        self.trainer.begin(steps)

    def step(self, batch: Batch) -> None:
        """One step on the stream."""
        views = self.trainer.views(batch.images, batch.rng)
        self.trainer.descend(self.trainer.loss(views, batch.labels))

    def end(self, task: Task) -> None:
        """Nothing to do."""
