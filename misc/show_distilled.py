"""Pictures of a distilled set: its images by class, their prototypes and nearest real images, and a map of the latents.

    python -m misc.show_distilled runs/digits/distilled/digits_ipc10_10_s0.3_g2.0_kmexpand1 \\
        --prototype_path runs/digits/prototypes/digits-ipc10-kmexpand1

Writes classes.png, with --beside other sets beside.png (a row per set, a column per class; with one class, its images)
and, with the training images, neighbours.png and latents.png. All training images of the classes shown are encoded, one class
in memory at a time.
"""

from dataclasses import dataclass
from pathlib import Path

from distillation.card import made_how, unique_names
from misc.judge import PIXELS, small
from misc.report.pictures import draw_grid, draw_map
from scripts.artefact import identity, read_manifest
from scripts.cli import InputError, Parser, dataset_flags, run

MOST_CLASSES = 10       # in one picture; the map has as many colours
GROUPS = 2              # images per class in neighbours.png
POINTS = 200            # real images per class on the map


@dataclass(frozen=True)
class ClassView:
    """One class, distilled and real. Latents are flat, [N, C * h * w]."""

    label: int
    images: object               # rows of its distilled images [N]
    prototype_of: list[int]      # the prototype of each image; empty without prototypes
    centroids: object
    real_latents: object         # of at most POINTS training images
    distilled_latents: object    # of the first images
    by_latents: tuple | None     # `nearest` of the prototypes
    by_pixels: tuple             # `nearest` of the distilled images
    among_real: object           # distance in pixels of each training image to the nearest other one


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("distilled", metavar="DIR", help="distilled set: a folder of gen_syn_image, or one of the original's")
    parser.add_argument("--prototype_path", help="the set's prototypes: folder, or the original's JSON file")
    parser.add_argument("--beside", nargs="+", default=[], metavar="DIR", help="other distilled sets of the same classes")
    parser.add_dataset_flags()
    parser.set_defaults(dataset=None, data_dir=None)    # the distilled set has the name of its data set, not its folder
    parser.add_checkpoint_flags()
    parser.add_argument("--batch_size", default=64, type=int, least=1, help="images encoded at once")
    parser.add_argument("--num_workers", default=4, type=int, least=0, help="threads decoding images")
    parser.add_argument("--classes", nargs="+", metavar="NAME",
                        help=f"at most {MOST_CLASSES} classes (default: as many, evenly over the list)")
    parser.add_argument("--images", default=10, type=int, least=1, help="images per class in the grid and on the map")
    parser.add_argument("--output_dir", help="default: runs/show/<the set's name>")
    args = parser.parse_args()
    if args.classes and len(args.classes) > MOST_CLASSES:
        raise InputError(f"--classes: expected at most {MOST_CLASSES} names, found {len(args.classes)}")
    return args


def main(args):
    folder = Path(args.distilled)
    distilled, rows, config = read_set(folder)
    shown = choose_classes(distilled.classes, args.classes)
    prototypes, made_with = prototypes_of(folder, config, args.prototype_path)
    split = training_images(args, distilled, config)
    output = Path(args.output_dir or f"runs/show/{folder.resolve().name}")
    output.mkdir(parents=True, exist_ok=True)
    show_classes(output / "classes.png", distilled, shown, args.images)
    if args.beside:
        show_beside(output / "beside.png", [folder, *map(Path, args.beside)], distilled.classes, shown, args.images)
    if split is None:
        print("left out: neighbours.png and latents.png; they need the training images (--data_dir and --dataset)")
        return
    if prototypes is None and "prototypes" in config.get("source", {}):
        print("left out of neighbours.png and latents.png: the prototypes; they need --prototype_path")
    pipeline, size = load_encoder(args, prototypes, made_with)
    fit = fit_of(config, made_with)
    views = compare(args, pipeline, size, split, fit, distilled, rows, prototypes, shown)
    show_neighbours(output / "neighbours.png", pipeline, split, fit, distilled, rows, views)
    if sum(len(view.real_latents) for view in views) > 1:   # two components need two images
        show_latents(output / "latents.png", distilled, views, f"{Path(args.diffusion_checkpoints_path).name} at {size} pixels")


def read_set(folder: Path):
    """The distilled images as a Split, their rows and configuration; both are empty for folders of the original."""
    from distillation.datasets import Split
    from distillation.distilled_set import read_distilled
    from distillation.images import open_image
    classes, paths, labels, _ = read_distilled(folder)
    manifest = read_manifest(folder, "distilled") if (folder / "manifest.json").exists() else {"rows": [], "config": {}}
    images = Split(folder.name, classes, labels.numpy(), lambda row: open_image(paths[row]), paths=paths)
    return images, manifest["rows"], manifest["config"]


def choose_classes(classes: list[dict], wanted: list[str] | None) -> list[int]:
    """Labels of the classes `wanted`; without them at most MOST_CLASSES, evenly over the list."""
    names = [entry["name"] for entry in classes]
    unknown = [name for name in wanted or [] if name not in names]
    if unknown:
        raise InputError(f"--classes: expected names of classes such as {', '.join(names[:5])}, found {unknown[0]}")
    count = min(len(names), MOST_CLASSES)
    return sorted({names.index(name) for name in wanted}) if wanted else [place * len(names) // count for place in range(count)]


def prototypes_of(folder: Path, config: dict, path: str | None):
    """The prototypes by class, and their configuration; (None, {}) without a path. Raises InputError for another set's."""
    from distillation.prototypes import read_prototypes
    if path is None:
        return None, {}
    _, prototypes, made_with = read_prototypes(path)
    expected = config.get("source", {}).get("prototypes")
    if expected != identity(path):
        raise InputError(f"--prototype_path: expected the prototypes {folder} was made from ({(expected or 'none')[:12]}), "
                         f"found {identity(path)[:12]} in {path}")
    return prototypes, made_with


def training_images(args, distilled, config: dict):
    """The training split; None where its name or folder is unknown. Raises InputError when it has other classes."""
    from distillation.datasets import load_split
    from distillation.distilled_set import check_class_names
    name = args.dataset or config.get("dataset")
    if name is None or (args.data_dir is None and name != "digits"):
        return None
    split = load_split(split="train", **{**dataset_flags(args), "name": name, "data_dir": args.data_dir or "data"})
    check_class_names(distilled.name, distilled.classes, split.name, split.classes)
    return split


def load_encoder(args, prototypes, made_with: dict):
    """The autoencoder, and the size in pixels at which it encodes. Raises InputError when the prototypes have another shape."""
    from accelerate import Accelerator

    from distillation.checkpoints import check_autoencoder, load_pipeline
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, args.diffusion_checkpoints_path, Accelerator().device,
                             args.dtype, args.revision)
    size = made_with.get("size") or pipeline.size_pixels
    if prototypes:
        shape, shape_here = tuple(prototypes[0].centroids.shape[1:]), pipeline.latent_shape(size)
        if shape != shape_here:
            raise InputError(f"{args.prototype_path}: expected latents of shape {shape_here}, as "
                             f"{args.diffusion_checkpoints_path} makes them of {size} pixels, found {shape}")
        check_autoencoder(pipeline, made_with, args.prototype_path, args.diffusion_checkpoints_path)
    return pipeline, size


def fit_of(config: dict, made_with: dict) -> str:
    """How training images become squares (`fit_image`): as for the set, so that a copy has the distance 0."""
    cut = made_with.get("prototype") == "random" or config.get("method") in ("random", "herding", "kcenter", "mtt")
    return "centre" if cut else made_with.get("resize", "squash")


def compare(args, pipeline, size: int, split, fit: str, distilled, rows: list[dict], prototypes,
            shown: list[int]) -> list[ClassView]:
    import numpy as np
    import torch

    from distillation.datasets import decode
    from distillation.encoding import Encoding, encode_classes

    def encoded(source, fit: str):
        return encode_classes(pipeline, source, shown, size, Encoding(0, "mean", args.batch_size, args.num_workers, fit))

    def grey(source, wanted, fit: str):
        parts = torch.from_numpy(wanted).split(args.batch_size)
        images = (decode(source, part, distilled.read(0).width, args.num_workers, fit) for part in parts)
        return torch.from_numpy(np.concatenate([small(part) for part in images]))
    first = np.concatenate([distilled.rows_of(label)[:args.images] for label in shown])
    made, views = list(encoded(distilled.only(first), "squash")), []
    for (label, latents, real_rows), own in zip(encoded(split, fit), made, strict=True):
        images, real, real_grey = distilled.rows_of(label), latents.flatten(1), grey(split, real_rows, fit)
        centroids = prototypes and prototypes[label].centroids
        kept = np.linspace(0, len(real) - 1, min(POINTS, len(real))).round().astype(int)
        views.append(ClassView(
            label, images, [rows[image]["prototype"] for image in images] if prototypes else [], centroids, real[kept],
            own.latents.flatten(1), nearest(centroids.flatten(1), real, real_rows) if prototypes else None,
            nearest(grey(distilled, images, "squash"), real_grey, real_rows, PIXELS), nearest_other(real_grey) / PIXELS))
    return views


def distances(points, known):
    """Euclidean distances [N, M] by differences, so an exact copy has the distance 0."""
    import torch
    return torch.cdist(points, known, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(points, known, rows, scale: float = 1) -> tuple:
    """The rows [N] and distances [N] of the nearest of `known` [M, P], the training images `rows` [M], to `points` [N, P]."""
    found, places = distances(points, known).min(1)
    return rows[places.numpy()], (found / scale).numpy()


def nearest_other(known):
    """The distance of each of `known` [M, P] to the nearest other one [M]; empty for a single one."""
    found = distances(known, known).fill_diagonal_(float("inf")).amin(1)
    return found[found.isfinite()].numpy()


def show_classes(path: Path, distilled, shown: list[int], most: int) -> None:
    """A row of images per class, in the set's order."""
    names = unique_names(distilled.classes)
    available = {label: distilled.rows_of(label) for label in shown}
    fewest, largest = (pick(len(images) for images in available.values()) for pick in (min, max))
    columns = min(most, largest)
    grid = {names[label]: [distilled.read(row) for row in images[:columns]] + [None] * (columns - len(images))
            for label, images in available.items()}
    each = f"{columns} of {largest}" if fewest == largest else f"at most {columns} of {fewest} to {largest}"
    caption = f"{distilled.name}: {len(shown)} of {len(names)} classes, {each} images each."
    draw_grid(path, [""] * columns, grid, caption=caption)
    print(f"{path}: {caption}")


def show_beside(path: Path, folders: list[Path], classes: list[dict], shown: list[int], most: int) -> None:
    """A row for each set: the first image of each class, or of one class the first `most` of any set.

    Raises InputError for a set of other classes.
    """
    from distillation.distilled_set import check_class_names
    names, sets, rows = unique_names(classes), [read_set(folder) for folder in folders], {}
    each = min(most, max(len(images.rows_of(shown[0])) for images, *_ in sets)) if len(shown) == 1 else 1
    titles = [row_titles(folder, config) for folder, (*_, config) in zip(folders, sets, strict=True)]
    for folder, (images, *_), mine in zip(folders, sets, titles, strict=True):
        check_class_names(str(folder), images.classes, str(folders[0]), classes)
        title = next((one for place, one in enumerate(mine) if [other[place] for other in titles].count(one) == 1), mine[-1])
        rows[title] = [None if row is None else images.read(row)
                       for label in shown for row in [*images.rows_of(label), *[None] * each][:each]]
    draw_grid(path, [head for label in shown for head in (names[label], *[""] * (each - 1))], rows)
    print(f"{path}: {' above '.join(rows)}")


def row_titles(folder: Path, config: dict) -> tuple[str, ...]:
    """Names of a set, from plain to exact; the first that no other set has is shown."""
    how = made_how(config)[0] if "method" in config else folder.name
    return how, f"{how}, strength {config['strength']}" if "strength" in config else folder.name, folder.name, str(folder)


def show_neighbours(path: Path, pipeline, split, fit: str, distilled, rows: list[dict], views: list) -> None:
    """The images of the largest clusters of each class, beside their prototypes and nearest training images."""
    import numpy as np
    names, groups = unique_names(distilled.classes), min(GROUPS, *(len(view.images) for view in views))
    heads, which = ["image", "nearest\nby pixels"], f"the first {groups} images"
    says = "Images of the set and the nearest training image of the class in pixels"
    if views[0].by_latents:
        heads = ["prototype", "distilled", "nearest\nby latents", "nearest\nby pixels"]
        which = f"the {groups} largest clusters"
        says = ("A decoded prototype, the image made from it, and the nearest training images of the class: to the prototype "
                "in the latent space (Euclidean distance), to the distilled image in pixels")
    among_real = np.concatenate([view.among_real for view in views])
    beside = f"; training images to one another: median {np.median(among_real):.3f}" if len(among_real) else ""
    grid, notes = {}, {}
    for view in views:
        cells = [group_cells(view, place, pipeline, split, fit, distilled) for place in heaviest(view, rows)[:groups]]
        line = [cell for group in cells for cell in (*group, (None, ""))][:-1]
        grid[names[view.label]], notes[names[view.label]] = zip(*line, strict=True)
    caption = (f"{distilled.name}. {says} (root-mean-square distance of {PIXELS} x {PIXELS} grey pixels, 0 to 1{beside}). "
               f"{len(views)} of {len(names)} classes, {which} of each.")
    draw_grid(path, [*heads, None] * (groups - 1) + heads, grid, notes, caption, cell_inches=0.72, head_points=8.5)
    print(f"{path}: {caption}")


def heaviest(view, rows: list[dict]) -> list[int]:
    """Indices of a class's images: first images before second ones, large clusters before small ones."""
    def order(place: int) -> tuple:
        row = rows[view.images[place]]
        return row["repeat"], -row["weight"]
    return sorted(range(len(view.images)), key=order if rows else None)


def group_cells(view, place: int, pipeline, split, fit: str, distilled) -> list[tuple]:
    """An image and its neighbours, each with the line below it."""
    from distillation.datasets import decode
    from distillation.images import to_pil, to_uint8
    from scripts.pipeline_stable_diffusion_latents2img import decode_latents
    image = distilled.read(view.images[place])

    def real(neighbours: tuple, which: int, digits: int):
        nearest_rows, apart = neighbours
        return to_pil(decode(split, [nearest_rows[which]], image.width, fit=fit)[0]), f"{apart[which]:.{digits}f}"
    cells = [(image, ""), real(view.by_pixels, place, 3)]
    if view.by_latents:
        which = view.prototype_of[place]
        decoded = decode_latents(pipeline.vae, view.centroids[[which]])
        cells = [(to_pil(to_uint8(decoded)[0], image.width), ""), cells[0], real(view.by_latents, which, 2), cells[1]]
    return cells


def show_latents(path: Path, distilled, views: list, encoder: str) -> None:
    """Latents of real images, prototypes and distilled images on the first two principal components of the real ones."""
    import torch
    from sklearn.decomposition import PCA
    axes = PCA(2, random_state=0).fit(torch.cat([view.real_latents for view in views]).numpy())

    def group(view):
        made_from = view.prototype_of[:len(view.distilled_latents)]
        prototypes = axes.transform(view.centroids[made_from].flatten(1)) if made_from else []
        return (str(view.label), distilled.classes[view.label]["name"], axes.transform(view.real_latents),
                axes.transform(view.distilled_latents), prototypes)
    labels = [f"component {place} ({100 * share:.0f} % of the variance)"
              for place, share in enumerate(axes.explained_variance_ratio_, 1)]
    caption = (f"{distilled.name}: latents ({encoder}) of {sum(len(view.real_latents) for view in views)} training images of "
               f"{len(views)} of {len(distilled.classes)} classes on their first two principal components, and of the first "
               f"{len(views[0].distilled_latents)} images of each class in the set"
               + (", joined to their prototypes." if views[0].by_latents else "."))
    draw_map(path, [group(view) for view in views], labels, caption)
    print(f"{path}: {caption}")


if __name__ == "__main__":
    run(parse_args, main)
