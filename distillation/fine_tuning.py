"""Fine-tune a Stable Diffusion checkpoint on own images: its UNet, as a whole or by LoRA."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers import __version__ as diffusers_version
from torch import Tensor, nn

from distillation.checkpoints import converted, load_pipeline, write_checkpoint
from distillation.datasets import Split, decode_readable, readable_part
from distillation.encoding import ahead
from distillation.ldm import Posteriors, Recipe, encode_moments, images_at_once, tokenize, train_unet, trained_text
from scripts.cli import InputError
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the projections of every attention
PREDICTIONS = ("epsilon", "v_prediction")


def load_source(checkpoint: str, device, revision: str | None = None) -> StableDiffusionLatents2ImgPipeline:
    """Load the checkpoint to start from, in float32. Raises InputError for a UNet that cannot be trained here."""
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


def fine_tune(source: StableDiffusionLatents2ImgPipeline, split: Split, size_pixels: int, folder: Path, recipe: Recipe, *,
              lora_rank: int | None, with_text_encoder: bool, workers: int) -> tuple[dict, Split]:
    """Train the UNet of `source` on `split` and write the checkpoint to `folder`.

    Autoencoder, scheduler and (unless trained) text encoder do not change. Returns the losses and seconds, and the readable
    part of `split`.
    """
    torch.manual_seed(recipe.seed)  # for LoRA's initial weights: peft takes no generator
    trained = add_lora(source.unet, lora_rank) if lora_rank else nn.ModuleDict({"unet": source.unet})
    if with_text_encoder:
        trained["text_encoder"] = source.text_encoder
    posteriors, split = encode_split(source.vae, split, size_pixels, workers)
    print(f"{split.name}: {len(split.labels)} images as latents, {2 * posteriors.means.nbytes / 1e6:.1f} MB in memory")
    run, best = train_unet(source.unet, trained, text_for(source, split, with_text_encoder),
                           converted(source.scheduler, DDIMScheduler), posteriors, torch.from_numpy(split.labels),
                           len(split.classes), recipe)
    if lora_rank:
        merge_lora(source.unet, trained, best)
    unet = source.unet if lora_rank else best["unet"]
    # later stages read the resolution here; diffusers ignores it in folders of old versions
    unet.register_to_config(sample_size=size_pixels // source.vae_scale_factor, _diffusers_version=diffusers_version)
    source.vae.register_to_config(sample_size=size_pixels)
    text_encoder = best["text_encoder"].half() if with_text_encoder else half_if_exact(source.text_encoder)
    write_checkpoint(folder, vae=half_if_exact(source.vae), unet=unet.half(), text_encoder=text_encoder,
                     tokenizer=source.tokenizer, scheduler=source.scheduler)
    return run, split


def encode_split(vae: AutoencoderKL, split: Split, size_pixels: int, workers: int = 4) -> tuple[Posteriors, Split]:
    """The posteriors of all readable images of `split`, on the CPU, and the split of these; decodes a few at a time."""
    at_once = images_at_once(size_pixels)
    chunks = np.split(np.arange(len(split.labels)), range(at_once, len(split.labels), at_once))
    found, rows = [], []
    for images, readable in ahead(lambda chunk: decode_readable(split, chunk, size_pixels, workers), chunks, {}, vae.device):
        if len(readable):
            names = [f"class {split.classes[split.labels[row]]['name']}, image {row}" for row in readable]
            found.append([moments.cpu() for moments in encode_moments(vae, images.to(vae.device), at_once, names)])
        rows.append(readable)
    part = readable_part(split, np.concatenate(rows))
    means, stds = (torch.cat(moments) for moments in zip(*found, strict=True))
    return Posteriors(means, stds, vae.config.scaling_factor), part


def text_for(source: StableDiffusionLatents2ImgPipeline, split: Split, trained: bool) -> Callable[[Tensor], Tensor]:
    """Embeddings by class, and of the empty prompt after the last class; computed once unless the text encoder is trained."""
    prompts = [entry["prompt"] for entry in split.classes] + [""]
    if trained:
        return trained_text(source.text_encoder, tokenize(source.tokenizer, prompts).to(source.device))
    embeddings = source.embed(prompts).clone()  # tensors of inference mode cannot be used in training
    return lambda classes: embeddings[classes]


def add_lora(unet: UNet2DConditionModel, rank: int) -> nn.ModuleDict:
    """Freeze `unet` and add trainable updates of rank `rank` to its attentions (LoRA, Hu et al. 2021, arXiv 2106.09685).

    Returns the updates, which start at zero; only they are averaged and saved. Raises InputError without the package peft.
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
    """Add the averaged updates to the weights of `unet` and remove the adapters."""
    updates.load_state_dict(averages.state_dict())
    unet.fuse_lora()
    unet.unload_lora()


def half_if_exact(module: nn.Module) -> nn.Module:
    """`module` in float16 if that changes no weight, else unchanged."""
    exact = all(torch.equal(weight.half().to(weight.dtype), weight) for weight in module.parameters())
    return module.half() if exact else module
