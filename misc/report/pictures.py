"""Pictures of a report: a real image, a prototype and a D4M image of each class, and D4M images beside random real ones.

They are taken from a run's distilled sets, or from the copies that a result file keeps of them (64 pixels at most).
"""

import base64
import io
from pathlib import Path

from misc.report.figures import draw_grid
from misc.report.sections import NOT_RUN, Section

SHOWN_CLASSES, BESIDE, KEPT_PIXELS = 10, 4, 64


def pictures_of(folder: Path) -> dict | None:
    """The images of a run, {"rows": {name: [image per class] or None}, "beside": {name: [[image, ...] per class]}}, and what
    they are; None where there is no D4M set. Of two sets of a method the first by name counts."""
    from distillation.card import unique_names
    sets = distilled_sets(folder)
    d4m, prototype, random = (sets.get(method) for method in ("d4m", "prototype", "random"))
    if not d4m:
        return None
    if prototype and prototype["config"]["source"] != d4m["config"]["source"]:
        prototype = None    # decoded from other prototypes: the rows would not belong together
    names = unique_names(d4m["classes"])[:SHOWN_CLASSES]
    labels = range(len(names))
    largest = {label: sorted(rows_of(d4m, label), key=lambda row: (row["repeat"], -row["weight"])) for label in labels}
    any_real = {label: rows_of(random, label) for label in labels} if random else {}
    both = (largest, any_real) if random else (largest,)
    each = min(BESIDE, *(len(rows) for rows_by_class in both for rows in rows_by_class.values()))
    first = [largest[label][0] for label in labels]
    return {"classes": names, "of": len(d4m["classes"]), "strength": d4m["config"]["strength"],
            "guidance_scale": d4m["config"]["guidance_scale"],
            "images": {name: len(one["rows"]) for name, one in (("D4M", d4m), ("random real", random)) if one},
            "rows": {"real": random and read(random, [any_real[label][0] for label in labels]),
                     "prototype": prototype and read(prototype, [same(prototype, row) for row in first]),
                     "D4M": read(d4m, first)},
            "beside": {name: [read(one, rows_by_class[label][:each]) for label in labels]
                       for name, one, rows_by_class in (("D4M", d4m, largest), ("random real", random, any_real)) if one}}


def distilled_sets(folder: Path) -> dict[str, dict]:
    """The manifests of the finished distilled sets by method, with their `folder`; the first by name where several have one."""
    from scripts.artefact import read_manifest
    sets = {}
    for path in sorted(folder.glob("distilled/*/manifest.json"), reverse=True):
        manifest = read_manifest(path.parent, "distilled")
        sets[manifest["config"].get("method")] = {**manifest, "folder": path.parent}
    return sets


def rows_of(images: dict, label: int) -> list[dict]:
    """A set's rows of a class."""
    return [row for row in images["rows"] if row["label"] == label]


def same(images: dict, wanted: dict) -> dict:
    """The row that was made from the same prototype as `wanted`."""
    return next(row for row in rows_of(images, wanted["label"]) if row["prototype"] == wanted["prototype"])


def read(images: dict, rows: list[dict]) -> list:
    """The images of some rows."""
    from distillation.images import open_image
    return [open_image(images["folder"] / row["file_name"]) for row in rows]


def class_grids(pictures: dict | None, folder: Path, command: str) -> list[Section]:
    """Draw grid.png and, with random real images, beside.png, and say what they show."""
    if pictures is None:
        return [Section("Images", f"A real image, a decoded prototype and a D4M image of each class: {NOT_RUN}.")]
    draw_pictures(pictures, folder)
    names, found = pictures["classes"], pictures["images"]
    missing = "".join(f" Row {name}: {NOT_RUN}." for name, images in pictures["rows"].items() if images is None)
    shown = f"{len(names)} of {pictures['of']}"
    grids = [Section("Images", f"A column per class ({shown}): a real training image, the decoded prototype of the class's "
                     f"largest cluster, and the D4M image made from that prototype (strength {pictures['strength']}, guidance "
                     f"{pictures['guidance_scale']}). The real image is any one of its class, not the prototype's neighbour."
                     f"{missing}", figure="grid.png", held="Held equal: the class in a column, and from row prototype to row "
                     "D4M the prototype.", command=command,
                     alt=f"Grid of images with a column per class ({', '.join(names)}) and the rows real, prototype and D4M.")]
    if len(pictures["beside"]) == 2:
        counts = " and ".join(f"{count} {name}" for name, count in found.items())
        each = len(pictures["beside"]["D4M"][0])
        equal = len(set(found.values())) == 1
        grids.append(Section("D4M images beside random real ones", f"A row per class ({shown}): on the left {each} D4M images, "
                             f"those of large clusters first, on the right {each} of the real images drawn at random.",
                             figure="beside.png", command=command,
                             held=f"{'Held equal' if equal else 'Not equal'}: the number of images ({counts} in all).",
                             alt=f"Grid of images with a row per class ({', '.join(names)}): {each} D4M images, then {each} "
                                 "random real ones."))
    return grids


def draw_pictures(pictures: dict, folder: Path) -> None:
    """Write grid.png and, with random real images, beside.png."""
    names = pictures["classes"]
    draw_grid(folder / "grid.png", [name[:12] for name in names], pictures["rows"], width_inches=7.4)
    if len(pictures["beside"]) == 2:
        each = len(pictures["beside"]["D4M"][0])
        heads = ["D4M", *[""] * (each - 1), None, "random", *[""] * (each - 1)]
        lines = zip(*pictures["beside"].values(), strict=True)
        draw_grid(folder / "beside.png", heads, {name: [*own, None, *other]
                                                 for name, (own, other) in zip(names, lines, strict=True)})


def packed(pictures: dict | None) -> dict | None:
    """The same for JSON: each line of images as one PNG in Base64."""
    return pictures and {**pictures, "rows": {name: images and strip(images) for name, images in pictures["rows"].items()},
                         "beside": {name: [strip(images) for images in of] for name, of in pictures["beside"].items()}}


def unpacked(kept: dict | None) -> dict | None:
    """What `packed` was given."""
    return kept and {**kept, "rows": {name: line and cut(line) for name, line in kept["rows"].items()},
                     "beside": {name: [cut(line) for line in of] for name, of in kept["beside"].items()}}


def strip(images: list) -> str:
    """Square images side by side, as one PNG in Base64, at most KEPT_PIXELS high."""
    from PIL import Image
    size = min(images[0].width, KEPT_PIXELS)
    line, file = Image.new("RGB", (size * len(images), size)), io.BytesIO()
    for place, image in enumerate(images):
        line.paste(image.resize((size, size), Image.LANCZOS) if image.size != (size, size) else image, (place * size, 0))
    line.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def cut(line: str) -> list:
    """The images of a strip."""
    from PIL import Image
    image = Image.open(io.BytesIO(base64.b64decode(line)))
    return [image.crop((left, 0, left + image.height, image.height)) for left in range(0, image.width, image.height)]
