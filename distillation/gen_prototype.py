"""Stage 1: prototypes, the k-means centroids of each class's latents.

    python -m distillation.gen_prototype --dataset digits --ipc 10 --save_prototype_path prototypes

Reads the training split and the autoencoder of a Stable Diffusion checkpoint, one class in memory at a time; writes
<save_prototype_path>/<dataset>-ipc<N>-kmexpand<M>/. The same command resumes; under `accelerate launch` classes are shared out.
"""

import argparse
import time
from pathlib import Path

from distillation.entry import DIGITS_LDM, InputError, add_dataset_flags, check_range, run


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # data
    add_dataset_flags(parser)
    parser.add_argument("--size", default=None, type=int, help="resolution to encode at (default: the checkpoint's)")
    parser.add_argument("--batch_size", default=64, type=int, help="images encoded at once")
    parser.add_argument("--num_workers", default=4, type=int, help="threads decoding images")
    # model
    parser.add_argument("--diffusion_checkpoints_path", default=DIGITS_LDM,
                        help="Stable Diffusion checkpoint: folder or hub name")
    parser.add_argument("--dtype", default=None, choices=("float32", "float16", "bfloat16"),
                        help="default: float16 on an accelerator, float32 on the CPU")
    parser.add_argument("--latent", default="sample", choices=("sample", "mean"), help="of the autoencoder's posterior")
    # clustering
    parser.add_argument("--ipc", default=10, type=int, help="prototypes (images) per class")
    parser.add_argument("--km_expand", default=1, type=int, help="mini-batches of km_expand * ipc latents, at least 1,024")
    parser.add_argument("--kmeans", default="minibatch", choices=("minibatch", "full"), help="scikit-learn's estimator")
    parser.add_argument("--seed", default=0, type=int, help="seed of latents and clustering")
    parser.add_argument("--save_prototype_path", default="prototypes", help="folder that gets one folder per run")
    args = parser.parse_args()
    for flag in ("ipc", "km_expand", "batch_size", "num_workers"):
        check_range(f"--{flag}", getattr(args, flag), 1)
    if args.size is not None:
        check_range("--size", args.size, 8)
    return args


def main(args):
    from accelerate import Accelerator

    from distillation.checkpoints import load_pipeline
    from distillation.datasets import load_split
    from distillation.distribution import my_share
    from distillation.manifest import begin, write_tensors
    from distillation.prototypes import class_file, cluster
    from distillation.randomness import seed_for
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline

    split = load_split(args.dataset, args.data_dir, "train", args.label_file_path)
    smallest = min(range(len(split.classes)), key=lambda label: len(split.rows_of(label)))
    if len(split.rows_of(smallest)) < args.ipc:
        raise InputError(f"--ipc: expected at most {len(split.rows_of(smallest))}, the images of class "
                         f"{split.classes[smallest]['name']} of {split.name}, found {args.ipc}")
    accelerator = Accelerator()
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, args.diffusion_checkpoints_path, accelerator.device, args.dtype)
    size = args.size or pipeline.size_pixels
    folder = Path(args.save_prototype_path) / f"{args.dataset}-ipc{args.ipc}-kmexpand{args.km_expand}"
    config = configuration(args, split, size)
    if begin(folder, "prototypes", config):
        print(f"{folder}: complete, nothing to do")
        return

    seconds = {"encode": 0.0, "cluster": 0.0}
    mine = my_share(list(range(len(split.classes))), accelerator)
    todo = [label for label in mine if not (folder / class_file(label, split.classes[label]["name"])).exists()]
    if len(todo) < len(mine):
        print(f"{folder}: {len(mine) - len(todo)} of {len(mine)} classes are there already")
    for label, latents in encode_classes(pipeline, split, todo, size, args, seconds):
        started = time.perf_counter()
        found = cluster(latents, args.ipc, args.km_expand, seed_for(args.seed, "kmeans", label), args.kmeans)
        write_tensors(folder / class_file(label, split.classes[label]["name"]), vars(found))
        seconds["cluster"] += time.perf_counter() - started
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        complete(folder, split, config, pipeline.latent_shape(size), seconds)


def configuration(args, split, size: int) -> dict:
    """What decides the prototypes, whatever machine and path they are made on."""
    from distillation.checkpoints import checkpoint_identity
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    names = ("dataset", "ipc", "km_expand", "kmeans", "latent", "dtype", "batch_size", "seed")
    return {**{name: getattr(args, name) for name in names}, "size": size, "data": split.identity(),
            "checkpoint": checkpoint_identity(args.diffusion_checkpoints_path, StableDiffusionGenLatentsPipeline.parts)}


def encode_classes(pipeline, split, labels: list[int], size: int, args, seconds: dict):
    """Yield (label, latents [N, C, h, w]) class by class; adds to `seconds["encode"]`."""
    import torch
    from tqdm import tqdm

    from distillation.datasets import decode
    from distillation.randomness import generator_for
    shape = pipeline.latent_shape(size)
    with tqdm(total=sum(len(split.rows_of(label)) for label in labels), desc="encode and cluster", unit="img",
              disable=None) as bar:
        for label in labels:
            started, parts = time.perf_counter(), []
            rows = split.rows_of(label)
            noise = torch.randn(len(rows), *shape, generator=generator_for(args.seed, "latent", label))
            for first in range(0, len(rows), args.batch_size):
                part = slice(first, first + args.batch_size)
                images = decode(split, rows[part], size, args.num_workers)
                parts.append(pipeline(images, noise[part] if args.latent == "sample" else None).cpu())
                bar.update(len(images))
            seconds["encode"] += time.perf_counter() - started
            yield label, torch.cat(parts)


def complete(folder: Path, split, config: dict, latent_shape: tuple, seconds: dict) -> None:
    """Write result and manifest."""
    from distillation.manifest import finish, write_result
    from distillation.prototypes import class_file
    files = [class_file(label, entry["name"]) for label, entry in enumerate(split.classes)]
    counts = {"classes": len(files), "prototypes": len(files) * config["ipc"], "images": len(split.labels)}
    write_result(folder, "prototypes", config, counts, seconds)
    finish(folder, "prototypes", split.classes, config, files, counts=counts, latent_shape=list(latent_shape))
    print(f"{folder}: {counts['prototypes']} prototypes of {counts['images']} images in {sum(seconds.values()):.1f} s")


if __name__ == "__main__":
    run(parse_args, main)
