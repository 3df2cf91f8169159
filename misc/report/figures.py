"""Every figure: students, continual runs, grids of images. The same numbers give the same PNG."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from textwrap import fill

from misc.report import tables
from misc.report.results import METHODS, Results, Rows, Run, grouped, place_of
from misc.report.section import NOT_RUN, Section
from misc.report.statistics import equal_and_not, equal_in_rows, summaries
from misc.report.tables import storage_points, strengths, student_numbers

COLOURS = {"real": "#0072B2", "random": "#E69F00", "distilled": "#009E73",  # safe for colour-blind readers
           "real, same steps": "#56B4E9", "distilled, soft labels": "#CC79A7"}
OTHER_COLOURS = ("#D55E00", "#882255", "#999933", "#44AA99", "#332288", "#661100", "#6699CC", "#888888")
SOURCES = {"real": "real images", "random": "random real images", "distilled": "distilled images"}
MARKERS = {"joint": "*", "finetune": "v", "er": "o", "agem": "s", "task_arithmetic": "D", "derpp": "P"}
STUDENT_COLOURS = {"prototype": "#CC79A7", "herding": "#56B4E9", "random": "#E69F00"}
STUDENT_SETTINGS = {"network": "config.arch", "teacher": "config.teacher", "batch size": "config.batch_size",
                    "epochs": "config.epochs", "steps": "metrics.steps"}
LABEL_SETTINGS = {**STUDENT_SETTINGS, "teacher": "config.teacher_arch", "temperature": "config.temperature",
                  "learning-rate schedule": "config.lr_schedule"}
GREY = "#59626d"
SHOWN_CLASSES, BESIDE = 10, 4


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, dpi=160, layout="constrained", **options):
    """A figure and its grid of axes."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure, path: Path, **options) -> None:
    """Write a PNG without matplotlib's version, which would differ between machines."""
    figure.savefig(path, metadata={"Software": None}, **options)


def tidy(axis) -> None:
    """A quiet grid behind the lines, and no box."""
    axis.grid(color="#e3e7eb", lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def colours_of(rows: Rows) -> dict[str, str]:
    names = dict.fromkeys(arm.name for arms in rows.values() for arm in arms if arm.name not in COLOURS)
    return {**COLOURS, **{name: OTHER_COLOURS[place % len(OTHER_COLOURS)] for place, name in enumerate(names)}}


def line_of(axis, across, lines, colour: str, label: str) -> None:
    """The mean of `lines` [n, P] with bars of one standard deviation."""
    import numpy as np
    spread = np.std(lines, 0, ddof=1) if len(lines) > 1 else None
    axis.errorbar(across, np.mean(lines, 0), spread, color=colour, marker="o", ms=4, lw=1.6, elinewidth=1, capsize=2,
                  label=label)


def heat_map(axis, shares):
    """A matrix of fractions [P, Q] in percent, with its numbers where they fit."""
    import numpy as np
    shown = axis.imshow(100 * shares, cmap="viridis", vmin=0, vmax=100)
    if len(shares) <= 10:
        for (along, across), share in np.ndenumerate(shares):
            axis.text(across, along, f"{100 * share:.0f}", ha="center", va="center", fontsize=8 if len(shares) <= 6 else 5.5,
                      color="black" if share > 0.6 else "white")
    return shown


# continual learning

def stream_figures(folder: Path, rows: Rows) -> list[Section]:
    """Draw every figure of continual runs for which there are results."""
    whole = keep(rows, lambda run: None not in (run.get("metrics.matrix") or [None]))
    counted = keep(rows, lambda run: "confusion" in run.metrics)
    method = "er" if "er" in counted else next(iter(counted), None)
    figures = [
        (rows, draw_times, "Accuracy against training time", "accuracy_vs_time", "ACC (Class-IL, after the last task) against "
         "median seconds of training, on a logarithmic scale. A thin line joins a method's real and distilled images."),
        (whole, draw_seen, "As the stream goes on", "seen_tasks", "Mean accuracy (Class-IL) on the tasks seen so far, after "
         "each task. Each panel has its own scale."),
        (whole, draw_matrices, "Accuracy matrices", "matrices", "R[t, j]: accuracy in percent (Class-IL) on task j after task "
         "t, mean over runs."),
        (keep(rows, lambda run: bool(run.get("metrics.scale_curves"))), draw_scales, "Scale of the merged vector",
         "scale_curves", "Accuracy on the memory, which chooses the scale, after the last merge. No test image takes part."),
        ({method: counted[method]} if method else {}, draw_confusions, "Confusion", "confusion",
         f"{METHODS.get(method, method)}: the fraction of each true class (row) with each answer (column) after the last task, "
         "mean over runs.")]
    sections = []
    for shown, draw, title, name, says in figures:
        if shown:
            draw(folder / f"{name}.png", shown)
            counts = {len(row) for arms in shown.values() for row in arms.values()}
            number = bars(counts, draw not in (draw_matrices, draw_confusions))
            sections.append(Section(title, f"{says} {number}", figure=f"{name}.png", held=equal_in_rows(shown),
                                    alt=f"{title}, by method and source. {says}"))
    return sections


def bars(runs: set[int], spread: bool = True) -> str:
    """The number of runs behind a point, and the meaning of its bars."""
    shown = ", bars of one standard deviation" if spread and max(runs) > 1 else ""
    return f"n = {' or '.join(map(str, sorted(runs)))}{shown}."


def keep(rows: Rows, has: Callable[[Run], bool]) -> Rows:
    """The rows all of whose runs have something."""
    kept = {method: {arm: row for arm, row in arms.items() if all(map(has, row.values()))} for method, arms in rows.items()}
    return {method: arms for method, arms in kept.items() if arms}


def draw_times(path: Path, rows: Rows) -> None:
    """One marker per method, one colour per source."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator
    points = {(method, arm.name): one for method, arms in summaries(rows).items() for arm, one in arms.items()}
    places = {key: (one["train_seconds"]["median"], 100 * one["acc"]["mean"]) for key, one in points.items()}
    figure, ((axis,),) = new_figure(6.6, 5.6)
    for method in rows:
        if {(method, "real"), (method, "distilled")} <= points.keys():
            axis.plot(*zip(places[method, "real"], places[method, "distilled"], strict=True), color="#b5bcc4", lw=0.8, zorder=1)
    colours = {name: colour for name, colour in colours_of(rows).items() if any(source == name for _, source in points)}
    hollow = {name: name.startswith("random") for name in colours}      # they often lie on the distilled ones
    for (method, source), one in points.items():
        high = one["acc"]["std"] and 100 * one["acc"]["std"]
        axis.errorbar(*places[method, source], yerr=high, marker=MARKERS.get(method, "X"),
                      color=colours[source], ms=13 if method == "joint" else 9, elinewidth=1,
                      **({"mfc": "none", "mew": 1.6, "zorder": 4} if hollow[source] else {"mec": "white", "mew": 0.8}))
    axis.set(xlabel="training time (s)", ylabel="ACC, Class-IL (%)", ylim=(0, 103), xscale="log")
    axis.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        ticks(lambda seconds, _: f"{seconds:g}")
    axis.tick_params(axis="x", which="both", labelsize=8)
    tidy(axis)
    handles = [Line2D([], [], ls="none", marker="o", color=colour, mfc="none" if hollow[source] else colour, mew=1.6, ms=8,
                      label=SOURCES.get(source, source)) for source, colour in colours.items()]
    handles += [Line2D([], [], ls="none", marker=MARKERS.get(method, "X"), color=GREY, ms=8, label=METHODS.get(method, method))
                for method in rows]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9, columnspacing=1)
    save(figure, path)


def draw_seen(path: Path, rows: Rows) -> None:
    """A panel per method, a line per source."""
    import numpy as np
    columns, colours = 2 if len(rows) in (2, 4) else min(len(rows), 3), colours_of(rows)
    lines = -(-len(rows) // columns)
    figure, axes = new_figure(3.3 * columns + 0.6, 2.9 * lines + 0.8, lines, columns)
    for axis in axes.flat[len(rows):]:
        axis.set_axis_off()
    handles = {}
    for axis, (method, arms) in zip(axes.flat, rows.items(), strict=False):
        for arm, row in arms.items():
            seen = 100 * np.array([[np.mean(line[:place + 1]) for place, line in enumerate(matrix)]
                                   for matrix in (run.metrics["matrix"] for run in row.values())])
            line_of(axis, np.arange(1, seen.shape[1] + 1), seen, colours[arm.name], arm.name)
        axis.set(title=METHODS.get(method, method), xlabel="tasks learnt", xticks=np.arange(1, seen.shape[1] + 1))
        tidy(axis)
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for line in axes:
        line[0].set_ylabel("accuracy on tasks seen (%)")
    handles = {name: handles[name] for name in colours if name in handles}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw_matrices(path: Path, rows: Rows) -> None:
    """Heat maps, methods by sources."""
    import numpy as np
    arms = sorted({arm for of in rows.values() for arm in of}, key=place_of)
    figure, axes = new_figure(1.9 * len(arms) + 1.2, 1.9 * len(rows) + 0.6, len(rows), len(arms))
    for line, (method, of) in zip(axes, rows.items(), strict=True):
        for axis, arm in zip(line, arms, strict=True):
            axis.set(xticks=[], yticks=[])
            if arm in of:
                shown = heat_map(axis, np.mean([run.metrics["matrix"] for run in of[arm].values()], 0))
            else:
                axis.set_frame_on(False)
                axis.text(0.5, 0.5, NOT_RUN, ha="center", va="center", color=GREY, transform=axis.transAxes)
        line[0].set_ylabel(METHODS.get(method, method).replace(" (", "\n("))
    for axis, arm in zip(axes[0], arms, strict=True):
        axis.set_title(arm.name.replace(", ", ",\n"), fontsize=10)
    figure.supxlabel("tested on task", fontsize=10)
    figure.supylabel("after task", fontsize=10)
    figure.colorbar(shown, ax=axes, label="accuracy (%)", shrink=0.6, aspect=30)
    save(figure, path)


def draw_scales(path: Path, rows: Rows) -> None:
    """Accuracy on the memory against the scale, after the last merge."""
    import numpy as np
    figure, ((axis,),) = new_figure(7.2, 4.6)   # as wide as three columns of names
    colours = colours_of(rows)
    for arm, row in next(iter(rows.values())).items():
        last = [run.metrics["scale_curves"][-1] for run in row.values()]
        line_of(axis, [point["scale"] for point in last[0]],
                100 * np.array([[point["accuracy"] for point in curve] for curve in last]), colours[arm.name], arm.name)
    axis.set(xlabel="scale of the merged vector", ylabel="accuracy on the memory (%)")
    tidy(axis)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw_confusions(path: Path, rows: Rows) -> None:
    """A confusion matrix per source."""
    import numpy as np
    (arms,) = rows.values()
    figure, (line,) = new_figure(2.9 * len(arms) + 1, 3.4, 1, len(arms))
    for axis, (arm, row) in zip(line, arms.items(), strict=True):
        found = np.array([run.metrics["confusion"] for run in row.values()], dtype=float)
        shown = heat_map(axis, (found / found.sum(-1, keepdims=True).clip(1)).mean(0))
        axis.set(title=arm.name, xlabel="answer", xticks=range(0, found.shape[1], -(-found.shape[1] // 10)))
        axis.set_yticks(axis.get_xticks())
    line[0].set_ylabel("true class")
    figure.colorbar(shown, ax=line, label="fraction of the class (%)", shrink=0.8)
    save(figure, path)


def student_figures(folder: Path, results: Results) -> list[Section]:
    """Draw accuracy against images per class, and against bytes of labels, where there are such students."""
    numbers, points, sections = student_numbers(results), storage_points(results), []
    ipcs = sorted({ipc for _, ipc, _ in numbers if ipc})
    if len(ipcs) > 1:
        draw_images_per_class(folder / "images_per_class.png", numbers, ipcs)
        groups = {(f"IPC {ipc}",): runs for (ipc,), runs in grouped(results, tables.ARM, "student", "ipc").items() if ipc}
        sections.append(Section("Accuracy against images per class", f"Accuracy on {tables.tested_on(results)}; a dotted line "
                                f"is the real training split. {bars({one['n'] for one in numbers.values()})}",
                                figure="images_per_class.png", held=equal_and_not(groups, 0, STUDENT_SETTINGS),
                                alt="Two panels, hard and soft labels: accuracy against images per class, a line per arm."))
    if len(points) > 1:
        draw_label_bytes(folder / "label_bytes.png", results)
        groups = grouped(results, tables.STORAGE_RUN, "student", "kept")
        sections.append(Section("Accuracy against label bytes", "Students with more or fewer stored labels, on a logarithmic "
                                f"scale. {bars({one['n'] for one in points.values()})}", figure="label_bytes.png",
                                held=equal_and_not(groups, 0, LABEL_SETTINGS),
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
    from matplotlib.ticker import LogLocator, NullLocator
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
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    tidy(axis)
    axis.margins(x=0.12)
    save(figure, path)


def draw_grid(path: Path, names: list[str | None], rows: dict[str, list | None], notes: dict[str, list[str]] | None = None,
              caption: str = "", cell_inches: float = 0.62, head_points: float = 11, width_inches: float | None = None) -> None:
    """Named rows of images under named columns; a column None is a gap, a row None is not run, an image None is left empty.

    `notes` are a line under each image, by row; `caption` goes below everything. The picture is as wide as its columns need,
    or `width_inches`.
    """
    widths, notes = [0.2 if name is None else 1 for name in names], notes or {}
    width = width_inches or 1.08 * cell_inches * sum(widths) + 0.2 + 0.1 * max(len(plain_name(name)) for name in rows)
    caption = fill(caption, max(int(17 * width), 40), break_on_hyphens=False)
    height = (cell_inches + (0.2 if notes else 0.08)) * len(rows) + 0.35 + 0.14 * len(caption.splitlines())
    figure, axes = new_figure(width, height, len(rows), len(names), dpi=200, layout="compressed", width_ratios=widths)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        label = plain_name(name) if images else f"{plain_name(name)}\n({NOT_RUN})"
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=11)
        for place, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            if images and images[place] is None:
                axis.set_axis_off()
            elif images:
                axis.imshow(images[place])
                axis.set_xlabel(notes.get(name, [""] * len(names))[place], fontsize=7.5, labelpad=2)
            else:
                axis.set_box_aspect(1)
    crowded = max((len(plain_name(name)) for name, following in pairwise(names) if name and following), default=1)
    points = min(head_points, 72 * cell_inches / (0.55 * crowded))     # a letter is about 0.55 of its size wide
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(plain_name(name or ""), fontsize=points)
    if caption:
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, parse_math=False)
    save(figure, path, **({} if width_inches else {"bbox_inches": "tight", "pad_inches": 0.05}))


def plain_name(name: str, most: int = 28) -> str:
    """A name as a figure prints it: cut after `most` characters, without mathematics between dollar signs."""
    return (name if len(name) <= most else f"{name[:most - 1]}…").replace("$", r"\$")


# pictures of a run: real, prototype and D4M image of each class, and D4M images beside random real ones

def pictures_of(folder: Path) -> dict | None:
    """The images of a run, {"rows": {name: [image per class] or None}, "beside": {name: [[image, ...] per class]}}, and facts.

    None where there is no D4M set. Of two sets of a method the first by name counts.
    """
    from distillation.card import unique_names
    from distillation.images import open_image
    from scripts.artefact import read_manifest
    sets = {}
    for path in sorted(folder.glob("distilled/*/manifest.json"), reverse=True):     # the first by name stays
        manifest = read_manifest(path.parent, "distilled")
        sets[manifest["config"].get("method")] = {**manifest, "folder": path.parent}
    d4m, prototype, random = (sets.get(method) for method in ("d4m", "prototype", "random"))
    if not d4m:
        return None
    if prototype and prototype["config"]["source"] != d4m["config"]["source"]:
        prototype = None    # decoded from other prototypes: the rows would not belong together
    names = unique_names(d4m["classes"])[:SHOWN_CLASSES]

    def read(of, rows):
        return [open_image(of["folder"] / row["file_name"]) for row in rows]

    def of_class(of, label):
        return [row for row in of["rows"] if row["label"] == label]
    largest = [sorted(of_class(d4m, label), key=lambda row: (row["repeat"], -row["weight"])) for label in range(len(names))]
    both = {"D4M": (d4m, largest)}
    if random:
        both["random real"] = random, [of_class(random, label) for label in range(len(names))]
    each = min(BESIDE, *(len(rows) for _, by_class in both.values() for rows in by_class))
    first = [rows[0] for rows in largest]
    decoded = prototype and [next(row for row in of_class(prototype, wanted["label"])
                                  if row["prototype"] == wanted["prototype"]) for wanted in first]
    return {"classes": names, "of": len(d4m["classes"]), "strength": d4m["config"]["strength"],
            "guidance_scale": d4m["config"]["guidance_scale"],
            "images": {name: len(one["rows"]) for name, (one, _) in both.items()},
            "rows": {"real": random and read(random, [rows[0] for rows in both["random real"][1]]),
                     "prototype": decoded and read(prototype, decoded), "D4M": read(d4m, first)},
            "beside": {name: [read(one, rows[:each]) for rows in by_class] for name, (one, by_class) in both.items()}}


def picture_figures(folder: Path, pictures: dict) -> list[Section]:
    """Draw grid.png and, with random real images, beside.png."""
    names, found = pictures["classes"], pictures["images"]
    missing = "".join(f" Row {name}: {NOT_RUN}." for name, images in pictures["rows"].items() if images is None)
    draw_grid(folder / "grid.png", [name[:12] for name in names], pictures["rows"], width_inches=7.4)
    grids = [Section("Images", f"A column per class ({len(names)} of {pictures['of']}): a real training image, the decoded "
                     "prototype of the class's largest cluster, and the D4M image made from that prototype (strength "
                     f"{pictures['strength']}, guidance {pictures['guidance_scale']}). The real image is any one of its class."
                     f"{missing}", figure="grid.png", held="Equal: the class of a column, and the prototype of rows prototype "
                     "and D4M.", alt=f"Images, a column per class ({', '.join(names)}), rows real, prototype and D4M.")]
    if len(pictures["beside"]) == 2:
        each = len(pictures["beside"]["D4M"][0])
        lines = zip(*pictures["beside"].values(), strict=True)
        draw_grid(folder / "beside.png", ["D4M", *[""] * (each - 1), None, "random", *[""] * (each - 1)],
                  {name: [*own, None, *other] for name, (own, other) in zip(names, lines, strict=True)})
        held = f"{'Equal' if len(set(found.values())) == 1 else 'Not equal'}: the number of images "
        grids.append(Section("D4M images beside random real ones", f"A row per class ({len(names)} of {pictures['of']}): "
                             f"{each} D4M images, large clusters first, then {each} random real ones.", figure="beside.png",
                             held=held + f"({' and '.join(f'{count} {name}' for name, count in found.items())}).",
                             alt=f"Images, a row per class ({', '.join(names)}): {each} D4M images, then {each} real ones."))
    return grids
