"""The interface of a method, and the two bounds: fine-tuning and joint training."""

from continual.buffer import Buffer
from continual.streams import Batch, Task
from continual.training import Trainer


class Learner:
    """A network that learns task after task. A method defines the step, and what happens where a task begins and ends."""

    def __init__(self, trainer: Trainer, buffer: Buffer | None = None):
        self.trainer, self.buffer = trainer, buffer

    def begin(self, task: Task, steps: int) -> None:
        """Begin a task of `steps` steps."""
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
        """One step on the stream."""
        views = self.trainer.views(batch.images, batch.rng)
        self.trainer.descend(self.trainer.loss(views, batch.labels))
