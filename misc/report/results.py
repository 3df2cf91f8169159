"""Result files: one row type for the runs of every stage, read from folders and from collected files.

A collected file (`misc/results/*.jsonl`) has a header line, then one line a run. The header holds the command, the date, the
seconds of the stages, and what is equal in all runs: code, packages, hardware and, by kind, configuration.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from scripts.artefact import flat
from scripts.cli import InputError
from scripts.files import parse_json, read_bytes, read_json, write_text

METHODS = {"joint": "Joint (upper bound)", "finetune": "Fine-tune (lower bound)", "er": "ER", "agem": "A-GEM",
           "task_arithmetic": "Task Arithmetic", "derpp": "DER++"}
SOURCES = ("real", "random", "distilled")
STREAM_ARM = re.compile(r"-memory\d+/ipc(?P<ipc>\d+)(-(?P<arm>[^/]+))?/")   # arm: of other images than the usual ones
SMALL = SOURCES[1:]     # with as few images as the distilled set
SAME_STEPS = "same steps"
STREAM = ("method", "stream", "buffer_source", "labels", "schedule", "seed")
CONTINUAL = {"acc": "class_il.acc", "task_il_acc": "task_il.acc", "average_incremental": "class_il.average_incremental",
             "forgetting": "class_il.forgetting", "bwt": "class_il.bwt", "forward_transfer": "task_il.forward_transfer",
             "steps": "steps", "images_seen": "images_seen", "stream_images": "stream_images", "flops": "flops",
             "stream_bytes": "bytes.stream", "buffer_bytes": "buffer.bytes", "teacher_bytes": "bytes.teacher",
             "peak_memory_bytes": "peak_memory_bytes", "matrix": "class_il.matrix", "confusion": "confusion",
             "scale_curves": "scale_curves", "start_acc": "start.class_il_acc", "start_seconds": "start.seconds",
             "start_note": "start.note", "memory": "memory"}    # metric: its place in what continual.train_continual writes
NEEDED = ("config.method", "config.stream", "config.seed", "metrics.steps", "metrics.stream_images", "metrics.acc",
          "seconds.train")
NUMBER = (int, float)
TYPES = {"matrix": list, "confusion": list, "scale_curves": list, "start_note": str, "memory": str}    # others: NUMBER
MADE = ("hardware", "code", "packages")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Run:
    """One result. `config` and `metrics` are flat ({"recipe.lr": 0.001}); `made` has MADE."""

    name: str
    kind: str
    config: dict
    metrics: dict
    seconds: dict[str, float]
    made: dict = field(default_factory=dict)

    def get(self, key: str, default=None):
        """The value of "config.recipe.lr", "metrics.acc", "seconds.train" or "hardware"; `default` where there is none."""
        part, _, name = key.partition(".")
        return getattr(self, part).get(name, default) if name else self.made.get(part, default)

    @property
    def took(self) -> float:
        """All its seconds; those of "encode" contain the waiting for decoded images."""
        return sum(spent for part, spent in self.seconds.items() if part != "wait")

    def need(self, key: str):
        """The same; raises InputError where there is none."""
        found = self.get(key, absent := object())
        if found is absent:
            raise InputError(f"{self.name}/result.json: expected the field {key}, found none")
        return found


@dataclass(frozen=True)
class Results:
    """The runs of a folder or of a collected file, the command behind them, and seconds by stage."""

    runs: list[Run]
    command: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Run]:
        return [run for run in self.runs if run.kind == kind]


@dataclass(frozen=True)
class Arm:
    """Where the images of a continual run come from. `schedule` is empty where the stream takes its own epochs.

    `start` names the latents that distilled images start from, and is empty for centroids.
    """

    stream: str
    memory: str
    labels: str
    schedule: str = ""
    start: str = ""

    @property
    def name(self) -> str:
        """The name in tables, without hard labels and without a memory that is the stream's."""
        memory = "" if self.memory == self.stream else f"memory {self.memory}"
        labels = "" if self.labels == "hard" else f"{self.labels} labels"
        stream = self.stream + (f" from {self.start}s" if self.start else "")
        return ", ".join(part for part in (stream, memory, labels, self.schedule) if part)


Rows = dict[str, dict[Arm, dict[int, Run]]]    # by method, arm and seed


def runs_by_arm(rows: Rows) -> dict[str, list[Run]]:
    """The runs of all methods by the name of their arm."""
    found: dict[str, list[Run]] = {}
    for arms in rows.values():
        for arm, row in arms.items():
            found.setdefault(arm.name, []).extend(row.values())
    return found


def read_run(name: str, content) -> Run:
    """A stage's result.json as a compact Run, without seconds where they are a part of its time.

    Raises InputError where a field is missing that every result of its kind has.
    """
    if not isinstance(content, dict) or "kind" not in content:
        raise InputError(f"{name}/result.json: expected the field kind, found none")
    config, metrics, seconds = map(flat, parts_of(f"{name}/result.json", content))
    if content["kind"] == "continual":
        found = flat(content)
        config |= {key: found[key] for key in STREAM if key in found}
        metrics = {key: found[place] for key, place in CONTINUAL.items() if place in found}
        if "memory" in metrics:
            metrics["memory"] = metrics["memory"].rpartition("which were ")[2]
    seconds = {} if content.get("resumed") else seconds
    run = Run(name, content["kind"], config, metrics, seconds, made_in(content))
    for key in NEEDED if run.kind == "continual" else ():
        run.need(key)
    return compact(checked(run))


def checked(run: Run) -> Run:
    """The run. Raises InputError for a field of another type than its stage writes."""
    fields = {"kind": (run.kind, str), **{f"seconds.{name}": (value, NUMBER) for name, value in run.seconds.items()}}
    if run.kind == "continual":
        metrics = {name: value for name, value in run.metrics.items() if value is not None}
        fields |= {f"metrics.{name}": (value, TYPES.get(name, NUMBER)) for name, value in metrics.items()}
        fields |= {"config.seed": (run.config["seed"], int), "config.validation": (run.config.get("validation", 0), int)}
        for name in ("matrix", "confusion"):
            lines = metrics[name] if isinstance(metrics.get(name), list) else ()
            fields |= {f"metrics.{name}, row {place}": (row, list) for place, row in enumerate(lines) if row is not None}
        if run.config["stream"] not in SOURCES:
            raise InputError(f"{run.name}/result.json: expected a stream of {', '.join(SOURCES)}, found {run.config['stream']}")
    for name, (value, kind) in fields.items():
        if not isinstance(value, kind):
            raise InputError(f"{run.name}/result.json: expected another value as {name}, found {value!r:.80}")
    return run


def parts_of(where: str, content: dict) -> list[dict]:
    """Configuration, metrics and seconds of a result. Raises InputError where one is no JSON object."""
    parts = {part: content.get(part, {}) for part in ("config", "metrics", "seconds")}
    for part, found in parts.items():
        if not isinstance(found, dict):
            raise InputError(f"{where}: expected an object as {part}, found {found!r:.80}")
    return [*parts.values()]


def made_in(content: dict) -> dict:
    """What a result or a header says of hardware, code and packages."""
    return {key: content[key] for key in MADE if key in content}


def read_results(path: Path) -> Results:
    """The results of a folder, at any depth, or of a collected file."""
    if path.suffix == ".jsonl":
        return read_collected(path)
    found = {file.parent: read_json(file) for file in sorted(path.rglob("result.json"))}
    return Results([read_run(folder.relative_to(path).as_posix() if folder != path else path.resolve().name, content)
                    for folder, content in found.items()], seconds=read_stages(path / "stages.jsonl"))


def read_stages(path: Path) -> dict[str, float]:
    """Seconds by stage, in the order of first appearance; of a stage that ran again the longest run counts."""
    stages = {}
    for entry in read_lines(path, "stage", "seconds") if path.exists() else []:
        if not isinstance(entry["stage"], str) or not isinstance(entry["seconds"], NUMBER):
            raise InputError(f"{path}: expected a name and a number of seconds, found {entry!r:.80}")
        stages[entry["stage"]] = max(entry["seconds"], stages.get(entry["stage"], 0))
    return stages


def read_lines(path: Path, *keys: str) -> list[dict]:
    """The JSON objects of a file, one a line. Raises InputError where a line is none, or lacks one of `keys`."""
    found = []
    for number, line in enumerate(read_bytes(path, "JSON, an object a line").splitlines(), 1):
        found.append(parse_json(f"{path}, line {number}", line))
        if not isinstance(found[-1], dict) or not found[-1].keys() >= set(keys):
            fields = f" with {', '.join(keys)}" if keys else ""
            raise InputError(f"{path}, line {number}: expected a JSON object{fields}, found {found[-1]!r:.80}")
    return found


def read_collected(path: Path) -> Results:
    """The results of a collected file."""
    header, *lines = read_lines(path) or [{}]
    if "runs" not in header or any(not {"run", "kind"} <= line.keys() for line in lines) or len(lines) != header["runs"]:
        raise InputError(f"{path}: expected a file of `python -m misc.report collect`, with its header and all its runs")
    made, common = made_in(header), parts_of(f"{path}, line 1", header)[0]
    for one in common.values():
        parts_of(f"{path}, line 1", {"config": one})
    runs = []
    for number, one in enumerate(lines, 2):
        config, metrics, seconds = parts_of(f"{path}, line {number}", one)
        shared = common.get(str(one["kind"]), {})
        runs.append(checked(Run(str(one["run"]), one["kind"], shared | config, metrics, seconds, made | made_in(one))))
    return Results(runs, header.get("command", ""), header.get("seconds", {}))


def read_kept(misc: Path, name: str) -> Results:
    """A collected file of misc/results; no runs where there is none."""
    path = misc / "results" / f"{name}.jsonl"
    return read_collected(path) if path.exists() else Results([])


def collect(results: Results, path: Path) -> None:
    """Write a collected file."""
    runs = results.runs
    kinds = group_by(runs, lambda run: run.kind)
    common = {kind: common_part([run.config for run in kinds[kind]]) for kind in sorted(kinds)}
    made = common_part([run.made for run in runs])
    header = {"command": results.command, "when": time.strftime("%Y-%m-%d"), "runs": len(runs), **made,
              "seconds": results.seconds, "config": common}
    lines = [{"run": run.name, "kind": run.kind, "config": without(run.config, common[run.kind]), "metrics": run.metrics,
              "seconds": run.seconds, **without(run.made, made)} for run in runs]
    entries = ({key: one for key, one in line.items() if one or one == 0} for line in (header, *lines))
    write_text(path, "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in entries))


def common_part(dictionaries: list[dict]) -> dict:
    """The most common value of each key that all dictionaries have."""
    values = {key: Counter(json.dumps(one[key]) for one in dictionaries) for key in dictionaries[0]
              if all(key in other for other in dictionaries)}
    return {key: json.loads(max(counts, key=counts.get)) for key, counts in values.items()}


def without(own: dict, common: dict) -> dict:
    """The entries that differ from the common ones."""
    return {key: one for key, one in own.items() if key not in common or common[key] != one}


def compact(run: Run) -> Run:
    """A run with what tables and figures use: of continual runs no phases, of others metrics that are numbers.

    A folder's runs are equal to those of its collected file, since both are compact.
    """
    metrics, seconds = {key: one for key, one in run.metrics.items() if isinstance(one, int | float)}, run.seconds
    if run.kind == "continual":
        last = {"scale_curves": run.metrics["scale_curves"][-1:]} if run.metrics.get("scale_curves") else {}    # the last merge
        metrics, seconds = run.metrics | last, {"train": run.seconds["train"]}
    return replace(run, config=shortened(run.config), metrics=shortened(metrics), seconds=shortened(seconds))


def shortened(value, significant: int = 12):
    """A value with its numbers rounded (those in lists, for figures, to 4 digits) and its digests cut to 12 characters."""
    if isinstance(value, float):
        return float(f"{value:.{significant}g}")
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return value[:12]
    if isinstance(value, list):
        return [shortened(one, 4) for one in value]
    return {key: shortened(one, significant) for key, one in value.items()} if isinstance(value, dict) else value


def continual_rows(runs: list[Run]) -> Rows:
    """Sort continual runs into rows. Raises InputError where a row would mix settings, or test images differ.

    A real stream with as few steps as the small sets is an arm of its own, `same steps`; so is each other number of steps that
    small sets take too.
    """
    runs = [run for run in runs if run.kind == "continual"]
    digests = {run.get("config.digests.test"): run.name for run in runs}
    if len(digests) > 1:
        first, second = list(digests.values())[:2]
        raise InputError(f"{first} and {second}: expected runs tested on the same images, found other test images")
    lengths: dict[str, set[int]] = {}       # of the small sets, in steps
    for run in runs:
        if run.config["stream"] in SMALL:
            lengths.setdefault(run.config["method"], set()).add(run.metrics["steps"])
    rows: Rows = {}
    for run in runs:
        method = run.config["method"]
        arm = arm_of(run, lengths.get(method, set()))
        join(rows.setdefault(method, {}).setdefault(arm, {}), run, f"{method}, {arm.name}")
    return {method: {arm: dict(sorted(row.items())) for arm, row in sorted(arms.items(), key=lambda pair: place_of(pair[0]))}
            for method, arms in sorted(rows.items(), key=lambda pair: [*METHODS, pair[0]].index(pair[0]))}


def arm_of(run: Run, lengths: set[int]) -> Arm:
    """The arm of a continual run; the small sets of its method take `lengths` steps, the fewest of them on their own epochs."""
    stream, steps = run.config["stream"], run.metrics["steps"]
    schedule = f"{steps} steps" if steps in lengths else ""
    if schedule and steps == min(lengths):
        schedule = "" if stream in SMALL else SAME_STEPS
    start = other_images(run) if other_images(run) in ("medoid", "member") else ""
    return Arm(stream, run.get("config.buffer_source", stream), run.get("config.labels", "hard"), schedule, start)


def other_images(run: Run) -> str:
    """What the images of a continual run's small stream are where they are not the usual ones, by its folder's name."""
    named = STREAM_ARM.search(run.name)
    return (named and named["arm"]) or ""


def place_of(arm: Arm) -> tuple:
    """The place of an arm in a table: real before random before distilled."""
    return SOURCES.index(arm.stream), SOURCES.index(arm.memory), arm.start, arm.labels, arm.schedule


def join(row: dict[int, Run], run: Run, name: str) -> None:
    """Put a run into a row, by its seed; a result found twice counts once.

    Raises InputError where runs differ in more than the seed, or a seed has two results.
    """
    for first in row.values():
        one, other = (each.config | {key: each.metrics[key] for key in ("steps", "stream_images")} for each in (first, run))
        same_seed = one["seed"] == other["seed"]
        ignored = ("schedule", *(() if same_seed else ("seed", "digests.")))
        differ = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key) and not key.startswith(ignored)]
        if differ:
            raise InputError(f"{first.name} and {run.name}: expected one setting in the row {name}, found other "
                             f"{', '.join(sorted(differ))}")
        if same_seed and first.metrics["acc"] != run.metrics["acc"]:
            raise InputError(f"{first.name} and {run.name}: expected one result of {name}, seed {one['seed']}, found two")
    row.setdefault(run.config["seed"], run)


def group_by(runs: list[Run], key_of: Callable) -> dict:
    """The runs of each key, in the order of first appearance."""
    groups: dict = {}
    for run in runs:
        groups.setdefault(key_of(run), []).append(run)
    return groups


def grouped(results: Results, pattern: re.Pattern, kind: str, *names: str) -> dict:
    """Runs of one kind whose names fit a pattern, by its groups `names`: a tuple where there are several."""
    runs = [run for run in results.of_kind(kind) if pattern.search(run.name)]
    return group_by(runs, lambda run: pattern.search(run.name).group(*names))
