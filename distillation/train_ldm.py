"""Train a small latent diffusion model in Stable Diffusion's format on any supported data set.

    python -m distillation.train_ldm --dataset digits --output_dir runs/digits-ldm

First the autoencoder, then the UNet together with the text encoder on its latents. Only the training split is read. The same
command resumes. `distillation/checkpoints/digits-ldm` was made by `sh distillation/train_ldm_digits.sh`.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from distillation.entry import DIGITS_LDM, InputError, add_dataset_flags, check_range, dataset_flags, run


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # what
    add_dataset_flags(parser)
    parser.add_argument("--output_dir", default="runs/ldm", help=f"folder of the checkpoint (shipped one: {DIGITS_LDM})")
    parser.add_argument("--size", default=32, type=int, help="training resolution in pixels")
    parser.add_argument("--seed", default=0, type=int, help="seed of weights, batches and noise")
    # networks
    parser.add_argument("--vae_channels", default=[16, 32, 32], type=int, nargs="+",
                        help="autoencoder channels per level; each further level halves the latents")
    parser.add_argument("--unet_channels", default=[64, 96], type=int, nargs="+", help="UNet channels per level")
    parser.add_argument("--text_width", default=64, type=int, help="width of the text encoder")
    parser.add_argument("--prediction_type", default="epsilon", choices=("epsilon", "v_prediction"))
    # training
    parser.add_argument("--vae_steps", default=1200, type=int, help="optimiser steps of the autoencoder")
    parser.add_argument("--unet_steps", default=4000, type=int, help="optimiser steps of UNet and text encoder")
    parser.add_argument("--batch_size", default=64, type=int, help="images a step")
    parser.add_argument("--vae_lr", default=2e-3, type=float, help="AdamW, cosine to zero after a warm-up of 50 steps")
    parser.add_argument("--unet_lr", default=1e-3, type=float, help="AdamW, cosine to zero after a warm-up of 50 steps")
    parser.add_argument("--kl_weight", default=1e-3, type=float, help="weight of the mean KL term beside the mean L1")
    parser.add_argument("--prompt_drop", default=0.1, type=float, help="share of prompts emptied, for guidance")
    parser.add_argument("--ema_decay", default=0.998, type=float, help="moving average of UNet and text encoder")
    parser.add_argument("--save_seconds", default=60, type=float, help="seconds between resume points")
    args = parser.parse_args()
    check_range("--prompt_drop", args.prompt_drop, 0, 1)
    if args.size % 2 ** (len(args.vae_channels) - 1):
        raise InputError(f"--size: expected a multiple of {2 ** (len(args.vae_channels) - 1)}, found {args.size}")
    return args


def main(args):
    import torch
    from accelerate import Accelerator

    from distillation import ldm
    from distillation.datasets import decode_all, load_split
    from distillation.manifest import begin

    accelerator = Accelerator()
    split = load_split(split="train", **dataset_flags(args))
    folder = Path(args.output_dir)
    config = {**{name: value for name, value in vars(args).items() if name not in UNRELATED}, "data": split.identity()}
    if begin(folder, "ldm", config):
        print(f"{folder}: complete, nothing to do")
        return
    images, split = decode_all(split, args.size)
    images = images.to(accelerator.device)

    torch.manual_seed(args.seed)  # initial weights: the libraries' constructors take no generator
    vae = ldm.new_vae(args.size, args.vae_channels).to(accelerator.device)
    vae_run = train_vae(vae, images, args)
    means, stds = ldm.encode_moments(vae.eval(), images)
    vae.register_to_config(scaling_factor=1 / math.sqrt(float(means.var() + (stds ** 2).mean())))

    tokenizer = ldm.byte_level_tokenizer(folder / "tokenizer")
    text_encoder = ldm.new_text_encoder(args.text_width).to(accelerator.device)
    unet = ldm.new_unet(means.shape[-1], args.unet_channels, args.text_width).to(accelerator.device)
    scheduler = ldm.new_scheduler(args.prediction_type)
    unet_run, best = train_unet(unet, text_encoder, tokenizer, scheduler, vae, means, stds, split, args)
    write_checkpoint(folder, vae, best["unet"], best["text_encoder"], tokenizer, scheduler)
    write_card(folder, split, config, {"autoencoder": vae_run, "unet": unet_run}, vae.config.scaling_factor)


# say where, not what; prompts and files are in the data's identity
UNRELATED = ("output_dir", "save_seconds", "data_dir", "label_file_path", "prompt_template", "on_bad_image")


def warm_cosine(steps: int, warm_up: int = 50):
    """Learning-rate factor: linear up over `warm_up` steps, then half a cosine to zero."""
    return lambda step: min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train_vae(vae, images, args) -> dict:
    """Train the autoencoder on uint8 `images` [N, 3, H, W]."""
    import torch

    from distillation.ldm import to_signed, vae_loss
    from distillation.optimisation import optimise
    from distillation.randomness import generator_for

    def parts_at(step):
        generator = generator_for(args.seed, "vae", step)
        rows = torch.randint(len(images), (args.batch_size,), generator=generator)
        yield vae_loss(vae, to_signed(images[rows.to(images.device)]), args.kl_weight, generator)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.vae_lr, weight_decay=0)
    return optimise(vae, parts_at, args.vae_steps, optimizer, warm_cosine(args.vae_steps),
                    Path(args.output_dir) / "state" / "vae.pt", name="autoencoder", images_per_step=args.batch_size,
                    save_seconds=args.save_seconds)


def train_unet(unet, text_encoder, tokenizer, scheduler, vae, means, stds, split, args):
    """Train UNet and text encoder on latents drawn from the posteriors; returns the run and the averaged networks."""
    import torch

    from distillation.ldm import diffusion_loss, draw_noising, tokenize
    from distillation.optimisation import averaged, optimise
    from distillation.randomness import generator_for

    device = means.device
    labels = torch.from_numpy(split.labels).to(device)
    tokens = tokenize(tokenizer, [entry["prompt"] for entry in split.classes] + [""]).to(device)
    empty = len(split.classes)

    def parts_at(step):
        generator = generator_for(args.seed, "unet", step)
        rows = torch.randint(len(labels), (args.batch_size,), generator=generator).to(device)
        spread = torch.randn(means[rows].shape, generator=generator).to(device)
        latents = (means[rows] + stds[rows] * spread) * vae.config.scaling_factor
        noise, timesteps, drop = (drawn.to(device) for drawn in draw_noising(
            latents.shape, scheduler.config.num_train_timesteps, args.prompt_drop, generator))
        prompts = torch.where(drop, empty, labels[rows])
        text = text_encoder(tokens)[0][prompts]
        yield diffusion_loss(unet, scheduler, latents, noise, timesteps, text)
    both = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    average = averaged(both, args.ema_decay)
    optimizer = torch.optim.AdamW(both.parameters(), lr=args.unet_lr, weight_decay=0)
    done = optimise(both, parts_at, args.unet_steps, optimizer, warm_cosine(args.unet_steps),
                    Path(args.output_dir) / "state" / "unet.pt", name="unet", images_per_step=args.batch_size,
                    save_seconds=args.save_seconds, average=average)
    return done, average.module


def write_checkpoint(folder: Path, vae, unet, text_encoder, tokenizer, scheduler) -> None:
    """Write the networks as fp16 safetensors in Stable Diffusion's folder layout."""
    from diffusers import StableDiffusionPipeline
    from transformers.utils.logging import disable_progress_bar
    disable_progress_bar()  # a bar per weight file says nothing about the work
    pipeline = StableDiffusionPipeline(
        vae=vae.half(), unet=unet.half(), text_encoder=text_encoder.half(), tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)


def write_card(folder: Path, split, config: dict, runs: dict, scaling_factor: float) -> None:
    """Write a sample grid, the model card and, last, the manifest."""
    from distillation.manifest import finish, write_text
    started = time.perf_counter()
    sample_grid(folder, split).save(folder / "samples.png")
    rows = [f"| {name} | {len(run['losses'])} | {mean(run['losses'][:20]):.4f} | {mean(run['losses'][-200:]):.4f} "
            f"| {run['seconds']:.0f} |" for name, run in runs.items()]
    write_text(folder / "README.md", "\n".join([
        f"# {folder.name}: a latent diffusion model of `{split.name}`",
        f"Stable Diffusion's format (fp16 safetensors); trained from scratch on the training split only: "
        f"{len(split.labels)} images of {len(split.classes)} classes at {config['size']} pixels.", "",
        "Command:", "```", "python -m distillation.train_ldm " + " ".join(sys.argv[1:]), "```", "",
        "| part | steps | loss, first 20 steps | loss, last 200 steps | seconds |", "|---|---|---|---|---|", *rows, "",
        f"Latent scaling factor, measured on the training split: {scaling_factor:.4f}.", "",
        "Prompts: " + ", ".join(entry["prompt"] for entry in split.classes[:20])
        + (" ..." if len(split.classes) > 20 else "") + ".", "",
        "Load it in single precision on a CPU (the weights are stored in half):", "```python", "import torch",
        "from diffusers import StableDiffusionPipeline", "",
        f'pipeline = StableDiffusionPipeline.from_pretrained("{folder.as_posix()}", dtype=torch.float32, safety_checker=None)',
        "```", "",
        "Samples from pure noise, one column per class:", "", "![samples](samples.png)", ""]))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                   if path.is_file() and path != folder / "config.json")
    finish(folder, "ldm", split.classes, config, [name for name in files if not name.startswith("state")],
           scaling_factor=scaling_factor, seconds={name: run["seconds"] for name, run in runs.items()})
    print(f"{folder}: complete ({time.perf_counter() - started:.0f} s for the samples)")


def mean(values: list[float]) -> float:
    """Arithmetic mean of a non-empty list."""
    return sum(values) / len(values)


def sample_grid(folder: Path, split, rows: int = 8):
    """Images drawn from pure noise, `rows` per class, one column per class (at most 20), as one picture."""
    import torch

    from distillation.checkpoints import load_pipeline
    from distillation.synthesis import grid, latent_shape, synthesize
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, str(folder), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    classes = split.classes[:20]
    prompts = pipeline.embed([entry["prompt"] for entry in classes]).repeat(rows, 1, 1)
    places = [("grid", place) for place in range(len(prompts))]
    images = synthesize(pipeline, torch.zeros(len(prompts), *latent_shape(pipeline)), prompts, pipeline.embed([""]), places,
                        seed=0, strength=1.0, guidance_scale=2.0, num_inference_steps=50)
    return grid(images, len(classes))


if __name__ == "__main__":
    run(parse_args, main)
