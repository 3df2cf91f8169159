"""The two figures of a report: pictures per class, and accuracy against time."""

from pathlib import Path

from scripts.page import NOT_RUN, Section

SHOWN_CLASSES = 10
COLOURS = {"real": "#0072B2", "random": "#E69F00", "distilled": "#009E73"}     # told apart by colour-blind readers too
METHODS = {"joint": "Joint (upper bound)", "finetune": "Fine-tune (lower bound)", "er": "ER", "agem": "A-GEM",
           "task_arithmetic": "Task Arithmetic"}
MARKERS = {"joint": "*", "finetune": "v", "er": "o", "agem": "s", "task_arithmetic": "D"}


def class_grid(folder: Path) -> Section:
    """Draw grid.png from the run's distilled sets, and say what it shows."""
    title, sets = "Images", distilled_sets(folder)
    d4m = sets.get("d4m")
    if not d4m:
        return Section(title, f"A real image, a decoded prototype and a D4M image of each class: {NOT_RUN}.")
    prototype = sets.get("prototype")
    if prototype and prototype["config"]["source"] != d4m["config"]["source"]:
        prototype = None    # decoded from other prototypes: the rows would not belong together
    classes = d4m["classes"][:SHOWN_CLASSES]
    shown = [max((row for row in d4m["rows"] if row["label"] == label), key=lambda row: row["weight"])
             for label in range(len(classes))]
    any_real = [{"label": label, "prototype": 0} for label in range(len(classes))]
    rows = {"real": image_row(sets.get("random"), any_real), "prototype": image_row(prototype, shown),
            "D4M": image_row(d4m, shown)}
    draw_grid(folder / "grid.png", [entry["name"] for entry in classes], rows)
    missing = "".join(f" Row {name}: {NOT_RUN}." for name, images in rows.items() if images is None)
    return Section(title, f"A column per class ({len(classes)} of {len(d4m['classes'])}): a real training image, the decoded "
                   "prototype of the class's largest cluster, and the D4M image made from that prototype (strength "
                   f"{d4m['config']['strength']}, guidance {d4m['config']['guidance_scale']}). The real image is any one of "
                   f"its class, not the prototype's neighbour.{missing}", figure="grid.png",
                   alt=f"Grid of images with a column per class ({', '.join(entry['name'] for entry in classes)}) and the "
                       "rows real, prototype and D4M.")


def distilled_sets(folder: Path) -> dict[str, dict]:
    """The manifests of the finished distilled sets by method, with their `folder`; the first by name where several have one."""
    from distillation.manifest import read_manifest
    sets = {}
    for path in sorted(folder.glob("distilled/*/manifest.json"), reverse=True):
        manifest = read_manifest(path.parent, "distilled")
        sets[manifest["config"].get("method")] = {**manifest, "folder": path.parent}
    return sets


def image_row(images: dict | None, wanted: list[dict]) -> list | None:
    """The images of a set that were made from the same prototypes as the rows `wanted`."""
    from distillation.images import open_image
    if images is None:
        return None
    names = {(row["label"], row["prototype"]): row["file_name"] for row in reversed(images["rows"])}
    return [open_image(images["folder"] / names[row["label"], row["prototype"]]) for row in wanted]


def draw_grid(path: Path, names: list[str], rows: dict[str, list | None]) -> None:
    """Rows of images with a name each, under one name per column; a row that is None says so."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7.4, 0.62 * len(rows) + 0.35), dpi=200, layout="constrained")
    axes = figure.subplots(len(rows), len(names), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name if images else f"{name}\n({NOT_RUN})", rotation=0, ha="right", va="center", fontsize=11)
        for place, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            if images:
                axis.imshow(images[place], interpolation="nearest")
            else:
                axis.set_box_aspect(1)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name[:12], fontsize=11)
    figure.savefig(path, metadata={"Software": None})


def accuracy_vs_time(folder: Path, numbers: dict[tuple, dict]) -> Section:
    """Draw accuracy_vs_time.png from numbers by (method, source), and say what it shows."""
    title = "Accuracy against training time"
    points = {key: one for key, one in numbers.items() if key[0] in MARKERS and key[1] in COLOURS}
    if not points:
        return Section(title, f"Continual learning: {NOT_RUN}.")
    draw_times(folder / "accuracy_vs_time.png", points)
    counts = sorted({one["n"] for one in points.values()})
    spread = ", with bars of one standard deviation" if counts[-1] > 1 else ""
    return Section(title, "ACC (Class-IL, after the last task) against seconds of training, from the table above, which says "
                   f"what was held equal; each point has n = {' or '.join(map(str, counts))}{spread}. A thin line joins a "
                   "method's real and distilled points: up and left is better.", figure="accuracy_vs_time.png",
                   alt="Scatter plot of ACC in percent against training seconds, a marker per method and a colour per source. "
                       "The table on continual learning holds its numbers.")


def draw_times(path: Path, points: dict[tuple, dict]) -> None:
    """One marker per method, one colour per source, a thin line from a method's real to its distilled point."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    figure = Figure(figsize=(6.6, 5.6), dpi=170, layout="constrained")
    axis = figure.subplots()

    def place(*key):
        return points[key]["train_seconds"]["mean"], 100 * points[key]["acc"]["mean"]
    for method in MARKERS:
        if {(method, "real"), (method, "distilled")} <= points.keys():
            axis.plot(*zip(place(method, "real"), place(method, "distilled"), strict=True), color="#b5bcc4", lw=0.8, zorder=1)
    for (method, source), one in points.items():
        high = one["acc"]["std"] and 100 * one["acc"]["std"]
        axis.errorbar(*place(method, source), xerr=one["train_seconds"]["std"], yerr=high, marker=MARKERS[method],
                      color=COLOURS[source], markersize=13 if method == "joint" else 9, elinewidth=1,
                      **({"mfc": "none", "mew": 1.6, "zorder": 4} if source == "random" else {"mec": "white", "mew": 0.8}))
    axis.set(xlabel="training time (s)", ylabel="ACC, Class-IL (%)", ylim=(0, 103))
    axis.set_xlim(left=0)
    axis.grid(color="#e3e7eb", lw=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    methods = [Line2D([], [], ls="none", marker=mark, color="#59626d", label=METHODS[method], markersize=8)
               for method, mark in MARKERS.items() if any(of == method for of, _ in points)]
    sources = [Line2D([], [], ls="none", marker="o", color=colour, mfc="none" if source == "random" else colour, mew=1.6,
                      label="random real images" if source == "random" else f"{source} images", markersize=8)
               for source, colour in COLOURS.items() if any(of == source for _, of in points)]
    figure.legend(handles=[*sources, *methods], loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Software": None})
