"""What decides a run of the comparison, and what its folder is called."""

from dataclasses import MISSING, dataclass, field, fields, is_dataclass

from continual.training import Recipe

REPLAYS = {"er": 1, "agem": 1, "derpp": 2}  # memory batches that a method takes beside each of the stream's

@dataclass(frozen=True)
class Merging:
    """Task Arithmetic's own settings."""

    start: str
    start_steps: int
    merge: str
    scales: list[float]
    refit_head: int
    experts: str = "parallel"


@dataclass(frozen=True)
class Dark:
    """DER++'s own settings."""

    alpha: float
    beta: float


@dataclass(frozen=True)
class Run:
    """Everything that decides a result; `merging` and `dark` only for their methods, `steps` or `budget_seconds` per task.

    `schedule` and `schedule_in_name` decide no more than what the result and its folder are called.
    """

    method: str
    stream: str
    buffer_source: str
    seed: int
    tasks: int
    class_order: str
    arch: str
    stem: str
    size: int
    steps: int | None
    buffer_size: int
    recipe: Recipe
    merging: Merging | None
    dark: Dark | None = None
    buffer: str = "reservoir"
    labels: str = "hard"
    temperature: float | None = None
    budget_seconds: float | None = None
    schedule: str = field(default="epochs", compare=False)
    schedule_in_name: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """The run's folder: method, stream, seed, and between them what is not as usual.

        That is soft labels, a memory of other images than the stream's, a class-balanced one, and a schedule of steps or
        seconds that was asked for by its name, so that one folder has room for a stream with several schedules.
        """
        schedule = {"steps": f"steps{self.steps}", "budget": f"budget{self.budget_seconds or 0:g}s"}.get(self.schedule)
        parts = (self.method, self.stream, "soft" if self.labels == "soft" else None,
                 f"memory-{self.buffer_source}" if self.buffer_source != self.stream else None,
                 self.buffer if self.buffer != "reservoir" else None, schedule if self.schedule_in_name else None)
        return "-".join(part for part in (*parts, f"seed{self.seed}") if part)

    @property
    def cost(self) -> float:
        """What training takes relative to other runs of the same network: images a step times steps, or seconds, of a task."""
        replayed = self.recipe.replay_batch_size * REPLAYS.get(self.method, 0)
        return self.budget_seconds or self.steps * (self.recipe.batch_size + replayed)


def settings(record) -> dict:
    """The fields that decide a result, by name; new ones only where they differ from their default.

    So a folder that was begun before there was such a setting is still the same run.
    """
    values = {one.name: getattr(record, one.name) for one in fields(record)
              if one.compare and (one.default is MISSING or getattr(record, one.name) != one.default)}
    return {name: settings(value) if is_dataclass(value) else value for name, value in values.items()}
