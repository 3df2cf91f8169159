"""Soft labels on the fly: a teacher looks at the very views that the network learns from."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distillation.distilled_set import check_class_names
from matching.soft_labels import soft_loss
from scripts.artefact import identity
from scripts.cli import InputError
from scripts.networks import load_model


@dataclass(frozen=True)
class Teacher:
    """A trained network in evaluation mode, of the classes of the stream; `digest` identifies its weights."""

    network: nn.Module
    arch: str
    stem: str
    temperature: float
    digest: str

    @torch.no_grad()
    def logits(self, views: Tensor) -> Tensor:
        """What the teacher says of views [B, 3, H, W]: float32 [B, K]."""
        return self.network(views).float()

    def loss(self, student: Tensor, said: Tensor) -> Tensor:
        """T^2 KL(teacher || student) of logits [B, K] at the temperature T, averaged over images.

        Softening divides the gradient by about T^2; the factor (Hinton et al. 2015, section 2) makes it as large as that of a
        hard label's cross-entropy, so that learning rates mean the same for both.
        """
        ones = torch.ones(len(said), device=said.device)
        return soft_loss(student, said, self.temperature, ones, said.shape[1]) * self.temperature ** 2

    @property
    def bytes(self) -> int:
        """Bytes of the weights and statistics."""
        return sum(value.nbytes for value in self.network.state_dict().values())


def read_teacher(folder: str | Path, temperature: float, classes: list[dict], size: int, device) -> Teacher:
    """The teacher that `matching.train_teacher` left in `folder`.

    Raises InputError when it is none, has other classes or was trained on images of another size.
    """
    network, manifest = load_model(folder, "teacher")
    check_class_names(str(folder), manifest["classes"], "the stream", classes)
    config = manifest["config"]
    if config["input_size"] != size:
        raise InputError(f"--teacher {folder}: expected a teacher of {size} pixels, found one of {config['input_size']}")
    network = network.requires_grad_(False).to(device)
    return Teacher(network, config["arch"], config["stem"], temperature, identity(Path(folder)))
