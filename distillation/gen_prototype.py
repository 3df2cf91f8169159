"""Stage 1: prototypes, the k-means centroids of each class's latents.

    python -m distillation.gen_prototype --dataset digits --ipc 10 --save_prototype_path prototypes

Reads the training split and the autoencoder of a Stable Diffusion checkpoint, one class in memory at a time; writes
<save_prototype_path>/<dataset>-ipc<N>-kmexpand<M>/. The same command resumes; under `accelerate launch`
classes are divided among the processes.
"""

import time
from pathlib import Path

from scripts.cli import (
    InputError,
    Parser,
    add_checkpoint_flags,
    add_dataset_flags,
    check_range,
    dataset_flags,
    run,
    stop_if_asked,
)


def parse_args():
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    add_prototype_flags(parser)
    parser.add_argument("--seed", default=0, type=int, help="seed of latents and clustering")
    parser.add_argument("--batch_size", default=64, type=int, help="images encoded at once")
    parser.add_argument("--format", default="safetensors", choices=("safetensors", "json"),
                        help="json: also the original's single file, <save_prototype_path>/<dataset>-ipc<N>-kmexpand<M>.json")
    parser.add_argument("--save_prototype_path", default="prototypes", help="folder that gets one folder per run")
    args = parser.parse_args()
    check_prototype_flags(args)
    return args


def add_prototype_flags(parser) -> None:
    """Flags that decide the prototypes, the same in gen_prototype and distill."""
    # images
    parser.add_argument("--size", default=None, type=int, help="resolution to encode at (default: the checkpoint's)")
    parser.add_argument("--resize", default="squash", choices=("squash", "crop"),
                        help="to a square: squash ignores the aspect ratio, as D4M does; crop takes the centre")
    parser.add_argument("--num_workers", default=4, type=int, help="threads decoding images")
    # model
    add_checkpoint_flags(parser)
    parser.add_argument("--dtype", default=None, choices=("float32", "float16", "bfloat16"),
                        help="default: float16 on an accelerator, float32 on the CPU")
    parser.add_argument("--latent", default="sample", choices=("sample", "mean"), help="of the autoencoder's posterior")
    # clustering
    parser.add_argument("--ipc", default=10, type=int, help="prototypes (images) per class")
    parser.add_argument("--km_expand", default=1, type=int, help="mini-batches of km_expand * ipc latents, at least 1,024")
    parser.add_argument("--kmeans", default="minibatch", choices=("minibatch", "full"), help="scikit-learn's estimator")
    parser.add_argument("--prototype", default="centroid", choices=("centroid", "medoid", "random"),
                        help="medoid: the real latent nearest to the centroid; random: real latents, without k-means")
    parser.add_argument("--outliers", default="none", choices=("none", "lof"),
                        help="lof: drop a tenth of each class before clustering, by local outlier factor")


def check_prototype_flags(args) -> None:
    """Refuse numbers that cannot be."""
    for flag in ("ipc", "km_expand", "batch_size", "num_workers"):
        check_range(f"--{flag}", getattr(args, flag), 1)
    if args.size is not None:
        check_range("--size", args.size, 8)


def main(args):
    from distillation.checkpoints import load_pipeline
    from distillation.datasets import load_split
    from distillation.prototypes import class_file, folder_name, write_class
    from scripts.parallel import all_done, begin_together, my_unfinished, new_accelerator
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline

    split = load_split(split="train", **dataset_flags(args))
    check_enough_images(split, args.ipc)
    accelerator = new_accelerator()
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, args.diffusion_checkpoints_path, accelerator.device, args.dtype,
                             args.revision)
    size = checked_size(pipeline, args.size)
    name = folder_name(args.dataset, args.ipc, args.km_expand, args.prototype, args.outliers)
    folder = Path(args.save_prototype_path) / name
    config = configuration(args, split, size)
    if begin_together(folder, "prototypes", config, accelerator):
        accelerator.print(f"{folder}: complete, nothing to do")
    else:
        seconds: dict[str, float] = {}
        files = [folder / class_file(label, entry["name"]) for label, entry in enumerate(split.classes)]
        there = sum(file.exists() for file in files)
        if there and accelerator.is_main_process:
            print(f"{folder}: {there} of {len(files)} classes are there already")
        labels = list(range(len(files)))
        costs = [len(split.rows_of(label)) for label in labels]
        mine = my_unfinished(labels, lambda label: files[label].exists(), accelerator, costs)
        for label, found in prototypes_of(pipeline, split, mine, size, args, seconds):
            write_class(folder, label, split.classes[label]["name"], found)
            stop_if_asked()
        if all_done(accelerator):
            complete(folder, split, config, pipeline.latent_shape(size), seconds)
    if args.format == "json" and accelerator.is_main_process:
        write_originals_file(folder)


def checked_size(pipeline, size: int | None) -> int:
    """The resolution to encode at; raises InputError for one that the autoencoder cannot halve as often as it must."""
    size, factor = size or pipeline.size_pixels, pipeline.downsampling
    if size % factor:
        raise InputError(f"--size: expected a multiple of {factor}, by which the autoencoder shrinks an image, found {size}")
    return size


def check_enough_images(split, ipc: int) -> None:
    """Raise InputError when a class has fewer images than it is to have prototypes."""
    smallest = min(range(len(split.classes)), key=lambda label: len(split.rows_of(label)))
    available = len(split.rows_of(smallest))
    if available < ipc:
        raise InputError(f"--ipc: expected at most {available}, the images of class {split.classes[smallest]['name']} of "
                         f"{split.name}, found {ipc}")


def prototypes_of(pipeline, split, labels: list[int], size: int, args, seconds: dict):
    """Yield (label, Prototypes) class by class; adds to `seconds`."""
    from distillation.encoding import encode_classes
    from distillation.prototypes import find_prototypes
    from distillation.real_subset import check_count
    from scripts.randomness import seed_for
    for label, latents, rows in encode_classes(pipeline, split, labels, size, seed=args.seed, latent=args.latent,
                                               batch_size=args.batch_size, workers=args.num_workers, fit=args.resize,
                                               seconds=seconds):
        started = time.perf_counter()
        check_count(rows, args.ipc, split, label)
        found = find_prototypes(latents, args.ipc, args.km_expand, seed_for(args.seed, "kmeans", label), kmeans=args.kmeans,
                                prototype=args.prototype, outliers=args.outliers)
        seconds["cluster"] = seconds.get("cluster", 0.0) + time.perf_counter() - started
        yield label, found.over(split.rows_of(label), rows)


def configuration(args, split, size: int) -> dict:
    """What decides the prototypes, whatever machine and path they are made on."""
    from distillation.checkpoints import checkpoint_identity
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    names = ("dataset", "ipc", "km_expand", "kmeans", "prototype", "outliers", "latent", "dtype", "resize", "batch_size",
             "seed")
    return {**{name: getattr(args, name) for name in names}, "size": size, "data": split.identity(),
            "checkpoint": checkpoint_identity(args.diffusion_checkpoints_path, StableDiffusionGenLatentsPipeline.parts,
                                              args.revision)}


def complete(folder: Path, split, config: dict, latent_shape: tuple, seconds: dict) -> None:
    """Write result and manifest."""
    from distillation.prototypes import class_file
    from scripts.artefact import finish, read_tensors, write_result
    files = [class_file(label, entry["name"]) for label, entry in enumerate(split.classes)]
    left_out = [int(split.rows_of(label)[place]) for label, file in enumerate(files)
                for place in read_tensors(folder / file)["skipped"]]
    skipped = split.describe_bad(left_out)
    counts = {"classes": len(files), "prototypes": len(files) * config["ipc"], "images": len(split.labels) - len(left_out)}
    write_result(folder, "prototypes", config, counts, seconds)
    finish(folder, "prototypes", split.classes, config, files, counts=counts, latent_shape=list(latent_shape), skipped=skipped)
    spent = sum(seconds.get(part, 0.0) for part in ("encode", "cluster"))
    print(f"{folder}: {counts['prototypes']} prototypes of {counts['images']} images in {spent:.1f} s"
          + (f"; {len(left_out)} unreadable images left out, listed in manifest.json" if left_out else ""))


def write_originals_file(folder: Path) -> None:
    """Write the finished `folder` once more as the original's JSON, beside it."""
    from distillation.prototypes import read_prototypes, write_json_file
    path = folder.with_name(folder.name + ".json")
    if path.exists():
        print(f"{path}: there already, left as it is")
        return
    classes, found, _ = read_prototypes(folder)
    write_json_file(path, classes, found)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB of JSON")


if __name__ == "__main__":
    run(parse_args, main)
