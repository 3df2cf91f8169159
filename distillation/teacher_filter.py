"""Drawing several candidates and keeping those a teacher recognises (CaO2, arXiv 2506.22637)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillation.distilled_set import check_class_names
from scripts.networks import load_model, predict


class TeacherFilter:
    """A trained classifier that says which of several candidates to keep.

    `keep` is "confident" (few images a class want typical ones) or "hard" (many want what the teacher just recognises).
    """

    def __init__(self, folder: str | Path, classes: list[dict], keep: str, device):
        """Raises InputError when the teacher in `folder` was trained on other classes."""
        network, manifest = load_model(folder, "teacher")
        check_class_names(str(folder), manifest["classes"], "the images to make", classes)
        self.network: nn.Module = network.to(device)
        self.size, self.keep, self.device = manifest["config"]["input_size"], keep, device

    def choose(self, candidates: Tensor, labels: Tensor) -> Tensor:
        """Which candidate to keep [G] of uint8 images [G, M, 3, H, W] of classes `labels` [G]."""
        flat = candidates.flatten(0, 1).to(self.device)
        if flat.shape[-1] != self.size:
            flat = F.interpolate(flat.float(), self.size, mode="bilinear", antialias=True).round().to(torch.uint8)
        logits = predict(self.network, flat).cpu()
        return best_candidates(logits.unflatten(0, candidates.shape[:2]), labels, self.keep)


def best_candidates(logits: Tensor, labels: Tensor, keep: str) -> Tensor:
    """Places [G] among M candidates with logits [G, M, K]: of those recognised as their class `labels` [G] the most certain
    ("confident") or the least certain ("hard"); where none is recognised, the one with the highest probability of its class.
    """
    certainty = logits.softmax(-1).gather(-1, labels[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    right = logits.argmax(-1) == labels[:, None]
    if keep == "hard":
        hardest = torch.where(right, certainty, torch.inf).argmin(1)
        return torch.where(right.any(1), hardest, certainty.argmax(1))
    return torch.where(right, certainty + 1, certainty).argmax(1)
