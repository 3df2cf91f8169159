"""One small sound artefact of every kind, and for each file of theirs the damage that fits it and the readers that open it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from continual.verification import CHECKS
from distillation.datasets import file_prompts
from distillation.distilled_set import finish_distilled, read_distilled, row, write_image
from distillation.images import open_image
from distillation.prototypes import Prototypes, class_file, read_prototypes, write_class, write_json_file
from distillation.verification import strictly, verify
from matching.augmentation import draw_epoch
from matching.image_set import ImageSet, distilled_images
from matching.soft_labels import SoftLabels, epoch_file, leading_answers, write_epoch
from misc.mutations import (
    damaged_bytes,
    damaged_image,
    damaged_json,
    damaged_lines,
    damaged_safetensors,
    damaged_text,
)
from scripts.artefact import begin, finish, write_json, write_tensors
from scripts.networks import WEIGHTS, load_checkpoint, load_model, read_state_dict, seeded

CLASSES = [{"name": name, "prompt": f"a photo of a {name}"} for name in ("ant", "sea lion", "crane")]
IPC, SIZE, ARCH = 2, 8, "convnet_d1_w4"
TEACHER = {"arch": ARCH, "stem": "imagenet", "input_size": SIZE}
FORMATS = {"rgb.png": "RGB", "palette.png": "P", "grey16.png": "I;16", "alpha.png": "RGBA", "photo.jpg": "RGB",
           "photo.webp": "RGB", "old.bmp": "RGB", "moving.gif": "P", "scan.tif": "RGB", "plain.ppm": "RGB"}


@dataclass(frozen=True)
class Case:
    """`files` of which one is damaged by `damage(content, rng)`, and `read`, all that is opened then."""

    files: list[Path]
    damage: Callable[[bytes, np.random.Generator], bytes]
    read: Callable[[Path], object]


def cases(root: Path) -> dict[str, Case]:
    """Write the artefacts below `root`; returns the cases by name."""
    rng = np.random.default_rng(0)
    folders = {name: root / name for name in ("prototypes", "distilled", "soft_labels", "teacher", "continual")}
    write_prototypes(folders["prototypes"], root / "prototypes.json", rng)
    write_distilled(folders["distilled"], rng)
    images = distilled_images(folders["distilled"])
    write_labels(folders["soft_labels"], images, rng)
    write_teacher(folders["teacher"], root)
    write_run(folders["continual"])
    loose = write_loose_files(root / "loose", rng)

    def verified(name: str, read: Callable[[], object]):
        """The stage's own reader, and misc.verify."""
        return lambda _path: (verify(folders[name], CHECKS), read())[1]
    readers = {"prototypes": lambda: read_prototypes(folders["prototypes"]),
               "distilled": lambda: read_images(folders["distilled"]),
               "soft_labels": lambda: read_labels(folders["soft_labels"], images),
               "teacher": lambda: load_model(folders["teacher"], "teacher")}
    tensors = {name: Case(sorted(folders[name].glob("*.safetensors")), damaged_safetensors, verified(name, read))
               for name, read in readers.items() if name != "distilled"}
    return {
        **{f"manifest of {name}": Case([folders[name] / "manifest.json"], damaged_json, verified(name, read))
           for name, read in readers.items()},
        "manifest of a continual run": Case([folders["continual"] / "manifest.json"], damaged_json,
                                            lambda _: strictly([folders["continual"]], CHECKS)),
        "result of a continual run": Case([folders["continual"] / "result.json"], damaged_json,
                                          lambda _: strictly([folders["continual"]], CHECKS)),
        "buffer of a continual run": Case([folders["continual"] / "buffer.safetensors"], damaged_safetensors,
                                          lambda _: strictly([folders["continual"]], CHECKS)),
        **{f"tensors of {name}": case for name, case in tensors.items()},
        "JSON prototypes": Case([root / "prototypes.json"], damaged_json, read_prototypes),
        "configuration": Case([folders["teacher"] / "config.json"], damaged_json,
                              lambda _: begin(folders["teacher"], "teacher", TEACHER)),
        "metadata.jsonl": Case([folders["distilled"] / "metadata.jsonl"], damaged_lines,
                               lambda _: strictly([folders["distilled"]], CHECKS)),
        "images": Case(loose["images"], damaged_image, open_image),
        "images of a distilled set": Case(sorted(folders["distilled"].glob("*/*.png")), damaged_image,
                                          verified("distilled", readers["distilled"])),
        "label file": Case(loose["labels"], damaged_text, lambda path: file_prompts(path, "folder", [
            entry["name"] for entry in CLASSES])),
        "checkpoint of torch.save": Case([root / "weights.pt"], damaged_bytes, read_state_dict),
        "checkpoint in safetensors": Case([root / "weights.safetensors"], damaged_safetensors,
                                          lambda path: load_checkpoint(path, ARCH, len(CLASSES), size=SIZE)),
    }


def read_images(folder: Path):
    """Rows and pixels of a distilled set."""
    read_distilled(folder)
    return distilled_images(folder)


def read_labels(folder: Path, images: ImageSet):
    """Every epoch with views made of it, as training does."""
    store, rows = SoftLabels(folder, images), torch.arange(len(images))
    for epoch in range(min(store.epochs, 3)):
        drawn, answers = store.epoch(epoch, "cpu")
        images.views(drawn, rows, min(store.size, 64))
        answers[drawn.order.long()]


def without_sizes(folder: Path) -> None:
    """Take the sizes out of a manifest, as it was before it had some: so that damage of another length gets past them."""
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {key: value for key, value in manifest.items() if key != "bytes"})


def write_prototypes(folder: Path, single: Path, rng: np.random.Generator) -> None:
    """A prototypes folder, and the same as the original's file."""
    found = [Prototypes(torch.from_numpy(rng.normal(size=(IPC, 4, 4, 4)).astype(np.float32)), torch.tensor([3, 2]),
                        torch.tensor(1.5), torch.tensor([0, 4]), torch.empty(0, dtype=torch.int64)) for _ in CLASSES]
    for label, entry in enumerate(CLASSES):
        write_class(folder, label, entry["name"], found[label])
    finish(folder, "prototypes", CLASSES, {"ipc": IPC, "outliers": "none", "size": SIZE},
           [class_file(label, entry["name"]) for label, entry in enumerate(CLASSES)], latent_shape=[4, 4, 4],
           counts={"classes": 3, "prototypes": 3 * IPC, "images": 15}, skipped=[])
    write_json_file(single, CLASSES, found)
    without_sizes(folder)


def write_distilled(folder: Path, rng: np.random.Generator) -> None:
    """A distilled set of random pixels."""
    rows = [row(label, entry["name"], place, 0, 7, 1 / IPC) for label, entry in enumerate(CLASSES) for place in range(IPC)]
    for each in rows:
        write_image(folder, each["file_name"], Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)))
    finish_distilled(folder, CLASSES, {"method": "random", "ipc": IPC, "image_size": SIZE, "dataset": "folder"}, rows)
    without_sizes(folder)


def write_labels(folder: Path, images: ImageSet, rng: np.random.Generator) -> None:
    """Soft labels of two epochs, the leading two of three classes kept."""
    for epoch in range(2):
        drawn = draw_epoch(len(images), (SIZE, SIZE), SIZE, rng, mix="cutmix")
        logits = torch.from_numpy(rng.normal(size=(len(images), len(CLASSES))).astype(np.float32))
        write_epoch(folder, epoch, drawn, leading_answers(logits, 2, 20.0))
    files = [epoch_file(epoch) for epoch in range(2)]
    facts = {"epochs": 3, "stored_epochs": 2, "views": 2 * len(images), "classes": 3, "stored_logits": 2,
             "bytes": sum((folder / name).stat().st_size for name in files)}
    finish(folder, "soft_labels", CLASSES, {"epochs": 3, "input_size": SIZE, "fkd_seed": 42}, files, images=images.digest,
           kept=facts)
    without_sizes(folder)


def write_teacher(folder: Path, root: Path) -> None:
    """A trained network's folder (with untrained weights), and its weights as checkpoint files."""
    begin(folder, "teacher", TEACHER)
    state = seeded(ARCH, len(CLASSES), "imagenet", 0, SIZE).state_dict()
    for path in (folder / WEIGHTS, root / "weights.safetensors"):
        write_tensors(path, state)
    torch.save({"state_dict": state}, root / "weights.pt")
    finish(folder, "teacher", CLASSES, TEACHER, [WEIGHTS], test_accuracy=0.5)
    without_sizes(folder)


def write_run(folder: Path) -> None:
    """A continual run of three tasks."""
    matrix = {"matrix": [[0.5, 0.0, 0.0], [0.2, 0.6, 0.0], [0.1, 0.2, 0.9]], "acc": 0.4}
    write_json(folder / "result.json", {"kind": "continual", "tasks": [[1], [0], [2]], "class_il": matrix, "task_il": matrix})
    write_tensors(folder / "buffer.safetensors", {"images": torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8),
                                                  "labels": torch.tensor([0, 2])})
    finish(folder, "continual", CLASSES, {"buffer_size": 4}, ["result.json", "buffer.safetensors"])
    without_sizes(folder)


def write_loose_files(folder: Path, rng: np.random.Generator) -> dict[str, list[Path]]:
    """Images in every format, and a label file."""
    folder.mkdir(parents=True)
    for name, mode in FORMATS.items():
        pixels = rng.integers(0, 256, (SIZE, SIZE + 3, 3), dtype=np.uint8)
        image = Image.fromarray(pixels.astype(np.uint16)[:, :, 0]) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
        more = {"transparency": 3} if name == "palette.png" else {}
        if name == "photo.jpg":
            exif = Image.Exif()
            exif[274] = 6  # turned
            more = {"exif": exif}
        image.save(folder / name, **more)
    labels = folder / "labels.txt"
    labels.write_text("an ant\na sea lion\na crane\n")
    return {"images": [folder / name for name in FORMATS], "labels": [labels]}
