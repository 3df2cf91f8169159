"""A small latent diffusion model in Stable Diffusion's layout: its networks, its losses, and how they are trained.

The networks are those of diffusers and transformers, so a trained folder loads like Stable Diffusion v1.5. Rombach et al. 2022
(arXiv 2112.10752).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from scripts.cli import Progress
from scripts.files import check_finite, likely_cause, write_text
from scripts.randomness import generator_for
from scripts.training import CURVES, Loop, averaged, half_precision, new_optimizer

PROMPT_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


# networks

def byte_level_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer without merges: 256 bytes, each also as the end of a word, and two marks. It takes any text."""
    letters = list(_byte_letters().values())
    words = letters + [letter + "</w>" for letter in letters] + [START, END]
    for earlier in folder.glob("tokenizer*.json"):  # left by a killed run; transformers would read them
        earlier.unlink()
    write_text(folder / "vocab.json", json.dumps({word: index for index, word in enumerate(words)}))
    write_text(folder / "merges.txt", "#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=PROMPT_TOKENS, bos_token=START, eos_token=END,
                                              unk_token=END, pad_token=END)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable Latin-1 is itself, the others move past 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def new_vae(size_pixels: int, channels: list[int], latent_channels: int = 4) -> AutoencoderKL:
    """An autoencoder whose latents have size / 2^(len(channels) - 1) pixels a side."""
    levels = len(channels)
    return AutoencoderKL(
        sample_size=size_pixels, block_out_channels=tuple(channels), latent_channels=latent_channels, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels)


def new_text_encoder(width: int) -> CLIPTextModel:
    """A CLIP text transformer over the byte-level vocabulary."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=PROMPT_TOKENS, projection_dim=width, bos_token_id=512, eos_token_id=513, pad_token_id=513))


def new_unet(latent_shape: tuple[int, ...], channels: list[int], text_width: int) -> UNet2DConditionModel:
    """A text-conditional UNet of latents [C, h, w]; cross-attention at every level but the finest, where it costs most."""
    coarser = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=latent_shape[-1], in_channels=latent_shape[0], out_channels=latent_shape[0],
        block_out_channels=tuple(channels), layers_per_block=1,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * coarser,
        up_block_types=("CrossAttnUpBlock2D",) * coarser + ("UpBlock2D",),
        cross_attention_dim=text_width, attention_head_dim=4, norm_num_groups=16)


def new_scheduler(prediction_type: str) -> DDIMScheduler:
    """Stable Diffusion's noise schedule: 1,000 steps, beta from 0.00085 to 0.012, linear in its square root."""
    return DDIMScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                         clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type)


def stable_diffusion_v15() -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel]:
    """Stable Diffusion v1.5 with random weights (4.3 GB; none under `torch.device("meta")`), to measure speed and memory."""
    vae = AutoencoderKL(
        sample_size=512, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768,
        attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=PROMPT_TOKENS, hidden_act="quick_gelu", projection_dim=768, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=49407))
    return vae, unet, text_encoder


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids [B, tokens], padded and truncated as in the Stable Diffusion pipelines."""
    return tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                     return_tensors="pt").input_ids


# losses

def to_signed(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] in [0, 255] -> float in [-1, 1]."""
    return images.float() / 127.5 - 1


def vae_loss(vae: AutoencoderKL, images: Tensor, kl_weight: float, generator: torch.Generator) -> Tensor:
    """Mean absolute reconstruction error of `images` in [-1, 1] plus `kl_weight` times the mean KL to a unit Gaussian."""
    posterior = vae.encode(images).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(images.device)
    restored = vae.decode(posterior.mean + posterior.std * noise).sample
    kl = 0.5 * (posterior.mean ** 2 + posterior.var - 1 - posterior.logvar).mean()
    return F.l1_loss(restored, images) + kl_weight * kl


def draw_noising(shape, steps: int, drop: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise [B, C, h, w], timesteps [B], and which prompts to drop [B] (classifier-free guidance, Ho & Salimans 2022)."""
    noise = torch.randn(shape, generator=generator)
    timesteps = torch.randint(steps, shape[:1], generator=generator)
    return noise, timesteps, torch.rand(shape[:1], generator=generator) < drop


def diffusion_loss(unet, scheduler, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """Mean squared error of the prediction at `timesteps`, in the scheduler's own parametrisation (Ho et al. 2020, eq. 14)."""
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy, timesteps, encoder_hidden_states=text).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    return F.mse_loss(predicted, scheduler.get_velocity(latents, noise, timesteps) if velocity else noise)


# training

@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, with the curve `short-warm-up`.

    `prompt_drop`, `ema_decay`, `accumulation` and `recompute` are used for the UNet only.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    state_path: Path          # the resume point, written every `save_seconds`
    save_seconds: float
    prompt_drop: float = 0.1  # fraction of prompts emptied, for classifier-free guidance
    ema_decay: float = 0.998
    accumulation: int = 1     # micro-batches of a batch
    recompute: bool = False   # recompute activations in the backward pass, which saves memory
    bf16: bool = False        # on a GPU the UNet computes in bfloat16 without it


@dataclass(frozen=True)
class Posteriors:
    """Means and standard deviations [N, C, h, w] of the unscaled latents of N images."""

    means: Tensor
    stds: Tensor
    scaling_factor: float

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Scaled latents [B, C, h, w] of the images `rows` [B], on the posteriors' device."""
        means, stds = (moments[rows.to(moments.device)] for moments in (self.means, self.stds))
        return (means + stds * torch.randn(means.shape, generator=generator).to(means.device)) * self.scaling_factor


@torch.no_grad()
def encode_moments(vae: AutoencoderKL, images: Tensor, batch_size: int = 256,
                   names: list[str] | None = None) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the posteriors of uint8 images [N, 3, H, W], each [N, C, h, w], unscaled.

    Raises InputError for those that are not finite, with the image's name.
    """
    parts = Progress(images.split(batch_size), desc="encode", unit="batch")
    posteriors = [vae.encode(to_signed(part)).latent_dist for part in parts]
    means, stds = torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])
    moments = zip(means, stds, strict=True)
    check_finite(dict(zip(names or range(len(means)), moments, strict=True)), "encoder", likely_cause(means.dtype))
    return means, stds


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor, means: Tensor, batch_size: int = 64) -> float:
    """Mean peak signal-to-noise ratio (dB) of uint8 images [N, 3, H, W] decoded from their latents' means [N, C, h, w]."""
    errors = [(vae.decode(part).sample.clamp(-1, 1) - to_signed(wanted)).div(2).square().mean((1, 2, 3))
              for wanted, part in zip(images.split(batch_size), means.split(batch_size), strict=True)]
    return float((-10 * torch.cat(errors).clamp(min=1e-10).log10()).mean())


def images_at_once(size_pixels: int) -> int:
    """The autoencoder's batch size, such that memory does not grow with the resolution: 8 at 512 pixels."""
    return max(1, 2 ** 21 // size_pixels ** 2)


def train_vae(vae: AutoencoderKL, images: Tensor, kl_weight: float, recipe: Recipe) -> dict:
    """Train the autoencoder on uint8 `images` [N, 3, H, W]; returns the losses and the seconds."""
    optimizer = new_optimizer("adamw", vae.parameters(), recipe.learning_rate, fused=None)
    loop = Loop(vae, optimizer, recipe.steps, lambda step: CURVES["short-warm-up"](step, recipe.steps), recipe.state_path,
                name="autoencoder", images_per_step=recipe.batch_size, save_seconds=recipe.save_seconds)
    for step in loop:
        generator = generator_for(recipe.seed, "vae", step)
        rows = torch.randint(len(images), (recipe.batch_size,), generator=generator)
        with half_precision(vae.device, recipe.bf16):
            loss = vae_loss(vae, to_signed(images[rows.to(images.device)]), kl_weight, generator)
        loop.backward(loss)
        loop.step()
    return {"losses": loop.losses, "seconds": loop.seconds}


def train_unet(unet: UNet2DConditionModel, trained: nn.ModuleDict, text_of: Callable[[Tensor], Tensor], scheduler,
               posteriors: Posteriors, labels: Tensor, empty: int, recipe: Recipe) -> tuple[dict, nn.ModuleDict]:
    """Train `trained` (the parts of UNet and text encoder that change) on latents drawn from the posteriors.

    `text_of(classes)` are prompt embeddings [B, tokens, width]; the class `empty` has no prompt. Returns the losses and the
    seconds, and `trained` with averaged weights.
    """
    if recipe.recompute:
        unet.enable_gradient_checkpointing()
    average = averaged(trained, recipe.ema_decay)
    optimizer = new_optimizer("adamw", [weight for weight in trained.parameters() if weight.requires_grad],
                              recipe.learning_rate, fused=None)
    loop = Loop(trained, optimizer, recipe.steps, lambda step: CURVES["short-warm-up"](step, recipe.steps), recipe.state_path,
                name="unet", images_per_step=recipe.batch_size, save_seconds=recipe.save_seconds, average=average)
    for step in loop:
        # draw the batch: latents, noise, timesteps, prompts
        generator = generator_for(recipe.seed, "unet", step)
        rows = torch.randint(len(labels), (recipe.batch_size,), generator=generator)
        latents = posteriors.draw(rows, generator)
        noise, timesteps, drop = draw_noising(latents.shape, scheduler.config.num_train_timesteps, recipe.prompt_drop,
                                              generator)
        classes = torch.where(drop, empty, labels[rows])

        # forward and backward, in micro-batches
        batch = [tensor.to(unet.device).tensor_split(recipe.accumulation) for tensor in (latents, noise, timesteps, classes)]
        for latents, noise, timesteps, classes in zip(*batch, strict=True):
            with half_precision(unet.device, wanted=recipe.bf16 or unet.device.type == "cuda"):
                loss = diffusion_loss(unet, scheduler, latents, noise, timesteps, text_of(classes))
            loop.backward(loss * (len(latents) / recipe.batch_size))
        loop.step()
    return {"losses": loop.losses, "seconds": loop.seconds}, average.module


def trained_text(text_encoder, tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """`text_of` for a text encoder that is trained too; `tokens` [classes, length]. Encodes at most the classes of a batch."""
    def text_of(classes: Tensor) -> Tensor:
        if len(tokens) <= len(classes):
            return text_encoder(tokens)[0][classes]
        needed, indices = classes.unique(return_inverse=True)
        return text_encoder(tokens[needed])[0][indices]
    return text_of
