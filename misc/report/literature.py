"""The tables of misc/literature.md: published figures, from misc/published.json, beside those of this code.

A row of ours gets network, labels, schedule and number of images from its result, and the source of its images from the name
of its folder. What a study is to run and did not is "not run", with its command.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from misc.report.results import METHODS, Results, Run, continual_rows, read_collected
from misc.report.statistics import measure
from misc.report.tables import NONE, NOT_RUN, STUDENT, Section, cell, counts, grouped, setting, storage_points, teachers
from scripts.artefact import read_json
from scripts.cli import InputError

NETWORKS = {"convnet_d3_w128": "ConvNet-W128", "resnet18": "ResNet-18", "resnet50": "ResNet-50", "resnet101": "ResNet-101",
            "mobilenet_v2": "MobileNetV2", "efficientnet_b0": "EfficientNet-B0", "swin_t": "Swin-T", "vit_b_16": "ViT-B"}
IMAGES = {"distilled": "D4M images", "prototype": "decoded prototypes", "noise": "images from noise",
          "random": "random real images", "real": "all real training images"}
STATED = re.compile(r"(?:(?<=[/_-])|^)(ipc\d+|label\d+|seed\d+|hard|soft|d4m|rded|protocols|tiny_imagenet|imagenet|cifar100?)"
                    r"(?=[/_-]|$)")     # words of a student's folder that do not name the source of its images
CROSS_RUN = re.compile(r"seed\d+/students/cross/(?P<model>\w+)$")
CROSS_NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "swin_t", "vit_b_16", "convnet_d3_w128")
IPC_COLUMNS = {str(ipc): f"IPC {ipc} (%)" for ipc in (10, 50, 100, 200, 500)} | {"all": "All real (%)"}
MAY_DIFFER = ("seed", "fkd_seed", "images", "soft_labels", "teacher")      # between the runs of one cell
STEMS = {"imagenet": "ImageNet stem", "cifar": "CIFAR stem"}


@dataclass(frozen=True)
class Study:
    """A collected file, and what its command is to run: `students` x `images` x `ipcs` with soft labels."""

    file: str
    data: str
    classes: int
    prior: str
    command: str = ""
    students: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    ipcs: tuple[int, ...] = ()

    def origin(self, images: str) -> str:
        """The prior of some images."""
        return "real images, no prior" if images in ("random", "real") else f"prior: {self.prior}"

    def command_for(self, network: str) -> str:
        """The command that runs the study for a network."""
        return self.command.replace("{student}", network)


@dataclass(frozen=True)
class Row:
    """A row of any table; `cells` by column."""

    data: str
    student: str
    name: str
    cells: dict[str, str]
    source: str
    differs: str
    seeds: str = NONE


def stages(data: str, first: str, before: str = "") -> str:
    """The commands from a data set's first stage to its last, which takes the network's name."""
    return f"from `{data}sh distillation/{first}` to `{data}{before}MODEL={{student}} sh validate/train_FKD.sh`"


STABLE_DIFFUSION = "Stable Diffusion v1.5"
IMAGENET_STAGES = stages("", "gen_prototype_imgnt.sh")
CIFAR10 = Study("cifar10", "CIFAR-10", 10, "a latent diffusion model of our own", "`sh misc/studies/cifar10.sh`",
                ("convnet_d3_w128", "resnet18"), ("distilled", "random"), (10, 50, 500))
WEAK_CIFAR10 = Study("matching_cifar10", "CIFAR-10", 10, "a weak latent diffusion model of our own (one CPU core)")
SMALL_CIFAR10 = Study("cifar10_small", "CIFAR-10", 10, "a latent diffusion model of our own, of minutes (`SCALE=small`)")
CIFAR10_ARMS = Study("cifar10_arms", "CIFAR-10", 10, WEAK_CIFAR10.prior,
                     '`SCALE=small PARTS="sets students arms" PRIOR=... TEACHER=... sh misc/studies/cifar10.sh`')
CIFAR100 = Study("cifar100", "CIFAR-100", 100, STABLE_DIFFUSION, stages("DATASET=cifar100 ", "gen_prototype.sh"),
                 ("convnet_d3_w128",), ("distilled",), (10, 50))
IMAGENET = Study("imagenet", "ImageNet-1K", 1000, STABLE_DIFFUSION, IMAGENET_STAGES, ("resnet18", "resnet50", "resnet101"),
                 ("distilled",), (10, 50, 100, 200))
TINY_IMAGENET = Study("tiny_imagenet", "Tiny-ImageNet", 200, STABLE_DIFFUSION,
                      stages("DATASET=tiny_imagenet ", "gen_prototype.sh"), ("resnet18", "resnet50", "resnet101"),
                      ("distilled",), (50, 100))
FORTIETH = Study("imagenet_fortieth", "ImageNet-1K", 1000, STABLE_DIFFUSION,
                 f"{IMAGENET_STAGES}, all with `KEEP_EPOCHS=0.025` and a `RUN` of their own")
DIGITS = Study("digits", "digits", 10, "digits-ldm", "`sh misc/studies/digits.sh`")
MATCHING_DIGITS = Study("matching_digits", "digits", 10, "digits-ldm", "`sh misc/studies/matching.sh`")
CONTINUAL = {"cifar10": (CIFAR10.command, ("joint", "finetune", "er", "agem", "task_arithmetic", "derpp")),
             "continual_order_cifar10": ("`sh misc/studies/continual_order.sh`", ("finetune", "er", "agem"))}


# rows

def read(misc: Path, file: str) -> Results:
    """A collected file; no runs where there is none."""
    path = misc / "results" / f"{file}.jsonl"
    return read_collected(path) if path.exists() else Results([])


def place_of(file: str) -> str:
    """A collected file as the Source column names it."""
    return f"misc/results/{file}.jsonl"


def published(misc: Path, table: str) -> list[Row]:
    """The published rows of a table, each with its source."""
    content = read_json(misc / "published.json")
    return [Row(one["data"], one["student"], one["name"], one["values"],
                content["sources"][one["source"]], one["differs"]) for one in content["tables"][table]]


def section(title: str, rows: list[Row], columns: dict[str, str]) -> list[Section]:
    """A table of rows; a column without any word in it is left out."""
    header = ["Data", "Student", "As named", *columns.values(), "Seeds (n)", "Source", "What differs"]
    cells = [[row.data, row.student, row.name, *(row.cells.get(key, NONE) for key in columns), row.seeds, row.source,
              row.differs] for row in rows]
    kept = [place for place in range(len(header)) if any(row[place] for row in cells)]
    return [Section(title, "", tuple(header[place] for place in kept),
                    tuple(tuple(row[place] for place in kept) for row in cells))]


def images_of(run: str, network: str) -> str:
    """The source of a student's images: its folder's name without network, IPC, labels, protocol and seed."""
    left = STATED.sub("", run.rpartition("students/")[2].replace(network, ""))
    return re.sub(r"[/_-]+", "-", left).strip("-") or "distilled"


def students_of(results: Results, classes: int) -> dict[tuple, dict[str, list[Run]]]:
    """Students by (network, images, labels, protocol, stem), then by IPC or "all"."""
    rows: dict[tuple, dict] = {}
    for run in results.of_kind("student"):
        config, images = run.config, images_of(run.name, run.config["arch"])
        key = (config["arch"], images, config["labels"], config.get("protocol"), config["stem"])
        ipc = "all" if images == "real" else str(run.metrics["train_images"] // classes)
        rows.setdefault(key, {}).setdefault(ipc, []).append(run)
    return rows


def accuracy(runs: list[Run]) -> dict:
    """Accuracy over the runs of a cell. Raises InputError where they differ in more than the seed."""
    first, *others = runs
    for other in others:
        for key in first.config.keys() | other.config.keys():
            mine, its = first.config.get(key), other.config.get(key)
            if mine != its and key not in MAY_DIFFER:
                raise InputError(f"{first.name} and {other.name}: expected runs that differ in nothing but the seed, found "
                                 f"{key} {mine} and {its}")
    return measure({(): runs}, {"accuracy": "metrics.test_accuracy"})[()]


def cells_of(by_column: dict[str, list[Run]]) -> tuple[dict[str, str], str]:
    """The cells of a row, and the numbers of seeds behind them."""
    numbers = {column: accuracy(runs) for column, runs in by_column.items() if runs}
    return {column: cell(one, "accuracy", 100) for column, one in numbers.items()}, counts(numbers.values()) or NONE


def named(values) -> str:
    """Different values in their order."""
    return " / ".join(dict.fromkeys(map(str, values)))


def schedule(runs: list[Run], results: Results) -> str:
    """The training of a row's students, and their teacher."""
    config = runs[0].config
    resnets = any(run.config["arch"].startswith("resnet") for run in runs)
    teacher = teachers(results) if config["labels"] == "soft" else ""
    return "; ".join(filter(None, (f"protocol {config['protocol']}" if config.get("protocol") else "",
        f"{named(run.config['epochs'] for run in runs)} epochs ({named(run.metrics['steps'] for run in runs)} steps)",
        STEMS[config["stem"]] if resnets else "", teacher and f"teacher {teacher}")))


def ours(misc: Path, study: Study, network: str) -> list[Row]:
    """The rows of a study for a network, with what it was to run and did not."""
    results, rows = read(misc, study.file), []
    found = {key[1:]: by_ipc for key, by_ipc in students_of(results, study.classes).items() if key[0] == network}
    planned = study.images if network in study.students else ()
    for images in planned:
        if not any(key[:2] == (images, "soft") for key in found):
            found[images, "soft", None, None] = {}
    for (images, labels, protocol, _), by_ipc in found.items():
        cells, seeds = cells_of(by_ipc)
        due = study.ipcs if images in planned and labels == "soft" else ()
        missing = {str(ipc): NOT_RUN for ipc in due if str(ipc) not in cells}
        runs, line = sum(by_ipc.values(), []), study.command_for(network)
        differs = [study.origin(images), runs and schedule(runs, results),
                   missing and f"{'what is not run' if runs else 'to run it'}: {line}"]
        rows.append(((*IMAGES, images).index(images), labels, protocol or "", Row(
            study.data, NETWORKS[network], f"this code, {IMAGES.get(images, images)}, {labels} labels", missing | cells,
            place_of(study.file), "; ".join(filter(None, differs)), seeds)))
    return [row for *_, row in sorted(rows, key=lambda one: one[:3])]


def soft_resnet18(misc: Path, study: Study, images: str, ipc: int) -> list[Run]:
    """A study's runs of ResNet-18 with soft labels under D4M's protocol."""
    return [run for key, by_ipc in students_of(read(misc, study.file), study.classes).items()
            if key[:4] == ("resnet18", images, "soft", "d4m") for run in by_ipc.get(str(ipc), [])]


def resnet18_row(ipc: int, study: Study, found: dict[str, list[Run]], name: str, line: str, **others: str) -> Row:
    """ResNet-18 on a study's data: runs by column, the command `line` where one has none, and `others` as they are."""
    cells, seeds = cells_of(found)
    missing = {column: NOT_RUN for column in found if column not in cells}
    return Row(f"{study.data}, IPC {ipc}", "ResNet-18", f"this code, {name}", missing | cells | others,
               place_of(study.file), study.origin("distilled") + (f"; to run it: {line}" if missing else ""), seeds)


# tables

def side_by_side(misc: Path, table: str, studies: tuple[Study, ...], columns: tuple[str, ...]) -> list[Section]:
    """Published rows and ours by data set and student."""
    theirs, rows = published(misc, table), []
    pairs = dict.fromkeys([*((one.data, NETWORKS[network]) for one in studies for network in one.students),
                           *((row.data, row.student) for row in theirs)])
    for data, student in sorted(pairs, key=lambda pair: [one.data for one in studies].index(pair[0])):
        network = next(name for name, text in NETWORKS.items() if text == student)
        rows += [row for row in theirs if (row.data, row.student) == (data, student)]
        rows += [row for one in studies if one.data == data for row in ours(misc, one, network)]
    return section("Students", rows, {key: IPC_COLUMNS[key] for key in columns})


def start(misc: Path) -> list[Section]:
    """Prototypes against noise as the start of the diffusion, both at the paper's strength."""
    rows, runs = published(misc, "start"), read(misc, DIGITS.file).of_kind("student")
    for labels in ("soft", "hard"):
        pair = {column: [run for run in runs if run.name.endswith(f"students/{arm}-ipc10-{labels}")]
                for column, arm in (("prototypes", "d4m-s0.7"), ("noise", "noise"))}
        row = resnet18_row(10, DIGITS, pair, f"{labels} labels", DIGITS.command)
        rows.append(Row(**{**vars(row), "differs": f"data: digits; {row.differs}"}))
    for study, arm, line in ((CIFAR10_ARMS, "s0.7", CIFAR10_ARMS.command),
                             (IMAGENET, "distilled", f"{IMAGENET.command_for('resnet18')}, and again with "
                                                     "`gen_syn_image --method noise`")):
        found = {"prototypes": soft_resnet18(misc, study, arm, 10), "noise": soft_resnet18(misc, study, "noise", 10)}
        rows.append(resnet18_row(10, study, found, "soft labels", line))
    return section("Prototypes or noise", rows, {"prototypes": "Start: prototypes (%)", "noise": "Start: noise (%)"})


def matching(misc: Path) -> list[Section]:
    """Matching during synthesis against matching at training time."""
    found = {"training": soft_resnet18(misc, IMAGENET, "distilled", 10)}
    rows = [*published(misc, "matching"), resnet18_row(10, IMAGENET, found, "which matches at training time only",
                                                       IMAGENET.command_for("resnet18"))]
    return section("Matching", rows, {"training": "At training time (%)",
                                      "synthesis": "While synthesising, BatchNorm statistics (%)"})


def cross(misc: Path) -> list[Section]:
    """One distilled set and teacher, students of many architectures."""
    columns = {name: text for name, text in NETWORKS.items() if name != "resnet101"}
    results = read(misc, MATCHING_DIGITS.file)
    groups = grouped(results, CROSS_RUN, "student", "model")
    numbers, runs = measure(groups, STUDENT), sum(groups.values(), [])
    differs = ["data: digits", MATCHING_DIGITS.origin("distilled"), runs and setting(runs, "epochs", "stem"),
               runs and f"teacher {teachers(results)}",
               "" if all((name,) in numbers for name in columns) else f"to run it: {MATCHING_DIGITS.command}"]
    rows = [*published(misc, "cross"), Row("digits, IPC 10", "", "this code, D4M images, soft labels",
                {name: cell(numbers.get((name,)), "accuracy", 100) for name in columns}, place_of(MATCHING_DIGITS.file),
                "; ".join(filter(None, differs)), counts(numbers.values()) or NONE),
            *cross_rows(misc, CIFAR10, ("convnet_d3_w128", "resnet18", "resnet50")),
            *cross_rows(misc, IMAGENET, tuple(columns))]
    return section("Architectures", rows, {name: f"{text} (%)" for name, text in columns.items()})


def cross_rows(misc: Path, study: Study, networks: tuple[str, ...]) -> list[Row]:
    """Students on D4M images with soft labels at IPC 50, a row per protocol; `networks` are due."""
    results = read(misc, study.file)
    by_protocol: dict[str | None, dict] = {}
    for (network, images, labels, protocol, _), by_ipc in students_of(results, study.classes).items():
        if (images, labels) == ("distilled", "soft") and "50" in by_ipc:
            by_protocol.setdefault(protocol, {}).setdefault(network, []).extend(by_ipc["50"])
    rows = []
    for found in by_protocol.values() or [{}]:
        cells, seeds = cells_of(found)
        differs = [study.origin("distilled"), found and schedule(sum(found.values(), []), results),
                   set(networks) - found.keys() and f"to run it: {study.command_for('NAME')}"]
        rows.append(Row(f"{study.data}, IPC 50", "", "this code, D4M images, soft labels",
                        {name: NOT_RUN for name in networks} | cells, place_of(study.file), "; ".join(filter(None, differs)),
                        seeds))
    return rows


def storage(misc: Path) -> list[Section]:
    """Bytes of soft labels against accuracy: whole labels, and those of fewer epochs."""
    rows, points = published(misc, "storage"), storage_points(read(misc, MATCHING_DIGITS.file))
    most = max((one["bytes"]["mean"] for one in points.values()), default=0)
    for one in points.values():
        stored, epochs, logits, classes = (one[key]["mean"] for key in ("stored_epochs", "epochs", "stored_logits", "classes"))
        if stored < epochs or logits == classes:
            rows.append(Row("digits, IPC 10", "ResNet-18",
                            f"this code, {logits:.0f} of {classes:.0f} logits, {stored:.0f} of {epochs:.0f} epochs",
                            {"size": f"{one['bytes']['mean'] / 1e6:.2f} MB", "times": f"{most / one['bytes']['mean']:.1f}",
                             "accuracy": cell(one, "accuracy", 100)}, place_of(MATCHING_DIGITS.file),
                            "data: digits; D4M images; bytes with the draws of every view", str(one["n"])))
    for study, name, line in ((IMAGENET, "labels of every view", IMAGENET.command_for("resnet18")),
                              (FORTIETH, "labels of a fortieth of the epochs", FORTIETH.command_for("resnet18"))):
        found = {"accuracy": soft_resnet18(misc, study, "distilled", 50)}
        rows.append(resnet18_row(50, study, found, name, line, **label_cells(read(misc, study.file), study.classes)))
    return section("Label bytes", rows, {"size": "Labels", "times": "Times smaller", "accuracy": "Accuracy (%)"})


def label_cells(results: Results, classes: int) -> dict[str, str]:
    """Bytes of the labels of D4M images at IPC 50, and how many times fewer their logits are than those of all views."""
    for run in results.of_kind("soft_labels"):
        numbers = run.metrics
        if "random" not in run.config["images"] and numbers["images"] == 50 * classes:
            fewer = numbers["epochs"] * classes / (numbers["stored_epochs"] * numbers["stored_logits"])
            return {"size": f"{numbers['bytes'] / 1e9:.2f} GB", "times": f"{fewer:.1f}"}
    return {"size": NOT_RUN, "times": NOT_RUN}


def continual(misc: Path) -> list[Section]:
    """Class-IL and Task-IL after five tasks of CIFAR-10."""
    rows, columns = published(misc, "continual"), {"acc": "Class-IL (%)", "task_il_acc": "Task-IL (%)"}
    rows = [Row(**{**vars(row), "cells": dict(zip(columns, (row.cells["class_il"], row.cells["task_il"]), strict=True))})
            for row in rows]
    for file, (line, methods) in CONTINUAL.items():
        runs, groups = read(misc, file).of_kind("continual"), {}
        for run in runs:
            groups.setdefault((run.config["arch"], run.get("config.buffer_size")), []).append(run)
        rows += [continual_row(method, arm.name, list(row.values()), place_of(file)) for group in groups.values()
                 for method, arms in continual_rows(group).items() for arm, row in arms.items()]
        rows += [Row("CIFAR-10, 5 tasks", "ResNet-18", f"this code, {METHODS[method]}", dict.fromkeys(columns, NOT_RUN),
                     place_of(file), f"to run it: {line}") for method in methods
                 if not any(run.config["method"] == method for run in runs)]
    return section("Continual learning", rows, columns)


def continual_row(method: str, arm: str, runs: list[Run], source: str) -> Row:
    """One method on one source of images."""
    config = runs[0].config
    numbers = measure({(): runs}, {"acc": "metrics.acc", "task_il_acc": "metrics.task_il_acc"})[()]
    memory = "" if method in ("joint", "finetune") else f", buffer {config['buffer_size']}"
    return Row(f"CIFAR-10, {config['tasks']} tasks", NETWORKS.get(config["arch"], config["arch"]),
               f"this code, {METHODS[method]}, {arm}{memory}",
               {name: cell(numbers, name, 100) for name in ("acc", "task_il_acc")}, source,
               f"{named(run.metrics['steps'] for run in runs)} steps in batches of {config['recipe.batch_size']}, "
               f"{config['recipe.optimizer']}; {STEMS[config['stem']]}", str(numbers["n"]))


def architectures(misc: Path) -> list[Section]:
    """The table of misc/matching.md: students of many architectures on one distilled set, and the paper's figures below."""
    (paper,), results = published(misc, "cross"), read(misc, MATCHING_DIGITS.file)
    groups = grouped(results, CROSS_RUN, "student", "model")
    numbers, runs = measure(groups, STUDENT), sum(groups.values(), [])
    models = list(dict.fromkeys([*CROSS_NETWORKS, *(model for (model,) in numbers)]))
    rows = [("this code, digits, IPC 10 (%)", *(cell(numbers.get((model,)), "accuracy", 100) for model in models)),
            ("training (s)", *(cell(numbers.get((model,)), "seconds") for model in models)),
            ("D4M (CVPR 2024, table 5), ImageNet-1K, IPC 50 (%)", *(paper.cells.get(model, NONE) for model in models))]
    equal = setting(runs, "epochs", "batch_size", "adamw_lr", "lr_schedule", "input_size")
    return [Section("Architectures", f"Accuracy and seconds of training, n = {counts(numbers.values())}. Teacher: "
                    f"{teachers(results)}. Equal: soft labels, {equal}. The last row is another data set: no comparison.",
                    ("", *models), tuple(rows))]


TABLES = {"cross": architectures,
    "literature-cifar": lambda misc: side_by_side(misc, "cifar", (CIFAR10, SMALL_CIFAR10, WEAK_CIFAR10, CIFAR100),
                                                  ("10", "50", "500", "all")),
    "literature-large": lambda misc: side_by_side(misc, "large", (IMAGENET, TINY_IMAGENET), ("10", "50", "100", "200", "all")),
    **{f"literature-{make.__name__}": make for make in (start, matching, cross, storage, continual)}}
