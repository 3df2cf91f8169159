"""The one loop of every method: train on a task, then test on all of them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from continual.learner import Learner
from continual.metrics import confusion_matrix, masked_accuracy
from continual.resume import ResumePoint
from continual.streams import Task, batches
from scripts.cli import Progress
from scripts.networks import predict


@dataclass
class Outcomes:
    """The tests so far: rows of both accuracy matrices R, and the last test's Class-IL confusion, int64 [K, K]."""

    class_il: list[list[float]] = field(default_factory=list)
    task_il: list[list[float]] = field(default_factory=list)
    confusion: Tensor | None = None

    def add(self, logits: list[Tensor], tasks: list[Task], seen: set[int]) -> None:
        """Add a test by the logits [N, K] of each task's test images, where any class of `seen` may be answered."""
        rows = accuracies(logits, tasks, seen)
        self.class_il.append(rows[0])
        self.task_il.append(rows[1])
        self.confusion = confusion_matrix(torch.cat(logits), torch.cat([task.test.labels for task in tasks]), seen)


def test_logits(network, tasks: list[Task]) -> list[Tensor]:
    """The logits [N, K] of each task's test images."""
    return [predict(network, task.test.images) for task in tasks]


def accuracies(logits: list[Tensor], tasks: list[Task], seen: set[int]) -> tuple[list[float], list[float]]:
    """One row of R, as Class-IL (any of the classes `seen` so far may be answered) and as Task-IL (the task's own classes)."""
    pairs = [(part, task.test.labels, task.classes) for part, task in zip(logits, tasks, strict=True)]
    return ([masked_accuracy(part, labels, seen) for part, labels, _ in pairs],
            [masked_accuracy(part, labels, classes) for part, labels, classes in pairs])


def train(learner: Learner, task: Task, bar: Progress, span: str, pause: Callable[[], bool] = lambda: False) -> bool:
    """Steps of a task that has begun, timed as `span`, until it is over or, after a step, `pause()`. Returns whether it is."""
    trainer = learner.trainer
    with trainer.timers.span(span):
        drawn = batches(task.train, itertools.count(trainer.step), trainer.recipe.batch_size, trainer.seed, task.index)
        while not trainer.over:
            batch = next(drawn)
            learner.step(batch)
            bar.update(len(batch.labels))
            if pause():
                break
    return trainer.over


def learn(learner: Learner, stream: list[Task], tests: list[Task], steps: int | None, name: str,
          point: ResumePoint) -> Outcomes:
    """Train on the tasks of `stream`, `steps` each, and test on `tests` after each; goes on from `point` and keeps it fresh."""
    trainer, tested = learner.trainer, Outcomes()
    timers, size = trainer.timers, trainer.recipe.batch_size
    state = point.read()
    if state:
        learner.begin(stream[state["task"]], steps)
        learner.load(state["learner"])
        timers.load(state["timers"])
        tested = Outcomes(**state["tested"])
        print(f"{point.path}: continuing at step {trainer.steps_done}")

    def save(place: int) -> None:
        point.write({"task": place, "learner": learner.state(), "timers": timers.state(), "tested": vars(tested)})
    total = steps * len(stream) * size if steps else None
    with Progress(total=total, initial=trainer.steps_done * size, desc=name, unit="img",
              leave=False) as bar:
        for place in range(len(tested.class_il), len(stream)):
            task = stream[place]
            if not (state and state["task"] == place):
                with timers.span("train"):
                    learner.begin(task, steps)
            while not train(learner, task, bar, "train", lambda: point.due):
                save(place)
            with timers.span("train"):
                learner.end(task)
            with timers.span("evaluate"):
                seen = {label for past in stream[:place + 1] for label in past.classes}
                tested.add(test_logits(trainer.network, tests), tests, seen)
            if point.due:
                save(place)
    return tested
