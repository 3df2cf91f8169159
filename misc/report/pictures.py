"""Grids of images, a map of points, and the pictures of a run."""

from itertools import pairwise
from pathlib import Path
from textwrap import fill

from misc.report.figures import new_figure, save
from misc.report.section import NOT_RUN, Section

TEN_COLOURS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#222222")
SHOWN_CLASSES, BESIDE = 10, 4


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


def draw_map(path: Path, groups: list[tuple], labels: list[str], caption: str) -> None:
    """Points in the plane, a colour per group of (mark, name, real [N, 2], distilled [M, 2], prototypes [M, 2] or empty).

    Prototypes, or without them the distilled points, carry the group's mark, for readers who cannot distinguish the colours.
    """
    import numpy as np
    from matplotlib.lines import Line2D
    width, height = np.ptp(np.concatenate([points for group in groups for points in group[2:4]]), axis=0)
    figure, ((axis,),) = new_figure(7.4, 1.2 + 5 * min(max(height / width, 0.5), 1.5), dpi=200)
    joined = len(groups[0][4]) > 0
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
                       label=mark if name == mark else f"{mark}  {plain_name(name)}")
                for (mark, name, *_), colour in zip(groups, TEN_COLOURS, strict=False)]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.supxlabel(fill(caption, 125, break_on_hyphens=False), x=0.01, ha="left", fontsize=8, parse_math=False)
    save(figure, path, bbox_inches="tight", pad_inches=0.05)


def ink_on(colour: str) -> str:
    """Black or white, whichever is more readable on `colour` (ITU-R BT.601 luma)."""
    from matplotlib.colors import to_rgb
    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 / 255 else "white"


def picture_figures(folder: Path, run: Path) -> list[Section]:
    """Draw the images of a run: grid.png, real, prototype and D4M image of each class, and with random real images beside.png.

    Nothing where there is no D4M set. Of two sets of a method the first by name counts.
    """
    from distillation.card import unique_names
    from distillation.images import open_image
    from scripts.artefact import read_manifest
    sets = {}
    for path in sorted(run.glob("distilled/*/manifest.json"), reverse=True):     # the first by name stays
        manifest = read_manifest(path.parent, "distilled")
        sets[manifest["config"].get("method")] = {**manifest, "folder": path.parent}
    d4m, prototype, random = (sets.get(method) for method in ("d4m", "prototype", "random"))
    if not d4m:
        return []
    if prototype and prototype["config"]["source"] != d4m["config"]["source"]:
        prototype = None    # decoded from other prototypes: the rows would not belong together
    names = unique_names(d4m["classes"])[:SHOWN_CLASSES]
    shown = f"({len(names)} of {len(d4m['classes'])})"

    def read(of, rows):
        return [open_image(of["folder"] / row["file_name"]) for row in rows]

    def by_class(of):
        return [[row for row in of["rows"] if row["label"] == label] for label in range(len(names))]
    largest = [sorted(rows, key=lambda row: (row["repeat"], -row["weight"])) for rows in by_class(d4m)]
    drawn = random and by_class(random)
    first = [rows[0] for rows in largest]
    decoded = prototype and [next(row for row in rows if row["prototype"] == wanted["prototype"])
                             for rows, wanted in zip(by_class(prototype), first, strict=True)]
    grid = {"real": random and read(random, [rows[0] for rows in drawn]), "prototype": decoded and read(prototype, decoded),
            "D4M": read(d4m, first)}
    missing = "".join(f" Row {name}: {NOT_RUN}." for name, images in grid.items() if images is None)
    draw_grid(folder / "grid.png", [name[:12] for name in names], grid, width_inches=7.4)
    sections = [Section("Images", f"A column per class {shown}: a real training image, the decoded prototype of the class's "
                        "largest cluster, and the D4M image made from that prototype (strength "
                        f"{d4m['config']['strength']}, guidance {d4m['config']['guidance_scale']}). The real image is any one "
                        f"of its class.{missing}", figure=folder / "grid.png", held="Equal: the class of a column, and the "
                        "prototype of rows prototype and D4M.",
                        alt=f"Images, a column per class ({', '.join(names)}), rows real, prototype and D4M.")]
    if random:
        each = min(BESIDE, *map(len, largest), *map(len, drawn))
        draw_grid(folder / "beside.png", ["D4M", *[""] * (each - 1), None, "random", *[""] * (each - 1)],
                  {name: [*read(d4m, own[:each]), None, *read(random, other[:each])]
                   for name, own, other in zip(names, largest, drawn, strict=True)})
        equal = "Equal" if len(d4m["rows"]) == len(random["rows"]) else "Not equal"
        sections.append(Section("D4M images beside random real ones", f"A row per class {shown}: {each} D4M images, large "
                                f"clusters first, then {each} random real ones.", figure=folder / "beside.png",
                                held=f"{equal}: the number of images ({len(d4m['rows'])} D4M and {len(random['rows'])} random "
                                "real).",
                                alt=f"Images, a row per class ({', '.join(names)}): {each} D4M images, then {each} real ones."))
    return sections
