"""An artefact folder against its manifest: everything that is wrong with it, one line each ("where: expected ..., found ...").

What a kind's files have to hold is asked of `CHECKS`; later stages add the kinds that they write.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from distillation.distilled_set import row_problems
from distillation.images import ENDINGS, open_image
from distillation.prototypes import class_files, class_problems
from scripts.artefact import (
    digest,
    file_problems,
    manifest_problems,
    parse_json,
    raise_first,
    read_bytes,
    read_json,
    read_tensors,
    without_manifest,
)
from scripts.cli import InputError, Progress
from scripts.networks import WEIGHTS, model_problems, state_problems, weight_problems

BESIDE = ("manifest.json", "config.json", "result.json", "metrics.jsonl")  # written with an artefact, without a digest
Check = Callable[[Path, dict], list[str]]  # folder and sound manifest -> what is wrong with the content


class NoArtefact(InputError):
    """A folder that is no finished artefact."""


@dataclass(frozen=True)
class Report:
    """What `verify` found: the kind, problems and mere warnings, files and bytes read."""

    kind: str
    problems: list[str]
    warnings: list[str]
    files: int = 0
    bytes: int = 0


def verify(folder: Path, checks: dict[str, Check]) -> Report:
    """Check digests, files, counts, shapes, values and class order of an artefact; `checks` has one function per kind.

    Raises NoArtefact for a folder without `manifest.json`.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").exists():
        raise NoArtefact(f"{folder}: expected an artefact with manifest.json, found {without_manifest(folder)}")
    try:
        manifest = read_json(folder / "manifest.json")
    except InputError as error:
        return Report("unknown", [inner(error, folder)], [])
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    problems = manifest_problems(manifest)
    if not problems and kind not in list(checks):
        problems = [f"expected kind {', '.join(sorted(checks))}, found {kind!r}"]
    if problems:
        return Report(str(kind), [f"manifest.json: {problem}" for problem in problems], [])
    broken = file_problems(folder, manifest)
    broken += digest_problems(folder, manifest, {place_of(problem) for problem in broken})
    images, warnings = extra_files(folder, manifest)
    known = {place_of(problem) for problem in broken}
    content = [problem for problem in checks[kind](folder, manifest) if place_of(problem) not in known]
    size = sum((folder / name).stat().st_size for name in manifest["files"] if name not in known)
    return Report(kind, broken + images + content, warnings, len(manifest["files"]), size)


def own_checkpoint(checkpoint: str) -> str | None:
    """A checkpoint folder of train_ldm, which has a manifest; None for others."""
    return checkpoint if (Path(checkpoint) / "manifest.json").exists() else None


def place_of(problem: str) -> str:
    """Where a problem is: the file before the first colon."""
    return problem.partition(": ")[0]


def inner(error: InputError, folder: Path) -> str:
    """A reader's message with the place below `folder`."""
    return str(error).removeprefix(f"{folder}/")


def digest_problems(folder: Path, manifest: dict, known: set[str]) -> list[str]:
    """Files whose digest is not the manifest's, but for those `known` to be wrong."""
    names = [name for name in manifest["files"] if name not in known]
    sizes = [(folder / name).stat().st_size for name in names]
    problems = []
    with Progress(total=sum(sizes), desc=folder.name, unit="B", unit_scale=True, delay=1) as bar:
        for name, size in zip(names, sizes, strict=True):
            found, wanted = digest(folder / name), manifest["files"][name]
            if found != wanted:
                problems.append(f"{name}: expected the digest {wanted[:12]}..., found {found[:12]}...")
            bar.update(size)
    return problems


def extra_files(folder: Path, manifest: dict) -> tuple[list[str], list[str]]:
    """Images in class folders that the manifest does not name, which readers of folders would take, and other such files."""
    listed, problems, warnings = {*manifest["files"], *BESIDE}, [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name in listed or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if manifest["kind"] == "distilled" and "/" in name and name.lower().endswith(ENDINGS):
            problems.append(f"{name}: expected no image that manifest.json does not name, found one")
        else:
            warnings.append(f"{name}: not named by manifest.json")
    return problems, warnings


def file_content(folder: Path, name: str, check: Callable[[dict[str, Tensor]], Iterable[str]]) -> list[str]:
    """What `check` has to say of the tensors in a file, or why it cannot be read."""
    try:
        return [f"{name}: {problem}" for problem in check(read_tensors(folder / name))]
    except InputError as error:
        return [inner(error, folder)]


def counted(manifest: dict, **actual: int) -> list[str]:
    """Where the manifest's counts are not what was found."""
    counts = manifest.get("counts")
    if not isinstance(counts, dict):
        return ["manifest.json: expected counts, found none"]
    return [f"manifest.json: expected counts of {number} {name}, found {counts.get(name)}"
            for name, number in actual.items() if counts.get(name) != number]


def prototype_folder(folder: Path, manifest: dict) -> list[str]:
    """IPC centroids of one shape for each class, and sizes that sum to the images read."""
    names, config, sizes = class_files(manifest), manifest["config"], []
    problems = [f"{name}: expected a file of this class in manifest.json, found none"
                for name in names if name not in manifest["files"]]
    if len(manifest["files"]) != len(names):
        problems.append(f"manifest.json: expected {len(names)} files, one per class, found {len(manifest['files'])}")
    ipc, latent = config.get("ipc"), manifest.get("latent_shape")
    shape = (ipc, *latent) if isinstance(latent, list) and len(latent) == 3 else (ipc, None, None, None)

    def check(tensors: dict[str, Tensor]) -> list[str]:
        found = class_problems(tensors, shape)
        sizes.append(None if found else int(tensors["sizes"].sum()))
        return found
    for name in names:
        problems += file_content(folder, name, check) if name in manifest["files"] else []
    if isinstance(ipc, int):
        problems += counted(manifest, classes=len(names), prototypes=len(names) * ipc)
    if len(sizes) == len(names) and None not in sizes and config.get("outliers") == "none":
        problems += counted(manifest, images=sum(sizes))
    return problems


def distilled_folder(folder: Path, manifest: dict) -> list[str]:
    """Rows that fit their folders, IPC images of one size for each class, weights that sum to 1, `metadata.jsonl` as rows."""
    if problems := row_problems(manifest):
        return [f"manifest.json: {problem}" for problem in problems]
    rows, classes, problems = manifest["rows"], manifest["classes"], []
    found, weights = Counter(entry["label"] for entry in rows), Counter()
    for entry in rows:
        weights[entry["label"]] += entry["weight"]
    ipc = images_per_class(manifest["config"]) or max(found.values())
    for label, entry in enumerate(classes):
        if found[label] != ipc:
            problems.append(f"manifest.json: expected {ipc} images of class {entry['name']}, found {found[label]}")
        elif not math.isclose(weights[label], 1, abs_tol=1e-4):
            problems.append(f"manifest.json: expected weights of class {entry['name']} that sum to 1, found "
                            f"{weights[label]:.6g}")
    return (problems + counted(manifest, images=len(rows), classes=len(classes)) + metadata_problems(folder, rows)
            + image_problems(folder, rows, manifest["config"].get("image_size")))


def images_per_class(config: dict) -> int | None:
    """How many images of a class a configuration of gen_syn_image or distill asks for; None where it does not say."""
    source = config.get("source")
    asked, repeats, prototypes = (value if type(value) is int and value > 0 else None for value in (
        config.get("ipc"), config.get("repeats"), source.get("ipc") if isinstance(source, dict) else None))
    return asked if prototypes is None else prototypes * (repeats or (asked or prototypes) // prototypes)


def metadata_problems(folder: Path, rows: list[dict]) -> list[str]:
    """Where `metadata.jsonl` is not what the manifest's rows are."""
    name = "metadata.jsonl"
    try:
        lines = read_bytes(folder / name, "a file of rows").splitlines()
        found = [parse_json(f"{folder / name}, line {number}", line) for number, line in enumerate(lines, 1)]
    except InputError as error:
        return [inner(error, folder)]
    differ = [number for number, (line, row) in enumerate(zip(found, rows, strict=False), 1) if line != row]
    problems = [f"{name}: expected line {number} as the row in manifest.json, found another" for number in differ]
    return problems + ([] if len(found) == len(rows) else [f"{name}: expected {len(rows)} lines, found {len(found)}"])


def image_problems(folder: Path, rows: list[dict], side_pixels: int | None) -> list[str]:
    """Images that cannot be read, or are no square of `side_pixels` (None: of the first one's size)."""
    problems, wanted = [], side_pixels and (side_pixels, side_pixels)
    for row in rows:
        try:
            size = open_image(folder / row["file_name"]).size
        except InputError as error:
            problems.append(inner(error, folder))
            continue
        wanted = wanted or (size[0], size[0])
        if size != wanted:
            problems.append(f"{row['file_name']}: expected {wanted[0]} x {wanted[1]} pixels, found {size[0]} x {size[1]}")
    return problems


def model_folder(folder: Path, manifest: dict) -> list[str]:
    """The weights of the network that the manifest names, finite, and an accuracy in [0, 1]."""
    if problems := model_problems(manifest):
        return [f"manifest.json: {problem}" for problem in problems]
    top1 = manifest.get("test_accuracy")
    problems = [] if share(top1) else [f"manifest.json: expected a test_accuracy in [0, 1], found {top1!r}"]
    return problems + file_content(folder, WEIGHTS, lambda state: state_problems(state, manifest))


def share(value) -> bool:
    """Whether a number lies in [0, 1]."""
    return type(value) in (int, float) and 0 <= value <= 1


def checkpoint_folder(folder: Path, manifest: dict) -> list[str]:
    """Finite weights, JSON that is some, and a scaling factor."""
    names, factor = manifest["files"], manifest.get("scaling_factor")
    problems = [f"manifest.json: expected a file {name}, found none"
                for name in ("model_index.json", *(f"{part}/config.json" for part in ("vae", "unet", "text_encoder")))
                if name not in names]
    if type(factor) not in (int, float) or not 0 < factor < math.inf:
        problems.append(f"manifest.json: expected a scaling_factor above 0, found {factor!r}")
    for name in names:
        if name.endswith(".safetensors"):
            problems += file_content(folder, name, weight_problems)
        elif name.endswith(".json"):
            problems += json_problems(folder, name)
    return problems


def json_problems(folder: Path, name: str) -> list[str]:
    """Why a file is no JSON."""
    try:
        read_json(folder / name)
    except InputError as error:
        return [inner(error, folder)]
    return []


CHECKS: dict[str, Check] = {"prototypes": prototype_folder, "distilled": distilled_folder, "teacher": model_folder,
                            "student": model_folder, "ldm": checkpoint_folder}


def strictly(folders: Iterable, checks: dict[str, Check] = CHECKS) -> None:
    """What `--strict` asks for: verify every folder given (None: not given) before it is used.

    Raises InputError naming the first thing that is wrong, and for what has no manifest to be checked against.
    """
    for folder in folders:
        if folder is not None:
            raise_first(f"{folder}", verify(folder, checks).problems, mark="/")
