"""Figures of scripts: accuracy against time, a grid of images, a map of latents."""

from pathlib import Path

from misc.report.sections import NOT_RUN, Section

TEN_COLOURS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#222222")


def draw_grid(path: Path, names: list[str | None], rows: dict[str, list | None], notes: dict[str, list[str]] | None = None,
              caption: str = "", cell_inches: float = 0.62, head_points: float = 11, width_inches: float | None = None) -> None:
    """Rows of images with a name each, under one name per column, None being a gap; a row that is None says so, an image that
    is None leaves its place empty. `notes` are a line under each image, by row; `caption` goes below everything. The picture
    is as wide as its columns need, unless it has to be `width_inches`."""
    from itertools import pairwise
    from textwrap import fill

    from matplotlib.figure import Figure
    widths, notes = [0.2 if name is None else 1 for name in names], notes or {}
    width = width_inches or 1.08 * cell_inches * sum(widths) + 0.2 + 0.1 * max(len(plain(name)) for name in rows)
    caption = fill(caption, max(int(17 * width), 40), break_on_hyphens=False)
    height = (cell_inches + (0.2 if notes else 0.08)) * len(rows) + 0.35 + 0.14 * len(caption.splitlines())
    figure = Figure(figsize=(width, height), dpi=200, layout="compressed")
    axes = figure.subplots(len(rows), len(names), squeeze=False, width_ratios=widths)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        label = plain(name) if images else f"{plain(name)}\n({NOT_RUN})"
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
    crowded = max((len(plain(name)) for name, following in pairwise(names) if name and following), default=1)
    points = min(head_points, 72 * cell_inches / (0.55 * crowded))     # a letter is about 0.55 of its size wide
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(plain(name or ""), fontsize=points)
    if caption:
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, parse_math=False)
    fit = {} if width_inches else {"bbox_inches": "tight", "pad_inches": 0.05}
    figure.savefig(path, metadata={"Software": None}, **fit)


def accuracy_vs_time(folder: Path, numbers: dict[tuple, dict], held: str, command: str) -> Section:
    """Draw accuracy_vs_time.png from numbers by (method, source), and say what it shows."""
    from misc.report.continual_figures import joined
    title, points = "Accuracy against training time", timed(numbers)
    if not points:
        return Section(title, f"Continual learning: {NOT_RUN}.")
    draw_accuracy_vs_time(folder, numbers)
    counts = sorted({one["n"] for one in points.values()})
    spread = ", with bars of one standard deviation" if counts[-1] > 1 else ""
    return Section(title, "ACC (Class-IL, after the last task) against seconds of training, from the table above; each point "
                   f"has n = {' or '.join(map(str, counts))}{spread}. Up and left is better. {joined(points)}".rstrip(),
                   figure="accuracy_vs_time.png", held=held, command=command,
                   alt="Scatter plot of ACC in percent against training seconds, a marker per method and a colour per source. "
                       "The table on continual learning holds its numbers.")


def timed(numbers: dict[tuple, dict]) -> dict[tuple, dict]:
    """The (method, source) that the figure has a mark for."""
    from misc.report.plots import COLOURS, MARKERS
    return {key: one for key, one in numbers.items() if key[0] in MARKERS and key[1] in COLOURS}


def draw_accuracy_vs_time(folder: Path, numbers: dict[tuple, dict]) -> None:
    """Write accuracy_vs_time.png."""
    from misc.report.plots import COLOURS, draw_times
    draw_times(folder / "accuracy_vs_time.png", timed(numbers), COLOURS)


def draw_map(path: Path, groups: list[tuple], labels: list[str], caption: str) -> None:
    """Points in the plane, a colour per group of (mark, name, real [N, 2], distilled [M, 2], prototypes [M, 2] or empty).

    Prototypes, or without them the distilled points, carry the group's mark, so that colours need not be told apart.
    """
    from textwrap import fill

    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    width, height = np.ptp(np.concatenate([points for group in groups for points in group[2:4]]), axis=0)
    figure = Figure(figsize=(7.4, 1.2 + 5 * min(max(height / width, 0.5), 1.5)), dpi=200, layout="constrained")
    axis, joined = figure.subplots(), len(groups[0][4]) > 0
    for (mark, _, real, distilled, prototypes), colour in zip(groups, TEN_COLOURS, strict=False):
        axis.scatter(*real.T, s=9, color=colour, alpha=0.4, lw=0, zorder=1)
        marked = prototypes if joined else distilled
        axis.scatter(*marked.T, s=120, color=colour, edgecolors="black", lw=1, zorder=3)
        for point in marked:
            axis.annotate(mark, point, ha="center", va="center_baseline", fontsize=7, color=ink_on(colour), zorder=4)
        if joined:
            axis.plot(*zip(prototypes.T, distilled.T, strict=True), color="black", lw=0.7, zorder=2)
            axis.scatter(*distilled.T, s=42, marker="X", color=colour, edgecolors="white", lw=0.8, zorder=5)
    axis.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")
    axis.spines[["top", "right"]].set_visible(False)
    kinds = [("training image", "o", 3, "none"), ("prototype" if joined else "image of the set", "o", 10, "black")]
    kinds += [("distilled image", "X", 8, "white")] if joined else []
    handles = [Line2D([], [], ls="none", marker=marker, ms=size, mec=edge, color="#b0b0b0", label=name)
               for name, marker, size, edge in kinds]
    handles += [Line2D([], [], ls="none", marker="o", ms=8, color=colour,
                       label=mark if name == mark else f"{mark}  {plain(name)}")
                for (mark, name, *_), colour in zip(groups, TEN_COLOURS, strict=False)]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.supxlabel(fill(caption, 125, break_on_hyphens=False), x=0.01, ha="left", fontsize=8, parse_math=False)
    figure.savefig(path, metadata={"Software": None}, bbox_inches="tight", pad_inches=0.05)


def plain(name: str, most: int = 28) -> str:
    """A name as a figure prints it: cut after `most` characters, and its dollar signs are not mathematics."""
    return (name if len(name) <= most else f"{name[:most - 1]}…").replace("$", r"\$")


def ink_on(colour: str) -> str:
    """Black or white, whichever is read better on `colour`, "#rrggbb"."""
    red, green, blue = (int(colour[place:place + 2], 16) for place in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
