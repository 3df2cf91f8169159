"""The one loop of every method: train on a task, then test on all of them."""

from typing import Protocol

from tqdm import tqdm

from continual.metrics import masked_accuracy
from continual.streams import Batch, Task, batches
from continual.timing import Timers
from distillation.architectures import predict


class Learner(Protocol):
    """What a method is to the loop."""

    def begin(self, task: Task, steps: int) -> None:
        """Get ready for `steps` steps on a task."""

    def step(self, batch: Batch) -> None:
        """Learn from one batch of the stream."""

    def end(self, task: Task) -> None:
        """The task is over: the network is tested next."""


def learn_task(learner: Learner, task: Task, steps: int, bar: tqdm) -> None:
    """All steps of one task."""
    trainer = learner.trainer
    learner.begin(task, steps)
    for batch in batches(task.train, range(steps), trainer.recipe.batch_size, trainer.seed, task.index):
        learner.step(batch)
        bar.update(len(batch.labels))
    learner.end(task)


def test_accuracies(network, tasks: list[Task], seen: set[int]) -> tuple[list[float], list[float]]:
    """One row of R, as Class-IL (any of the classes `seen` so far may be answered) and as Task-IL (the task's own classes)."""
    logits = [predict(network, task.test.images) for task in tasks]
    pairs = [(part, task.test.labels, task.classes) for part, task in zip(logits, tasks, strict=True)]
    return ([masked_accuracy(part, labels, seen) for part, labels, _ in pairs],
            [masked_accuracy(part, labels, classes) for part, labels, classes in pairs])


def learn(learner: Learner, stream: list[Task], tests: list[Task], steps: int, timers: Timers, name: str):
    """Train on the tasks of `stream`, `steps` each, and test on `tests` after each. Returns the rows of both matrices R."""
    rows, seen = [], set()
    total = steps * len(stream) * learner.trainer.recipe.batch_size
    with tqdm(total=total, desc=name, unit="img", disable=None, mininterval=0.5, leave=False) as bar:
        for task in stream:
            with timers.span("train"):
                learn_task(learner, task, steps, bar)
            seen.update(task.classes)
            with timers.span("evaluate"):
                rows.append(test_accuracies(learner.trainer.network, tests, seen))
    return [list(row) for row in zip(*rows, strict=True)]
