"""The tables of misc/literature.md: published figures, from misc/published.json, beside those of this code.

A row of ours gets network, labels, schedule and number of images from its result, and the source of its images from the name
of its folder. What a study is to run and did not is "not run", with its command.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from misc.report.results import METHODS, Results, Run, continual_rows, group_by, grouped, read_kept
from misc.report.section import NONE, NOT_RUN, Section, cell, counts
from misc.report.statistics import numbers_of
from misc.report.tables import IMAGES, setting, teachers
from scripts.cli import InputError
from scripts.files import read_json

NETWORKS = {"convnet_d3_w128": "ConvNet-W128", "resnet18": "ResNet-18", "resnet50": "ResNet-50", "resnet101": "ResNet-101",
            "mobilenet_v2": "MobileNetV2", "efficientnet_b0": "EfficientNet-B0", "swin_t": "Swin-T", "vit_b_16": "ViT-B"}
NO_PRIOR = {**dict.fromkeys(("random", "herding", "kcenter", "real"), "real images, no prior"),
            "sre2l": "optimised from noise by a teacher", "mtt": "optimised from random real images, small settings"}
STATED = re.compile(r"(?:(?<=[/_-])|^)(ipc\d+|label\d+|seed\d+|hard|soft|d4m|rded|protocols|tiny_imagenet|imagenet|cifar100?)"
                    r"(?=[/_-]|$)")     # words of a student's folder that do not name the source of its images
CROSS_RUN = re.compile(r"seed\d+/students/cross/(?P<model>\w+)$")
IPC_COLUMNS = {str(ipc): f"IPC {ipc} (%)" for ipc in (1, 10, 50, 100, 200, 500)} | {"all": "All real (%)"}
MAY_DIFFER = ("seed", "fkd_seed", "images", "soft_labels", "teacher")      # between the runs of one cell
SOFT_D4M = "D4M images, soft labels"
STEMS = {"imagenet": "ImageNet stem", "cifar": "CIFAR stem"}
Row = dict[str, str]    # of any table, by column: "data", "student", "name", "seeds", "source", "differs" and the table's own


@dataclass(frozen=True)
class Study:
    """A row of studies.json: a collected file, and what its command is to run: `students` x `images` x `ipcs`.

    Labels are soft unless `labels` has others for a student.
    """

    file: str
    data: str
    classes: int
    prior: str = ""
    command: str = ""
    students: Sequence[str] = ()
    images: Sequence[str] = ()
    ipcs: Sequence[int] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_run(self, network: str = "") -> str:
        """The command that runs the study for a network."""
        return f"to run it: {self.command.replace('{student}', network)}"

    def row(self, data: str, student: str, name: str, cells: dict[str, str], differs: list, seeds: str = NONE) -> Row:
        """A row of this code; empty parts of `differs` are left out."""
        return {"data": data, "student": student, "name": f"this code, {name}", **cells, "seeds": seeds,
                "source": f"misc/results/{self.file}.jsonl", "differs": "; ".join(filter(None, differs))}

    def accuracies(self, data: str, student: str, name: str, found: dict[str, list[Run]], notes: list, to_run: str,
                   images: str = "distilled") -> Row:
        """A row with the accuracy of the runs of each column; where a column has none, the row says how `to_run` it."""
        numbers = {column: accuracy(runs) for column, runs in found.items() if runs}
        cells = {column: cell(numbers.get(column), "accuracy", 100) for column in found}
        prior = f"{'data: digits; ' if self.data == 'digits' else ''}prior: {self.prior}"
        differs = [NO_PRIOR.get(images, prior), *notes, "" if numbers.keys() == found.keys() else to_run]
        return self.row(data, student, name, cells, differs, counts(numbers.values()) or NONE)


STUDIES = {file: Study(file, **one) for file, one in read_json(Path(__file__).with_name("studies.json")).items()}
CIFAR10, IMAGENET, DIGITS, MATCHING_DIGITS = (STUDIES[name] for name in ("cifar10", "imagenet", "digits", "matching_digits"))


def published(misc: Path, table: str) -> list[Row]:
    """The published rows of a table, each with its source."""
    content = read_json(misc / "published.json")
    return [{**one, **one["values"], "source": content["sources"][one["source"]]} for one in content["tables"][table]]


def section(title: str, rows: list[Row], columns: dict[str, str]) -> list[Section]:
    """A table of rows; a column without any word in it is left out."""
    heads = {"data": "Data", "student": "Student", "name": "As named", **columns, "seeds": "Seeds (n)", "source": "Source",
             "differs": "What differs"}
    heads = {key: head for key, head in heads.items() if any(row.get(key, NONE) for row in rows)}
    return [Section(title, "", [*heads.values()], [[row.get(key, NONE) for key in heads] for row in rows])]


def students_of(results: Results, classes: int) -> dict[tuple, dict[str, list[Run]]]:
    """Students by (network, images, labels, protocol, stem), then by IPC or "all"; the folder's name states the images."""
    rows: dict[tuple, dict] = {}
    for run in results.of_kind("student"):
        config, named_by = run.config, STATED.sub("", run.name.rpartition("students/")[2].replace(run.config["arch"], ""))
        images = re.sub(r"[/_-]+", "-", named_by).strip("-") or "distilled"
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
    return numbers_of(runs, {"accuracy": "metrics.test_accuracy"})


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
    results, rows = read_kept(misc, study.file), []
    found = {key[1:]: by_ipc for key, by_ipc in students_of(results, study.classes).items() if key[0] == network}
    planned, wanted = study.images if network in study.students else (), study.labels.get(network, "soft")
    for images in planned:
        if not any(key[:2] == (images, wanted) for key in found):
            found[images, wanted, "", ""] = {}
    for (images, labels, _, _), by_ipc in sorted(found.items(), key=lambda one: (
            (*IMAGES, one[0][0]).index(one[0][0]), one[0][1], one[0][2] or "")):
        due = {str(ipc): [] for ipc in study.ipcs} if images in planned and labels == wanted else {}
        runs, line = sum(by_ipc.values(), []), study.to_run(network)
        rows.append(study.accuracies(
            study.data, NETWORKS[network], f"{IMAGES.get(images, images)}, {labels} labels", due | by_ipc,
            [schedule(runs, results)] if runs else [], line.replace("to run it", "what is not run") if runs else line, images))
    return rows


def soft_resnet18(misc: Path, study: Study, images: str, ipc: int) -> list[Run]:
    """A study's runs of ResNet-18 with soft labels under D4M's protocol."""
    return [run for key, by_ipc in students_of(read_kept(misc, study.file), study.classes).items()
            if key[:4] == ("resnet18", images, "soft", "d4m") for run in by_ipc.get(str(ipc), [])]


def resnet18_row(ipc: int, study: Study, found: dict[str, list[Run]], name: str, also: str = "") -> Row:
    """ResNet-18 on a study's data: runs by column, the command and `also` where one has none."""
    return study.accuracies(f"{study.data}, IPC {ipc}", "ResNet-18", name, found, [], study.to_run("resnet18") + also)


def side_by_side(table: str, files: tuple[str, ...], columns: tuple[str, ...], misc: Path) -> list[Section]:
    """Published rows and ours by data set and student."""
    rows, studies = [], [STUDIES[file] for file in files]
    for data in dict.fromkeys(one.data for one in studies):
        for network, student in NETWORKS.items():
            theirs = [row for row in published(misc, table) if (row["data"], row["student"]) == (data, student)]
            own = [one for one in studies if one.data == data]
            if theirs or any(network in one.students for one in own):
                rows += [*theirs, *(row for one in own for row in ours(misc, one, network))]
    return section("Students", rows, {key: IPC_COLUMNS[key] for key in columns})


def start(misc: Path) -> list[Section]:
    """Prototypes against noise as the start of the diffusion, both at the paper's strength."""
    rows, runs = published(misc, "start"), read_kept(misc, DIGITS.file).of_kind("student")
    for labels in ("soft", "hard"):
        pair = {column: [run for run in runs if run.name.endswith(f"students/{arm}-ipc10-{labels}")]
                for column, arm in (("prototypes", "d4m-s0.7"), ("noise", "noise"))}
        rows.append(resnet18_row(10, DIGITS, pair, f"{labels} labels"))
    found = {"prototypes": soft_resnet18(misc, IMAGENET, "distilled", 10), "noise": soft_resnet18(misc, IMAGENET, "noise", 10)}
    rows.append(resnet18_row(10, IMAGENET, found, "soft labels", ", and again with `gen_syn_image --method noise`"))
    return section("Prototypes or noise", rows, {"prototypes": "Start: prototypes (%)", "noise": "Start: noise (%)"})


def matching(misc: Path) -> list[Section]:
    """Matching during synthesis against matching at training time."""
    found = {"training": soft_resnet18(misc, IMAGENET, "distilled", 10)}
    rows = [*published(misc, "matching"), resnet18_row(10, IMAGENET, found, "which matches at training time only")]
    return section("Matching", rows, {"training": "At training time (%)",
                                      "synthesis": "While synthesising, BatchNorm statistics (%)"})


def cross(misc: Path) -> list[Section]:
    """One distilled set and teacher, students of many architectures."""
    columns = {name: f"{text} (%)" for name, text in NETWORKS.items() if name != "resnet101"}
    results = read_kept(misc, MATCHING_DIGITS.file)
    found = grouped(results, CROSS_RUN, "student", "model")
    notes = [setting(sum(found.values(), []), "epochs", "stem"), f"teacher {teachers(results)}"] if found else []
    return section("Architectures", [
        *published(misc, "cross"),
        MATCHING_DIGITS.accuracies("digits, IPC 10", "", SOFT_D4M, {name: found.get(name, []) for name in columns}, notes,
                                   MATCHING_DIGITS.to_run()),
        *cross_rows(misc, CIFAR10, ("convnet_d3_w128", "resnet18", "resnet50")), *cross_rows(misc, IMAGENET, columns)], columns)


def cross_rows(misc: Path, study: Study, networks) -> list[Row]:
    """Students on D4M images with soft labels at IPC 50, a row per protocol; `networks` are due."""
    results = read_kept(misc, study.file)
    by_protocol: dict[str | None, dict] = {}
    for (network, images, labels, protocol, _), by_ipc in students_of(results, study.classes).items():
        if (images, labels) == ("distilled", "soft") and "50" in by_ipc:
            by_protocol.setdefault(protocol, {}).setdefault(network, []).extend(by_ipc["50"])
    return [study.accuracies(f"{study.data}, IPC 50", "", SOFT_D4M, dict.fromkeys(networks, []) | found,
                             [schedule(sum(found.values(), []), results)] if found else [], study.to_run("NAME"))
            for found in by_protocol.values() or [{}]]


def storage(misc: Path) -> list[Section]:
    """Bytes of soft labels against accuracy: whole labels, and those of a fortieth of the epochs (LPLD)."""
    rows = published(misc, "storage")
    for file, name in (("imagenet", "labels of every view"), ("imagenet_fortieth", "labels of a fortieth of the epochs")):
        study = STUDIES[file]
        found = {"accuracy": soft_resnet18(misc, study, "distilled", 50)}
        rows.append(resnet18_row(50, study, found, name) | label_cells(read_kept(misc, study.file), study.classes))
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
    rows, columns = published(misc, "continual"), {"class_il": "Class-IL (%)", "task_il": "Task-IL (%)"}
    for study, methods in ((CIFAR10, METHODS), (STUDIES["continual_order_cifar10"], ("finetune", "er", "agem", "derpp"))):
        runs = read_kept(misc, study.file).of_kind("continual")
        groups = group_by(runs, lambda run: (run.config["arch"], run.get("config.buffer_size")))
        rows += [continual_row(study, method, arm.name, list(row.values())) for group in groups.values()
                 for method, arms in continual_rows(group).items() for arm, row in arms.items()]
        rows += [study.row(f"{study.data}, 5 tasks", "ResNet-18", METHODS[method], dict.fromkeys(columns, NOT_RUN),
                           [study.to_run()]) for method in methods
                 if not any(run.config["method"] == method for run in runs)]
    return section("Continual learning", rows, columns)


def continual_row(study: Study, method: str, arm: str, runs: list[Run]) -> Row:
    """One method on one source of images."""
    config = runs[0].config
    numbers = numbers_of(runs, {"class_il": "metrics.acc", "task_il": "metrics.task_il_acc"})
    memory = "" if method in ("joint", "finetune") else f", buffer {config['buffer_size']}"
    return study.row(f"{study.data}, {config['tasks']} tasks", NETWORKS.get(config["arch"], config["arch"]),
                     f"{METHODS[method]}, {arm}{memory}", {name: cell(numbers, name, 100) for name in ("class_il", "task_il")},
                     [f"{named(run.metrics['steps'] for run in runs)} steps in batches of {config['recipe.batch_size']}, "
                      f"{config['recipe.optimizer']}", STEMS[config["stem"]]], str(numbers["n"]))


TABLES = {
    "literature-cifar": partial(side_by_side, "cifar", ("cifar10", "cifar10_small", "cifar100"),
                                ("10", "50", "500", "all")),
    "literature-fashion": partial(side_by_side, "fashion", ("fashion_mnist",), ("1", "10", "50")),
    "literature-large": partial(side_by_side, "large", ("imagenet", "tiny_imagenet"), ("10", "50", "100", "200", "all")),
    **{f"literature-{make.__name__}": make for make in (start, matching, cross, storage, continual)}}
