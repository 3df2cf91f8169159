"""Two ways to better images: mode guidance (MGD3, arXiv 2505.18963), and a teacher that chooses among candidates (CaO2,
arXiv 2506.22637)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from distillation.distilled_set import check_class_names
from scripts.networks import load_model, predict

# mode guidance

def pull(prediction: Tensor, sample: Tensor, prototypes: Tensor, alpha_bar: Tensor, scale: float,
         prediction_type: str) -> Tensor:
    """The network's `prediction` [B, C, h, w] at `sample`, changed so that the predicted image x0 is nearer to its prototype.

    The noise changes by -scale * sigma * (prototype - x0), with sigma^2 = 1 - alpha_bar; a predicted velocity changes
    accordingly. Raises ValueError for other predictions.
    """
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    if prediction_type == "epsilon":
        predicted = (sample - sigma * prediction) / alpha
        return prediction - scale * sigma * (prototypes - predicted)
    if prediction_type == "v_prediction":
        predicted = alpha * sample - sigma * prediction
        return prediction - scale * sigma / alpha * (prototypes - predicted)
    raise ValueError(f"expected epsilon or v_prediction, found {prediction_type}")


class ModeGuidedScheduler(DDIMScheduler):
    """DDIM with mode guidance during the first steps; plain DDIM before `aim` is called."""

    prototypes: Tensor | None = None

    def aim(self, prototypes: Tensor, scale: float, stop: int) -> None:
        """Guide the next batch to `prototypes` [B, C, h, w] (scaled latents) with strength `scale` for `stop` steps."""
        self.prototypes, self.scale, self.left = prototypes, scale, stop

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, *rest, **options):
        """One step of DDIM on the guided prediction."""
        if self.prototypes is not None and self.left > 0:
            self.left -= 1
            alpha_bar = self.alphas_cumprod.to(sample.device)[timestep].float()
            model_output = pull(model_output.float(), sample.float(), self.prototypes.to(sample.device), alpha_bar, self.scale,
                                self.config.prediction_type).to(model_output.dtype)
        return super().step(model_output, timestep, sample, *rest, **options)


# a teacher that chooses among candidates

class TeacherFilter:
    """A trained classifier keeps one of several candidates: a "confident" one (typical) or a "hard" one (just recognised)."""

    def __init__(self, folder: str | Path, classes: list[dict], keep: str, device):
        """Raises InputError for a teacher of other classes."""
        network, manifest = load_model(folder, "teacher")
        check_class_names(str(folder), manifest["classes"], "the images to make", classes)
        self.network: nn.Module = network.to(device)
        self.size, self.keep, self.device = manifest["config"]["input_size"], keep, device

    def choose(self, candidates: Tensor, labels: Tensor) -> Tensor:
        """The candidate to keep [G] of uint8 images [G, M, 3, H, W] of classes `labels` [G]."""
        flat = candidates.flatten(0, 1).to(self.device)
        if flat.shape[-1] != self.size:
            flat = F.interpolate(flat.float(), self.size, mode="bilinear", antialias=True).round().to(torch.uint8)
        logits = predict(self.network, flat).cpu()
        return best_candidates(logits.unflatten(0, candidates.shape[:2]), labels, self.keep)


def best_candidates(logits: Tensor, labels: Tensor, keep: str) -> Tensor:
    """Indices [G] among M candidates with logits [G, M, K]: of those recognised as their class `labels` [G] the one of highest
    ("confident") or lowest ("hard") probability; if none is recognised, the one with the highest probability of its class.
    """
    certainty = logits.softmax(-1).gather(-1, labels[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    right = logits.argmax(-1) == labels[:, None]
    if keep == "hard":
        hardest = torch.where(right, certainty, torch.inf).argmin(1)
        return torch.where(right.any(1), hardest, certainty.argmax(1))
    return torch.where(right, certainty + 1, certainty).argmax(1)
