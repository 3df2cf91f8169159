"""What runs would do and cost, without doing them: a few timed steps, nothing written."""

from collections.abc import Iterator
from dataclasses import replace

from continual.cost import training_bytes
from continual.experiment import Prepared, Sources, prepare
from continual.runs import Run
from continual.streams import batches
from continual.teaching import Teacher


def plan(runs: list[Run], sources: Sources, device, teacher: Teacher | None) -> Iterator[str]:
    """One line per run, in the order they would be carried out; a last one with all their seconds.

    Runs that differ by their seed and length alone are timed once.
    """
    timed, total = {}, 0.0
    for run in runs:
        ready, alike = prepare(run, sources, device, teacher), repr(replace(run, seed=0, steps=None, budget_seconds=None))
        if alike not in timed:
            timed[alike] = measure(ready)
        step_seconds, end_seconds = timed[alike]
        tasks, budget = len(ready.stream), ready.learner.trainer.budget_seconds
        steps = ready.steps or max(1, round(budget / step_seconds))
        start_steps = run.merging.start_steps if run.merging and run.merging.start == "distilled" else 0
        seconds = tasks * ((budget or steps * step_seconds) + end_seconds) + start_steps * step_seconds
        total += seconds
        yield line(run, ready, sources, steps, seconds)
    yield f"all {len(runs)} runs: about {total:.0f} s of training on this machine"


def line(run: Run, ready: Prepared, sources: Sources, steps: int, seconds: float) -> str:
    """What a run does and needs."""
    buffer, teacher = ready.learner.buffer, ready.learner.trainer.teacher
    memory = {"images": image_bytes(ready, sources),
              "network and optimiser": training_bytes(ready.network, moments=2 if run.recipe.optimizer == "adamw" else 1),
              "buffer": 0 if buffer is None else run.buffer_size * buffer.bytes_each,
              "teacher": teacher.bytes if teacher else 0}
    about = "about " if run.budget_seconds else ""
    return (f"{run.name}: {len(ready.stream)} tasks x {about}{steps} steps, {len(ready.train)} images, "
            f"{about}{len(ready.stream) * steps * run.recipe.batch_size} from the stream; "
            + ", ".join(f"{name} {size} bytes" for name, size in memory.items() if size) + f"; about {seconds:.1f} s")


def image_bytes(ready: Prepared, sources: Sources) -> int:
    """Bytes of the pixels on the device: whole sets and the tasks' own copies."""
    sets = [*sources.given.values(), sources.test, ready.train, ready.memory]
    sets += [part for task in (*ready.stream, *ready.tests) for part in (task.train, task.memory, task.test)]
    return sum({one.images.data_ptr(): one.images.nbytes for one in sets if one is not None}.values())


def measure(ready: Prepared, count: int = 2) -> tuple[float, float]:
    """Seconds of a step that has memory to look at, and of a task's end; the learner is of no use afterwards."""
    learner, task = ready.learner, ready.stream[0]
    trainer = learner.trainer
    drawn = batches(task.train, range(count + 2), trainer.recipe.batch_size, trainer.seed, task.index)

    def seconds(call, *values) -> float:
        before = trainer.timers.spent("train")
        with trainer.timers.span("train"):
            for value in values:
                call(value)
        return trainer.timers.spent("train") - before
    learner.begin(task, count + 2)
    learner.step(next(drawn))
    end_seconds = seconds(learner.end, task)
    learner.begin(task, count + 2)
    learner.step(next(drawn))  # the first of its shape is slow
    return seconds(learner.step, *drawn) / count, end_seconds
