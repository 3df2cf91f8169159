"""Drawing of a comparison's figures; misc/report/continual_figures.py chooses them and says what they show."""

from pathlib import Path

import numpy as np

from misc.report.rows import METHODS, Arm, Rows, place

COLOURS = {"real": "#0072B2", "random": "#E69F00", "distilled": "#009E73",  # told apart by colour-blind readers too
           "real, same steps": "#56B4E9", "distilled, soft labels": "#CC79A7"}
OTHER_COLOURS = ("#D55E00", "#882255", "#999933", "#44AA99", "#332288", "#661100", "#6699CC", "#888888")
MARKERS = {"joint": "*", "finetune": "v", "er": "o", "agem": "s", "task_arithmetic": "D", "derpp": "P"}


def colours_of(rows: Rows) -> dict[str, str]:
    """A colour per source."""
    names = dict.fromkeys(arm.name for arms in rows.values() for arm in arms)
    others = [name for name in names if name not in COLOURS]
    return {**COLOURS, **{name: OTHER_COLOURS[place % len(OTHER_COLOURS)] for place, name in enumerate(others)}}


def matrix_of(result: dict) -> list:
    """The Class-IL matrix R; joint training has its last row alone."""
    return result["class_il"]["matrix"]


def seen_accuracy(matrix) -> list[float]:
    """Mean accuracy on the tasks seen, after each task."""
    return [float(np.mean(row[:place + 1])) for place, row in enumerate(matrix)]


def confusion_of(row: dict[int, dict]) -> np.ndarray:
    """The mean confusion matrix [K, K] of a row, each true class adding up to 1."""
    counts = np.array([one["confusion"] for one in row.values()], dtype=float)
    return (counts / counts.sum(-1, keepdims=True).clip(1)).mean(0)


def new_figure(width: float, height: float, rows: int, columns: int, **options):
    """A figure and its grid of axes."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure, path: Path) -> None:
    """Write a PNG that is the same for the same numbers."""
    figure.savefig(path, metadata={"Software": None})


def tidy(axis) -> None:
    """A quiet grid behind the lines, and no box."""
    axis.grid(color="#e3e7eb", lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def line_of(axis, across, lines, colour: str, label: str) -> None:
    """The mean of `lines` [n, P] with bars of one standard deviation."""
    spread = np.std(lines, 0, ddof=1) if len(lines) > 1 else None
    axis.errorbar(across, np.mean(lines, 0), spread, color=colour, marker="o", ms=4, lw=1.6, elinewidth=1, capsize=2,
                  label=label)


def draw_times(path: Path, points: dict[tuple, dict], colours: dict[str, str], scale: str = "linear") -> None:
    """One marker per method, one colour per source, a thin line from a method's real to its distilled point.

    `points` are by (method, source), {"train_seconds": {"mean", "std"}, "acc": ...}.
    """
    from matplotlib.lines import Line2D
    figure, ((axis,),) = new_figure(6.6, 5.6, 1, 1)

    def point(*key):
        return points[key]["train_seconds"]["mean"], 100 * points[key]["acc"]["mean"]
    for method in MARKERS:
        if {(method, "real"), (method, "distilled")} <= points.keys():
            axis.plot(*zip(point(method, "real"), point(method, "distilled"), strict=True), color="#b5bcc4", lw=0.8, zorder=1)
    for (method, source), one in points.items():
        high = one["acc"]["std"] and 100 * one["acc"]["std"]
        axis.errorbar(*point(method, source), xerr=one["train_seconds"]["std"], yerr=high, marker=MARKERS.get(method, "X"),
                      color=colours[source], markersize=13 if method == "joint" else 9, elinewidth=1,
                      **({"mfc": "none", "mew": 1.6, "zorder": 4} if hollow(source) else {"mec": "white", "mew": 0.8}))
    axis.set(xlabel="training time (s)", ylabel="ACC, Class-IL (%)", ylim=(0, 103), xscale=scale)
    if scale == "linear":
        axis.set_xlim(left=0)
    else:
        for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            ticks(lambda seconds, _: f"{seconds:g}")
        axis.tick_params(axis="x", which="both", labelsize=8)
    tidy(axis)
    methods = [Line2D([], [], ls="none", marker=MARKERS.get(method, "X"), color="#59626d", label=METHODS.get(method, method),
                      markersize=8) for method in dict.fromkeys([*MARKERS, *(of for of, _ in points)])
               if any(of == method for of, _ in points)]
    sources = [Line2D([], [], ls="none", marker="o", color=colour, mfc="none" if hollow(source) else colour, mew=1.6,
                      label=SOURCE_LABELS.get(source, source), markersize=8)
               for source, colour in colours.items() if any(of == source for _, of in points)]
    figure.legend(handles=[*sources, *methods], loc="outside lower center", ncols=3, frameon=False, fontsize=9, columnspacing=1)
    save(figure, path)


SOURCE_LABELS = {"real": "real images", "random": "random real images", "distilled": "distilled images"}


def hollow(source: str) -> bool:
    """Random images are drawn hollow: they often lie on the distilled ones."""
    return source.startswith("random")


def draw_seen(path: Path, rows: Rows, colours: dict[str, str]) -> None:
    """A panel per method, a line per source."""
    columns = 2 if len(rows) in (2, 4) else min(len(rows), 3)
    lines = -(-len(rows) // columns)
    figure, axes = new_figure(3.3 * columns + 0.6, 2.9 * lines + 0.8, lines, columns)
    for axis in axes.flat[len(rows):]:
        axis.set_axis_off()
    handles = {}
    for axis, (method, arms) in zip(axes.flat, rows.items(), strict=False):
        for arm, row in arms.items():
            seen = 100 * np.array([seen_accuracy(matrix_of(one)) for one in row.values()])
            line_of(axis, np.arange(1, seen.shape[1] + 1), seen, colours[arm.name], arm.name)
        axis.set(title=METHODS.get(method, method), xlabel="tasks learnt", xticks=np.arange(1, seen.shape[1] + 1))
        tidy(axis)
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for line in axes:
        line[0].set_ylabel("accuracy on tasks seen (%)")
    handles = dict(sorted(handles.items(), key=lambda pair: list(colours).index(pair[0])))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw_matrices(path: Path, rows: Rows) -> None:
    """Heat maps, methods by sources."""
    arms = sorted({arm for of in rows.values() for arm in of}, key=place)
    figure, axes = new_figure(1.9 * len(arms) + 1.2, 1.9 * len(rows) + 0.6, len(rows), len(arms))
    for line, (method, of) in zip(axes, rows.items(), strict=True):
        for axis, arm in zip(line, arms, strict=True):
            axis.set(xticks=[], yticks=[])
            if arm in of:
                shown = heat_map(axis, np.mean([matrix_of(one) for one in of[arm].values()], 0))
            else:
                axis.set_frame_on(False)
                axis.text(0.5, 0.5, "not run", ha="center", va="center", color="#59626d", transform=axis.transAxes)
        line[0].set_ylabel(METHODS.get(method, method).replace(" (", "\n("))
    for axis, arm in zip(axes[0], arms, strict=True):
        axis.set_title(arm.name.replace(", ", ",\n"), fontsize=10)
    figure.supxlabel("tested on task", fontsize=10)
    figure.supylabel("after task", fontsize=10)
    figure.colorbar(shown, ax=axes, label="accuracy (%)", shrink=0.6, aspect=30)
    save(figure, path)


def heat_map(axis, shares):
    """A matrix of shares [P, Q] in percent, with its numbers where they fit."""
    shown = axis.imshow(100 * shares, cmap="viridis", vmin=0, vmax=100)
    if len(shares) <= 10:
        for (across, along), share in np.ndenumerate(shares):
            axis.text(along, across, f"{100 * share:.0f}", ha="center", va="center", fontsize=8 if len(shares) <= 6 else 5.5,
                      color="black" if share > 0.6 else "white")
    return shown


def draw_scales(path: Path, arms: dict[Arm, dict[int, dict]], colours: dict[str, str]) -> None:
    """Accuracy on the memory against the scale, after the last merge."""
    figure, ((axis,),) = new_figure(7.2, 4.6, 1, 1)  # as wide as three columns of names
    for arm, row in arms.items():
        last = [one["scale_curves"][-1] for one in row.values()]
        scales = [point["scale"] for point in last[0]]
        line_of(axis, scales, 100 * np.array([[point["accuracy"] for point in curve] for curve in last]), colours[arm.name],
                arm.name)
    axis.set(xlabel="scale of the merged vector", ylabel="accuracy on the memory (%)")
    tidy(axis)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw_confusions(path: Path, arms: dict[Arm, np.ndarray]) -> None:
    """A confusion matrix per source."""
    figure, (line,) = new_figure(2.9 * len(arms) + 1, 3.4, 1, len(arms))
    for axis, (arm, shares) in zip(line, arms.items(), strict=True):
        shown = heat_map(axis, shares)
        axis.set(title=arm.name, xlabel="answer", xticks=range(0, len(shares), -(-len(shares) // 10)))
        axis.set_yticks(axis.get_xticks())
    line[0].set_ylabel("true class")
    figure.colorbar(shown, ax=line, label="share of the class (%)", shrink=0.8)
    save(figure, path)
