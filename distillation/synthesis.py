"""One prototype -> one synthetic image, in batches across classes."""

import torch
from PIL import Image
from torch import Tensor

from distillation.mode_guidance import ModeGuidedScheduler
from scripts.cli import InputError
from scripts.randomness import generator_for


def check_latent_shape(pipeline, shape: tuple[int, ...], size_pixels: int | None, source: str) -> None:
    """Raise InputError when latents [C, h, w] are not what `pipeline` makes of images of `size_pixels`."""
    channels = pipeline.unet.config.in_channels
    side = size_pixels // pipeline.vae_scale_factor if size_pixels else shape[1]
    if tuple(shape) != (channels, side, side):
        raise InputError(f"{source}: expected latents of shape {(channels, side, side)}, as the checkpoint has them, found "
                         f"{tuple(shape)}")


def latent_shape(pipeline) -> tuple[int, int, int]:
    """(C, h, w) of the latents the checkpoint was trained on."""
    side = pipeline.unet.config.sample_size
    return pipeline.unet.config.in_channels, side, side


def synthesize(pipeline, latents: Tensor, prompts: Tensor, negative: Tensor, seeds: list[tuple], seed: int, strength: float,
               guidance_scale: float, num_inference_steps: int, mode: tuple[float, int] | None = None) -> Tensor:
    """Images uint8 [B, 3, H, W] on the CPU from prototype latents [B, C, h, w] and prompt embeddings [B, tokens, width].

    D4M, section 3.3: noise to `strength`, denoise under the prompt with classifier-free guidance. With `mode` (scale, steps)
    instead from noise, guided to the prototypes during the first steps (mode_guidance.py); the pipeline's scheduler must be a
    ModeGuidedScheduler then. Each image has its own generator, a function of (seed, place in `seeds`), so it does not depend on
    what shares its batch.
    """
    generators = [generator_for(seed, "image", *place) for place in seeds]
    if mode is not None:
        pipeline.scheduler.aim(latents, *mode)
        latents, strength = torch.zeros_like(latents), 1.0
    images = pipeline(latents=latents, prompt_embeds=prompts, negative_prompt_embeds=negative.expand_as(prompts),
                      strength=strength, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps,
                      generator=generators)
    return to_uint8(images)


def use_scheduler(pipeline, name: str | None, mode_guided: bool = False) -> None:
    """Give `pipeline` diffusers' scheduler `name` (None: keep the checkpoint's), with the checkpoint's own noise schedule.

    Raises InputError for a scheduler that does not fit, and for any but DDIM together with mode guidance.
    """
    if mode_guided:
        if name not in (None, "DDIMScheduler"):
            raise InputError(f"--scheduler: expected DDIMScheduler, which --guidance mode builds on, found {name}")
        found = ModeGuidedScheduler
    elif name is None:
        return
    else:
        fitting = {each.__name__: each for each in pipeline.scheduler.compatibles}
        if name not in fitting:
            raise InputError(f"--scheduler: expected one of {', '.join(sorted(fitting))}, found {name}")
        found = fitting[name]
    pipeline.scheduler = found.from_config(pipeline.scheduler.config)


def to_uint8(images: Tensor) -> Tensor:
    """Float [B, 3, H, W] in [0, 1] -> uint8 on the CPU, rounded."""
    return (images.float() * 255).round().to(torch.uint8).cpu()


def to_pil(image: Tensor, size_pixels: int | None = None) -> Image.Image:
    """uint8 [3, H, W] -> picture, resized to `size_pixels` when given and different."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if size_pixels and picture.size != (size_pixels, size_pixels):
        picture = picture.resize((size_pixels, size_pixels), Image.BICUBIC)
    return picture


def grid(images: Tensor, columns: int) -> Image.Image:
    """Images uint8 [N, 3, H, W] as one picture, row by row, without gaps."""
    rows = [torch.cat(list(part), dim=2) for part in images.split(columns)]
    return to_pil(torch.cat(rows, dim=1))
