"""Two ways to better images: mode guidance (MGD3, arXiv 2505.18963), and a teacher that chooses among candidates (CaO2,
arXiv 2506.22637)."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from distillation.distilled_set import check_class_names
from distillation.images import resized
from scripts.networks import load_model, predict

# mode guidance


def pull(predicted: Tensor, prototypes: Tensor, alpha_bar: Tensor, previous: Tensor, scale: float) -> Tensor:
    """What mode guidance adds to the next latents: scale * sigma * (prototype - x0), with x0 `predicted` [B, C, h, w].

    sigma^2 = (1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous) is the variance of the step's posterior (Ho et al.
    2020, eq. 7), between the noise levels `alpha_bar` and `previous`.
    """
    sigma = ((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)).sqrt()
    return scale * sigma * (prototypes - predicted)


class ModeGuidedScheduler(DDIMScheduler):
    """DDIM with mode guidance after each of the first steps; plain DDIM before `aim` is called."""

    prototypes: Tensor | None = None

    def aim(self, prototypes: Tensor, scale: float, stop: int) -> None:
        """Guide the next batch to `prototypes` [B, C, h, w] (scaled latents) with strength `scale` for `stop` steps."""
        self.prototypes, self.scale, self.left = prototypes, scale, stop

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, *rest, return_dict: bool = True, **options):
        """One step of DDIM; then the pull."""
        stepped = super().step(model_output, timestep, sample, *rest, **options)
        if self.prototypes is not None and self.left > 0:
            self.left -= 1
            before = timestep - self.config.num_train_timesteps // self.num_inference_steps
            previous = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
            moved = pull(stepped.pred_original_sample.float(), self.prototypes.to(sample.device), self.alphas_cumprod[timestep],
                         previous, self.scale)
            stepped.prev_sample = (stepped.prev_sample.float() + moved).to(stepped.prev_sample.dtype)
        return stepped if return_dict else stepped.to_tuple()


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
        flat = resized(candidates.flatten(0, 1).to(self.device), self.size)
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
