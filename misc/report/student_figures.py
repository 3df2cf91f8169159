"""Figures of students: accuracy against images per class, and against bytes of soft labels."""

import math
from pathlib import Path

from misc.report.rows import held, value
from misc.report.sections import Section, cell

SETTINGS = {"network": "config.arch", "teacher": "config.teacher", "batch size": "config.batch_size", "epochs": "config.epochs",
            "steps": "metrics.steps"}
LABEL_SETTINGS = {**SETTINGS, "teacher": "config.teacher_arch", "temperature": "config.temperature",
                  "learning-rate schedule": "config.lr_schedule"}
COLOURS = {"prototype": "#CC79A7", "herding": "#56B4E9", "random": "#E69F00"}    # D4M's images are green, as everywhere


def images_per_class(result: dict, folder: Path, command: str) -> Section | None:
    """Draw images_per_class.png from a study's students, and say where D4M images are better; None without such students."""
    from misc.report.tables import ARM, student_numbers
    numbers = student_numbers(result)
    ipcs = sorted({ipc for _, ipc, _ in numbers if ipc})
    if len(ipcs) < 2:
        return None
    draw_images_per_class(folder / "images_per_class.png", numbers, ipcs)
    groups = {(f"IPC {ipc}",): {} for ipc in ipcs}
    for one in result["runs"]:
        if (found := ARM.search(one["run"])) and found["ipc"]:
            groups[f"IPC {found['ipc']}",][one["run"]] = one
    return Section("Accuracy against images per class", f"Accuracy on the real test images; {bars(numbers)}; a dotted line is "
                   f"the real training split. {better(numbers, ipcs)}", figure="images_per_class.png",
                   held=held(groups, 0, SETTINGS), command=command,
                   alt="Two panels, hard and soft labels: accuracy against images per class, a line per kind of image.")


def ours(numbers: dict) -> str:
    """The arm of D4M images that the figure shows."""
    from misc.report.tables import DIGITS_STRENGTH, strengths
    found = strengths(numbers)
    return f"d4m-s{DIGITS_STRENGTH}" if f"d4m-s{DIGITS_STRENGTH}" in found else next(iter(found), "d4m")


def better(numbers: dict, ipcs: list[int]) -> str:
    """Where D4M images lie above random real ones by more than the spread of both, by kind of label."""
    said = []
    for labels in ("hard", "soft"):
        pairs = {ipc: (numbers.get((ours(numbers), ipc, labels)), numbers.get(("random", ipc, labels))) for ipc in ipcs}
        clear = [str(ipc) for ipc, (own, other) in pairs.items() if own and other and above(own, other)]
        if any(own and other for own, other in pairs.values()):
            where = " and ".join(part for part in (", ".join(clear[:-1]), *clear[-1:]) if part)
            said.append(f"with {labels} labels {f'at {where} per class' if clear else 'nowhere'}")
    return (f"D4M images lie above random real ones by more than one standard deviation of the difference {', '.join(said)}."
            if said else "")


def above(own: dict, other: dict, name: str = "accuracy") -> bool:
    """Whether a mean lies above another by more than the standard deviation of their difference; False without spreads."""
    spreads = own[name]["std"], other[name]["std"]
    return None not in spreads and own[name]["mean"] - other[name]["mean"] > math.hypot(*spreads)


def draw_images_per_class(path: Path, numbers: dict, ipcs: list[int]) -> None:
    """A panel per kind of label, a line per arm."""
    from misc.report.plots import COLOURS as SOURCES
    from misc.report.plots import new_figure, save, tidy
    from misc.report.tables import ARM_NAMES
    arms = {ours(numbers): (f"D4M images, strength {ours(numbers).removeprefix('d4m-s')}", SOURCES["distilled"]),
            **{arm: (ARM_NAMES[arm], colour) for arm, colour in COLOURS.items()}}
    figure, (panels,) = new_figure(7.4, 4.2, 1, 2, sharey=True)
    for axis, labels in zip(panels, ("hard", "soft"), strict=True):
        for arm, (name, colour) in arms.items():
            points = {ipc: numbers[arm, ipc, labels]["accuracy"] for ipc in ipcs if (arm, ipc, labels) in numbers}
            if points:
                axis.errorbar(list(points), [100 * one["mean"] for one in points.values()],
                              [100 * (one["std"] or 0) for one in points.values()], color=colour, marker="o", ms=5, lw=1.6,
                              elinewidth=1, capsize=2, label=name)
        if ("real", None, labels) in numbers:
            axis.axhline(100 * numbers["real", None, labels]["accuracy"]["mean"], color=SOURCES["real"], ls=":",
                         label="real training split")
        axis.set(title=f"{labels} labels", xlabel="images per class", xscale="log", xticks=ipcs, xticklabels=map(str, ipcs))
        axis.minorticks_off()
        tidy(axis)
    panels[0].set_ylabel("accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def label_bytes(result: dict, folder: Path, command: str) -> Section | None:
    """Draw label_bytes.png, and say how few bytes do as well as all; None where labels were kept in one way at most."""
    from misc.report.matching_tables import STORAGE_RUN, draw_storage, grouped, storage_points
    points = list(storage_points(result).values())
    if len(points) < 2:
        return None
    draw_storage(result, folder / "label_bytes.png")
    whole = points[0]
    enough = [one for one in points if not above(whole, one) and one["accuracy"]["std"] is not None]
    said = f"All labels, {kilobytes(whole)}, give {cell(whole, 'accuracy', 100)} %"
    if len(enough) > 1:
        said += (f"; the smallest store within one standard deviation of the difference is {kilobytes(enough[-1])}, "
                 f"{whole['bytes']['mean'] / enough[-1]['bytes']['mean']:.1f} times smaller, with "
                 f"{cell(enough[-1], 'accuracy', 100)} %")
    groups = grouped(result, STORAGE_RUN, "student", "kept")
    return Section("Accuracy against label bytes", "Students with more or fewer stored labels, on a logarithmic scale; "
                   f"{bars(storage_points(result))}. {said}.",
                   figure="label_bytes.png", command=command,
                   held=held(groups, 0, LABEL_SETTINGS) + same_images(groups),
                   alt="Scatter plot of accuracy against kilobytes of soft labels, a colour per way to keep fewer of them.")


def same_images(groups: dict) -> str:
    """Whether all students of a seed had the same images."""
    by_seed = {}
    for runs in groups.values():
        for name, one in runs.items():
            by_seed.setdefault(name.split("/")[0], set()).add(value(one, "config.images"))
    return " Students of one seed have the same images." if all(len(found) == 1 for found in by_seed.values()) else ""


def bars(numbers: dict) -> str:
    """What the bars are, if there are any, and how many runs stand behind a point."""
    counts = sorted({one["n"] for one in numbers.values()})
    return f"{'bars are one standard deviation' if counts[-1] > 1 else 'no bars'}, n = {' or '.join(map(str, counts))}"


def kilobytes(point: dict) -> str:
    """The bytes of a point."""
    return f"{point['bytes']['mean'] / 1e3:.1f} kB"
