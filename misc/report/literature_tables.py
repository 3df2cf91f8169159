"""The tables of misc/literature.md: figures as published, from misc/published.json, beside ours, and what differs.

Ours come from collected result files (misc/report/collect.py). A student's network, labels, schedule and number of images are
what its result states. Only where its images come from is told by its folder's name, since a result knows them by their digest.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from misc.report.sections import NONE, NOT_RUN
from scripts.cli import InputError

STUDENTS = {"convnet_d3_w128": "ConvNet-W128", "resnet18": "ResNet-18", "resnet50": "ResNet-50", "resnet101": "ResNet-101",
            "mobilenet_v2": "MobileNetV2", "efficientnet_b0": "EfficientNet-B0", "swin_t": "Swin-T", "vit_b_16": "ViT-B"}
IMAGES = {"distilled": "D4M images", "prototype": "decoded prototypes", "noise": "images from noise",
          "random": "random real images", "real": "all real training images"}
STATED = re.compile(r"(?:(?<=[/_-])|^)(ipc\d+|label\d+|seed\d+|hard|soft|d4m|rded|protocols|tiny_imagenet|imagenet|cifar100?)"
                    r"(?=[/_-]|$)")     # words of a student's folder that do not say where its images come from
IPC_COLUMNS = {str(ipc): f"IPC {ipc} (%)" for ipc in (10, 50, 100, 200, 500)} | {"all": "All real (%)"}
WHAT_MAY_DIFFER = ("seed", "fkd_seed", "images", "soft_labels", "teacher")      # between the runs of one cell
STORAGE_COLUMNS = {"size": "Labels", "times": "Times smaller", "accuracy": "Accuracy (%)"}
STEMS = {"imagenet": "ImageNet stem", "cifar": "CIFAR stem"}


@dataclass(frozen=True)
class Study:
    """A collected result file, and what the command that leads to it is to run: `students` x `images` x `ipcs`, soft labels.

    What the file has besides is shown too.
    """

    file: str
    data: str
    classes: int
    prior: str
    command: str = ""
    students: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    ipcs: tuple[int, ...] = ()


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


def stages(name: str, last: str) -> str:
    """The commands from a data set's first stage to its last, which takes the network's name."""
    return f"from `sh distillation/gen_prototype_{name}.sh` to `MODEL={{student}} sh validate/{last}.sh`"


STABLE_DIFFUSION = "Stable Diffusion v1.5"
CIFAR10 = Study("cifar10.json", "CIFAR-10", 10, "a latent diffusion model of our own", "`sh misc/studies/cifar10.sh`",
                ("convnet_d3_w128", "resnet18"), ("distilled", "random"), (10, 50, 500))
WEAK_CIFAR10 = Study("matching_cifar10.json", "CIFAR-10", 10, "a weak latent diffusion model of our own (one CPU core)")
SMALL_CIFAR10 = Study("cifar10_small.json", "CIFAR-10", 10, "a latent diffusion model of our own, of minutes (`SCALE=small`)")
CIFAR10_ARMS = Study("cifar10_arms.json", "CIFAR-10", 10, WEAK_CIFAR10.prior, "`SCALE=small PARTS=\"sets students arms\" "
                     "PRIOR=... TEACHER=... sh misc/studies/cifar10.sh`")
CIFAR100 = Study("cifar100.json", "CIFAR-100", 100, STABLE_DIFFUSION, stages("cifar100", "train_FKD_cifar100"),
                 ("convnet_d3_w128",), ("distilled",), (10, 50))
IMAGENET = Study("imagenet.json", "ImageNet-1K", 1000, STABLE_DIFFUSION, stages("imgnt", "train_FKD"),
                 ("resnet18", "resnet50", "resnet101"), ("distilled",), (10, 50, 100, 200))
TINY_IMAGENET = Study("tiny_imagenet.json", "Tiny-ImageNet", 200, STABLE_DIFFUSION, stages("tinyimgnt", "train_FKD_tinyimgnt"),
                      ("resnet18", "resnet50", "resnet101"), ("distilled",), (50, 100))
FORTIETH = Study("imagenet_fortieth.json", "ImageNet-1K", 1000, STABLE_DIFFUSION,
                 f"{stages('imgnt', 'train_FKD')}, all with `KEEP_EPOCHS=0.025` and a `RUN` of their own")
DIGITS = Study("digits.json", "digits", 10, "digits-ldm", "`sh misc/studies/digits.sh`")
MATCHING_DIGITS = Study("matching_digits.json", "digits", 10, "digits-ldm", "`sh misc/studies/matching.sh`")
CONTINUAL = {"cifar10.json": (CIFAR10.command, ("joint", "finetune", "er", "agem", "task_arithmetic", "derpp")),
             "continual_order_cifar10.json": ("`sh misc/studies/continual_order.sh`", ("finetune", "er", "agem"))}


def read(misc: Path, file: str) -> dict:
    """A collected result file, or one without runs where there is none."""
    from scripts.artefact import read_json
    path = misc / "results" / file
    return read_json(path) if path.exists() else {"runs": []}


def published(misc: Path, table: str) -> list[Row]:
    """The published rows of a table, each with its source."""
    from scripts.artefact import read_json
    content = read_json(misc / "published.json")
    return [Row(one["data"], one["student"], one["name"], one["values"],
                content["sources"][one["source"]], one["differs"]) for one in content["tables"][table]]


def rendered(rows: list[Row], columns: dict[str, str]) -> str:
    """A Markdown table of rows; a column without any word in it is left out."""
    from misc.report.sections import markdown_table
    header = ["Data", "Student", "As named", *columns.values(), "Seeds (n)", "Source", "What differs"]
    cells = [[row.data, row.student, row.name, *(row.cells.get(key, NONE) for key in columns), row.seeds, row.source,
              row.differs] for row in rows]
    kept = [place for place in range(len(header)) if any(row[place] for row in cells)]
    return markdown_table([header[place] for place in kept], [[row[place] for place in kept] for row in cells])


def images_of(run: str, network: str) -> str:
    """Where a student's images come from: what its folder's name says beside network, IPC, labels, protocol and seed."""
    left = STATED.sub("", run.rpartition("students/")[2].replace(network, ""))
    return re.sub(r"[/_-]+", "-", left).strip("-") or "distilled"


def of_students(runs: list[dict], classes: int) -> dict[tuple, dict[str, dict[str, dict]]]:
    """Runs of students as {(network, images, labels, protocol, stem): {IPC or "all": {run: result}}}."""
    rows: dict[tuple, dict] = {}
    for one in runs:
        if one.get("kind") == "student":
            config = one["config"]
            images = images_of(one["run"], config["arch"])
            key = (config["arch"], images, config["labels"], config.get("protocol"), config["stem"])
            ipc = "all" if images == "real" else str(one["metrics"]["train_images"] // classes)
            rows.setdefault(key, {}).setdefault(ipc, {})[one["run"]] = one
    return rows


def accuracy(runs: dict[str, dict]) -> dict:
    """Number and accuracy over the runs of a cell. Raises InputError where they differ in more than the seed."""
    from misc.report.report import measure
    (first, one), *others = runs.items()
    for name, other in others:
        for key in one["config"].keys() | other["config"].keys():
            mine, its = one["config"].get(key), other["config"].get(key)
            if mine != its and key not in WHAT_MAY_DIFFER:
                raise InputError(f"{first} and {name}: expected runs that differ in nothing but the seed, found {key} {mine} "
                                 f"and {its}")
    return measure({(): runs}, {"accuracy": "metrics.test_accuracy"})[()]


def cells_of(by_ipc: dict[str, dict]) -> tuple[dict[str, str], str]:
    """The cells of a row, and over how many seeds they are."""
    from misc.report.sections import cell
    numbers = {ipc: accuracy(runs) for ipc, runs in by_ipc.items()}
    return {ipc: cell(one, "accuracy", 100) for ipc, one in numbers.items()}, counted(numbers.values())


def counted(numbers) -> str:
    """The seeds behind some cells."""
    return " / ".join(map(str, sorted({one["n"] for one in numbers})))


def named(values) -> str:
    """Different values in the order they come."""
    return " / ".join(dict.fromkeys(map(str, values)))


def schedule(by_ipc: dict[str, dict], result: dict) -> str:
    """How the students of a row were trained, and by which teacher."""
    from misc.report.matching_tables import teacher_accuracy
    runs = [one for found in by_ipc.values() for one in found.values()]
    config = runs[0]["config"]
    protocol, taught = config.get("protocol"), teacher_accuracy(result) if config["labels"] == "soft" else ""
    resnets = any(one["config"]["arch"].startswith("resnet") for one in runs)
    return "; ".join(part for part in (
        f"protocol {protocol}" if protocol else "",
        f"{named(one['config']['epochs'] for one in runs)} epochs ({named(one['metrics']['steps'] for one in runs)} steps)",
        STEMS[config["stem"]] if resnets else "", f"teacher {taught}" if taught else "") if part)


def origin(images: str, study: Study) -> str:
    """Which prior drew the images."""
    return "real images, no prior" if images in ("random", "real") else f"prior: {study.prior}"


def ours(misc: Path, study: Study, students) -> list[Row]:
    """Rows of a study for some students; what it was to run and did not says so, with the command."""
    result = read(misc, study.file)
    found = {key: by_ipc for key, by_ipc in of_students(result["runs"], study.classes).items() if key[0] in students}
    rows = []
    for key, by_ipc in found.items():
        network, images, labels, *_ = key
        cells, seeds = cells_of(by_ipc)
        missing = {str(ipc): NOT_RUN for ipc in study.ipcs if planned(study, key) and str(ipc) not in cells}
        differs = f"{origin(images, study)}; {schedule(by_ipc, result)}"
        differs += f"; what is not run: {command(study, network)}" if missing else ""
        name = f"this code, {IMAGES.get(images, images)}, {labels} labels"
        rows.append((key, Row(study.data, STUDENTS[network], name, missing | cells, f"misc/results/{study.file}", differs,
                              seeds)))
    ran = {key[:2] for key in found if key[2] == "soft"}
    rows += [((network, images, "soft", ""), not_run(study, network, images)) for network in study.students
             for images in study.images if network in students and (network, images) not in ran]
    return [row for _, row in sorted(rows, key=lambda pair: place(*pair[0][1:4]))]


def place(images: str, labels: str, protocol: str | None) -> tuple:
    """Where a row of ours stands."""
    return (*IMAGES, images).index(images), labels, protocol or ""


def planned(study: Study, key: tuple) -> bool:
    """Whether a row is one that the study's command is to run."""
    return key[0] in study.students and key[1] in study.images and key[2] == "soft"


def command(study: Study, network: str) -> str:
    """The command that runs a study for a network."""
    return study.command.replace("{student}", network)


def not_run(study: Study, network: str, images: str) -> Row:
    """A row without results."""
    return Row(study.data, STUDENTS[network], f"this code, {IMAGES.get(images, images)}, soft labels",
               {str(ipc): NOT_RUN for ipc in study.ipcs}, f"misc/results/{study.file}",
               f"{origin(images, study)}; to run it: {command(study, network)}")


def side_by_side(misc: Path, table: str, studies: tuple[Study, ...], columns: tuple[str, ...]) -> str:
    """Published rows and ours by data set and student; the students are those that are published or planned."""
    theirs = published(misc, table)
    pairs = list(dict.fromkeys([*((one.data, STUDENTS[network]) for one in studies for network in one.students),
                                *((row.data, row.student) for row in theirs)]))
    rows = []
    for data, student in sorted(pairs, key=lambda pair: [one.data for one in studies].index(pair[0])):
        network = next(name for name, text in STUDENTS.items() if text == student)
        rows += [row for row in theirs if (row.data, row.student) == (data, student)]
        rows += [row for one in studies if one.data == data for row in ours(misc, one, (network,))]
    return rendered(rows, {key: IPC_COLUMNS[key] for key in columns})


def cifar(misc: Path) -> str:
    """Table 1: CIFAR-10 and CIFAR-100."""
    return side_by_side(misc, "cifar", (CIFAR10, SMALL_CIFAR10, WEAK_CIFAR10, CIFAR100), ("10", "50", "500", "all"))


def large(misc: Path) -> str:
    """Table 2: ImageNet-1K and Tiny-ImageNet."""
    return side_by_side(misc, "large", (IMAGENET, TINY_IMAGENET), ("10", "50", "100", "200", "all"))


def start(misc: Path) -> str:
    """Prototypes against noise as the start of the diffusion, both at the paper's strength."""
    from misc.report.sections import cell
    from misc.report.tables import student_numbers
    numbers = student_numbers(read(misc, DIGITS.file))
    rows = published(misc, "start")
    for labels in ("soft", "hard"):
        pair = {"prototypes": numbers.get(("d4m-s0.7", 10, labels)), "noise": numbers.get(("noise", 10, labels))}
        ran = [one for one in pair.values() if one]
        differs = f"data: digits; {origin('noise', DIGITS)}"
        differs += "" if len(ran) == len(pair) else f"; to run it: {DIGITS.command}"
        rows.append(Row("digits, IPC 10", "ResNet-18", f"this code, {labels} labels",
                        {key: cell(one, "accuracy", 100) for key, one in pair.items()}, f"misc/results/{DIGITS.file}", differs,
                        counted(ran) or NONE))
    found = {"prototypes": resnet18(misc, CIFAR10_ARMS, "s0.7", 10), "noise": resnet18(misc, CIFAR10_ARMS, "noise", 10)}
    rows.append(resnet18_row(10, CIFAR10_ARMS, found, "soft labels", CIFAR10_ARMS.command))
    found = {"prototypes": resnet18(misc, IMAGENET, "distilled", 10), "noise": resnet18(misc, IMAGENET, "noise", 10)}
    rows.append(resnet18_row(10, IMAGENET, found, "soft labels", f"{command(IMAGENET, 'resnet18')}, and again with "
                             "`gen_syn_image --method noise`"))
    return rendered(rows, {"prototypes": "Start: prototypes (%)", "noise": "Start: noise (%)"})


def matching(misc: Path) -> str:
    """Matching while synthesising against training-time matching."""
    found = {"training": resnet18(misc, IMAGENET, "distilled", 10)}
    rows = [*published(misc, "matching"),
            resnet18_row(10, IMAGENET, found, "which matches at training time only", command(IMAGENET, "resnet18"))]
    return rendered(rows, {"training": "At training time (%)", "synthesis": "While synthesising, BatchNorm statistics (%)"})


def resnet18(misc: Path, study: Study, images: str, ipc: int) -> dict[str, dict]:
    """A study's runs of ResNet-18 with soft labels under D4M's protocol."""
    return {name: one for key, by_ipc in of_students(read(misc, study.file)["runs"], study.classes).items()
            if key[:4] == ("resnet18", images, "soft", "d4m") for name, one in by_ipc.get(str(ipc), {}).items()}


def resnet18_row(ipc: int, study: Study, found: dict[str, dict], name: str, line: str, **others: str) -> Row:
    """ResNet-18 on a study's data: runs by column, the command `line` where one has none, and `others` as they are."""
    cells, seeds = cells_of({column: runs for column, runs in found.items() if runs})
    missing = {column: NOT_RUN for column in found if column not in cells}
    return Row(f"{study.data}, IPC {ipc}", "ResNet-18", f"this code, {name}", missing | cells | others,
               f"misc/results/{study.file}", origin("distilled", study) + (f"; to run it: {line}" if missing else ""),
               seeds or NONE)


def cross(misc: Path) -> str:
    """One distilled set and teacher, students of many architectures."""
    from misc.report.matching_tables import CROSS_RUN, grouped, setting, student_numbers, teacher_accuracy
    from misc.report.sections import cell
    columns = {name: text for name, text in STUDENTS.items() if name != "resnet101"}
    result = read(misc, MATCHING_DIGITS.file)
    groups = grouped(result, CROSS_RUN, "student", "model")
    numbers = student_numbers(groups)
    digits = f"data: digits; {origin('distilled', MATCHING_DIGITS)}"
    digits += f"; {setting(groups, 'epochs', 'stem')}; teacher {teacher_accuracy(result)}" if groups else ""
    digits += "" if all((name,) in numbers for name in columns) else f"; to run it: {MATCHING_DIGITS.command}"
    rows = [*published(misc, "cross"),
            Row("digits, IPC 10", "", "this code, D4M images, soft labels",
                {name: cell(numbers.get((name,)), "accuracy", 100) for name in columns}, f"misc/results/{MATCHING_DIGITS.file}",
                digits, counted(numbers.values()) or NONE),
            *cross_rows(misc, CIFAR10, ("convnet_d3_w128", "resnet18", "resnet50")),
            *cross_rows(misc, IMAGENET, tuple(columns))]
    return rendered(rows, {name: f"{text} (%)" for name, text in columns.items()})


def cross_rows(misc: Path, study: Study, networks: tuple[str, ...]) -> list[Row]:
    """A study's students on D4M images with soft labels at IPC 50, a row per protocol; `networks` it was to run."""
    result = read(misc, study.file)
    by_protocol: dict[str | None, dict] = {}
    for (network, images, labels, protocol, _), by_ipc in of_students(result["runs"], study.classes).items():
        if (images, labels) == ("distilled", "soft") and "50" in by_ipc:
            by_protocol.setdefault(protocol, {}).setdefault(network, {}).update(by_ipc["50"])
    rows = []
    for found in by_protocol.values() or [{}]:
        cells, seeds = cells_of(found)
        differs = origin("distilled", study) + (f"; {schedule(found, result)}" if found else "")
        differs += f"; to run it: {command(study, 'NAME')}" if set(networks) - found.keys() else ""
        rows.append(Row(f"{study.data}, IPC 50", "", "this code, D4M images, soft labels",
                        {name: NOT_RUN for name in networks} | cells, f"misc/results/{study.file}", differs, seeds or NONE))
    return rows


def storage(misc: Path) -> str:
    """Bytes of soft labels against accuracy: whole labels, and those of fewer epochs."""
    from misc.report.matching_tables import storage_points
    from misc.report.sections import cell
    rows = published(misc, "storage")
    points = storage_points(read(misc, MATCHING_DIGITS.file))
    most = max((one["bytes"]["mean"] for one in points.values()), default=0)
    for one in points.values():
        stored, epochs, logits, classes = (one[key]["mean"] for key in ("stored_epochs", "epochs", "stored_logits", "classes"))
        if stored < epochs or logits == classes:
            rows.append(Row("digits, IPC 10", "ResNet-18",
                            f"this code, {logits:.0f} of {classes:.0f} logits, {stored:.0f} of {epochs:.0f} epochs",
                            {"size": f"{one['bytes']['mean'] / 1e6:.2f} MB", "times": f"{most / one['bytes']['mean']:.1f}",
                             "accuracy": cell(one, "accuracy", 100)}, f"misc/results/{MATCHING_DIGITS.file}",
                            "data: digits; D4M images; bytes with what was drawn for every view", str(one["n"])))
    for study, name, line in ((IMAGENET, "labels of every view", command(IMAGENET, "resnet18")),
                              (FORTIETH, "labels of a fortieth of the epochs", command(FORTIETH, "resnet18"))):
        found = {"accuracy": resnet18(misc, study, "distilled", 50)}
        rows.append(resnet18_row(50, study, found, name, line, **label_cells(read(misc, study.file)["runs"], study.classes)))
    return rendered(rows, STORAGE_COLUMNS)


def label_cells(runs: list[dict], classes: int) -> dict[str, str]:
    """Bytes of a file's labels of D4M images at IPC 50, and how many times fewer their logits are than those of all views."""
    for one in runs:
        if one.get("kind") == "soft_labels" and "random" not in one["config"]["images"]:
            numbers = one["metrics"]
            if numbers["images"] == 50 * classes:
                fewer = numbers["epochs"] * classes / (numbers["stored_epochs"] * numbers["stored_logits"])
                return {"size": f"{numbers['bytes'] / 1e9:.2f} GB", "times": f"{fewer:.1f}"}
    return {"size": NOT_RUN, "times": NOT_RUN}


def continual(misc: Path) -> str:
    """Class-IL and Task-IL after five tasks of CIFAR-10."""
    rows = published(misc, "continual")
    for file, (line, methods) in CONTINUAL.items():
        rows += continual_rows(read(misc, file)["runs"], f"misc/results/{file}", line, methods)
    return rendered(rows, {"class_il": "Class-IL (%)", "task_il": "Task-IL (%)"})


def continual_rows(runs: list[dict], source: str, line: str, methods: tuple[str, ...]) -> list[Row]:
    """Rows of continual results by network, buffer, method and arm; then the methods it was to have and has not."""
    from misc.report.rows import METHODS, rows_of
    groups: dict[tuple, dict] = {}
    for one in runs:
        if one.get("kind") == "continual":
            groups.setdefault((one["config"]["arch"], one["config"].get("buffer_size")), {})[one["run"]] = one
    rows = [continual_row(method, arm.name, by_seed, source)
            for group in groups.values() for method, arms in rows_of(group).items() for arm, by_seed in arms.items()]
    missing = [method for method in methods if not any(one.get("method") == method for one in runs)]
    return rows + [Row("CIFAR-10, 5 tasks", "ResNet-18", f"this code, {METHODS[method]}",
                       {"class_il": NOT_RUN, "task_il": NOT_RUN}, source, f"to run it: {line}") for method in missing]


def continual_row(method: str, arm: str, by_seed: dict[int, dict], source: str) -> Row:
    """One method on one source of images."""
    from misc.report.report import measure
    from misc.report.rows import METHODS
    from misc.report.sections import cell
    one = next(iter(by_seed.values()))
    config, recipe = one["config"], one["config"]["recipe"]
    numbers = measure({(): {f"{source}, seed {seed}": result for seed, result in by_seed.items()}},
                      {"class_il": "class_il.acc", "task_il": "task_il.acc"})[()]
    memory = "" if method in ("joint", "finetune") else f", buffer {config['buffer_size']}"
    return Row(f"CIFAR-10, {config['tasks']} tasks", STUDENTS.get(config["arch"], config["arch"]),
               f"this code, {METHODS[method]}, {arm}{memory}",
               {name: cell(numbers, name, 100) for name in ("class_il", "task_il")}, source,
               f"{named(result['steps'] for result in by_seed.values())} steps in batches of {recipe['batch_size']}, "
               f"{recipe['optimizer']}; {STEMS[config['stem']]}", str(numbers["n"]))


TABLES = {f"literature-{make.__name__}": make for make in (cifar, large, start, matching, cross, storage, continual)}
