"""Check artefact folders: the files against `manifest.json`, then the content with the readers of each kind.

    python -m misc.verify prototypes/digits-ipc10-kmexpand1 runs/teacher

Prints every problem and one line per folder. Exit code 0: all folders are correct; 2: one is not.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts import artefact, files
from scripts.cli import InputError, Parser, Progress, printable, run

BESIDE = ("manifest.json", "config.json", "result.json", "metrics.jsonl")  # have no digest in the manifest
Problems = Iterator[str]  # "file: expected ..., found ..."


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("folder", nargs="+", metavar="DIR", help="prototypes, images, soft labels, model, checkpoint or run")
    return parser.parse_args()


def main(args):
    wrong = 0
    for folder in map(Path, args.folder):
        kind, problems = verify(folder)
        for problem in problems:
            print(printable(f"{folder}/{problem}"))
        print(printable(f"{folder}: {kind}, {f'{len(problems)} wrong' if problems else 'correct'}"))
        wrong += len(problems)
    if wrong:
        sys.exit(2)


def verify(folder: Path) -> tuple[str, list[str]]:
    """The kind of an artefact, and all problems: of its manifest, files (missing, extra, size, digest) and content."""
    if not (folder / "manifest.json").exists():
        return "no artefact", [f"manifest.json: expected a finished artefact, found {artefact.without_manifest(folder)}"]
    try:
        manifest = files.read_json(folder / "manifest.json")
    except InputError as error:
        return "no artefact", [str(error).removeprefix(f"{folder}/")]
    kind = str(manifest.get("kind")) if isinstance(manifest, dict) else "no artefact"
    problems = artefact.manifest_problems(manifest)
    if not problems and kind not in CONTENT:
        problems = [f"expected kind {', '.join(sorted(CONTENT))}, found {kind}"]
    if problems:
        return kind, [f"manifest.json: {problem}" for problem in problems]
    problems = list(wrong_files(folder, manifest))
    known, content = files_of(problems), reported(folder, CONTENT[kind](folder, manifest))
    return kind, problems + [problem for problem in content if not files_of([problem]) <= known]


def files_of(problems: list[str]) -> set[str]:
    """The files that problems name."""
    return {problem.partition(": ")[0] for problem in problems}


def reported(folder: Path, problems: Problems) -> Problems:
    """The problems; an InputError of a reader, without the folder's name, is the last one."""
    try:
        yield from problems
    except InputError as error:
        yield str(error).removeprefix(f"{folder}/")


def wrong_files(folder: Path, manifest: dict) -> Problems:
    """Files that are missing, have another size or digest, or are images that the manifest does not list."""
    from distillation.images import ENDINGS
    broken = artefact.file_problems(folder, manifest)
    yield from broken
    known, listed = files_of(broken), {*manifest["files"], *BESIDE}
    for name, expected in Progress(manifest["files"].items(), desc=folder.name, unit="file", delay=1):
        if name not in known and (found := files.digest(folder / name)) != expected:
            yield f"{name}: expected the digest {expected[:12]}..., found {found[:12]}..."
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in listed or "/." in f"/{name}":
            continue
        if manifest["kind"] == "distilled" and "/" in name and name.lower().endswith(ENDINGS):  # ImageFolder would read it
            yield f"{name}: expected no image that manifest.json does not list, found one"
        else:
            print(printable(f"{folder}/{name}: not in manifest.json (a warning)"))


# content: one function per kind, for problems that only reading the files shows

def tensor_file(folder: Path, name: str, check: Callable[[dict], list[str]]) -> Problems:
    """Problems of one safetensors file."""
    def found() -> Problems:
        yield from (f"{name}: {problem}" for problem in check(files.read_tensors(folder / name)))
    return reported(folder, found())


def unequal(manifest: dict, where: str, **actual: int) -> Problems:
    """Numbers in a dictionary of the manifest that differ from the actual ones."""
    stored = manifest[where] if isinstance(manifest.get(where), dict) else {}
    yield from (f"manifest.json: expected {where} of {number} {name}, found {stored.get(name)}"
                for name, number in actual.items() if stored.get(name) != number)


def prototypes(folder: Path, manifest: dict) -> Problems:
    """One file per class with IPC centroids of one shape; the sizes sum to the images read."""
    from distillation.prototypes import read_prototypes
    classes, found, config = read_prototypes(folder)
    yield from unequal(manifest, "counts", classes=len(classes), prototypes=sum(len(each.centroids) for each in found))
    if len(found[0].centroids) != config.get("ipc"):
        yield f"manifest.json: expected ipc {len(found[0].centroids)}, found {config.get('ipc')}"
    if config.get("outliers") == "none":
        yield from unequal(manifest, "counts", images=sum(int(each.sizes.sum()) for each in found))


def distilled(folder: Path, manifest: dict) -> Problems:
    """As many images of one size in each class, with weights that sum to 1, and `metadata.jsonl` equal to the rows."""
    from distillation.distilled_set import read_distilled
    from distillation.images import open_image
    classes, paths, labels, weights = read_distilled(folder)
    rows, images = manifest["rows"], Counter(labels.tolist())
    yield from unequal(manifest, "counts", images=len(rows), classes=len(classes))
    for label, entry in enumerate(classes):
        weight = weights[labels == label].sum().item()
        if images[label] != max(images.values()):
            yield f"manifest.json: expected {max(images.values())} images of class {entry['name']}, found {images[label]}"
        elif abs(weight - 1) > 1e-4:
            yield f"manifest.json: expected weights of class {entry['name']} that sum to 1, found {weight:.6g}"
    listing = folder / "metadata.jsonl"
    found = [files.parse_json(listing, line) for line in files.read_bytes(listing, "a file of rows").splitlines()]
    if len(found) != len(rows):
        yield f"metadata.jsonl: expected {len(rows)} lines, found {len(found)}"
    yield from (f"metadata.jsonl: expected line {number} equal to the row in manifest.json, found another"
                for number, (line, row) in enumerate(zip(found, rows, strict=False), 1) if line != row)
    side = manifest["config"].get("image_size") or open_image(paths[0]).width
    yield from (f"{row['file_name']}: expected {side} x {side} pixels, found {size[0]} x {size[1]}"
                for row, path in zip(rows, paths, strict=True) if (size := open_image(path).size) != (side, side))


def model(folder: Path, manifest: dict) -> Problems:
    """The weights of the network that the manifest names, and an accuracy."""
    from scripts.networks import load_model
    yield from accuracies("manifest.json", {"test_accuracy": manifest.get("test_accuracy")})
    load_model(folder, manifest["kind"])


def soft_labels(folder: Path, manifest: dict) -> Problems:
    """The epochs listed, each with the draws and finite logits of as many views."""
    from matching.soft_labels import epoch_file, epoch_problems, read_store
    read_store(folder)
    stored, config, classes, kept = len(manifest["files"]), manifest["config"], len(manifest["classes"]), manifest.get("kept")
    if not isinstance(kept, dict) or any(type(kept.get(name)) is not int for name in ("views", "stored_logits")):
        yield "manifest.json: expected in kept the numbers of views and stored_logits, found none"
        return
    images, size = kept["views"] // stored, sum((folder / name).stat().st_size for name in manifest["files"])
    yield from unequal(manifest, "kept", epochs=config["epochs"], stored_epochs=stored, views=stored * images, classes=classes,
                       bytes=size)

    def check(tensors: dict) -> list[str]:
        problems = epoch_problems(tensors, images, classes, config["input_size"], None)
        if not problems and tensors["logits"].shape[1] != kept["stored_logits"]:
            problems = [f"logits: expected {kept['stored_logits']} per view, found {tensors['logits'].shape[1]}"]
        return problems
    for epoch in range(stored):
        yield from tensor_file(folder, epoch_file(epoch), check)


def finite_weights(folder: Path, manifest: dict) -> Problems:
    """Finite weights in every file, such as those of MTT's experts."""
    from scripts.networks import weight_problems
    for name in manifest["files"]:
        if name.endswith(".safetensors"):
            yield from tensor_file(folder, name, weight_problems)


def checkpoint(folder: Path, manifest: dict) -> Problems:
    """A checkpoint that loads, with finite weights."""
    from distillation.checkpoints import load_pipeline
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
    yield from finite_weights(folder, manifest)
    load_pipeline(StableDiffusionLatents2ImgPipeline, str(folder), "cpu")


def continual(folder: Path, manifest: dict) -> Problems:
    """A result with accuracies; the buffer's images, no more than it may have; the weights of a common start."""
    from scripts.networks import weight_problems
    yield from accuracies("result.json", files.read_json(folder / "result.json"))
    room, classes = manifest["config"].get("buffer_size"), len(manifest["classes"])

    def buffer_problems(tensors: dict) -> list[str]:
        count = tensors["labels"].numel() if "labels" in tensors else None
        problems = files.tensor_problems(tensors, {
            "images": files.Expected("integer", (count, 3, None, None), 0, 255),
            "labels": files.Expected("integer", (count,), 0, classes - 1)})
        full = not problems and isinstance(room, int) and count > room
        return [f"labels: expected at most {room} images, found {count}"] if full else problems
    for name, check in (("buffer.safetensors", buffer_problems), ("model.safetensors", weight_problems)):
        if name in manifest["files"]:
            yield from tensor_file(folder, name, check)


def accuracies(name: str, result) -> Problems:
    """Accuracies of a result outside [0, 1]; a row of a matrix is None where nothing was tested."""
    for key, value in result.items() if isinstance(result, dict) else ():
        if key not in ("acc", "test_accuracy", "matrix"):
            yield from accuracies(name, value)
            continue
        rows = value if isinstance(value, list) else [[value]]
        values = [each for row in rows if row is not None for each in (row if isinstance(row, list) else [row])]
        yield from (f"{name}: expected {key} in [0, 1], found {each!r}" for each in values
                    if type(each) not in (int, float) or not 0 <= each <= 1)


CONTENT: dict[str, Callable[[Path, dict], Problems]] = {
    "prototypes": prototypes, "distilled": distilled, "teacher": model, "student": model, "soft_labels": soft_labels,
    "ldm": checkpoint, "experts": finite_weights, "continual": continual, "start": continual, "export": lambda *_: ()}


if __name__ == "__main__":
    run(parse_args, main)
