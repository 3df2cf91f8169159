"""Real images of a data set: `load_split(name, ...)` gives ordered classes, labels and a reader."""

import gzip
import hashlib
import io
import json
import math
import os
import re
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distillation.images import ENDINGS, BadImage, fit_image, image_files, open_image
from distillation.prompts import own_prompts, plain, read_lines, with_prompts
from scripts.cli import InputError, note, printable
from scripts.files import read_bytes
from scripts.randomness import seed_for

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist


@dataclass(frozen=True)
class Split:
    """The training or test images of a data set."""

    name: str
    classes: list[dict]                # {"name": folder or class name, "prompt": text}, in label order
    labels: np.ndarray                 # [N] int64, indices of `classes`
    read: Callable[[int], Image.Image]
    native_size_pixels: int | None = None
    paths: list[Path] | None = None    # of images that are files
    root: Path | None = None           # the folder above these files
    on_bad_image: str = "error"        # or "skip"

    def identity(self) -> str:
        """A hash of classes, prompts, labels and file names. Files are not opened: a repaired one changes nothing."""
        files = [(path.parent.name, path.name) for path in self.paths or []]
        content = json.dumps([self.classes, self.labels.tolist(), files])
        return hashlib.sha256(content.encode()).hexdigest()

    def rows_of(self, label: int) -> np.ndarray:
        """Indices of the images of class `label`."""
        return np.flatnonzero(self.labels == label)

    def only(self, rows: np.ndarray) -> "Split":
        """The split of the images `rows`, in that order."""
        return replace(self, labels=self.labels[rows], read=lambda row: self.read(int(rows[row])),
                       paths=[self.paths[row] for row in rows] if self.paths else None)

    def describe_bad(self, rows) -> list[dict]:
        """{"file": path below `root`, "reason": text} of the unreadable images among `rows`."""
        described = []
        for row in rows:
            try:
                self.read(int(row))
            except BadImage as error:
                file = self.paths[row].relative_to(self.root).as_posix()
                described.append({"file": os.fsencode(file).decode("utf-8", "backslashreplace"), "reason": error.reason})
        return described


def load_split(name: str, data_dir: str | Path, split: str, label_file: str | Path | None = None,
               prompt_template: str | None = None, on_bad_image: str = "error", validation: int = 0,
               classes: list[dict] | None = None, val_labels: str | Path | None = None) -> Split:
    """Load `split` ("train" or "test") of the data set `name`; with `validation`, of its training images (`part_of_training`).

    With `classes` it is `matched` to them. `val_labels` names the classes of test images that lie in one folder (`listed`).

    Prompts are the data set's own or the lines of `label_file` in class order; they replace {} in `prompt_template`. Raises
    InputError for a missing folder, an empty class, an unknown wnid, and a label file that does not fit.
    """
    if val_labels and split == "test" and not validation:
        loaded = listed(name, _part(Path(data_dir), split), Path(val_labels))
    else:
        loaded = _LOADERS[name](Path(data_dir), "train" if validation else split)
    if validation:
        loaded = part_of_training(loaded, split, validation)
    names = [entry["name"] for entry in loaded.classes]
    own = own_prompts(name, names, loaded.root) if label_file is None else names
    loaded = replace(loaded, classes=[{"name": each, "prompt": prompt} for each, prompt in zip(names, own, strict=True)])
    loaded = loaded if classes is None else matched(loaded, classes)
    return replace(loaded, classes=with_prompts(loaded.classes, name, label_file, prompt_template), on_bad_image=on_bad_image)


def load_splits(**flags) -> tuple[Split, Split]:
    """The training split and the test split, `matched` to the training classes; `flags` and errors as in `load_split`."""
    train = load_split(split="train", **flags)
    return train, load_split(split="test", **flags, classes=train.classes)


def matched(split: Split, classes: list[dict]) -> Split:
    """The split with its labels in the order of `classes`, found by name; images of other classes are left out, with a line.

    Classes that have no names `fit_by_place`. Raises InputError where a class has no images.
    """
    found, wanted = ([unicodedata.normalize("NFC", entry["name"]) for entry in entries] for entries in (split.classes, classes))
    if found == wanted or fit_by_place(classes, split.classes):
        return split
    where, absent = split.root or split.name, [name for name in wanted if name not in found]
    if absent:
        raise InputError(f"{where}: expected the {len(wanted)} classes of the training images, found {len(found)} classes, "
                         f"{len(absent)} missing: {', '.join(absent[:5])}")
    if len(found) > len(wanted):
        note(f"{where}: {len(found) - len(wanted)} of {len(found)} classes are not among the training classes and are left out")
    label_of = {name: label for label, name in enumerate(wanted)}
    labels = np.array([label_of.get(name, -1) for name in found])[split.labels]
    kept = replace(split, labels=labels, classes=[split.classes[found.index(name)] for name in wanted])
    return kept.only(np.flatnonzero(labels >= 0))


def fit_by_place(classes: list[dict], others: list[dict]) -> bool:
    """Whether `classes` of a set of the original code, which stores no names, are `others`, in their order.

    Its folders are `0`, `1`, ...; as many others have other names. Its file of prototypes has the prompts of the others.
    """
    names, other_names = ([entry["name"] for entry in entries] for entries in (classes, others))
    numbered = all(entry.get("numbered") for entry in classes) and not set(names) & set(other_names)
    return len(names) == len(others) and (numbered or names == [entry.get("prompt") for entry in others])


def part_of_training(training: Split, split: str, validation: int) -> Split:
    """`validation` training images, as evenly over the classes as all of them are ("test"), or the others ("train").

    The choice does not depend on `--seed`. Raises InputError where a class has no image in one of the two parts.
    """
    labels = training.labels
    keys = np.random.default_rng(seed_for(0, "validation")).random(len(labels))
    by_class, chosen = np.lexsort((keys, labels)), np.zeros(len(labels), dtype=bool)
    chosen[by_class[(2 * np.arange(validation) + 1) * len(labels) // (2 * validation)]] = True    # evenly spaced places
    for part in (labels[chosen], labels[~chosen]):
        if missing := sorted(set(range(len(training.classes))) - set(part.tolist())):
            raise InputError(f"--validation: expected some but not all training images of each class, found {validation} of "
                             f"{len(labels)}, which do not divide class {training.classes[missing[0]]['name']}")
    return training.only(np.flatnonzero(chosen if split == "test" else ~chosen))


def decode(split: Split, rows, size_pixels: int, workers: int = 2, fit: str = "squash") -> torch.Tensor:
    """Decode images `rows` to uint8 [n, 3, size, size]; `fit` is that of `fit_image`. Raises BadImage for an unreadable one."""
    return decode_readable(replace(split, on_bad_image="error"), rows, size_pixels, workers, fit)[0]


def decode_readable(split: Split, rows, size_pixels: int, workers: int = 2, fit: str = "squash",
                    channels_last: bool = False) -> tuple[torch.Tensor, np.ndarray]:
    """Decode images `rows`: uint8 [n, 3, size, size], and the rows that were readable, int64 [n].

    `channels_last` is their layout in memory. An unreadable image raises BadImage unless the split's `on_bad_image` is "skip".
    """
    rows = np.asarray(rows, dtype=np.int64)
    images = np.empty((len(rows), 3, size_pixels, size_pixels), dtype=np.uint8)  # torch would start threads in each worker
    if channels_last:
        images = images.reshape(len(rows), size_pixels, size_pixels, 3).transpose(0, 3, 1, 2)

    def decode_one(index: int) -> bool:
        try:
            image = fit_image(split.read(int(rows[index])), size_pixels, fit)
        except BadImage:
            if split.on_bad_image == "skip":
                return False
            raise
        images[index] = np.asarray(image).transpose(2, 0, 1)
        return True
    with ThreadPoolExecutor(max(1, workers)) as pool:
        readable = np.array(list(pool.map(decode_one, range(len(rows)))), dtype=bool)
    return torch.from_numpy(images if readable.all() else images[readable]), rows[readable]


def decode_all(split: Split, size_pixels: int, workers: int = 2, fit: str = "squash",
               channels_last: bool = False) -> tuple[torch.Tensor, Split]:
    """Decode all readable images of a split, uint8 [N, 3, size, size], and return the split of these (`readable_part`)."""
    images, rows = decode_readable(split, range(len(split.labels)), size_pixels, workers, fit, channels_last)
    return images, readable_part(split, rows)


def readable_part(split: Split, rows: np.ndarray) -> Split:
    """The split of the readable images `rows`; reports on stderr how many are left out.

    Raises InputError for a class without a readable image.
    """
    if len(rows) == len(split.labels):
        return split
    part = split.only(rows)
    for label, entry in enumerate(split.classes):
        if not len(part.rows_of(label)):
            raise InputError(f"{split.root}: expected at least one readable image of class {entry['name']}, found none among "
                             f"{len(split.rows_of(label))}")
    bad = np.setdiff1d(np.arange(len(split.labels)), rows)
    note(f"{split.root}: {len(bad)} of {len(split.labels)} images cannot be read and are left out, the first "
         f"{split.paths[bad[0]]}")
    return part


def check_enough_images(split: Split, ipc: int) -> None:
    """Raise InputError when a class has fewer than `ipc` images."""
    available, smallest = min((len(split.rows_of(label)), label) for label in range(len(split.classes)))
    if available < ipc:
        raise InputError(f"--ipc: expected at most {available}, the images of class {split.classes[smallest]['name']} of "
                         f"{split.name}, found {ipc}")


def check_enough_readable(split: Split, label: int, readable, tried: int, ipc: int) -> None:
    """Raise InputError when class `label` has fewer than `ipc` `readable` images; report how many of `tried` are left out.

    Each process reports its own classes.
    """
    if len(readable) < ipc:
        raise InputError(f"--ipc: expected at most {len(readable)}, the readable images of class "
                         f"{split.classes[label]['name']} of {split.name}, found {ipc}")
    if tried > len(readable):
        print(printable(f"{split.root}: {tried - len(readable)} unreadable images of class {split.classes[label]['name']} are "
                        "left out"), file=sys.stderr)


# each data set

def _digits(data_dir: Path, split: str) -> Split:
    """The 1,797 handwritten digits of scikit-learn (UCI); every fourth image of a class is a test image."""
    from sklearn.datasets import load_digits
    bunch = load_digits()
    test = np.sort(np.concatenate([np.flatnonzero(bunch.target == label)[3::4] for label in range(10)]))
    keep = test if split == "test" else np.setdiff1d(np.arange(len(bunch.target)), test)
    pixels = (bunch.images[keep] * (255 / 16)).round().astype(np.uint8)
    return Split("digits", [{"name": str(label)} for label in range(10)], bunch.target[keep].astype(np.int64),
                 lambda row: Image.fromarray(pixels[row]).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB"), 32)


def _cifar(name: str, data_dir: Path, split: str) -> Split:
    from torchvision.datasets import CIFAR10, CIFAR100
    data = _downloaded(name, {"cifar10": CIFAR10, "cifar100": CIFAR100}[name], data_dir, split)
    return Split(name, [{"name": label} for label in data.classes], np.array(data.targets),
                 lambda row: Image.fromarray(data.data[row]), 32)


def _downloaded(name: str, source: Callable, data_dir: Path, split: str):
    """torchvision's data set `source`, downloaded into `data_dir` where it is missing."""
    try:
        return source(data_dir, train=split == "train", download=True)  # existing files are only checked
    except Exception as error:  # torchvision raises URLError, HTTPError, RuntimeError: all mean that there is none
        there = (data_dir / getattr(source, "base_folder", source.__name__)).exists()
        found = "files that are damaged or incomplete" if there else "none"
        raise InputError(f"{data_dir}: expected {name} as torchvision stores it, found {found} and could not "
                         f"download it ({' '.join(str(error).split())})") from None


def _fashion_mnist(data_dir: Path, split: str) -> Split:
    """Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), padded from 28 to 32 pixels, grey in three channels.

    Read from idx files, plain or gzipped: in `data_dir`, as torchvision stores them there, or of Debian's package.
    """
    from torchvision.datasets import FashionMNIST
    first, folders = "train" if split == "train" else "t10k", (data_dir, data_dir / "FashionMNIST" / "raw", DEBIAN)
    if not any(_idx_file(folder, f"{first}-images-idx3-ubyte").is_file() for folder in folders):
        _downloaded("fashion_mnist", FashionMNIST, data_dir, split)
    folder = next(folder for folder in folders if _idx_file(folder, f"{first}-images-idx3-ubyte").is_file())
    images, labels = (read_idx(_idx_file(folder, f"{first}-{kind}-ubyte"), dimensions)
                      for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)))
    if len(images) != len(labels) or labels.max(initial=0) > 9 or images.shape[1:] != (28, 28):
        raise InputError(f"{folder}: expected images of 28 x 28 pixels with as many labels from 0 to 9, found "
                         f"{list(images.shape)} and {len(labels)} labels")
    pixels = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return Split("fashion_mnist", [{"name": name} for name in FashionMNIST.classes], labels.astype(np.int64),
                 lambda row: Image.fromarray(pixels[row]).convert("RGB"), 32)


def _idx_file(folder: Path, name: str) -> Path:
    """The file `name` in `folder`, or `name`.gz where that alone is there."""
    zipped = folder / f"{name}.gz"
    return zipped if zipped.is_file() and not (folder / name).is_file() else folder / name


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file, plain or gzipped. Raises InputError for another or a damaged file."""
    content = read_bytes(path, "an idx file")
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: expected a whole gzip file, found {error}") from None
    start = 4 + 4 * dimensions
    header = np.frombuffer(content[4:start].ljust(start - 4, b"\0"), ">u4")
    if content[:4] != bytes([0, 0, 8, dimensions]) or start + math.prod(header.tolist()) != len(content):
        raise InputError(f"{path}: expected an idx file of {dimensions} dimensions of bytes, found another or a damaged one")
    return np.frombuffer(content, np.uint8, offset=start).reshape(header)


def _folder(name: str, data_dir: Path, split: str) -> Split:
    return image_folder(name, _part(data_dir, split))


def _part(data_dir: Path, split: str) -> Path:
    wanted = ("train",) if split == "train" else ("val", "test")
    root = next((data_dir / part for part in wanted if (data_dir / part).is_dir()), None)
    if root is None:
        raise InputError(f"{data_dir}: expected a folder {' or '.join(wanted)} with one folder per class, found "
                         f"{'none' if data_dir.is_dir() else 'no such folder'}")
    return root


def _tiny_imagenet(data_dir: Path, split: str) -> Split:
    """Tiny-ImageNet as it is distributed, or with its validation images moved into one folder per wnid."""
    val = data_dir / "val"
    if split == "train" or not ((val / "val_annotations.txt").is_file() and (val / "images").is_dir()):
        return replace(_folder("tiny_imagenet", data_dir, split), native_size_pixels=64)
    return replace(listed("tiny_imagenet", val / "images", val / "val_annotations.txt"), native_size_pixels=64)


def listed(name: str, folder: Path, annotations: Path) -> Split:
    """The images in `folder` with the classes that a file names, in the order of one folder per class.

    A line has a file name, with or without .JPEG, a tab, comma or blank, and its class (a wnid); the rest is not read.
    Tiny-ImageNet's val_annotations.txt and ImageNet's LOC_val_solution.csv (with a header) have this form. Otherwise line n is
    the ILSVRC number of the class of the n-th file in sorted order; `meta.mat` must be in the same folder. Images that no line
    names are left out, with a message. Raises InputError for another file, and where a name or a line is there twice.
    """
    found = image_files(folder, folder.parent)
    files = {file.name: file for file in found}
    if len(files) < len(found):
        raise InputError(f"{folder}: expected another name for each image, found {len(found) - len(files)} names again")
    rows = _numbered(annotations, sorted(files)) or []
    for number, line in enumerate([] if rows else read_lines(annotations), 1):
        if not line.strip():
            continue
        file, *more = line.split("\t" if "\t" in line else "," if "," in line else None)
        file = file if file in files else f"{file}.JPEG"
        if file in files and more:
            wnid = re.match(r"n\d{8}\b", more[0])   # LOC_val_solution.csv has a box after it
            rows.append((wnid[0] if wnid else more[0].strip(), file))
        elif number > 1 or not line.startswith("ImageId,"):
            raise InputError(f"{annotations}: expected a file in {folder} and its class in line {number}, found {line!r}")
    if not rows:
        raise InputError(f"{annotations}: expected one line per image, found none")
    if again := len(rows) - len({file for _, file in rows}):
        raise InputError(f"{annotations}: expected one line per image, found {again} lines of images that have one already")
    if unnamed := len(files) - len(rows):
        note(f"{annotations}: {unnamed} of {len(files)} images in {folder} have no line and are left out")
    rows.sort()  # the order of one folder per class
    names = sorted({class_name for class_name, _ in rows})
    labels = np.searchsorted(names, [class_name for class_name, _ in rows]).astype(np.int64)
    return _of_files(name, folder, names, [files[file] for _, file in rows], labels)


def _numbered(annotations: Path, files: list[str]) -> list[tuple[str, str]] | None:
    """The wnid of each of ILSVRC's files by the numbers in `annotations`; None where it has other lines."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError
    lines, meta = read_lines(annotations), annotations.with_name("meta.mat")
    if not lines or not all(line.isdecimal() for line in lines):
        return None
    if len(lines) != len(files):
        raise InputError(f"{annotations}: expected {len(files)} lines, one per image, found {len(lines)}")
    try:
        known = loadmat(io.BytesIO(read_bytes(meta, "meta.mat of ILSVRC's development kit")), squeeze_me=True)["synsets"]
        wnids = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in known}
        return [(wnids[int(line)], file) for line, file in zip(lines, files, strict=True)]
    except (ValueError, KeyError, TypeError, IndexError, MatReadError) as error:
        raise InputError(f"{meta}: expected the wnids of ILSVRC's numbers, found {error!r}") from None


def image_folder(name: str, root: Path, sort_key=lambda path: path.name) -> Split:
    """The split of one folder per class below `root`, in the order of their names, as in torchvision."""
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
        found = "images alone; name their classes by --val_labels" if image_files(root, root.parent) else "none"
        raise InputError(f"{root}: expected one folder per class, found {found}")
    paths, labels, others = [], [], Counter()
    for label, folder in enumerate(folders):
        images = image_files(folder, root, others)
        if not images:
            raise InputError(f"{folder}: expected at least one image ({' '.join(ENDINGS)}), found an empty class")
        paths += images
        labels += [label] * len(images)
    if others:
        note(f"{root}: {others.total()} files are left out, which are no images by their endings ({' '.join(sorted(others))})")
    return _of_files(name, root, [folder.name for folder in folders], paths, np.array(labels, dtype=np.int64))


def _of_files(name: str, root: Path, class_names: list[str], paths: list[Path], labels: np.ndarray) -> Split:
    classes = [{"name": class_name, "prompt": plain(class_name)} for class_name in class_names]
    return Split(name, classes, labels, lambda row: open_image(paths[row]), paths=paths, root=root)


_LOADERS = {"digits": _digits, "fashion_mnist": _fashion_mnist, "tiny_imagenet": _tiny_imagenet,
            **{name: partial(_cifar, name) for name in ("cifar10", "cifar100")},
            **{name: partial(_folder, name) for name in ("imagenet", "folder")}}
