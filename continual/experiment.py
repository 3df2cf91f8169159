"""One run of the comparison, method x stream x seed: from images to `result.json`."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import nn

from continual.agem import AGEM
from continual.buffer import Buffer, ClassBalanced, Reservoir, TaskMemory
from continual.cost import forget_peak_memory
from continual.derpp import DarkExperienceReplay
from continual.er import ExperienceReplay
from continual.finetune import FineTune
from continual.joint import Joint
from continual.learner import Learner
from continual.loop import accuracies, learn, test_logits
from continual.result import report
from continual.resume import ResumePoint
from continual.runs import Run, settings
from continual.start import pretrain, pretrained_backbone, read_start
from continual.streams import Task, class_order, hold_out, make_tasks, merge_tasks, random_images, split_classes
from continual.task_arithmetic import TaskArithmetic
from continual.teaching import Teacher
from continual.timing import Timers
from continual.training import Trainer
from matching.image_set import ImageSet, check_same_classes
from scripts.artefact import begin, finish, write_json, write_tensors
from scripts.cli import InputError
from scripts.networks import seeded
from scripts.randomness import seed_for

STATE = "state.pt"
BUFFERS = {"reservoir": Reservoir, "class-balanced": ClassBalanced}


class Sources:
    """The images runs train on, by name, and the real test images."""

    def __init__(self, real: ImageSet, test: ImageSet, distilled: ImageSet | None, random: ImageSet | None):
        self.test, self.given = test, {"real": real, "distilled": distilled, "random": random}
        for images in (distilled, random):
            if images is not None:
                check_same_classes(images, test)

    def of(self, name: str, seed: int) -> ImageSet:
        """The set `name`; random images that were not given are drawn by `seed`, as many per class as the distilled set has.

        Raises InputError when there is no such set.
        """
        if self.given[name] is not None:
            return self.given[name]
        if self.given["distilled"] is None:
            raise InputError(f"--distilled: expected a distilled set for the source {name}, found none")
        return random_images(self.given["real"], self.given["distilled"], seed)


@dataclass(frozen=True)
class Prepared:
    """A run's learner before its first step, the tasks it trains on and those it is tested on, and its steps per task."""

    learner: Learner
    stream: list[Task]
    tests: list[Task]
    steps: int | None
    held_out: bool
    train: ImageSet
    memory: ImageSet

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        return self.learner.trainer.network


def prepare(run: Run, sources: Sources, device, teacher: Teacher | None = None) -> Prepared:
    """Build network, tasks and learner; Task Arithmetic's common start is still the seeded network."""
    timers = Timers(device)
    with timers.span("setup"):
        train, memory = images_of(run, sources)
        network = seeded(run.arch, len(train.classes), run.stem, seed_for(run.seed, "weights"), run.size).to(device)
        tests = make_tasks(train, memory, sources.test, parts_of(run, len(train.classes)))
        stream, held_out = [merge_tasks(tests)] if run.method == "joint" else tests, False
        if run.merging:
            stream, held_out = hold_out_all(stream, run.buffer_size, run.seed)
        share = len(tests) / len(stream)
        budget = run.budget_seconds and run.budget_seconds * share
        trainer = Trainer(network, run.recipe, run.seed, timers, teacher if run.labels == "soft" else None, budget)
        learner = new_learner(run, trainer, train.images.shape[1:], len(train.classes))
    return Prepared(learner, stream, tests, run.steps and round(run.steps * share), held_out, train, memory)


def images_of(run: Run, sources: Sources) -> tuple[ImageSet, ImageSet]:
    """What a run trains on and what its memory is filled from: the same set where the memory is that of the stream."""
    train = sources.of(run.stream, run.seed)
    return train, train if run.buffer_source == run.stream else sources.of(run.buffer_source, run.seed)


def parts_of(run: Run, classes: int) -> list[tuple[int, ...]]:
    """The classes of each task."""
    return split_classes(class_order(classes, run.class_order, run.seed), run.tasks)


def new_learner(run: Run, trainer: Trainer, shape, classes: int) -> Learner:
    """The method by its name, with the memory it uses."""
    def buffer(kind: type[Buffer], **more) -> Buffer:
        return kind(run.buffer_size, shape, trainer.parameters[0].device, **more)
    if run.method == "er":
        return ExperienceReplay(trainer, buffer(BUFFERS[run.buffer]))
    if run.method == "derpp":
        return DarkExperienceReplay(trainer, buffer(BUFFERS[run.buffer], logits=classes), run.dark.alpha, run.dark.beta)
    if run.method == "agem":
        return AGEM(trainer, buffer(TaskMemory))
    if run.method == "task_arithmetic":
        merging = run.merging
        return TaskArithmetic(trainer, buffer(Reservoir), merging.merge, merging.scales, merging.refit_head,
                              merging.experts == "sequential", merging.start == "task1")
    return {"finetune": FineTune, "joint": Joint}[run.method](trainer)


def hold_out_all(tasks: list[Task], buffer_size: int, seed: int) -> tuple[list[Task], bool]:
    """Each task's equal share of the buffer, held out of training where every task can spare it."""
    kept = [hold_out(task, buffer_size // len(tasks), seed) for task in tasks]
    return [task for task, _ in kept], all(held for _, held in kept)


def perform(run: Run, sources: Sources, output: Path, device, save_seconds: float = 20,
            teacher: Teacher | None = None) -> dict | None:
    """Carry out a run, or what is left of it, and return its result; None when its folder is complete."""
    folder, config = output / run.name, {**settings(run), "digests": digests(run, sources, teacher)}
    point = ResumePoint(folder / STATE, save_seconds, device)
    if begin(folder, "continual", config):
        point.remove()
        return None
    forget_peak_memory(device)
    ready = prepare(run, sources, device, teacher)
    facts = merging_facts(run, ready, sources, output) if run.merging else {}
    baseline = untrained_accuracies(run, ready, device)
    tested = learn(ready.learner, ready.stream, ready.tests, ready.steps, run.name, point)
    if run.merging:
        facts["scale_curves"] = ready.learner.curves
    result = report(run, config, ready, tested, baseline, facts)
    write_json(folder / "result.json", result)
    files, buffer = ["result.json"], ready.learner.buffer
    if buffer is not None:
        files.append("buffer.safetensors")
        write_tensors(folder / files[-1], dict(zip(("images", "labels"), buffer.everything(), strict=True)))
    finish(folder, "continual", ready.train.classes, config, files)
    point.remove()
    return result


def digests(run: Run, sources: Sources, teacher: Teacher | None) -> dict[str, str]:
    """What identifies the images and the teacher."""
    train, memory = images_of(run, sources)
    found = {"train": train.digest, "memory": memory.digest, "test": sources.test.digest}
    if run.merging and run.merging.start == "distilled":
        found["start"] = sources.of("distilled", run.seed).digest
    if run.labels == "soft":
        found["teacher"] = teacher.digest
    return found


def untrained_accuracies(run: Run, ready: Prepared, device) -> list[float]:
    """Task-IL accuracy of each task under initial weights of their own seed: the baseline of forward transfer."""
    trainer = ready.learner.trainer
    with trainer.timers.span("evaluate"):
        network = seeded(run.arch, len(ready.train.classes), run.stem, seed_for(run.seed, "baseline"), run.size).to(device)
        return accuracies(test_logits(network, ready.tests), ready.tests, set(range(len(ready.train.classes))))[1]


def merging_facts(run: Run, ready: Prepared, sources: Sources, output: Path) -> dict:
    """Give the network the common start; say what it is and can do alone, and what is chosen on which images."""
    start = start_of(run, ready.network, sources, output)
    if run.merging.start != "task1":
        with ready.learner.trainer.timers.span("evaluate"):
            alone = accuracies(test_logits(ready.network, ready.tests), ready.tests, set(range(len(ready.train.classes))))
        start.update(class_il_acc=fmean(alone[0]), task_il_acc=fmean(alone[1]))
    ready.learner.set_start()
    memory = ("scale, BatchNorm and head are chosen on the buffer's images, which were "
              + ("held out of training" if ready.held_out else "trained on too, since the stream is small"))
    return {"start": start, "memory": memory}


def start_of(run: Run, network: nn.Module, sources: Sources, output: Path) -> dict:
    """Give `network` the common start and say what it is."""
    merging = run.merging
    if merging.start == "random":
        return {"name": "random", "seconds": 0.0, "note": "the seeded initial weights"}
    if merging.start == "task1":
        return {"name": "task1", "seconds": 0.0, "note": "the expert of the first task"}
    if merging.start == "imagenet":
        return pretrained_backbone(run.arch, run.stem, network)
    if merging.start != "distilled":
        return read_start(Path(merging.start), network)
    images = sources.of("distilled", run.seed)
    config = {"arch": run.arch, "stem": run.stem, "size": run.size, "seed": run.seed, "steps": merging.start_steps,
              "recipe": settings(run.recipe), "digest": images.digest}
    return pretrain(output / f"start-distilled-seed{run.seed}", network, images, run.recipe, merging.start_steps,
                    run.seed, config)
