"""The teacher of soft labels: a network trained here, a checkpoint file, or torchvision's weights."""

from pathlib import Path

from torch import nn

from distillation.distilled_set import check_class_names
from matching.image_set import FileImages, ImageSet
from scripts.artefact import identity
from scripts.cli import InputError
from scripts.networks import build, load_checkpoint, load_model


def load_teacher(folder: str | Path | None, arch: str, stem: str, weights: str, images: ImageSet | FileImages,
                 size: int) -> tuple[nn.Module, str]:
    """The teacher for views of `size` pixels, in evaluation mode on the images' device, and a name that identifies it.

    `folder` is train_teacher's, or (with `arch`) a checkpoint file, or None for torchvision's `weights`. Raises InputError for
    other classes, another size, or weights that do not fit.
    """
    if folder is None:
        network, name = build(arch, len(images.classes), weights=weights), f"{arch} {weights}"
    elif arch and not Path(folder).is_dir():
        network, name = load_checkpoint(folder, arch, len(images.classes), stem, size), f"{arch} {stem} {identity(folder)}"
    else:
        network, manifest = load_model(folder, "teacher")
        check_class_names(images.name, images.classes, folder, manifest["classes"])
        trained = manifest["config"]["input_size"]
        if trained != size:
            raise InputError(f"--input-size: expected {trained}, which {folder} was trained at, found {size}")
        name = identity(folder)
    return network.to(images.device).eval(), name
