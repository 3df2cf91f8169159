"""Stage 2: one prototype -> one synthetic image; or, in the same format, the baselines it is compared with.

    python -m distillation.gen_syn_image --dataset digits --prototype_path prototypes/digits-ipc10-kmexpand1 \\
        --save_init_image_path distilled --strength 0.7

Writes <save_init_image_path>/<dataset>_ipc<prototypes>_<ipc>_s<strength>_g<guidance>_kmexpand<M>/ (other methods:
<dataset>_<method>_ipc<N>/). The same command resumes; under `accelerate launch` batches are shared out.
"""

import argparse
import time
from pathlib import Path

from distillation.entry import DIGITS_LDM, InputError, add_dataset_flags, check_range, run


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # what
    add_dataset_flags(parser)
    parser.add_argument("--method", default="d4m", choices=("d4m", "prototype", "noise", "random"),
                        help="d4m; prototype: decoded centroids; noise: no prototype; random: real images")
    parser.add_argument("--prototype_path", default=None, help="folder of gen_prototype, or the original's JSON file")
    parser.add_argument("--ipc", default=None, type=int, help="images per class (default: one per prototype)")
    parser.add_argument("--km_expand", default=1, type=int, help="names the folder, as in the original")
    parser.add_argument("--seed", default=0, type=int, help="seed of the noise, or of the choice of real images")
    # diffusion
    parser.add_argument("--diffusion_checkpoints_path", default=DIGITS_LDM,
                        help="Stable Diffusion checkpoint: folder or hub name")
    parser.add_argument("--dtype", default=None, choices=("float32", "float16", "bfloat16"),
                        help="default: float16 on an accelerator, float32 on the CPU")
    parser.add_argument("--strength", "-s", default=0.7, type=float, help="share of the noise schedule, 0 to 1")
    parser.add_argument("--guidance_scale", "-g", default=8, type=float, help="classifier-free guidance")
    parser.add_argument("--num_inference_steps", default=50, type=int, help="steps of the whole schedule")
    parser.add_argument("--negative_prompt", default="cartoon, anime, painting", help="the original's; '' for other domains")
    parser.add_argument("--batch_size", default=50, type=int, help="images denoised at once, across classes")
    # output
    parser.add_argument("--image_size", default=None, type=int, help="pixels (default: what is made, at most 224)")
    parser.add_argument("--save_init_image_path", default="distilled", help="folder that gets one folder per run")
    args = parser.parse_args()
    check_range("--strength", args.strength, 0, 1)
    check_range("--batch_size", args.batch_size, 1)
    check_range("--num_inference_steps", args.num_inference_steps, 1)
    for flag in ("ipc", "image_size"):
        if getattr(args, flag) is not None:
            check_range(f"--{flag}", getattr(args, flag), 1)
    if args.method in ("d4m", "prototype") and not args.prototype_path:
        raise InputError(f"--prototype_path: expected a folder of gen_prototype for --method {args.method}, found nothing")
    if args.method in ("noise", "random") and args.ipc is None:
        raise InputError(f"--ipc: expected a number of images per class for --method {args.method}, found nothing")
    return args


def main(args):
    from accelerate import Accelerator
    accelerator = Accelerator()
    if args.method == "random":
        choose_real(args, accelerator)
    else:
        generate(args, accelerator)


def choose_real(args, accelerator) -> None:
    """The baseline every table needs: `ipc` real training images of each class, drawn without replacement."""
    import numpy as np

    from distillation.datasets import decode, load_split
    from distillation.distilled_set import row, write_image
    from distillation.manifest import begin
    from distillation.randomness import seed_for
    from distillation.synthesis import to_pil

    split = load_split(args.dataset, args.data_dir, "train", args.label_file_path)
    size = args.image_size or split.native_size_pixels or 224
    folder = Path(args.save_init_image_path) / f"{args.dataset}_random_ipc{args.ipc}"
    config = {"method": "random", "dataset": args.dataset, "ipc": args.ipc, "image_size": size, "seed": args.seed,
              "data": split.identity()}
    if begin(folder, "distilled", config):
        print(f"{folder}: complete, nothing to do")
        return
    started, rows = time.perf_counter(), []
    for label, entry in enumerate(split.classes):
        available = split.rows_of(label)
        if len(available) < args.ipc:
            raise InputError(f"--ipc: expected at most {len(available)}, the images of class {entry['name']} of {split.name}, "
                             f"found {args.ipc}")
        draw = np.random.default_rng(seed_for(args.seed, "random", label)).permutation(available)[:args.ipc]
        new = [row(label, entry["name"], place, 0, args.seed, 1 / args.ipc) for place in range(args.ipc)]
        if accelerator.is_main_process:
            for image, this in zip(decode(split, draw, size, fit="centre"), new, strict=True):
                write_image(folder, this["file_name"], to_pil(image))
        rows += new
    if accelerator.is_main_process:
        complete(folder, split.classes, config, rows, {"choose": time.perf_counter() - started})


def generate(args, accelerator) -> None:
    """Denoise (or only decode) every prototype `repeats` times."""
    from tqdm import tqdm

    from distillation.checkpoints import load_pipeline
    from distillation.distribution import my_share
    from distillation.manifest import begin
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline

    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, args.diffusion_checkpoints_path, accelerator.device,
                             args.dtype)
    pipeline.set_progress_bar_config(disable=True)
    classes, latents, rows, source = plan(args, pipeline)
    made = latents.shape[-1] * pipeline.vae_scale_factor
    folder = Path(args.save_init_image_path) / folder_name(args, len(rows) // len(classes), source)
    config = configuration(args, args.image_size or min(made, 224), source)
    if begin(folder, "distilled", config):
        print(f"{folder}: complete, nothing to do")
        return
    started = time.perf_counter()
    batches = [range(first, min(first + args.batch_size, len(rows))) for first in range(0, len(rows), args.batch_size)]
    prompts = pipeline.embed([entry["prompt"] for entry in classes])
    negative = pipeline.embed([args.negative_prompt])
    with tqdm(total=len(rows), desc=f"synthesise ({args.method})", unit="img", disable=None) as bar:
        for batch in my_share(batches, accelerator):
            # whole batches are made again after an interruption: rounding may depend on a batch's size
            if not all((folder / rows[place]["file_name"]).exists() for place in batch):
                write_batch(pipeline, folder, [rows[place] for place in batch], latents[batch.start:batch.stop], prompts,
                            negative, config)
            bar.update(len(batch))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        complete(folder, classes, config, rows, {"synthesise": time.perf_counter() - started})


def plan(args, pipeline):
    """Classes, latents [N, C, h, w] and rows of everything to make, in class order, and what is known of the source."""
    import torch

    from distillation.datasets import load_split
    from distillation.distilled_set import row
    from distillation.manifest import identity
    from distillation.prototypes import read_prototypes
    from distillation.randomness import seed_for
    from distillation.synthesis import check_latent_shape, latent_shape

    if args.method == "noise":
        split = load_split(args.dataset, args.data_dir, "train", args.label_file_path)
        classes = split.classes
        per_class = [torch.zeros(args.ipc, *latent_shape(pipeline))] * len(classes)
        weights, source = [torch.full((args.ipc,), 1 / args.ipc)] * len(classes), {"ipc": args.ipc, "data": split.identity()}
    else:
        classes, prototypes, made_with = read_prototypes(args.prototype_path)
        per_class, weights = [found.centroids for found in prototypes], [found.weights for found in prototypes]
        check_latent_shape(pipeline, per_class[0].shape[1:], made_with.get("size"), args.prototype_path)
        source = {"ipc": len(per_class[0]), "prototypes": identity(args.prototype_path)}
    count = source["ipc"]
    if args.ipc and args.ipc % count:
        raise InputError(f"--ipc: expected a multiple of the {count} prototypes per class in {args.prototype_path}, "
                         f"found {args.ipc}")
    repeats = (args.ipc or count) // count
    rows = [row(label, entry["name"], prototype, repeat, seed_for(args.seed, "image", label, prototype, repeat),
                round(weights[label][prototype].item() / repeats, 8))
            for label, entry in enumerate(classes) for repeat in range(repeats) for prototype in range(count)]
    return classes, torch.cat([latents for latents in per_class for _ in range(repeats)]), rows, source


def write_batch(pipeline, folder: Path, rows: list[dict], latents, prompts, negative, config: dict) -> None:
    """Make and write the images of `rows`."""
    from distillation.distilled_set import write_image
    from distillation.synthesis import synthesize, to_pil
    places = [(this["label"], this["prototype"], this["repeat"]) for this in rows]
    images = synthesize(pipeline, latents, prompts[[this["label"] for this in rows]], negative, places, config["seed"],
                        config["strength"], config["guidance_scale"], config["num_inference_steps"])
    for image, this in zip(images, rows, strict=True):
        write_image(folder, this["file_name"], to_pil(image, config["image_size"]))


def configuration(args, image_size: int, source: dict) -> dict:
    """What decides the images, whatever machine and path they are made on."""
    from distillation.checkpoints import checkpoint_identity
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
    names = ("method", "dataset", "ipc", "km_expand", "guidance_scale", "num_inference_steps", "negative_prompt", "dtype",
             "batch_size", "seed")
    strength = {"d4m": args.strength, "prototype": 0.0, "noise": 1.0}[args.method]
    return {**{name: getattr(args, name) for name in names}, "strength": strength, "image_size": image_size,
            "checkpoint": checkpoint_identity(args.diffusion_checkpoints_path, StableDiffusionLatents2ImgPipeline.parts),
            "source": source}


def folder_name(args, ipc: int, source: dict) -> str:
    """The original's name for D4M's own images, a plain one for the baselines."""
    if args.method == "d4m":
        settings = f"s{args.strength}_g{float(args.guidance_scale)}_kmexpand{args.km_expand}"
        return f"{args.dataset}_ipc{source['ipc']}_{ipc}_{settings}"
    return f"{args.dataset}_{args.method}_ipc{ipc}"


def complete(folder: Path, classes: list[dict], config: dict, rows: list[dict], seconds: dict) -> None:
    """Write result, rows and manifest."""
    from distillation.distilled_set import finish_distilled
    from distillation.manifest import write_result
    spent = sum(seconds.values())
    write_result(folder, "distilled", config, {"images": len(rows), "images_per_second": len(rows) / spent}, seconds)
    finish_distilled(folder, classes, config, rows)
    print(f"{folder}: {len(rows)} images in {spent:.1f} s")


if __name__ == "__main__":
    run(parse_args, main)
