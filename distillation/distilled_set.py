"""Distilled sets: zero-padded class folders of images, and a row per image in the manifest and in `metadata.jsonl`.

`torchvision.datasets.ImageFolder` and `datasets.load_dataset("imagefolder", ...)` read the same labels from this folder.
"""

import json
import unicodedata
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from distillation.card import card
from distillation.datasets import fit_by_place, image_folder
from distillation.prototypes import class_folder
from scripts.artefact import finish, raise_first, read_manifest, write_result
from scripts.cli import InputError
from scripts.files import atomic_path, write_text

LARGEST_WEIGHT = 10 ** 6  # this code writes fractions of a class


def row(label: int, name: str, prototype: int, repeat: int, seed: int, weight: float, image_format: str = "png") -> dict:
    """An image's row: `prototype` is its cluster (baselines: its index in the draw), `weight` its fraction of the class."""
    folder = class_folder(label, name)
    return {"file_name": f"{folder}/{label:05d}-p{prototype:03d}-r{repeat:02d}.{image_format}", "label": label,
            "prototype": prototype, "repeat": repeat, "seed": seed, "weight": weight}


def write_image(folder: Path, file_name: str, image: Image.Image) -> None:
    """Write an image losslessly and atomically, as PNG or WebP by the ending of its name."""
    lossless = {"lossless": True} if file_name.endswith(".webp") else {}
    with atomic_path(Path(folder) / file_name) as partial:
        image.save(partial, format="WEBP" if lossless else "PNG", **lossless)


def complete(folder: Path, classes: list[dict], config: dict, rows: list[dict], seconds: dict,
             facts: dict | None = None, added_up: bool = False) -> None:
    """Write result.json (`added_up` as there), with `facts` among its metrics, `metadata.jsonl`, the card and the manifest."""
    spent = sum(seconds.values())
    write_result(folder, "distilled", config, {"images": len(rows), **(facts or {})}, seconds, added_up)
    finish_distilled(folder, classes, config, rows)
    print(f"{folder}: {len(rows)} images in {spent:.1f} s")


def finish_distilled(folder: Path, classes: list[dict], config: dict, rows: list[dict]) -> None:
    """Write `metadata.jsonl`, the card and the manifest."""
    write_text(folder / "metadata.jsonl", "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rows))
    write_text(folder / "README.md", card(classes, config, rows))
    files = [entry["file_name"] for entry in rows] + ["metadata.jsonl", "README.md"]
    finish(folder, "distilled", classes, config, files, counts={"images": len(rows), "classes": len(classes)}, rows=rows)


def read_distilled(folder: str | Path) -> tuple[list[dict], list[Path], Tensor, Tensor]:
    """Classes, image paths, labels [N] and weights [N] of a distilled set, or of the original's folders `0`, `1`, `10`, ...

    The latter have no names of classes, so theirs are marked as `numbered`.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").exists() and not (folder / "config.json").exists() and folder.is_dir():
        return _read_original(folder)
    manifest = read_manifest(folder, "distilled")
    raise_first(f"{folder / 'manifest.json'}", row_problems(manifest))
    rows = manifest["rows"]
    return (manifest["classes"], [folder / entry["file_name"] for entry in rows],
            torch.tensor([entry["label"] for entry in rows]), torch.tensor([entry["weight"] for entry in rows]))


def row_problems(manifest: dict) -> list[str]:
    """What is wrong with a manifest's rows: files it does not list, labels and weights out of range."""
    rows, classes, problems = manifest.get("rows"), manifest["classes"], []
    if not isinstance(rows, list) or not rows:
        return ["expected rows, a list of one per image, found none"]
    for index, entry in enumerate(rows):
        name, label, weight = (entry.get(key) if isinstance(entry, dict) else None for key in ("file_name", "label", "weight"))
        if not isinstance(name, str) or name not in manifest["files"]:
            problems.append(f"row {index}: expected a file_name that files has, found {name!r}")
        elif type(label) is not int or not 0 <= label < len(classes):
            problems.append(f"row {index}, {name}: expected a label below {len(classes)}, found {label!r}")
        elif type(weight) not in (int, float) or not 0 <= weight <= LARGEST_WEIGHT:
            problems.append(f"row {index}, {name}: expected a weight in [0, {LARGEST_WEIGHT}], found {weight!r}")
        elif PurePosixPath(name).parts[0] != class_folder(label, classes[label]["name"]):
            problems.append(f"row {index}, {name}: expected a file in {class_folder(label, classes[label]['name'])}")
    names = [entry.get("file_name") for entry in rows if isinstance(entry, dict)]
    if not problems and len(set(names)) < len(names):
        problems.append("expected another file in each row, found one twice")
    if not problems and not any(entry["weight"] for entry in rows):
        problems.append("expected a weight above 0 in some row, found none")
    return problems


def _read_original(folder: Path):
    classes = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.name)
    if not classes or not all(path.name.isdecimal() for path in classes):
        raise InputError(f"{folder}: expected a distilled set (manifest.json, or folders named 0, 1, ...), found neither")
    split = image_folder(folder.name, folder, sort_key=lambda path: int(path.name))
    classes = [{**entry, "numbered": True} for entry in split.classes]
    return classes, split.paths, torch.from_numpy(split.labels), torch.ones(len(split.labels))


def check_class_names(name: str, classes: list[dict], expected_name: str, expected: list[dict]) -> None:
    """Raise InputError when two ordered lists of classes differ, unless `fit_by_place` is true."""
    found, wanted = ([unicodedata.normalize("NFC", entry["name"]) for entry in entries] for entries in (classes, expected))
    if found != wanted and not fit_by_place(classes, expected):
        raise InputError(f"{name}: expected the {len(wanted)} classes of {expected_name} in its order, found {len(found)}: "
                         f"{', '.join(found[:5])} ...")
