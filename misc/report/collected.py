"""The chapters of a report on collected files: the tables of misc.report.tables, and figures with the command behind each."""

import re
from dataclasses import fields, replace
from pathlib import Path

from misc.report.rows import Rows, collected, read_runs, rows_of
from misc.report.sections import Section
from scripts.cli import InputError

# what stands first and under which name; other files follow under their own
TITLES = {"quickstart": "Quickstart: digits, one run", "digits": "Digits: students by images per class",
          "matching_digits": "Digits: protocol, label bytes, architecture", "matching_cifar10": "CIFAR-10: protocol",
          "cifar10_small": "CIFAR-10: from the prior to the tables, two cores",
          "cifar10_arms": "CIFAR-10: ways to make the images",
          "continual_digits_resnet18": "Digits: continual learning, ResNet-18",
          "continual_digits_resnet50": "Digits: continual learning, ResNet-50",
          "continual_digits_starts": "Digits: Task Arithmetic's common start"}
TABLE_TITLES = {"digits": "Students", "sweep": "By strength", "arms-hard": "Every arm, hard labels", "storage": "Label bytes",
                "arms-soft": "Every arm, soft labels", "protocols": "Protocols", "protocols-cifar10": "Protocols",
                "cross": "Architectures", "starts": "Common starts", "parts-cifar10": "Time", "students-cifar10": "Students",
                "arms-cifar10": "Students", "claim-cifar10": "The claim", "fairness-cifar10": "Continual learning",
                "paired-cifar10": "Paired differences"}


def chapters_of(given: Path, figures: Path) -> dict[str, list[Section]]:
    """A chapter per collected file `given`, or in the folder `given`; pictures are drawn into folders of `figures`.

    Raises InputError where there is nothing to show.
    """
    from scripts.artefact import read_json
    paths = sorted(given.glob("*.json")) if given.is_dir() else [given] if given.exists() else []
    found = {path.stem: (path, content) for path in paths if isinstance(content := read_json(path), dict)}
    chapters = {}
    for name in dict.fromkeys([*(name for name in TITLES if name in found), *found]):
        sections = chapter(*found[name], figures / name)
        if sections:
            shown = [replace(part, figure=part.figure and f"{name}/{part.figure}") for part in sections]
            chapters[TITLES.get(name, name.replace("_", " ").capitalize())] = shown
    if not chapters:
        seen = "no such file or folder" if not given.exists() else ", ".join(path.name for path in paths[:3]) or "none"
        raise InputError(f"{given}: expected results of a run (stages.jsonl, students/*/result.json, ...) or collected files "
                         f"(*.json of misc.report.collect), found {seen}")
    return chapters


def chapter(path: Path, content: dict, folder: Path) -> list[Section]:
    """What there is to show of a file."""
    from misc.report.pictures import class_grids, unpacked
    from misc.report.report import origin_section
    folder.mkdir(parents=True, exist_ok=True)
    if content.get("kind") == "report":
        return kept_report(content, folder)
    tables, figures = tables_of(path.name, content), []
    if "runs" in content:
        rows, refused = comparable(path, content)
        tables = tables or [*students_by_name(content), *comparison(rows), *refused]
        figures = [*student_figures(content, folder), *stream_figures(rows, folder)]
    if content.get("pictures"):
        figures = [*class_grids(unpacked(content["pictures"]), folder, command_of(content)), *figures]
    sections = [replace(part, command=part.command or command_of(content)) for part in (*figures, *tables)]
    return [*sections, origin_section(collected(path))] if sections else []


def command_of(content: dict) -> str:
    """What made a file: as it states, or else by what it holds."""
    from misc.report.report import MODULES, made_by
    kinds = dict.fromkeys(one["kind"] for one in content.get("runs", ()) if one.get("kind") in MODULES)
    known = {"benchmark": f"python -m misc.benchmark {content.get('benchmark')}", "judge": "python -m misc.judge"}
    return content.get("command") or known.get(content.get("kind")) or made_by("", *kinds)


def kept_report(content: dict, folder: Path) -> list[Section]:
    """The sections of a run's result.json, of its figures those that can be drawn from it."""
    from misc.report.figures import draw_accuracy_vs_time
    from misc.report.pictures import draw_pictures, unpacked
    pictures = unpacked(content.get("pictures"))
    if pictures:
        draw_pictures(pictures, folder)
    numbers = {tuple(key.split("-", 1)): one for key, one in content.get("continual", {}).items()}
    if numbers:
        draw_accuracy_vs_time(folder, numbers)
    names = {one.name for one in fields(Section)}
    parts = [Section(**{name: value for name, value in part.items() if name in names}) for part in content["tables"]]
    return [part for part in parts if not part.figure or (folder / part.figure).exists()]


def tables_of(file: str, content: dict) -> list[Section]:
    """The tables that misc.report.tables makes of a result file."""
    from misc.report.tables import TABLES
    return [part for name, (source, make) in TABLES.items() if source == file
            for part in from_markdown(TABLE_TITLES.get(name, name.replace("-", " ").capitalize()), make(content),
                                      command_of(content))]


def from_markdown(title: str, text: str, command: str) -> list[Section]:
    """Paragraphs and tables, as misc.report.tables writes them, as sections: one per table, with the words before it."""
    says, sections = [], []
    for block in text.split("\n\n"):
        if block.startswith("| "):
            header, _, *rows = ([cell.replace("\\|", "|") for cell in line[2:-2].split(" | ")] for line in block.splitlines())
            sections.append(Section(title, "\n\n".join(says), tuple(header), tuple(map(tuple, rows)), command=command))
            says = []
        else:
            says.append(block)
    return sections + ([Section(title, "\n\n".join(says), command=command)] if says else [])


def student_figures(content: dict, folder: Path) -> list[Section]:
    """Accuracy against images per class, and against bytes of labels, where the file has such students."""
    from misc.report.student_figures import images_per_class, label_bytes
    return [part for draw in (images_per_class, label_bytes) if (part := draw(content, folder, command_of(content)))]


def comparison(rows: Rows) -> list[Section]:
    """The comparison of continual runs that misc.report.tables knows nothing of; none without runs."""
    from misc.report.compare import numbers_of, sections_of
    return sections_of(rows, {}, *numbers_of(rows, {})) if rows else []


def stream_figures(rows: Rows, folder: Path) -> list[Section]:
    """The figures of continual runs; none without runs."""
    from misc.report.continual_figures import draw_all
    from misc.report.fairness import summaries
    return draw_all(folder, rows, summaries(rows)) if rows else []


def comparable(path: Path, content: dict) -> tuple[Rows, list[Section]]:
    """The rows of a file's continual runs; none, and why, where they are of several settings."""
    if not any(one.get("kind") == "continual" for one in content["runs"]):
        return {}, []
    try:
        return rows_of(read_runs([path])), []
    except InputError as error:
        return {}, [Section("Comparison", f"Not drawn: {error}.")]


def students_by_name(content: dict) -> list[Section]:
    """Students of a file that misc.report.tables knows nothing of: a row per name, over seeds; none where there are none."""
    from misc.report.report import STUDENT, measure
    from misc.report.sections import cell
    groups: dict[str, dict] = {}
    for one in content["runs"]:
        if one.get("kind") == "student":
            name = re.sub(r"\bseed\d+/|-seed\d+$", "", one["run"]).replace("students/", "")
            groups.setdefault(name, {})[one["run"]] = one
    numbers = measure(groups, STUDENT)
    rows = tuple((name, cell(one, "accuracy", 100), cell(one, "images", digits=0), cell(one, "steps", digits=0),
                  cell(one, "train_seconds"), str(one["n"])) for name, one in numbers.items())
    return [Section("Students", "Accuracy on the real test images, mean ± standard deviation over seeds.",
                    ("Run", "Accuracy (%)", "Images", "Steps", "Training (s)", "Seeds (n)"), rows)] if rows else []
