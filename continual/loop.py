"""The one loop of every method: train on a task, then test on all tasks. It resumes in the middle of a task, bit for bit."""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from continual.methods import Learner
from continual.metrics import confusion_matrix, masked_accuracy
from continual.streams import Task, batches
from scripts.cli import Progress, stop_asked, stop_if_asked
from scripts.files import read_torch, write_state
from scripts.networks import predict
from scripts.training import POSTFIX_SECONDS


class ResumePoint:
    """The state file of an unfinished run, written at most every `save_seconds` and when SIGTERM ends the run.

    Everything random is a function of (seed, task, step), so the state is networks, buffer, metrics and seconds.
    """

    def __init__(self, path: Path, save_seconds: float, device):
        self.path, self.save_seconds, self.device = path, save_seconds, device
        self.saved = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether it is time to write the state."""
        return stop_asked() or time.perf_counter() - self.saved >= self.save_seconds

    def write(self, state: dict) -> None:
        """Replace the state atomically. Raises Stopped after SIGTERM."""
        write_state(self.path, state)
        self.saved = time.perf_counter()
        stop_if_asked()

    def read(self) -> dict | None:
        """The state, on the device; None where there is none."""
        return read_torch(self.path, "a resume point", self.device) if self.path.exists() else None

    def remove(self) -> None:
        """Delete the state of a complete run."""
        self.path.unlink(missing_ok=True)


@dataclass
class Outcomes:
    """The tests so far: rows of both accuracy matrices R, and the last test's Class-IL confusion, int64 [K, K]."""

    class_il: list[list[float]] = field(default_factory=list)
    task_il: list[list[float]] = field(default_factory=list)
    confusion: Tensor | None = None

    def add(self, logits: list[Tensor], tasks: list[Task], seen: set[int]) -> None:
        """Add a test by the logits [N, K] of each task's test images; Class-IL allows the classes `seen` so far."""
        class_il, task_il = accuracies(logits, tasks, seen)
        self.class_il.append(class_il)
        self.task_il.append(task_il)
        self.confusion = confusion_matrix(torch.cat(logits), torch.cat([task.test.labels for task in tasks]), seen)


def test_logits(network, tasks: list[Task]) -> list[Tensor]:
    """The logits [N, K] of each task's test images."""
    return [predict(network, task.test.images) for task in tasks]


def accuracies(logits: list[Tensor], tasks: list[Task], seen: set[int]) -> tuple[list[float], list[float]]:
    """One row of R, as Class-IL (among all classes `seen` so far) and as Task-IL (among the task's own classes)."""
    pairs = [(part, task.test.labels, task.classes) for part, task in zip(logits, tasks, strict=True)]
    return ([masked_accuracy(part, labels, seen) for part, labels, _ in pairs],
            [masked_accuracy(part, labels, classes) for part, labels, classes in pairs])


def learn(learner: Learner, stream: list[Task], tests: list[Task], steps: int, name: str,
          point: ResumePoint) -> Outcomes:
    """Train on the tasks of `stream`, `steps` each, and test on `tests` after each task."""
    trainer, outcomes = learner.trainer, Outcomes()
    timers, batch_size = trainer.timers, trainer.recipe.batch_size

    def save(index: int) -> None:
        point.write({"task": index, "learner": learner.state(), "timers": timers.state(), "tested": vars(outcomes)})

    # continue from the resume point
    state = point.read()
    if state:
        learner.begin(stream[state["task"]], steps)
        learner.load(state["learner"])
        timers.load(state["timers"])
        outcomes = Outcomes(**state["tested"])
        print(f"{point.path}: continuing at step {trainer.steps_done}")

    shown = time.perf_counter()
    with Progress(total=steps * len(stream) * batch_size, initial=trainer.steps_done * batch_size, desc=name,
                  unit="img", leave=False) as bar:
        for index in range(len(outcomes.class_il), len(stream)):
            task = stream[index]

            # begin the task
            if not (state and state["task"] == index):
                with timers.span("train"):
                    learner.begin(task, steps)

            while not trainer.over:
                with timers.span("train"):
                    # draw the batch
                    for batch in batches(task.train, itertools.count(trainer.step), batch_size, trainer.seed, task.index):
                        # step
                        learner.step(batch)
                        bar.update(batch_size)
                        if time.perf_counter() - shown >= POSTFIX_SECONDS:
                            bar.set_postfix(loss=f"{trainer.check_loss(name):.4f}", refresh=False)
                            shown = time.perf_counter()
                        if trainer.over or point.due:
                            break
                # save
                trainer.check_loss(name)
                if not trainer.over:
                    save(index)

            # end the task
            with timers.span("train"):
                learner.end(task)

            # test
            with timers.span("evaluate"):
                seen = {label for past in stream[:index + 1] for label in past.classes}
                outcomes.add(test_logits(trainer.network, tests), tests, seen)
            if point.due:
                save(index)
    return outcomes
