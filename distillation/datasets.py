"""Real images, one class at a time: `load_split(name, ...)` gives classes in order, labels and a reader per image."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from distillation.entry import ROOT, InputError

PROMPTS = ROOT / "distillation" / "label-prompt"
PROMPT_FILES = {"digits": "digits.txt", "imagenet": "imagenet_classes.txt"}  # the others are prompted by class name
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Split:
    """One split of a data set. Classes travel as one ordered list; `labels[i]` indexes it."""

    name: str
    classes: list[dict]            # {"name": folder or class name, "prompt": text}, in label order
    labels: np.ndarray             # [N] int64
    read: Callable[[int], Image.Image]
    native_size_pixels: int | None = None
    paths: list[Path] | None = None    # where the images lie as files, if they do

    def identity(self) -> str:
        """A hash of what is there to see without opening files: classes, prompts, labels, and the files' names.

        A file may be repaired without becoming another data set.
        """
        files = [(path.parent.name, path.name) for path in self.paths or []]
        seen = json.dumps([self.classes, self.labels.tolist(), files])
        return hashlib.sha256(seen.encode()).hexdigest()

    def describe_bad(self, rows) -> list[dict]:
        """PLACEHOLDER"""
        return [{"row": row} for row in rows]

    def rows_of(self, label: int) -> np.ndarray:
        """Indices of the images of class `label`, in the data set's order."""
        return np.flatnonzero(self.labels == label)


def load_split(name: str, data_dir: str | Path, split: str, label_file: str | Path | None = None) -> Split:
    """Load `split` ("train" or "test") of the data set `name`.

    Raises InputError for a missing folder, an empty class, or a label file with the wrong number of lines.
    """
    loaded = _LOADERS[name](Path(data_dir), split)
    prompts = _prompts(name, label_file, len(loaded.classes))
    if prompts is None:
        return loaded
    classes = [{**entry, "prompt": prompt} for entry, prompt in zip(loaded.classes, prompts, strict=True)]
    return replace(loaded, classes=classes)


def decode(split: Split, rows, size_pixels: int, workers: int = 2, fit: str = "squash") -> torch.Tensor:
    """Decode images `rows` to uint8 [n, 3, size, size], bilinear with antialias.

    `fit="squash"` ignores the aspect ratio, as D4M does; `fit="centre"` is the usual ImageNet test view: the shorter side to
    8/7 of `size_pixels`, then the centre. An image of that size already is taken as it is.
    """
    def one(row):
        image = split.read(int(row))
        if image.size != (size_pixels, size_pixels):
            image = _centre(image, size_pixels) if fit == "centre" else image.resize((size_pixels,) * 2, Image.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    with ThreadPoolExecutor(workers) as pool:
        images = list(pool.map(one, rows))
    return torch.stack(images) if images else torch.empty(0, 3, size_pixels, size_pixels, dtype=torch.uint8)


def decode_readable(split: Split, rows, size_pixels: int, workers: int = 2, fit: str = "squash"):
    """PLACEHOLDER"""
    return decode(split, rows, size_pixels, workers, fit), np.asarray(rows)


def _centre(image: Image.Image, size_pixels: int) -> Image.Image:
    scale = round(size_pixels * 8 / 7) / min(image.size)
    width, height = (max(size_pixels, round(side * scale)) for side in image.size)
    left, top = (width - size_pixels) // 2, (height - size_pixels) // 2
    return image.resize((width, height), Image.BILINEAR).crop((left, top, left + size_pixels, top + size_pixels))


def _prompts(name: str, label_file, expected: int) -> list[str] | None:
    if not label_file and name not in PROMPT_FILES:
        return None
    path = Path(label_file) if label_file else PROMPTS / PROMPT_FILES[name]
    if not path.is_file():
        raise InputError(f"{path}: expected a label file with {expected} lines, found none")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = lines[:-1] if lines and not lines[-1] else lines
    if len(lines) != expected or not all(lines):
        found = len(lines) if all(lines) else f"an empty line {lines.index('') + 1}"
        raise InputError(f"{path}: expected {expected} prompts, one per line in class order, found {found}")
    return lines


def _digits(data_dir: Path, split: str) -> Split:
    """The 1,797 handwritten digits of scikit-learn (UCI), every fourth image of a class held out for testing."""
    from sklearn.datasets import load_digits
    bunch = load_digits()
    place_in_class = np.zeros(len(bunch.target), dtype=int)
    for label in range(10):
        rows = np.flatnonzero(bunch.target == label)
        place_in_class[rows] = np.arange(len(rows))
    held_out = place_in_class % 4 == 3
    keep = np.flatnonzero(held_out if split == "test" else ~held_out)
    pixels = (bunch.images * (255 / 16)).round().astype(np.uint8)

    def read(row):
        image = Image.fromarray(pixels[keep[row]]).resize((32, 32), Image.Resampling.BICUBIC)
        return image.convert("RGB")
    classes = [{"name": str(label), "prompt": str(label)} for label in range(10)]
    return Split("digits", classes, bunch.target[keep].astype(np.int64), read, 32)


def _torchvision(name: str) -> Callable[[Path, str], Split]:
    def load(data_dir: Path, split: str) -> Split:
        from torchvision.datasets import CIFAR10, CIFAR100
        source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        try:
            data = source(data_dir, train=split == "train", download=not (data_dir / source.base_folder).is_dir())
        except Exception as error:  # torchvision raises URLError, HTTPError, RuntimeError: all mean "not there"
            raise InputError(f"{data_dir}: expected {name} as torchvision stores it, found none and could not "
                             f"download it ({error})") from None
        classes = [{"name": label, "prompt": label.replace("_", " ")} for label in data.classes]
        return Split(name, classes, np.array(data.targets), lambda row: Image.fromarray(data.data[row]), 32)
    return load


def _folder(name: str) -> Callable[[Path, str], Split]:
    def load(data_dir: Path, split: str) -> Split:
        wanted = ("train",) if split == "train" else ("val", "test")
        root = next((data_dir / part for part in wanted if (data_dir / part).is_dir()), None)
        if root is None:
            raise InputError(f"{data_dir}: expected a folder {' or '.join(wanted)} with one folder per class, found "
                             f"{'none' if data_dir.is_dir() else 'no such folder'}")
        return image_folder(name, root)
    return load


def image_folder(name: str, root: Path, sort_key=lambda path: path.name) -> Split:
    """One folder per class below `root`; classes in the sorted order of their names, as torchvision orders them."""
    folders = sorted((path for path in root.iterdir() if path.is_dir()), key=sort_key)
    if not folders:
        raise InputError(f"{root}: expected one folder per class, found none")
    paths, labels = [], []
    for label, folder in enumerate(folders):
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
        if not images:
            raise InputError(f"{folder}: expected at least one image, found an empty class")
        paths += images
        labels += [label] * len(images)
    classes = [{"name": folder.name, "prompt": folder.name.replace("_", " ")} for folder in folders]
    return Split(name, classes, np.array(labels, dtype=np.int64), lambda row: open_image(paths[row]),
                 paths=paths)


def open_image(path: Path) -> Image.Image:
    """Open an image as RGB; raises InputError naming the file when it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        reason = "nothing Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{path}: expected an image, found {reason}") from None


_LOADERS = {"digits": _digits, "cifar10": _torchvision("cifar10"), "cifar100": _torchvision("cifar100"),
            "tiny_imagenet": _folder("tiny_imagenet"), "imagenet": _folder("imagenet"), "folder": _folder("folder")}
