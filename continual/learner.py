"""What every method is to the loop."""

from continual.buffer import Buffer
from continual.streams import Batch, Task
from continual.training import Trainer


class Learner:
    """A network that learns task after task. A method says what a step is, and what else a task begins and ends with."""

    def __init__(self, trainer: Trainer, buffer: Buffer | None = None):
        self.trainer, self.buffer = trainer, buffer

    def begin(self, task: Task, steps: int | None = None) -> None:
        """Get ready for a task of `steps` steps (None: as many as its budget of seconds allows)."""
        self.trainer.begin(task.classes, steps)

    def step(self, batch: Batch) -> None:
        """Learn from one batch of the stream."""
        raise NotImplementedError

    def end(self, task: Task) -> None:
        """The task is over: the network is tested next."""

    def state(self) -> dict:
        """Everything a run needs to go on from here, as tensors and plain values."""
        return {"trainer": self.trainer.state(), "buffer": None if self.buffer is None else self.buffer.state()}

    def load(self, state: dict) -> None:
        """Go on from `state`; the task it was taken in has been begun."""
        self.trainer.load(state["trainer"])
        if self.buffer is not None:
            self.buffer.load(state["buffer"])
