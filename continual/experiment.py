"""One run of the comparison: method x stream x seed, from images to `result.json`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from continual.agem import AGEM
from continual.buffer import Reservoir, TaskMemory
from continual.er import ExperienceReplay
from continual.finetune import FineTune
from continual.joint import Joint
from continual.loop import learn
from continual.metrics import summarise
from continual.start import pretrain, read_start
from continual.streams import class_order, hold_out, make_tasks, merge_tasks, random_images, split_classes
from continual.task_arithmetic import TaskArithmetic
from continual.timing import Timers, hardware
from continual.training import Recipe, Trainer
from distillation.entry import InputError
from distillation.manifest import begin, code_version, finish, package_versions, write_json
from distillation.randomness import seed_for
from matching.architectures import seeded
from matching.image_set import ImageSet, check_same_classes


@dataclass(frozen=True)
class Merging:
    """Task Arithmetic's own settings."""

    start: str
    start_steps: int
    merge: str
    scales: list[float]
    refit_head: int


@dataclass(frozen=True)
class Run:
    """Everything that decides a result. `steps` are per task; `merging` only where the method merges."""

    dataset: str
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
    epochs: float
    buffer_size: int
    recipe: Recipe
    merging: Merging | None
    digests: dict[str, str]

    @property
    def name(self) -> str:
        """The run's folder."""
        memory = "" if self.buffer_source == self.stream else f"-memory-{self.buffer_source}"
        return f"{self.method}-{self.stream}{memory}-seed{self.seed}"


class Sources:
    """The images a run may use, by name; random ones are drawn by the run's seed unless they were given."""

    def __init__(self, real: ImageSet, test: ImageSet, distilled: ImageSet | None, random: ImageSet | None, seconds: float):
        self.test, self.seconds = test, seconds
        self.given = {"real": real, "distilled": distilled, "random": random}
        for images in (distilled, random):
            if images is not None:
                check_same_classes(images, test)

    def of(self, source: str, seed: int) -> ImageSet:
        """The set `source`. Raises InputError when it, or what it is counted after, was not given."""
        if self.given[source] is not None:
            return self.given[source]
        if self.given["distilled"] is None:
            raise InputError(f"--distilled: expected a distilled set for the source {source}, found none")
        return random_images(self.given["real"], self.given["distilled"], seed)


def tasks_of(run: Run, sources: Sources) -> tuple[list, bool]:
    """The run's tasks, and whether Task Arithmetic's memory was held out of training."""
    train, memory = (sources.of(source, run.seed) for source in (run.stream, run.buffer_source))
    memory = train if run.buffer_source == run.stream else memory
    parts = split_classes(class_order(len(train.classes), run.class_order, run.seed), run.tasks)
    tasks = make_tasks(train, memory, sources.test, parts)
    if run.method != "task_arithmetic":
        return tasks, False
    kept = [hold_out(task, run.buffer_size // run.tasks, run.seed) for task in tasks]
    return [task for task, _ in kept], all(held for _, held in kept)
