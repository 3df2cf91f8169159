"""One run of the comparison, method x stream x seed: from images to `result.json`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from torch import nn
from tqdm import tqdm

from continual.agem import AGEM
from continual.buffer import Reservoir, TaskMemory
from continual.er import ExperienceReplay
from continual.finetune import FineTune
from continual.joint import Joint
from continual.loop import learn, test_accuracies
from continual.metrics import summarise
from continual.start import pretrain, read_start
from continual.streams import Task, class_order, hold_out, make_tasks, merge_tasks, random_images, split_classes
from continual.task_arithmetic import TaskArithmetic
from continual.timing import Timers
from continual.training import Recipe, Trainer
from distillation.architectures import seeded
from distillation.entry import InputError
from distillation.manifest import begin, code_version, finish, hardware, package_versions, write_json
from distillation.randomness import seed_for
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
    """Everything that decides a result; `merging` only where the method merges, `steps` are per task."""

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

    @property
    def name(self) -> str:
        """The run's folder."""
        memory = "" if self.buffer_source == self.stream else f"-memory-{self.buffer_source}"
        return f"{self.method}-{self.stream}{memory}-seed{self.seed}"


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


def perform(run: Run, sources: Sources, output: Path, device) -> dict | None:
    """Carry out a run and return its result; None when its folder is complete."""
    folder, timers = output / run.name, Timers(device)
    train, memory = (sources.of(source, run.seed) for source in (run.stream, run.buffer_source))
    memory = train if run.buffer_source == run.stream else memory
    config = {**asdict(run), "digests": {"train": train.digest, "memory": memory.digest, "test": sources.test.digest}}
    parts = split_classes(class_order(len(train.classes), run.class_order, run.seed), run.tasks)
    if run.merging and run.merging.start == "distilled":
        config["digests"]["start"] = sources.of("distilled", run.seed).digest
    if begin(folder, "continual", config):
        return None
    with timers.span("setup"):
        network = seeded(run.arch, len(train.classes), run.stem, seed_for(run.seed, "weights")).to(device)
        tests = make_tasks(train, memory, sources.test, parts)
        stream = [merge_tasks(tests)] if run.method == "joint" else tests
        trainer = Trainer(network, run.recipe, run.seed, timers)
    facts = {}
    if run.merging:
        facts["start"] = start_of(run, network, sources, output)
        with timers.span("evaluate"):
            alone = test_accuracies(network, tests, {label for part in parts for label in part})
            facts["start"].update(class_il_acc=fmean(alone[0]), task_il_acc=fmean(alone[1]))
        stream, held_out = hold_out_all(stream, run.buffer_size, run.seed)
        facts["memory"] = ("scale, BatchNorm and head are chosen on the buffer's images, which were "
                           + ("held out of training" if held_out else "trained on too, since the stream is small"))
    learner = new_learner(run, trainer, train.images.shape[1:])
    steps = run.steps * len(tests) // len(stream)
    matrices = learn(learner, stream, tests, steps, timers, run.name)
    if run.merging:
        facts["scale_curves"] = learner.curves
    result = report(run, config, learner, tests, matrices, timers, device, parts, facts)
    write_json(folder / "result.json", result)
    finish(folder, "continual", train.classes, config, ["result.json"])
    return result


def new_learner(run: Run, trainer: Trainer, shape):
    """The method by its name, with the memory it uses."""
    device = trainer.parameters[0].device
    if run.method == "er":
        return ExperienceReplay(trainer, Reservoir(run.buffer_size, shape, device))
    if run.method == "agem":
        return AGEM(trainer, TaskMemory(run.buffer_size, shape, device))
    if run.method == "task_arithmetic":
        merging = run.merging
        return TaskArithmetic(trainer, Reservoir(run.buffer_size, shape, device), merging.merge, merging.scales,
                              merging.refit_head)
    return {"finetune": FineTune, "joint": Joint}[run.method](trainer)


def hold_out_all(tasks: list[Task], buffer_size: int, seed: int) -> tuple[list[Task], bool]:
    """Each task's equal share of the buffer, held out of training where every task can spare it."""
    kept = [hold_out(task, buffer_size // len(tasks), seed) for task in tasks]
    return [task for task, _ in kept], all(held for _, held in kept)


def start_of(run: Run, network: nn.Module, sources: Sources, output: Path) -> dict:
    """Give `network` the common start and say what it is."""
    merging = run.merging
    if merging.start == "random":
        return {"name": "random", "seconds": 0.0, "note": "the seeded initial weights"}
    if merging.start != "distilled":
        return read_start(Path(merging.start), network)
    images = sources.of("distilled", run.seed)
    config = {"arch": run.arch, "stem": run.stem, "size": run.size, "seed": run.seed, "steps": merging.start_steps,
              "recipe": asdict(run.recipe), "digest": images.digest}
    with tqdm(total=merging.start_steps * run.recipe.batch_size, desc="common start", unit="img", disable=None) as bar:
        return pretrain(output / f"start-distilled-seed{run.seed}", network, images, run.recipe, merging.start_steps,
                        run.seed, config, bar)


def report(run: Run, config: dict, learner, tests: list[Task], matrices, timers: Timers, device, parts, facts: dict) -> dict:
    """The result of a run, ready for JSON."""
    trainer, buffer = learner.trainer, learner.buffer
    missing = [None] * (len(tests) - len(matrices[0]))
    class_il, task_il = (summarise(missing + rows) for rows in matrices)
    return {"kind": "continual", "method": run.method, "stream": run.stream, "buffer_source": run.buffer_source,
            "seed": run.seed, "config": config, "tasks": parts, "class_il": class_il, "task_il": task_il,
            "seconds": timers.seconds(), "steps": trainer.steps_done, "images_seen": trainer.images_seen,
            "images_per_second": round(trainer.images_seen / timers.spans["train"], 1),
            "stream_images": sum(len(task.train) for task in tests),
            "buffer": {"images": len(buffer), "bytes": buffer.bytes} if buffer else {"images": 0, "bytes": 0},
            **facts, "code": code_version(), "packages": package_versions(), "hardware": hardware()}


def table_row(result: dict) -> str:
    """One line for the screen."""
    percent = [100 * result[kind]["acc"] for kind in ("class_il", "task_il")]
    lost = result["class_il"]["forgetting"]
    note = start_note(result["start"]) if "start" in result else ""
    return (f"{result['method']:16} {result['stream']:10} seed {result['seed']:<3} ACC {percent[0]:5.1f} %  "
            f"Task-IL {percent[1]:5.1f} %  forgetting {'    -' if lost is None else f'{100 * lost:5.1f}'}  "
            f"{result['seconds']['train']:7.1f} s  {result['steps']} steps  {result['images_per_second']:.0f} images/s{note}")


def start_note(start: dict) -> str:
    """What the common start is, what it can do alone and what it cost."""
    return f"  start: {start['note']}, alone {100 * start['class_il_acc']:.1f} % ({start['seconds']:.1f} s apart)"
