"""Figures of students: accuracy against images per class, and against bytes of labels."""

from pathlib import Path

from misc.report import tables
from misc.report.figures import COLOURS, bars, log_ticks, new_figure, save, tidy
from misc.report.results import Results, grouped
from misc.report.section import Section
from misc.report.statistics import equal_and_not
from misc.report.tables import storage_points, strengths, student_numbers

STUDENT_COLOURS = {"prototype": "#CC79A7", "herding": "#56B4E9", "random": "#E69F00"}
STUDENT_SETTINGS = {"network": "config.arch", "teacher": "config.teacher", "batch size": "config.batch_size",
                    "epochs": "config.epochs", "steps": "metrics.steps"}
LABEL_SETTINGS = {**STUDENT_SETTINGS, "teacher": "config.teacher_arch", "temperature": "config.temperature",
                  "learning-rate schedule": "config.lr_schedule"}


def student_figures(folder: Path, results: Results) -> list[Section]:
    """Draw accuracy against images per class, and against bytes of labels, where there are such students."""
    numbers, points, sections = student_numbers(results), storage_points(results), []
    ipcs = sorted({ipc for _, ipc, _ in numbers if ipc})
    if len(ipcs) > 1:
        path = folder / "images_per_class.png"
        draw_images_per_class(path, numbers, ipcs)
        groups = {f"IPC {ipc}": runs for ipc, runs in grouped(results, tables.ARM, "student", "ipc").items() if ipc}
        sections.append(Section("Accuracy against images per class", f"Accuracy on {tables.tested_on(results)}; a dotted line "
                                f"is the real training split. {bars({one['n'] for one in numbers.values()})}",
                                figure=path, held=equal_and_not(groups, STUDENT_SETTINGS),
                                alt="Two panels, hard and soft labels: accuracy against images per class, a line per arm."))
    if len(points) > 1:
        path = folder / "label_bytes.png"
        draw_label_bytes(path, results)
        groups = grouped(results, tables.STORAGE_RUN, "student", "kept")
        sections.append(Section("Accuracy against label bytes", "Students with more or fewer stored labels, on a logarithmic "
                                f"scale. {bars({one['n'] for one in points.values()})}", figure=path,
                                held=equal_and_not(groups, LABEL_SETTINGS),
                                alt="Scatter plot of accuracy against kilobytes of soft labels, a colour per way to store."))
    return sections


def draw_images_per_class(path: Path, numbers: dict, ipcs: list[int]) -> None:
    """A panel per kind of label, a line per arm."""
    own = next((arm for arm in (f"d4m-s{tables.DIGITS_STRENGTH}", *strengths(numbers)) if arm in strengths(numbers)), "d4m")
    arms = {own: (f"D4M images, strength {own.removeprefix('d4m-s')}", COLOURS["distilled"]),
            **{arm: (tables.ARM_NAMES[arm], colour) for arm, colour in STUDENT_COLOURS.items()}}
    figure, (panels,) = new_figure(7.4, 4.2, 1, 2, sharey=True)
    for axis, labels in zip(panels, ("hard", "soft"), strict=True):
        for arm, (name, colour) in arms.items():
            points = {ipc: numbers[arm, ipc, labels]["accuracy"] for ipc in ipcs if (arm, ipc, labels) in numbers}
            if points:
                axis.errorbar(list(points), [100 * one["mean"] for one in points.values()],
                              [100 * (one["std"] or 0) for one in points.values()], color=colour, marker="o", ms=5, lw=1.6,
                              elinewidth=1, capsize=2, label=name)
        if ("real", None, labels) in numbers:
            axis.axhline(100 * numbers["real", None, labels]["accuracy"]["mean"], color=COLOURS["real"], ls=":",
                         label="real training split")
        axis.set(title=f"{labels} labels", xlabel="images per class", xscale="log", xticks=ipcs, xticklabels=map(str, ipcs))
        axis.minorticks_off()
        tidy(axis)
    panels[0].set_ylabel("accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw_label_bytes(path: Path, results: Results) -> None:
    """Accuracy against bytes of labels, one mark per way to store them."""
    figure, ((axis,),) = new_figure(6.6, 4.2)
    for way, one in storage_points(results).items():
        logits, epochs = (f"{one[name]['mean']:.0f}" for name in ("stored_logits", "stored_epochs"))
        family, colour, mark = {(True, True): ("so many logits of so many epochs", "#CC79A7", f"{logits}·{epochs}"),
                                (True, False): ("so many leading logits of all epochs", "#E69F00", logits),
                                (False, True): ("all logits of so many epochs", "#0072B2", epochs),
                                (False, False): ("all logits of all epochs", "#222222", "")}["topk" in way, "epochs" in way]
        place, spread = (one["bytes"]["mean"] / 1e3, 100 * one["accuracy"]["mean"]), one["accuracy"]["std"]
        axis.errorbar(*place, yerr=spread and 100 * spread, marker="o", ms=15, color=colour, mec="white", label=family,
                      ls="none", elinewidth=1)
        axis.annotate(mark, place, ha="center", va="center_baseline", fontsize=7.5, color="white", zorder=9)
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    axis.legend(handles.values(), handles.keys(), frameon=False, loc="lower right", markerscale=0.6)
    axis.set(xlabel="soft labels (kB)", ylabel="accuracy of ResNet-18 (%)", xscale="log")
    log_ticks(axis.xaxis, (1, 2, 3, 5))
    tidy(axis)
    axis.margins(x=0.12)
    save(figure, path)
