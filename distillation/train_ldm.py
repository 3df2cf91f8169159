"""Train a small latent diffusion model in Stable Diffusion's format, or fine-tune an existing checkpoint.

    python -m distillation.train_ldm --dataset digits --output_dir runs/digits-ldm
    python -m distillation.train_ldm --init CHECKPOINT --dataset folder --data_dir data/own --output_dir runs/own-ldm

From scratch: first the autoencoder, then UNet and text encoder on its latents. With --init: the UNet of that checkpoint. Reads
the training split only. The same command resumes. `train_ldm.sh` has the settings of `distillation/checkpoints/digits-ldm`.
"""

import argparse
import math
import shlex
import shutil
import sys
import time
from pathlib import Path

from scripts.cli import DIGITS_LDM, InputError, Parser, dataset_flags, run, validation_of

FROM_SCRATCH = {"size": 32, "vae_channels": [16, 32, 32], "unet_channels": [64, 96], "text_width": 64,
                "prediction_type": "epsilon", "vae_steps": 1200, "vae_lr": 2e-3, "kl_weight": 1e-3,
                "latent_channels": None}  # None is 4, and not stored: configurations of earlier versions stay equal
PSNR_IMAGES = 1000  # evenly over the training split
COLUMNS, WIDEST_PIXELS = 20, 2560  # of the picture of samples
FINE_TUNING = ("lora_rank", "train_text_encoder", "revision")
DECIDING = ("dataset", "size", "seed", *list(FROM_SCRATCH)[1:], *FINE_TUNING[:2], "unet_steps", "batch_size", "unet_lr",
            "prompt_drop", "ema_decay", "bf16")  # the stored configuration; other flags are paths, or change memory use only


def parse_args():
    parser = Parser(__doc__)
    # what
    parser.add_dataset_flags()
    parser.add_argument("--output_dir", default="runs/ldm", help=f"folder of the checkpoint (shipped one: {DIGITS_LDM})")
    parser.add_argument("--size", default=None, type=int, least=1,
                        help="training resolution in pixels (default: 32 from scratch, else the checkpoint's)")
    parser.add_argument("--seed", default=0, type=int, least=-2 ** 63, most=2 ** 63 - 1,
                        help="seed of weights, batches and noise")
    # an existing checkpoint
    parser.add_argument("--init", default=None, help="Stable Diffusion checkpoint to fine-tune: folder or hub name")
    parser.add_argument("--revision", default=None, help="with --init: branch, tag or commit of a hub checkpoint")
    parser.add_argument("--lora_rank", default=None, type=int, least=1,
                        help="train LoRA updates of this rank and merge them (default: train the whole UNet)")
    parser.add_argument("--train_text_encoder", action="store_true", help="with --init: train the text encoder too")
    # networks, from scratch
    parser.add_argument("--vae_channels", default=None, type=int, nargs="+",
                        help="autoencoder channels per level; each further level halves the latents (default: 16 32 32)")
    parser.add_argument("--latent_channels", default=None, type=int, least=1, help="channels of the latents (default: 4)")
    parser.add_argument("--unet_channels", default=None, type=int, nargs="+", help="UNet channels per level (default: 64 96)")
    parser.add_argument("--text_width", default=None, type=int, help="width of the text encoder (default: 64)")
    parser.add_argument("--prediction_type", default=None, choices=("epsilon", "v_prediction"), help="default: epsilon")
    # training
    parser.add_argument("--vae_steps", default=None, type=int, least=1,
                        help="optimiser steps of the autoencoder (default: 1200)")
    parser.add_argument("--unet_steps", default=4000, type=int, least=1, help="optimiser steps of UNet and text encoder")
    parser.add_argument("--batch_size", default=64, type=int, least=1, help="images a step")
    parser.add_argument("--gradient_accumulation_steps", default=1, type=int, least=1, help="micro-batches of a UNet batch")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="recompute activations, which saves memory")
    parser.add_argument("--vae_lr", default=None, type=float, least=0,
                        help="AdamW, cosine to zero after a warm-up of 50 steps (default: 2e-3)")
    parser.add_argument("--unet_lr", default=None, type=float, least=0,
                        help="the same for the UNet (default: 1e-3 from scratch, 1e-5 with --init, 1e-4 with --lora_rank)")
    parser.add_argument("--kl_weight", default=None, type=float, least=0,
                        help="weight of the mean KL term beside the mean L1 (default: 1e-3)")
    parser.add_argument("--prompt_drop", default=0.1, type=float, least=0, most=1,
                        help="fraction of prompts emptied, for guidance")
    parser.add_argument("--ema_decay", default=0.998, type=float, least=0, most=1,
                        help="moving average of the weights of UNet and text encoder")
    parser.add_argument("--bf16", action="store_true",
                        help="compute in bfloat16 where that is safe, on devices that have it (the UNet on a GPU always does)")
    parser.add_argument("--num_workers", default=4, type=int, least=0, help="threads decoding images")
    parser.add_argument("--save_seconds", default=60, type=float, help="seconds between resume points")
    return derive(parser.parse_args())


def derive(args):
    """Check the flags, and set the defaults that depend on --init."""
    for flag, least in (("vae_channels", 8), ("unet_channels", 16), ("text_width", 4)):     # groups and heads divide them
        found = getattr(args, flag)
        widths = [] if found is None else found if isinstance(found, list) else [found]
        if any(width < 1 or width % least for width in widths):
            raise InputError(f"--{flag}: expected multiples of {least}, found {found}")
    if args.gradient_accumulation_steps > args.batch_size:
        raise InputError(f"--gradient_accumulation_steps: expected at most the batch size {args.batch_size}, found "
                         f"{args.gradient_accumulation_steps}")
    decided, where = (list(FROM_SCRATCH)[1:], "without --init, whose checkpoint decides it") if args.init else \
        (FINE_TUNING, "together with --init")
    for flag in decided:
        if given(getattr(args, flag)):
            raise InputError(f"--{flag}: expected {where}, found {getattr(args, flag)}")
    if args.lora_rank and args.train_text_encoder:
        raise InputError("--train_text_encoder: expected without --lora_rank, which trains updates of the UNet, found both")
    derived = {"unet_lr": 1e-4 if args.lora_rank else 1e-5} if args.init else {**FROM_SCRATCH, "unet_lr": 1e-3}
    args = argparse.Namespace(**{name: derived.get(name) if value is None else value for name, value in vars(args).items()})
    if not args.init:
        check_factor(args.size, 2 ** (len(args.vae_channels) - 1))
    return args


def given(value) -> bool:
    """Whether a flag was given; it may be 0."""
    return value is not None and value is not False


def check_factor(size_pixels: int, factor: int) -> None:
    """Raise InputError for a resolution that the autoencoder cannot halve."""
    if size_pixels % factor:
        raise InputError(f"--size: expected a multiple of {factor}, found {size_pixels}")


def main(args):
    from accelerate import Accelerator

    from distillation.datasets import load_split
    from distillation.fine_tuning import fine_tune, load_source
    from distillation.synthesis import Denoising
    from scripts.parallel import begin_together, require_one_process

    accelerator = Accelerator()
    require_one_process(accelerator, "train_ldm")
    split = load_split(split="train", **dataset_flags(args))
    source = load_source(args.init, accelerator.device, args.revision) if args.init else None
    folder = Path(args.output_dir)
    config = configuration(args, split, source)
    if begin_together(folder, "ldm", config, accelerator):
        shutil.rmtree(folder / "state", ignore_errors=True)  # left by a run killed between its manifest and this line
        return

    if args.init:
        run_of_unet, split = fine_tune(source, split, config["size"], folder, unet_recipe(args), lora_rank=args.lora_rank,
                                       with_text_encoder=args.train_text_encoder, workers=args.num_workers)
        runs, scaling_factor = {"unet": run_of_unet}, source.vae.config.scaling_factor
        samples = draw_samples(folder, split, accelerator.device, 2, Denoising(1.0, 7.5, 25))
    else:
        runs, split, scaling_factor = train_from_scratch(split, accelerator.device, args)
        samples = draw_samples(folder, split, accelerator.device, 8, Denoising(1.0, 2, 50))
    write_card(folder, split, config, runs, scaling_factor, samples)
    shutil.rmtree(folder / "state", ignore_errors=True)
    print(f"{folder}: complete")


def configuration(args, split, source) -> dict:
    """Everything that decides the weights; no paths."""
    from distillation.checkpoints import checkpoint_identity
    from distillation.synthesis import latent_shape
    config = {name: getattr(args, name) for name in DECIDING if given(getattr(args, name))}
    if args.init:
        config |= {"init": checkpoint_identity(args.init, source.parts, args.revision),
                   "size": args.size or latent_shape(source)[-1] * source.vae_scale_factor}    # else the UNet's own
        check_factor(config["size"], source.vae_scale_factor)
    return {**config, "data": split.identity(), **validation_of(args.validation)}


def train_from_scratch(split, device, args) -> tuple:
    """Train and write all parts; returns losses and seconds of each, the readable part of the split, the scaling factor."""
    import torch

    from distillation import ldm
    from distillation.checkpoints import write_checkpoint
    from distillation.datasets import decode_all

    folder = Path(args.output_dir)
    images, split = decode_all(split, args.size, args.num_workers)
    images = images.to(device)
    torch.manual_seed(args.seed)  # for initial weights: the libraries' constructors take no generator

    # the autoencoder
    layout = torch.channels_last if args.bf16 else torch.contiguous_format
    vae = ldm.new_vae(args.size, args.vae_channels, args.latent_channels or 4).to(device, memory_format=layout)
    recipe = ldm.Recipe(args.vae_steps, args.batch_size, args.vae_lr, args.seed, folder / "state" / "vae.pt", args.save_seconds,
                        bf16=args.bf16)
    vae_run = ldm.train_vae(vae, images, args.kl_weight, recipe)
    means, stds = ldm.encode_moments(vae.eval(), images)
    rows = torch.linspace(0, len(images) - 1, min(len(images), PSNR_IMAGES)).long()
    vae_run["psnr"] = ldm.psnr(vae, images[rows.to(images.device)], means[rows.to(means.device)])
    vae.register_to_config(scaling_factor=1 / math.sqrt(float(means.var() + (stds ** 2).mean())))

    # UNet and text encoder on its latents
    tokenizer = ldm.byte_level_tokenizer(folder / "tokenizer")
    text_encoder = ldm.new_text_encoder(args.text_width).to(device)
    unet = ldm.new_unet(tuple(means.shape[1:]), args.unet_channels, args.text_width).to(device, memory_format=layout)
    scheduler = ldm.new_scheduler(args.prediction_type)
    tokens = ldm.tokenize(tokenizer, [entry["prompt"] for entry in split.classes] + [""]).to(device)
    trained = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    posteriors = ldm.Posteriors(means, stds, vae.config.scaling_factor)
    unet_run, best = ldm.train_unet(unet, trained, ldm.trained_text(text_encoder, tokens), scheduler, posteriors,
                                    torch.from_numpy(split.labels), len(split.classes), unet_recipe(args))
    written = torch.nn.ModuleDict({"vae": vae, **best}).half().to(memory_format=torch.contiguous_format)
    write_checkpoint(folder, **written, tokenizer=tokenizer, scheduler=scheduler)
    return {"autoencoder": vae_run, "unet": unet_run}, split, vae.config.scaling_factor


def unet_recipe(args):
    from distillation.ldm import Recipe
    return Recipe(args.unet_steps, args.batch_size, args.unet_lr, args.seed, Path(args.output_dir) / "state" / "unet.pt",
                  args.save_seconds, args.prompt_drop, args.ema_decay, args.gradient_accumulation_steps,
                  args.gradient_checkpointing, args.bf16)


# what lies beside the weights

def draw_samples(folder: Path, split, device, rows: int, how):
    """Images from pure noise, denoised by `how`: `rows` per class, one column per class (at most 20), as one PIL image."""
    import torch

    from distillation.checkpoints import load_pipeline
    from distillation.images import to_pil
    from distillation.ldm import images_at_once
    from distillation.synthesis import latent_shape, synthesize
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
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


def write_card(folder: Path, split, config: dict, runs: dict, scaling_factor: float, samples) -> None:
    """Write the picture of samples, the model card, result.json and the manifest.

    `runs`: losses and seconds of each part, and the PSNR of an autoencoder.
    """
    from statistics import fmean

    from scripts.artefact import LOCK, finish, write_result
    from scripts.files import atomic_path, write_text
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


if __name__ == "__main__":
    run(parse_args, main, "output_dir")
