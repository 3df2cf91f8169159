"""Real images, one class at a time: `load_split(name, ...)` gives classes in order, labels and a reader per image."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distillation.images import ENDINGS, BadImage, fit_image, image_files, open_image
from distillation.prompts import own_prompts, plain, read_lines, with_prompts
from scripts.artefact import is_inner
from scripts.cli import InputError


@dataclass(frozen=True)
class Split:
    """One split of a data set. Classes travel as one ordered list; `labels[i]` indexes it."""

    name: str
    classes: list[dict]            # {"name": folder or class name, "prompt": text}, in label order
    labels: np.ndarray             # [N] int64
    read: Callable[[int], Image.Image]
    native_size_pixels: int | None = None
    paths: list[Path] | None = None    # where the images lie as files, if they do
    root: Path | None = None           # the folder they lie below
    on_bad_image: str = "error"        # or "skip"

    def identity(self) -> str:
        """A hash of what is there to see without opening files: classes, prompts, labels, and the files' names.

        A file may be repaired without becoming another data set.
        """
        files = [(path.parent.name, path.name) for path in self.paths or []]
        seen = json.dumps([self.classes, self.labels.tolist(), files])
        return hashlib.sha256(seen.encode()).hexdigest()

    def rows_of(self, label: int) -> np.ndarray:
        """Indices of the images of class `label`, in the data set's order."""
        return np.flatnonzero(self.labels == label)

    def only(self, rows: np.ndarray) -> "Split":
        """The images `rows`, in that order, as a split of the same classes."""
        return replace(self, labels=self.labels[rows], read=lambda row: self.read(int(rows[row])),
                       paths=[self.paths[row] for row in rows] if self.paths else None)

    def describe_bad(self, rows) -> list[dict]:
        """{"file": path below `root`, "reason": text} of those of `rows` that cannot be read; for manifests."""
        described = []
        for row in rows:
            try:
                self.read(int(row))
            except BadImage as error:
                file = self.paths[row].relative_to(self.root).as_posix()
                described.append({"file": os.fsencode(file).decode("utf-8", "backslashreplace"), "reason": error.reason})
        return described


def load_split(name: str, data_dir: str | Path, split: str, label_file: str | Path | None = None,
               prompt_template: str | None = None, on_bad_image: str = "error") -> Split:
    """Load `split` ("train" or "test") of the data set `name`.

    Prompts are the data set's own, or the lines of `label_file` in class order, put in place of {} in `prompt_template`; class
    names stay. Raises InputError for a missing folder, an empty class, an unknown wnid, a label file that does not fit.
    """
    loaded = _LOADERS[name](Path(data_dir), split)
    names = [entry["name"] for entry in loaded.classes]
    own = own_prompts(name, names, loaded.root) if label_file is None else names
    classes = [{"name": class_name, "prompt": prompt} for class_name, prompt in zip(names, own, strict=True)]
    classes = with_prompts(classes, name, label_file, prompt_template)
    return replace(loaded, classes=classes, on_bad_image=on_bad_image)


def decode(split: Split, rows, size_pixels: int, workers: int = 2, fit: str = "squash") -> torch.Tensor:
    """Decode images `rows` to uint8 [n, 3, size, size], `fit` as in `fit_image`. Raises BadImage for the first unreadable."""
    return decode_readable(replace(split, on_bad_image="error"), rows, size_pixels, workers, fit)[0]


def decode_readable(split: Split, rows, size_pixels: int, workers: int = 2,
                    fit: str = "squash") -> tuple[torch.Tensor, np.ndarray]:
    """Decode images `rows` to uint8 [n, 3, size, size] and say which they are, int64 [n].

    An unreadable image raises BadImage, or is left out where the split's `on_bad_image` is "skip".
    """
    rows = np.asarray(rows, dtype=np.int64)
    images = np.empty((len(rows), 3, size_pixels, size_pixels), dtype=np.uint8)  # torch would start threads in each worker

    def one(place: int) -> bool:
        try:
            image = fit_image(split.read(int(rows[place])), size_pixels, fit)
        except BadImage:
            if split.on_bad_image == "skip":
                return False
            raise
        images[place] = np.asarray(image).transpose(2, 0, 1)
        return True
    with ThreadPoolExecutor(workers) as pool:
        readable = np.array(list(pool.map(one, range(len(rows)))), dtype=bool)
    return torch.from_numpy(images if readable.all() else images[readable]), rows[readable]


def decode_all(split: Split, size_pixels: int, workers: int = 2, fit: str = "squash") -> tuple[torch.Tensor, Split]:
    """All readable images of a split, uint8 [N, 3, size, size], and the split of just these; says on stderr what is left out.

    Raises InputError for a class without a readable image, and as `decode_readable` does.
    """
    images, rows = decode_readable(split, range(len(split.labels)), size_pixels, workers, fit)
    return images, readable_part(split, rows)


def readable_part(split: Split, rows: np.ndarray) -> Split:
    """The split of the images `rows`, which could be read; says on stderr what is left out.

    Raises InputError for a class without a readable image.
    """
    if len(rows) == len(split.labels):
        return split
    left = split.only(rows)
    for label, entry in enumerate(split.classes):
        if not len(left.rows_of(label)):
            raise InputError(f"{split.root}: expected at least one readable image of class {entry['name']}, found none among "
                             f"{len(split.rows_of(label))}")
    bad = np.setdiff1d(np.arange(len(split.labels)), rows)
    print(f"{split.root}: {len(bad)} of {len(split.labels)} images cannot be read and are left out, the first "
          f"{split.paths[bad[0]]}", file=sys.stderr)
    return left


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
    classes = [{"name": str(label)} for label in range(10)]
    return Split("digits", classes, bunch.target[keep].astype(np.int64), read, 32)


def _torchvision(name: str) -> Callable[[Path, str], Split]:
    def load(data_dir: Path, split: str) -> Split:
        from torchvision.datasets import CIFAR10, CIFAR100
        source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        try:
            data = source(data_dir, train=split == "train", download=True)  # what is there already is only checked
        except Exception as error:  # torchvision raises URLError, HTTPError, RuntimeError: all mean "not there"
            raise InputError(f"{data_dir}: expected {name} as torchvision stores it, found none and could not "
                             f"download it ({' '.join(str(error).split())})") from None
        classes = [{"name": label} for label in data.classes]
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


def _tiny_imagenet(data_dir: Path, split: str) -> Split:
    """Tiny-ImageNet as it is distributed, or with its validation images moved into one folder per wnid."""
    annotations = data_dir / "val" / "val_annotations.txt"
    if split == "train" or not (annotations.is_file() and (data_dir / "val" / "images").is_dir()):
        return replace(_folder("tiny_imagenet")(data_dir, split), native_size_pixels=64)
    listed = []
    for number, line in enumerate(read_lines(annotations), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise InputError(f"{annotations}: expected a file, a tab and a wnid in line {number}, found {line!r}")
        if len(Path(columns[0]).parts) != 1 or not is_inner(columns[0]):
            raise InputError(f"{annotations}: expected the name of a file in images/ in line {number}, found {columns[0]!r}")
        listed.append((columns[1], columns[0]))
    if not listed:
        raise InputError(f"{annotations}: expected one line per image, found none")
    listed.sort()  # as if they lay in one folder per wnid
    wnids = sorted({wnid for wnid, _ in listed})
    paths = [annotations.parent / "images" / file for _, file in listed]
    labels = np.searchsorted(wnids, [wnid for wnid, _ in listed]).astype(np.int64)
    return replace(_of_files("tiny_imagenet", annotations.parent, wnids, paths, labels), native_size_pixels=64)


def image_folder(name: str, root: Path, sort_key=lambda path: path.name, on_bad_image: str = "error") -> Split:
    """One folder per class below `root`; classes in the sorted order of their names, as torchvision orders them."""
    entries = [path for path in root.iterdir() if not path.name.startswith(".")]
    for path in entries:
        if path.is_symlink() and not os.path.exists(path):
            raise InputError(f"{path}: expected a class folder, found a broken link")
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{root}: expected class folders named in UTF-8, found {path.name!r}") from None
    folders = sorted((path for path in entries if path.is_dir()), key=sort_key)
    if not folders:
        raise InputError(f"{root}: expected one folder per class, found none")
    paths, labels = [], []
    for label, folder in enumerate(folders):
        images = image_files(folder, root)
        if not images:
            raise InputError(f"{folder}: expected at least one image ({' '.join(ENDINGS)}), found an empty class")
        paths += images
        labels += [label] * len(images)
    split = _of_files(name, root, [folder.name for folder in folders], paths, np.array(labels, dtype=np.int64))
    return replace(split, on_bad_image=on_bad_image)


def _of_files(name: str, root: Path, class_names: list[str], paths: list[Path], labels: np.ndarray) -> Split:
    classes = [{"name": class_name, "prompt": plain(class_name)} for class_name in class_names]
    return Split(name, classes, labels, lambda row: open_image(paths[row]), paths=paths, root=root)


_LOADERS = {"digits": _digits, "cifar10": _torchvision("cifar10"), "cifar100": _torchvision("cifar100"),
            "tiny_imagenet": _tiny_imagenet, "imagenet": _folder("imagenet"), "folder": _folder("folder")}
