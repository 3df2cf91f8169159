"""FKD soft labels: per epoch, what was drawn and what the teacher said, addressed by image row.

One safetensors file per epoch with `order`, `crop`, `flip`, `partner`, `ratio`, `box` (see augmentation.Drawn) and `logits`
[N, K]. A reader makes the same views again from them; it shares no sampler, batch size or library version with the writer.
FKD: Shen & Xing 2022 (arXiv 2112.01528).
"""

from dataclasses import fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distillation.entry import InputError
from distillation.manifest import read_manifest, read_tensors, write_tensors
from matching.augmentation import Drawn, views
from matching.image_set import ImageSet

STORED = {"order": torch.int32, "crop": torch.int16, "flip": torch.bool, "partner": torch.int32, "ratio": torch.float32,
          "box": torch.int16}


def epoch_file(epoch: int) -> str:
    """Name of one epoch's file."""
    return f"epoch_{epoch:04d}.safetensors"


def write_epoch(folder: Path, epoch: int, drawn: Drawn, logits: Tensor) -> None:
    """Write one epoch; `logits` [N, K] by image row, in the precision to store."""
    write_tensors(folder / epoch_file(epoch),
                  {**{name: getattr(drawn, name).to(dtype) for name, dtype in STORED.items()}, "logits": logits})


def read_store(folder: str | Path) -> dict:
    """The manifest of a soft-label folder. Raises InputError, also for the original's pickled files, which are not opened."""
    if next(Path(folder).glob("epoch_*/batch_*.tar"), None):
        raise InputError(f"{folder}: expected soft labels in safetensors, found pickled batch_*.tar files, which can run code "
                         "and depend on the writer's sampler; write them again with generate_soft_label")
    return read_manifest(folder, "soft_labels")


class SoftLabels:
    """A finished soft-label folder. `epoch(e)` gives what was drawn and the logits, float32 [N, K]."""

    def __init__(self, folder: str | Path, images: ImageSet):
        """Raises InputError when the folder belongs to other images than `images`, or is none."""
        self.folder, self.manifest = Path(folder), read_store(folder)
        if self.manifest["images"] != images.digest:
            raise InputError(f"{folder}: expected soft labels of {images.name} ({images.digest[:12]}), found those of "
                             f"{self.manifest['config']['images']} ({self.manifest['images'][:12]})")
        self.epochs, self.size = self.manifest["config"]["epochs"], self.manifest["config"]["input_size"]

    def epoch(self, epoch: int, device) -> tuple[Drawn, Tensor]:
        """Draws and logits of one epoch on `device`."""
        stored = read_tensors(self.folder / epoch_file(epoch))
        drawn = Drawn(**{field.name: stored[field.name].to(device) for field in fields(Drawn)})
        return drawn, stored["logits"].to(device).float()


@torch.inference_mode()
def relabel(teacher, images: ImageSet, drawn: Drawn, size: int, batch_size: int) -> Tensor:
    """The teacher's logits [N, K] for the view of every image, by row, on the CPU."""
    rows = torch.arange(len(images), device=images.images.device)
    on_device = drawn.to(rows.device)
    return torch.cat([teacher(views(images.images, on_device, part, size)).cpu() for part in rows.split(batch_size)])


def soft_loss(student: Tensor, teacher: Tensor, temperature: float, weights: Tensor, keep_topk: int) -> Tensor:
    """KL(teacher || student) of logits [B, K] at `temperature`, averaged over images with `weights` [B] (mean 1).

    As in FKD, without the factor T^2. `keep_topk` keeps the teacher's k largest probabilities and spreads the rest evenly.
    """
    target = keep_largest(F.softmax(teacher / temperature, dim=1), keep_topk)
    divergence = F.kl_div(F.log_softmax(student / temperature, dim=1), target, reduction="none").sum(1)
    return (divergence * weights).mean()


def keep_largest(probabilities: Tensor, k: int) -> Tensor:
    """Keep the `k` largest entries of each row [B, K] and spread what is left evenly over the others."""
    classes = probabilities.shape[1]
    if k >= classes:
        return probabilities
    values, places = probabilities.topk(k, dim=1)
    rest = (1 - values.sum(1, keepdim=True)) / (classes - k)
    return rest.expand(-1, classes).scatter(1, places, values)


def hard_loss(student: Tensor, labels: Tensor, partner_labels: Tensor, ratio: Tensor, weights: Tensor,
              smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits [B, K] with mixed labels: `ratio` [B] of the image's own, the rest of its partner's."""
    own = F.cross_entropy(student, labels, reduction="none", label_smoothing=smoothing)
    partner = F.cross_entropy(student, partner_labels, reduction="none", label_smoothing=smoothing)
    return ((ratio * own + (1 - ratio) * partner) * weights).mean()
