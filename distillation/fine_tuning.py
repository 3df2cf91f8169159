"""Fitting a Stable Diffusion checkpoint to a domain: its UNet, whole or by LoRA, trained further on own images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers import __version__ as diffusers_version
from torch import Tensor, nn

from distillation.checkpoints import load_pipeline
from distillation.datasets import Split, decode_readable, readable_part
from distillation.encoding import ahead
from distillation.ldm import encode_moments, tokenize
from distillation.ldm_folder import write_checkpoint
from distillation.ldm_training import Posteriors, images_at_once, train_unet, trained_text
from distillation.synthesis import latent_shape
from scripts.cli import InputError
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the projections of every attention
PREDICTIONS = ("epsilon", "v_prediction")


def load_source(checkpoint: str, device, revision: str | None = None) -> StableDiffusionLatents2ImgPipeline:
    """The checkpoint to start from, in float32. Raises InputError for one whose UNet cannot be trained here."""
    source = load_pipeline(StableDiffusionLatents2ImgPipeline, checkpoint, device, "float32", revision)
    prediction = source.scheduler.config.get("prediction_type")
    if prediction not in PREDICTIONS:
        raise InputError(f"{checkpoint}: expected a scheduler with prediction_type {' or '.join(PREDICTIONS)}, found "
                         f"{prediction}")
    channels = source.unet.config.in_channels
    if channels != source.vae.config.latent_channels:
        raise InputError(f"{checkpoint}: expected a UNet of {source.vae.config.latent_channels} channels, as the autoencoder's "
                         f"latents have, found {channels}")
    return source


def trained_size(source: StableDiffusionLatents2ImgPipeline) -> int:
    """The resolution in pixels that the checkpoint's UNet was trained at."""
    return latent_shape(source)[-1] * source.vae_scale_factor


def fine_tune(source: StableDiffusionLatents2ImgPipeline, split: Split, size_pixels: int, folder: Path, *,
              lora_rank: int | None, with_text_encoder: bool, workers: int, **training) -> tuple[dict, Split]:
    """Train the UNet of `source` on `split` and write the checkpoint into `folder`.

    Returns what training said, and the split of the images that could be read.

    Autoencoder, scheduler and (unless trained) text encoder are written as they were. `training` goes to `train_unet`.
    """
    torch.manual_seed(training["seed"])  # LoRA's initial weights: peft takes no generator
    trained = add_lora(source.unet, lora_rank) if lora_rank else nn.ModuleDict({"unet": source.unet})
    if with_text_encoder:
        trained["text_encoder"] = source.text_encoder
    posteriors, split = encode_split(source.vae, split, size_pixels, workers)
    print(f"{split.name}: {len(split.labels)} images as latents, {2 * posteriors.means.nbytes / 1e6:.1f} MB in memory")
    run, best = train_unet(source.unet, trained, text_for(source, split, with_text_encoder),
                           DDIMScheduler.from_config(source.scheduler.config), posteriors, torch.from_numpy(split.labels),
                           len(split.classes), **training)
    if lora_rank:
        merge_lora(source.unet, trained, best)
    unet = source.unet if lora_rank else best["unet"]
    # what a later stage takes as the checkpoint's resolution; of an old version diffusers would distrust it
    unet.register_to_config(sample_size=size_pixels // source.vae_scale_factor, _diffusers_version=diffusers_version)
    source.vae.register_to_config(sample_size=size_pixels)
    text_encoder = best["text_encoder"].half() if with_text_encoder else half_if_exact(source.text_encoder)
    write_checkpoint(folder, vae=half_if_exact(source.vae), unet=unet.half(), text_encoder=text_encoder,
                     tokenizer=source.tokenizer, scheduler=source.scheduler)
    return run, split


def encode_split(vae: AutoencoderKL, split: Split, size_pixels: int, workers: int = 4) -> tuple[Posteriors, Split]:
    """The posteriors of all readable images of `split`, on the CPU, and the split of just these, as `decode_all` gives it.

    Few images at a time are decoded.
    """
    at_once = images_at_once(size_pixels)
    chunks = np.split(np.arange(len(split.labels)), range(at_once, len(split.labels), at_once))
    found, rows = [], []
    for images, kept in ahead(lambda chunk: decode_readable(split, chunk, size_pixels, workers), chunks, {}, vae.device):
        if len(kept):
            found.append([moments.cpu() for moments in encode_moments(vae, images.to(vae.device), at_once)])
        rows.append(kept)
    left = readable_part(split, np.concatenate(rows))
    means, stds = (torch.cat(moments) for moments in zip(*found, strict=True))
    return Posteriors(means, stds, vae.config.scaling_factor), left


def text_for(source: StableDiffusionLatents2ImgPipeline, split: Split, learns: bool) -> Callable[[Tensor], Tensor]:
    """Embeddings by class, with the empty prompt as one class more: computed once, or anew if the text encoder learns."""
    prompts = [entry["prompt"] for entry in split.classes] + [""]
    if learns:
        return trained_text(source.text_encoder, tokenize(source.tokenizer, prompts).to(source.device))
    embeddings = source.embed(prompts).clone()  # a tensor made for inference only cannot be trained on
    return lambda classes: embeddings[classes]


def add_lora(unet: UNet2DConditionModel, rank: int) -> nn.ModuleDict:
    """Freeze `unet` and give its attentions trainable updates of rank `rank` (LoRA, Hu et al. 2021, arXiv 2106.09685).

    Returns the updates alone, which are all that has to be averaged and saved. They start at zero. Raises InputError without
    the package peft.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise InputError("--lora_rank: expected the package peft, found none; pip install peft") from None
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LORA_TARGETS))
    return nn.ModuleDict({"lora": nn.ModuleList(
        module for name, module in unet.named_modules() if name.endswith((".lora_A", ".lora_B")))})


def merge_lora(unet: UNet2DConditionModel, updates: nn.ModuleDict, averages: nn.ModuleDict) -> None:
    """Add the averaged updates to the weights of `unet` and take the adapters out, so that a plain UNet remains."""
    updates.load_state_dict(averages.state_dict())
    unet.fuse_lora()
    unet.unload_lora()


def half_if_exact(module: nn.Module) -> nn.Module:
    """`module` in float16 if no weight changes by it, else as it is: frozen parts keep their values to the last bit."""
    exact = all(torch.equal(weight.half().to(weight.dtype), weight) for weight in module.parameters())
    return module.half() if exact else module
