"""The teacher of soft labels: a network trained here, a checkpoint file, or torchvision's weights."""

from pathlib import Path

import torch
from torch import Tensor, nn

from distillation.distilled_set import check_class_names
from distillation.prompts import by_wnid
from matching.image_set import FileImages, ImageSet
from scripts.artefact import identity
from scripts.cli import InputError, note
from scripts.networks import build, load_checkpoint, load_model


class Selected(nn.Module):
    """The outputs `columns` of a network [B, K], in that order."""

    def __init__(self, network: nn.Module, columns: list[int]):
        super().__init__()
        self.network = network
        self.register_buffer("columns", torch.tensor(columns))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, len(columns)] of images [B, 3, H, W]."""
        return self.network(images)[:, self.columns]


def load_teacher(folder: str | Path | None, arch: str, stem: str, weights: str, images: ImageSet | FileImages,
                 size: int) -> tuple[nn.Module, str]:
    """The teacher for views of `size` pixels, in evaluation mode on the images' device, and a name that identifies it.

    `folder` is train_teacher's, a checkpoint file of `arch` and `stem`, or None for torchvision's `weights`. Raises InputError
    for other classes, another size, or weights that do not fit.
    """
    if folder is None:
        network, name = imagenet_teacher(arch, weights, images, size), f"{arch} {weights}"
    elif not Path(folder).is_dir():
        network, name = load_checkpoint(folder, arch, len(images.classes), stem, size), f"{arch} {stem} {identity(folder)}"
        names = [entry["name"] for entry in images.classes]
        note(f"{folder}: has no class list; its outputs are taken in the order {', '.join(names[:3])}, ... {names[-1]}")
    else:
        network, name = trained_teacher(folder, images, size), identity(folder)
    return network.to(images.device).eval(), name


def trained_teacher(folder: str | Path, images: ImageSet | FileImages, size: int) -> nn.Module:
    """The network of train_teacher's `folder`. Raises InputError for other classes than those of `images`, or another size."""
    network, manifest = load_model(folder, "teacher")
    check_class_names(images.name, images.classes, folder, manifest["classes"])
    if (trained := manifest["config"]["input_size"]) != size:
        raise InputError(f"--input-size: expected {trained}, which {folder} was trained at, found {size}")
    return network.to(images.device).eval()


def imagenet_teacher(arch: str, weights: str, images: ImageSet | FileImages, size: int) -> nn.Module:
    """torchvision's `arch` with `weights` for views of `size` pixels; the outputs of the images' classes are selected by wnid.

    The original's names `0`, `1`, ... stand for all wnids in order. Raises InputError for classes that are no wnids.
    """
    names, wnids = [entry["name"] for entry in images.classes], list(by_wnid("imagenet"))
    if names not in (wnids, [str(label) for label in range(len(wnids))]):
        if unknown := [name for name in names if name not in wnids]:
            raise InputError(f"{arch} {weights}: expected classes named by the {len(wnids)} wnids of ImageNet, found "
                             f"{unknown[0]} in {images.name}; name a teacher of these classes (--teacher, of train_teacher)")
        return Selected(build(arch, len(wnids), weights=weights, size=size), [wnids.index(name) for name in names])
    return build(arch, len(wnids), weights=weights, size=size)
