"""Result files of continual runs: read, checked, and sorted into the rows of a comparison."""

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.artefact import read_json
from scripts.cli import InputError

METHODS = {"joint": "Joint (upper bound)", "finetune": "Fine-tune (lower bound)", "er": "ER", "agem": "A-GEM",
           "task_arithmetic": "Task Arithmetic", "derpp": "DER++"}
SMALL = ("random", "distilled")     # streams of as few images as the distilled set has
SAME_STEPS, SAME_SECONDS = "same steps", "same seconds"
SETTINGS = {"network": "config.arch", "stem": "config.stem", "pixels": "config.size", "tasks": "config.tasks",
            "class order": "config.class_order", "optimiser": "config.recipe.optimizer", "learning rate": "config.recipe.lr",
            "batch size": "config.recipe.batch_size", "buffer images": "config.buffer_size", "hardware": "hardware",
            "steps": "steps", "images of the stream": "stream_images", "labels": "labels"}


@dataclass(frozen=True, order=True)
class Arm:
    """Where a run's images come from. `schedule` is empty where the stream takes its own epochs."""

    stream: str
    memory: str
    labels: str
    schedule: str = ""

    @property
    def name(self) -> str:
        """As tables show it; hard labels and the stream's own images as memory are not mentioned."""
        memory = "" if self.memory == self.stream else f"memory {self.memory}"
        labels = "" if self.labels == "hard" else f"{self.labels} labels"
        return ", ".join(part for part in (self.stream, memory, labels, self.schedule) if part)

    def of(self, source: str, **changes) -> "Arm":
        """The arm with images of `source` in place of the distilled ones."""
        sources = {name: source if getattr(self, name) == "distilled" else getattr(self, name) for name in ("stream", "memory")}
        return replace(self, **sources, **changes)


Rows = dict[str, dict[Arm, dict[int, dict]]]    # method, arm, seed: a result


def value(result: dict, key: str, default=None):
    """The field `key` ("config.recipe.lr") of a result, or `default`."""
    for part in key.split("."):
        if not isinstance(result, dict) or part not in result:
            return default
        result = result[part]
    return result


def field(name: str, result: dict, key: str):
    """The field `key` ("metrics.steps") of a result; raises InputError naming the result where there is none."""
    absent = object()
    found = value(result, key, absent)
    if found is absent:
        raise InputError(f"{name}/result.json: expected the field {key}, found none")
    return found


def arm_of(name: str, result: dict) -> Arm:
    """The arm of a result, on its own epochs."""
    stream = field(name, result, "stream")
    return Arm(stream, result.get("buffer_source", stream), result.get("labels", "hard"))


def read_runs(paths: list[Path]) -> dict[str, dict]:
    """The continual results below folders and in collected files (misc/report/collect.py), by where they stand.

    Raises InputError when there are none.
    """
    found = {}
    for path in paths:
        if path.is_dir():
            found |= {str(file.parent): read_json(file) for file in sorted(path.rglob("result.json"))}
        else:
            found |= collected(path)
    runs = {name: one for name, one in found.items() if isinstance(one, dict) and one.get("kind") == "continual"}
    if not runs:
        raise InputError(f"{', '.join(map(str, paths))}: expected result.json files of continual.train_continual, found none")
    return runs


def collected(path: Path) -> dict[str, dict]:
    """The results of a collected file."""
    content = read_json(path)
    if not isinstance(content, dict) or "runs" not in content:
        return {str(path): content}
    return {f"{path}: {one['run']}": one for one in whole_results(content)}


def whole_results(content: dict) -> list[dict]:
    """The results of a collected file's content, each with what the file states once for all."""
    shared = {key: one for key, one in content.items() if key != "runs"}
    return [{**shared, **one} for one in content["runs"]]


def rows_of(runs: dict[str, dict]) -> Rows:
    """Sort runs into rows. Raises InputError where a row would mix settings, or runs have other test images.

    A real stream that takes the steps of the small sets is an arm of its own, `same steps`, told by counting steps: fewer than
    its epochs would take. Runs of a time budget are `same seconds`. The same result found twice counts once.
    """
    check_same_tests(runs)
    fewest: dict[str, int] = {}
    for name, one in runs.items():
        if field(name, one, "stream") in SMALL and one.get("schedule") != "budget":
            method, steps = (field(name, one, key) for key in ("method", "steps"))
            fewest[method] = min(steps, fewest.get(method, steps))
    rows: Rows = {}
    names: dict[tuple, str] = {}
    for name, one in runs.items():
        method, arm = field(name, one, "method"), arm_of(name, one)
        arm = replace(arm, schedule=schedule_of(one, arm, fewest.get(method)))
        row, seed = rows.setdefault(method, {}).setdefault(arm, {}), field(name, one, "seed")
        for other_seed, other in row.items():
            check_one_setting(f"{method}, {arm.name}", names[method, arm, other_seed], other, name, one)
        row.setdefault(seed, one)
        names.setdefault((method, arm, seed), name)
    return {method: {arm: dict(sorted(row.items())) for arm, row in sorted(arms.items(), key=lambda pair: place(pair[0]))}
            for method, arms in sorted(rows.items(), key=lambda pair: [*METHODS, pair[0]].index(pair[0]))}


def place(arm: Arm) -> tuple:
    """Where an arm stands in a table: real before random before distilled."""
    sources = ("real", *SMALL)
    return arm.schedule == SAME_SECONDS, sources.index(arm.stream), sources.index(arm.memory), arm.labels, arm.schedule


def schedule_of(result: dict, arm: Arm, fewest: int | None) -> str:
    """The schedule as part of the arm; `fewest` steps are those of the small sets on their own epochs."""
    if result.get("schedule") == "budget":
        return SAME_SECONDS
    if arm.stream in SMALL:
        return "" if result["steps"] == fewest else f"{result['steps']} steps"
    return SAME_STEPS if result["steps"] == fewest else ""


def check_same_tests(runs: dict[str, dict]) -> None:
    """All runs must be tested on the same images."""
    digests = {value(one, "config.digests.test"): name for name, one in runs.items()}
    if len(digests) > 1:
        first, second = list(digests.values())[:2]
        raise InputError(f"{first} and {second}: expected runs tested on the same images, found other test images")


def check_one_setting(row: str, first_name: str, first: dict, name: str, result: dict) -> None:
    """Two runs of a row may differ in nothing but the seed and what it draws; of one seed they must be the same result."""
    one, other = (flat({**each["config"], "steps": each["steps"]}) for each in (first, result))
    own = ("seed", "digests.") if first["seed"] != result["seed"] else ()
    ignored = (*own, "steps") if result.get("schedule") == "budget" else own
    differ = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key) and not key.startswith(ignored)]
    both = f"{first_name} and {name}"
    if differ:
        raise InputError(f"{both}: expected one setting in the row {row}, found other {', '.join(sorted(differ))}")
    if first["seed"] == result["seed"] and first["class_il"] != result["class_il"]:
        raise InputError(f"{both}: expected one result of {row}, seed {result['seed']}, found two")


def flat(config: dict, before: str = "") -> dict:
    """A configuration without nesting: {"recipe.lr": 0.001}."""
    found = {}
    for key, one in config.items():
        found |= flat(one, f"{before}{key}.") if isinstance(one, dict) else {f"{before}{key}": one}
    return found


def mean_std(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (ddof 1; None for a single value); both None where a value is None."""
    if None in values:
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def held(groups: dict, place: int, fields: dict[str, str]) -> str:
    """What was equal in all runs and what was not, by arm: the part `place` of a group's key.

    `groups` are {key: {name: result}}; a field that a run does not have counts as "not stated".
    """
    equal, differ = [], []
    for label, key in fields.items():
        arms = {}
        for group_key, runs in groups.items():
            arms.setdefault(group_key[place], set()).update(value(one, key, "not stated") for one in runs.values())
        by_value = {}
        for arm, values in arms.items():
            by_value.setdefault(" or ".join(sorted(map(str, values))), []).append(arm)
        if set(by_value) == {"not stated"}:
            continue
        if len(by_value) == 1:
            equal.append(f"{label} {next(iter(by_value))}")
        else:
            differ.append(f"{label} ({'; '.join(f'{value} for ' + ', '.join(of) for value, of in by_value.items())})")
    return " ".join(f"{what}: {', '.join(names)}." for what, names in (("Held equal", equal), ("Not equal", differ)) if names)
