"""Figures of continual runs and of label bytes, and how every figure is made. The same numbers give the same PNG."""

from collections.abc import Callable
from pathlib import Path

from misc.report.results import METHODS, Rows, Run, place_of
from misc.report.section import NOT_RUN, Section
from misc.report.statistics import equal_in_rows, summaries

COLOURS = {"real": "#0072B2", "random": "#E69F00", "distilled": "#009E73",  # safe for colour-blind readers
           "real, same steps": "#56B4E9", "distilled, soft labels": "#CC79A7"}
OTHER_COLOURS = ("#D55E00", "#882255", "#999933", "#44AA99", "#332288", "#661100", "#6699CC", "#888888")
SOURCES = {"real": "real images", "random": "random real images", "distilled": "distilled images"}
MARKERS = {"joint": "*", "finetune": "v", "er": "o", "agem": "s", "task_arithmetic": "D", "derpp": "P"}
GREY = "#59626d"


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, dpi=160, layout="constrained", **options):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure, path: Path, **options) -> None:
    """Write a PNG without matplotlib's version, which would differ between machines."""
    figure.savefig(path, metadata={"Software": None}, **options)


def panels(count: int, columns: int, inches: tuple[float, float], margin: tuple[float, float]):
    """A figure with `count` panels of `inches` (width, height) in `columns`, and its grid of axes; those left over are off."""
    lines = -(-count // columns)
    figure, axes = new_figure(inches[0] * columns + margin[0], inches[1] * lines + margin[1], lines, columns)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes


def legend_below(figure, handles: dict, **options) -> None:
    """Three columns of names under the axes."""
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, **options)


def log_ticks(axis, steps: tuple[int, ...]) -> None:
    """Numbers at `steps` of each decade of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullLocator
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


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
            path = folder / f"{name}.png"
            draw(path, shown)
            counts = {len(row) for arms in shown.values() for row in arms.values()}
            number = bars(counts, draw not in (draw_matrices, draw_confusions))
            sections.append(Section(title, f"{says} {number}", figure=path, held=equal_in_rows(shown),
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
    figure, axes = panels(len(rows), 2 if len(rows) in (2, 4) else min(len(rows), 3), (3.3, 2.9), (0.6, 0.8))
    colours, handles = colours_of(rows), {}
    for axis, (method, arms) in zip(axes.flat, rows.items(), strict=False):
        for arm, row in arms.items():
            seen = 100 * np.array([[np.mean(line[:place + 1]) for place, line in enumerate(matrix)]
                                   for matrix in (run.metrics["matrix"] for run in row.values())])
            line_of(axis, np.arange(1, seen.shape[1] + 1), seen, colours[arm.name], arm.name)
        axis.set(title=METHODS.get(method, method), xlabel="tasks learnt", xticks=np.arange(1, seen.shape[1] + 1))
        tidy(axis)
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    for line in axes:
        line[0].set_ylabel("accuracy on tasks seen (%)")
    legend_below(figure, {name: handles[name] for name in colours if name in handles})
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


# soft labels

def draw_label_bytes(path: Path, points: dict[str, dict]) -> None:
    """Accuracy against bytes of labels, a mark for each way to store them (`storage_points` of tables.py)."""
    figure, ((axis,),) = new_figure(6.6, 4.2)
    for way, one in points.items():
        logits, epochs = (f"{one[name]['mean']:.0f}" for name in ("stored_logits", "stored_epochs"))
        family, colour, mark = {(True, True): ("k logits of e epochs (k·e)", "#CC79A7", f"{logits}·{epochs}"),
                                (True, False): ("k leading logits of all epochs (k)", "#E69F00", logits),
                                (False, True): ("all logits of e epochs (e)", "#0072B2", epochs),
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
