"""One run of the comparison, method x stream x seed: from images to `result.json`."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import nn

from continual.buffer import ClassBalanced, Reservoir, TaskMemory
from continual.loop import Outcomes, ResumePoint, accuracies, learn, test_logits
from continual.methods import AGEM, DarkExperienceReplay, ExperienceReplay, FineTune, Learner
from continual.metrics import (
    Timers,
    flops,
    forward_transfer,
    peak_memory_bytes,
    per_class_accuracy,
    reset_peak_memory,
    summarise,
)
from continual.start import pretrain, pretrained_backbone, read_start
from continual.streams import Task, class_order, hold_out, make_tasks, merge_tasks, random_images, split_classes
from continual.task_arithmetic import Merging, TaskArithmetic
from continual.training import Recipe, Teacher, Trainer, settings
from distillation.distilled_set import check_class_names
from matching.image_set import ImageSet
from scripts.artefact import begin, code_version, finish, hardware, identity, package_versions
from scripts.cli import InputError
from scripts.files import write_json, write_tensors
from scripts.networks import seeded
from scripts.randomness import seed_for

STATE = "state.pt"
BUFFERS = {"reservoir": Reservoir, "class-balanced": ClassBalanced}
REPLAYS = {"er": 1, "agem": 1, "derpp": 2}  # buffer batches per stream batch


# settings and images

@dataclass(frozen=True)
class Run:
    """Everything that decides a result. `steps` is per task; `schedule` is recorded, but decides nothing."""

    method: str
    stream: str
    buffer_source: str
    seed: int
    tasks: int
    class_order: str
    arch: str
    stem: str
    size: int
    steps: int
    buffer_size: int
    recipe: Recipe
    merging: Merging | None
    dark: dict[str, float] | None = None  # DER++'s alpha and beta
    buffer: str = "reservoir"
    labels: str = "hard"
    temperature: float | None = None
    validation: int = 0
    schedule: str = field(default="epochs", compare=False)
    schedule_in_name: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """The run's folder: method, stream, labels, buffer and schedule where they are not the defaults, and seed."""
        parts = (self.method, self.stream, "soft" if self.labels == "soft" else None,
                 f"memory-{self.buffer_source}" if self.buffer_source != self.stream else None,
                 self.buffer if self.buffer != "reservoir" else None, f"steps{self.steps}" if self.schedule_in_name else None)
        return "-".join(part for part in (*parts, f"seed{self.seed}") if part)

    @property
    def cost(self) -> float:
        """Training time relative to other runs of the same network."""
        replayed = self.recipe.replay_batch_size * REPLAYS.get(self.method, 0)
        return self.steps * (self.recipe.batch_size + replayed)


class Sources:
    """The sets of training images by name, and the real test images."""

    def __init__(self, real: ImageSet, test: ImageSet, distilled: ImageSet | None, random: ImageSet | None):
        self.test, self.given = test, {"real": real, "distilled": distilled, "random": random}
        for images in (distilled, random):
            if images is not None:
                check_class_names(images.name, images.classes, test.name, test.classes)
        if distilled and random and not torch.equal(*(images.labels.bincount() for images in (distilled, random))):
            raise InputError(f"--random: expected as many images of each class as {distilled.name} has, which are "
                             f"{len(distilled)}, found {len(random)}")

    def of(self, name: str, seed: int) -> ImageSet:
        """The set `name`. Without --random, random images are drawn by `seed`, as many per class as in the distilled set."""
        if self.given[name] is not None:
            return self.given[name]
        if self.given["distilled"] is None:
            raise InputError(f"--distilled: expected a distilled set for the source {name}, found none")
        return random_images(self.given["real"], self.given["distilled"], seed)

    def of_run(self, run: Run) -> tuple[ImageSet, ImageSet]:
        """The training images of a run and its images for the buffer; the same object where both have one source."""
        train = self.of(run.stream, run.seed)
        return train, train if run.buffer_source == run.stream else self.of(run.buffer_source, run.seed)


# from settings to a learner and its tasks

@dataclass(frozen=True)
class Prepared:
    """A run's learner before its first step, the tasks it is trained on and tested on, and its steps per task."""

    learner: Learner
    stream: list[Task]
    tests: list[Task]
    steps: int
    held_out: bool
    train: ImageSet

    @property
    def network(self) -> nn.Module:
        return self.learner.trainer.network

    def tested(self, network: nn.Module) -> tuple[list[float], list[float]]:
        """Class-IL accuracy (among all classes) and Task-IL accuracy of each task under `network`."""
        with self.learner.trainer.timers.span("evaluate"):
            return accuracies(test_logits(network, self.tests), self.tests, set(range(len(self.train.classes))))


def prepare(run: Run, sources: Sources, device, teacher: Teacher | None = None) -> Prepared:
    """Build network, tasks and learner, without Task Arithmetic's common start."""
    timers = Timers(device)
    with timers.span("setup"):
        train, memory = sources.of_run(run)
        classes = len(train.classes)
        network = seeded(run.arch, classes, run.stem, seed_for(run.seed, "weights"), run.size).to(device)
        parts = split_classes(class_order(classes, run.class_order, run.seed), run.tasks)
        tests = make_tasks(train, memory, sources.test, parts)
        stream, held_out = [merge_tasks(tests)] if run.method == "joint" else tests, False
        if run.merging:  # each task's part of the buffer, held out of training where every class is large enough
            stream, held_out = hold_out(stream, run.buffer_size // len(stream), run.seed)
            if run.buffer_source != run.stream:     # all real images and random real ones have images in common
                held_out = "distilled" in (run.stream, run.buffer_source)
        ratio = len(tests) / len(stream)  # joint training: the steps of all tasks
        trainer = Trainer(network, run.recipe, run.seed, timers, teacher if run.labels == "soft" else None)
        learner = new_learner(run, trainer, train.images.shape[1:], classes)
    return Prepared(learner, stream, tests, round(run.steps * ratio), held_out, train)


def new_learner(run: Run, trainer: Trainer, shape, classes: int) -> Learner:
    """The method by its name, with its buffer."""
    room = run.buffer_size, shape, trainer.parameters[0].device
    if run.method == "er":
        return ExperienceReplay(trainer, BUFFERS[run.buffer](*room))
    if run.method == "derpp":
        return DarkExperienceReplay(trainer, BUFFERS[run.buffer](*room, logits=classes), **run.dark)
    if run.method == "agem":
        return AGEM(trainer, TaskMemory(*room))
    if run.method == "task_arithmetic":
        merging = run.merging
        return TaskArithmetic(trainer, Reservoir(*room), merging.merge, merging.scales, merging.refit_head,
                              merging.experts == "sequential", merging.start == "task1")
    return FineTune(trainer)  # joint training is that on merged tasks


# one run

def perform(run: Run, sources: Sources, output: Path, device, save_seconds: float = 20,
            teacher: Teacher | None = None) -> dict | None:
    """Do a run, or the rest of it, and return its result; None when its folder is complete."""
    folder, config = output / run.name, {**settings(run), "digests": digests(run, sources, teacher)}
    if run.labels == "soft" and not run.merging:    # results without it compared the student's logits of all classes
        config["soft_loss"] = "among the classes seen"
    point = ResumePoint(folder / STATE, save_seconds, device)
    if begin(folder, "continual", config):
        point.remove()
        return None
    reset_peak_memory(device)
    prepared = prepare(run, sources, device, teacher)
    facts = merging_facts(run, prepared, sources, output) if run.merging else {}
    baseline = untrained_accuracies(run, prepared, device)
    outcomes = learn(prepared.learner, prepared.stream, prepared.tests, prepared.steps, run.name, point)
    if run.merging:
        facts["scale_curves"] = prepared.learner.curves
    result = report(run, config, prepared, outcomes, baseline, facts)
    write_json(folder / "result.json", result)
    files, buffer = ["result.json"], prepared.learner.buffer
    if buffer is not None:
        files.append("buffer.safetensors")
        write_tensors(folder / files[-1], dict(zip(("images", "labels"), buffer.contents(), strict=True)))
    finish(folder, "continual", prepared.train.classes, config, files)
    point.remove()
    return result


def digests(run: Run, sources: Sources, teacher: Teacher | None) -> dict[str, str]:
    """The digests of the images and the teacher, for the run's configuration."""
    train, memory = sources.of_run(run)
    found = {"train": train.digest, "memory": memory.digest, "test": sources.test.digest}
    if run.merging and run.merging.start == "distilled":
        found["start"] = sources.of("distilled", run.seed).digest
    elif run.merging and (Path(run.merging.start) / "manifest.json").is_file():
        found["start"] = identity(Path(run.merging.start))
    if run.labels == "soft":
        found["teacher"] = teacher.digest
    return found


def untrained_accuracies(run: Run, prepared: Prepared, device) -> list[float]:
    """Task-IL accuracy of each task under other initial weights: the baseline of forward transfer."""
    network = seeded(run.arch, len(prepared.train.classes), run.stem, seed_for(run.seed, "baseline"), run.size).to(device)
    return prepared.tested(network)[1]


def merging_facts(run: Run, prepared: Prepared, sources: Sources, output: Path) -> dict:
    """Load the common start into the network; return the start's record and what the buffer's images were used for."""
    start = load_start(run, prepared.network, sources, output)
    if run.merging.start != "task1":
        class_il, task_il = prepared.tested(prepared.network)
        start.update(class_il_acc=fmean(class_il), task_il_acc=fmean(task_il))
    prepared.learner.set_start()
    why = "is small" if run.buffer_source == run.stream else "has some of them"
    used = f"held out of training{seen_by_start(run)}" if prepared.held_out else f"trained on too, since the stream {why}"
    return {"start": start, "memory": f"scale, BatchNorm and head are chosen on the buffer's images, which were {used}"}


def seen_by_start(run: Run) -> str:
    """Whether the common start was trained on the buffer's images, as the end of a sentence; empty where it was not."""
    if run.merging.start == "distilled":
        return ", except the start's" if run.buffer_source == "distilled" else ""
    return "" if run.merging.start in ("random", "task1", "imagenet") else ", except perhaps the start's"


def load_start(run: Run, network: nn.Module, sources: Sources, output: Path) -> dict:
    """Load the common start into `network` and return its record."""
    merging = run.merging
    if merging.start == "random":
        return {"name": "random", "seconds": 0.0, "note": "the seeded initial weights"}
    if merging.start == "task1":
        return {"name": "task1", "seconds": 0.0, "note": "the expert of the first task"}
    if merging.start == "imagenet":
        return pretrained_backbone(run.arch, run.stem, run.size, network)
    if merging.start != "distilled":
        return read_start(Path(merging.start), network, sources.test.classes)
    images = sources.of("distilled", run.seed)
    config = {"arch": run.arch, "stem": run.stem, "size": run.size, "seed": run.seed, "steps": merging.start_steps,
              "recipe": settings(run.recipe), "digest": images.digest}
    return pretrain(output / f"start-distilled-seed{run.seed}", network, images, run.recipe, merging.start_steps,
                    run.seed, config)


def report(run: Run, config: dict, prepared: Prepared, outcomes: Outcomes, baseline: list[float], facts: dict) -> dict:
    """The content of `result.json`. Joint training, which has one test only, has no forward transfer."""
    learner, trainer = prepared.learner, prepared.learner.trainer
    missing = [None] * (len(prepared.tests) - len(outcomes.class_il))
    class_il, task_il = (summarise(missing + rows) for rows in (outcomes.class_il, outcomes.task_il))
    forward = None if missing else forward_transfer(np.array(outcomes.task_il), baseline)
    buffer, teacher, train = learner.buffer, trainer.teacher, prepared.train
    stored = {"images": 0, "bytes": 0} if buffer is None else {"images": len(buffer), "bytes": buffer.bytes}
    return {"kind": "continual", "method": run.method, "stream": run.stream, "buffer_source": run.buffer_source,
            "labels": run.labels, "schedule": run.schedule, "seed": run.seed, "config": config,
            "tasks": [task.classes for task in prepared.tests],
            "class_il": class_il, "task_il": {**task_il, "forward_transfer": forward, "baseline": baseline},
            "confusion": outcomes.confusion.tolist(), "per_class": per_class_accuracy(outcomes.confusion),
            "seconds": trainer.timers.seconds(), "steps": trainer.steps_done, "images_seen": trainer.images_seen,
            "images_per_second": round(trainer.images_seen / trainer.timers.spans["train"], 1),
            "flops": flops(trainer.passes, run.arch, len(train.classes), run.stem, run.size,
                           teacher and (teacher.arch, teacher.stem)),
            "peak_memory_bytes": peak_memory_bytes(trainer.timers.device),
            "stream_images": sum(len(task.train) for task in prepared.tests),
            "bytes": {"stream": train.images.nbytes + train.labels.nbytes, "buffer": stored["bytes"],
                      "teacher": teacher.bytes if teacher else 0},
            "buffer": stored, **facts, "code": code_version(), "packages": package_versions(), "hardware": hardware()}
