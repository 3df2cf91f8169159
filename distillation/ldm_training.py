"""Training the parts of a latent diffusion model: the autoencoder, and on its latents the UNet and the text encoder."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from distillation.ldm import diffusion_loss, draw_noising, to_signed, vae_loss
from scripts.randomness import generator_for
from scripts.training import averaged, optimise


@dataclass(frozen=True)
class Posteriors:
    """What the autoencoder says of N images: means and standard deviations [N, C, h, w] of their unscaled latents."""

    means: Tensor
    stds: Tensor
    scaling_factor: float

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Scaled latents [B, C, h, w] of the images `rows` [B], where the posteriors lie."""
        means, stds = (moments[rows.to(moments.device)] for moments in (self.means, self.stds))
        return (means + stds * torch.randn(means.shape, generator=generator).to(means.device)) * self.scaling_factor


def images_at_once(size_pixels: int) -> int:
    """How many images an autoencoder gets at once: 8 of 512 pixels, so that memory does not grow with the resolution."""
    return max(1, 2 ** 21 // size_pixels ** 2)


def warm_cosine(steps: int, warm_up: int = 50) -> Callable[[int], float]:
    """Learning-rate factor: linear up over `warm_up` steps, then half a cosine to zero."""
    return lambda step: min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train_vae(vae: AutoencoderKL, images: Tensor, *, steps: int, batch_size: int, learning_rate: float, kl_weight: float,
              seed: int, state_path: Path, save_seconds: float) -> dict:
    """Train the autoencoder on uint8 `images` [N, 3, H, W]; returns what `optimise` does."""
    def parts_at(step):
        generator = generator_for(seed, "vae", step)
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        yield vae_loss(vae, to_signed(images[rows.to(images.device)]), kl_weight, generator)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=0)
    return optimise(vae, parts_at, steps, optimizer, warm_cosine(steps), state_path, name="autoencoder",
                    images_per_step=batch_size, save_seconds=save_seconds)


def train_unet(unet: UNet2DConditionModel, trained: nn.ModuleDict, text_of: Callable[[Tensor], Tensor], scheduler,
               posteriors: Posteriors, labels: Tensor, empty: int, *, steps: int, batch_size: int, accumulation: int,
               recompute: bool, learning_rate: float, prompt_drop: float, ema_decay: float, seed: int, state_path: Path,
               save_seconds: float) -> tuple[dict, nn.ModuleDict]:
    """Train `trained` (what of the UNet and the text encoder is to change) on latents drawn from the posteriors.

    `text_of(prompts)` are the embeddings [B, tokens, width] of classes [B]; the class `empty` has no prompt. A batch goes
    through in `accumulation` parts; with `recompute` the backward pass computes activations again instead of keeping them.
    float32, but bfloat16 in matrix products on an accelerator that has it. Returns what `optimise` does, and `trained` with
    averaged weights.
    """
    device = unet.device
    if recompute:
        unet.enable_gradient_checkpointing()

    def parts_at(step):
        generator = generator_for(seed, "unet", step)
        rows = torch.randint(len(labels), (batch_size,), generator=generator)
        latents = posteriors.draw(rows, generator)
        noise, timesteps, drop = draw_noising(latents.shape, scheduler.config.num_train_timesteps, prompt_drop, generator)
        prompts = torch.where(drop, empty, labels[rows])
        drawn = [tensor.to(device) for tensor in (latents, noise, timesteps, prompts)]
        for part in zip(*(tensor.tensor_split(accumulation) for tensor in drawn), strict=True):
            latents, noise, timesteps, prompts = part
            with half_precision(device):
                loss = diffusion_loss(unet, scheduler, latents, noise, timesteps, text_of(prompts))
            yield loss * (len(latents) / batch_size)
    average = averaged(trained, ema_decay)
    optimizer = torch.optim.AdamW([weight for weight in trained.parameters() if weight.requires_grad], lr=learning_rate,
                                  weight_decay=0)
    done = optimise(trained, parts_at, steps, optimizer, warm_cosine(steps), state_path, name="unet",
                    images_per_step=batch_size, save_seconds=save_seconds, average=average)
    return done, average.module


def half_precision(device: torch.device) -> torch.autocast:
    """bfloat16 for matrix products on an accelerator that has it; nothing elsewhere."""
    usable = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=usable)


def trained_text(text_encoder, tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """`text_of` for a text encoder that learns too; `tokens` [classes, length]. Of many classes only a batch's are encoded."""
    def text_of(prompts: Tensor) -> Tensor:
        if len(tokens) <= len(prompts):
            return text_encoder(tokens)[0][prompts]
        needed, places = prompts.unique(return_inverse=True)
        return text_encoder(tokens[needed])[0][places]
    return text_of
