"""A trained checkpoint on disk: Stable Diffusion's folder layout, a picture of samples, a model card, and the manifest."""

import shlex
import sys
import time
from pathlib import Path
from statistics import fmean

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from distillation.checkpoints import load_pipeline
from distillation.datasets import Split
from distillation.images import to_pil
from distillation.ldm import images_at_once
from distillation.synthesis import Denoising, latent_shape, synthesize
from scripts.artefact import LOCK, finish, write_result
from scripts.files import DIVERGED, atomic_path, check_finite, disk_errors, write_text
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline

COLUMNS, WIDEST_PIXELS = 20, 2560  # of the picture of samples


def write_checkpoint(folder: Path, **parts) -> None:
    """Write networks, tokenizer and scheduler in Stable Diffusion's folder layout, as safetensors.

    Raises InputError for weights that are not finite.
    """
    check_finite({name: part.state_dict() for name, part in parts.items() if isinstance(part, torch.nn.Module)}, folder,
                 f"{DIVERGED}, or they exceed float16's 65504")
    disable_progress_bar()  # a bar per weight file says nothing about the work
    with disk_errors(folder):
        StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None,
                                requires_safety_checker=False).save_pretrained(folder)


def write_card(folder: Path, split: Split, config: dict, runs: dict, scaling_factor: float, samples: Image.Image) -> None:
    """Write the picture of samples, the model card, result.json and the manifest.

    `runs`: losses and seconds of each part, and the PSNR of an autoencoder.
    """
    with atomic_path(folder / "samples.png") as partial:
        samples.save(partial, format="PNG")
    rows = [f"| {name} | {len(run['losses'])} | {fmean(run['losses'][:20]):.4f} | {fmean(run['losses'][-200:]):.4f} "
            f"| {run['seconds']:.0f} |" for name, run in runs.items()]
    measured = "the source's" if "init" in config else "measured on the training split"
    psnr = {"psnr": runs["autoencoder"]["psnr"]} if "autoencoder" in runs else {}
    kept = [f"Training images decoded from the means of their latents: PSNR {psnr['psnr']:.2f} dB.", ""] if psnr else []
    write_text(folder / "README.md", "\n".join([
        f"# {folder.name}: a latent diffusion model of `{split.name}`",
        f"Stable Diffusion's format (safetensors); {origin(config)} the training split only: "
        f"{len(split.labels)} images of {len(split.classes)} classes at {config['size']} pixels.", "",
        "Command:", "```", "python -m distillation.train_ldm " + shlex.join(sys.argv[1:]), "```", "",
        "| part | steps | loss, first 20 steps | loss, last 200 steps | seconds |", "|---|---|---|---|---|", *rows, "",
        *kept, f"Latent scaling factor, {measured}: {scaling_factor:.4f}.", "",
        "Prompts: " + ", ".join(entry["prompt"] for entry in split.classes[:COLUMNS])
        + (" ..." if len(split.classes) > COLUMNS else "") + ".", "",
        "Load it in single precision on a CPU (trained weights are stored in half). In diffusers' own pipeline it needs "
        "transformers 5: version 4 does not know the names of the text encoder's weights and leaves them random. The "
        "pipelines in `scripts/` read it with both.", "```python", "import torch",
        "from diffusers import StableDiffusionPipeline", "",
        f'pipeline = StableDiffusionPipeline.from_pretrained("{folder.as_posix()}", safety_checker=None).to(torch.float32)',
        "```", "",
        "Samples from pure noise, one column per class:", "", "![samples](samples.png)", ""]))
    seconds = {name: run["seconds"] for name, run in runs.items()}
    write_result(folder, "ldm", config, psnr, seconds, added_up=True)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                   if path.is_file() and path not in (folder / "config.json", folder / LOCK) and path.suffix != ".partial")
    finish(folder, "ldm", split.classes, config, [name for name in files if not name.startswith(("state", "README", "result"))],
           scaling_factor=scaling_factor, seconds=seconds, **psnr)


def origin(config: dict) -> str:
    """The origin of the weights, for the card."""
    if "init" not in config:
        return "trained from scratch on"
    if "lora_rank" in config:
        return f"`{config['init']}` with merged LoRA updates of rank {config['lora_rank']} of its UNet, trained on"
    parts = "UNet and text encoder" if "train_text_encoder" in config else "UNet"
    return f"`{config['init']}` with its {parts} trained further on"


def draw_samples(folder: Path, split: Split, device, rows: int, how: Denoising) -> Image.Image:
    """Images drawn from pure noise, `rows` per class, one column per class (at most 20), as one picture."""
    started = time.perf_counter()
    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, str(folder), device, "float32")  # never overflows
    classes = split.classes[:COLUMNS]
    prompts = pipeline.embed([entry["prompt"] for entry in classes]).repeat(rows, 1, 1)
    negative, shape = pipeline.embed([""]), latent_shape(pipeline)
    indices = torch.arange(len(prompts)).split(images_at_once(shape[-1] * pipeline.vae_scale_factor))
    images = torch.cat([synthesize(pipeline, torch.zeros(len(part), *shape), prompts[part], negative,
                                   [("grid", index) for index in part.tolist()], 0, how) for part in indices])
    picture = to_pil(torch.cat([torch.cat(list(row), dim=2) for row in images.split(len(classes))], dim=1))
    picture.thumbnail((WIDEST_PIXELS, WIDEST_PIXELS))
    print(f"{folder}: {len(images)} samples in {time.perf_counter() - started:.0f} s")
    return picture
