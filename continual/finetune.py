"""Fine-tuning: each task in turn and nothing else, the lower bound."""

from continual.learner import Learner
from continual.streams import Batch


class FineTune(Learner):
    """Keeps nothing."""

    def step(self, batch: Batch) -> None:
        """One step on the stream."""
        views = self.trainer.views(batch.images, batch.rng)
        self.trainer.descend(self.trainer.loss(views, batch.labels))
