"""How a report looks: its sections as Markdown, as one HTML page and as plain text, its numbers, and its two figures."""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path

NOT_RUN, NONE = "not run", "–"
SHOWN_CLASSES = 10
COLOURS = {"real": "#0072B2", "random": "#E69F00", "distilled": "#009E73"}     # told apart by colour-blind readers too
METHODS = {"joint": "Joint (upper bound)", "finetune": "Fine-tune (lower bound)", "er": "ER", "agem": "A-GEM",
           "task_arithmetic": "Task Arithmetic"}
MARKERS = {"joint": "*", "finetune": "v", "er": "o", "agem": "s", "task_arithmetic": "D"}
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59626d; --back: #ffffff; --line: #d5dae0; --stripe: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --soft: #a2acb7; --back: #14181c; --line: #363e47; --stripe: #1c2228; } }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0 .9rem; }
.wide { overflow-x: auto; } .wide:focus-visible { outline: 2px solid #3b82c4; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { white-space: normal; vertical-align: bottom; color: var(--soft); font-weight: 600; line-height: 1.3; }
th:first-child { position: sticky; left: 0; background: var(--back); } tbody th { font-weight: 500; }
tbody tr:nth-child(even), tbody tr:nth-child(even) th { background: var(--stripe); }
.left { text-align: left; } td.left { white-space: normal; } .absent { color: var(--soft); font-style: italic; }
img { display: block; width: 100%; max-width: 46rem; height: auto; border: 1px solid var(--line); border-radius: 6px; }
"""


@dataclass(frozen=True)
class Section:
    """A part of a report: what it `says`, then a table or a figure (a file beside the report, with its alternative text)."""

    title: str
    says: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: str = ""
    alt: str = ""


# text


def cell(numbers: dict | None, name: str, scale: float = 1, digits: int = 1) -> str:
    """One number of a table, {"mean", "std"} or plain, with its standard deviation where there is one."""
    if numbers is None:
        return NOT_RUN
    value = numbers[name] if isinstance(numbers[name], dict) else {"mean": numbers[name], "std": None}
    if value["mean"] is None:
        return NONE
    spread = "" if value["std"] is None or digits == 0 else f" ± {scale * value['std']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}"


def markdown_table(header, rows) -> str:
    """A Markdown table of texts; columns of numbers, that is those whose first cell holds one, are right-aligned."""
    marks = [":---" if left else "---:" for left in left_columns(header, rows)]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in (header, marks, *rows))


def plain_table(header, rows) -> str:
    """The same as aligned plain text; a header breaks between words where its column is narrower."""
    import textwrap
    widths = [max(map(len, (*name.split(), *column))) for name, column in zip(header, zip(*rows, strict=True), strict=True)]
    heads = [textwrap.wrap(name, width) for name, width in zip(header, widths, strict=True)]
    tall = max(map(len, heads))
    above = zip(*([""] * (tall - len(head)) + head for head in heads), strict=True)
    left = left_columns(header, rows)
    return "\n".join("  ".join(text.ljust(width) if flush else text.rjust(width)
                               for text, width, flush in zip(row, widths, left, strict=True)).rstrip()
                     for row in (*above, ["-" * width for width in widths], *rows))


def left_columns(header, rows) -> list[bool]:
    """Which columns hold words: those in which some cell is neither a number nor a mark of absence."""
    def is_number(text):
        return text in (NOT_RUN, NONE) or text.split(" ")[0].lstrip("-").replace(".", "", 1).isdigit()
    return [not all(is_number(row[place]) for row in rows) for place in range(len(header))]


def markdown(title: str, sections: list[Section]) -> str:
    """The report as Markdown; figures are referred to by name."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", section.says]
        parts += [markdown_table(section.header, section.rows)] if section.rows else []
        parts += [f"![{section.alt}]({section.figure})"] if section.figure else []
    return "\n\n".join(parts) + "\n"


def plain(sections: list[Section]) -> str:
    """The words and tables of a report for the screen."""
    import textwrap
    return "\n\n".join("\n".join([f"== {section.title}", *textwrap.wrap(section.says, 110),
                                  *([plain_table(section.header, section.rows)] if section.rows else [])])
                       for section in sections)


def page(title: str, sections: list[Section], folder: Path) -> str:
    """The report as one HTML page that refers to nothing outside itself; figures are read from `folder`."""
    body = "\n".join(html_section(section, folder) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{body}
</main>
</body>
</html>
"""


def html_section(section: Section, folder: Path) -> str:
    """One section of the page."""
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>\n<p>{escape(section.says)}</p>"]
    if section.rows:
        parts.append(html_table(section))
    if section.figure:
        image = base64.b64encode((folder / section.figure).read_bytes()).decode()
        parts.append(f'<img alt="{escape(section.alt)}" src="data:image/png;base64,{image}">')
    return "\n".join([*parts, "</section>"])


def html_table(section: Section) -> str:
    """A table that scrolls sideways by itself where the screen is narrow; the first column names the row."""
    left = [' class="left"' if flush else "" for flush in left_columns(section.header, section.rows)]

    def one(text, mark, first):
        mark = ' class="absent"' if text == NOT_RUN else mark
        return f'<th scope="row"{mark}>{escape(text)}</th>' if first else f"<td{mark}>{escape(text)}</td>"
    head = "".join(f'<th scope="col"{mark}>{escape(text)}</th>' for text, mark in zip(section.header, left, strict=True))
    rows = "\n".join("<tr>" + "".join(one(text, mark, place == 0)
                                      for place, (text, mark) in enumerate(zip(row, left, strict=True))) + "</tr>"
                     for row in section.rows)
    return (f'<div class="wide" tabindex="0" role="region" aria-label="Table: {escape(section.title)}">\n<table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>")


# figures


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
    from distillation.datasets import open_image
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
