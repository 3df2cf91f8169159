"""Stage 1: prototypes, the k-means centroids of each class's latents.

    python -m distillation.gen_prototype --dataset digits --ipc 10 --save_prototype_path prototypes

Encodes the training images with the autoencoder of a Stable Diffusion checkpoint and writes
<save_prototype_path>/<dataset>-ipc<N>-kmexpand<M>/. Memory holds one class at a time. The same command resumes;
`accelerate launch -m distillation.gen_prototype ...` divides the classes among processes.
"""

import hashlib
import sys
import time
from pathlib import Path

if not __package__:  # python distillation/gen_prototype.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.cli import InputError, Parser, dataset_flags, run, stop_if_asked, validation_of


def parse_args():
    parser = Parser(__doc__)
    parser.add_dataset_flags()
    add_prototype_flags(parser)
    parser.add_argument("--ipc", default=[10], nargs="+", type=int, least=1,
                        help="prototypes (images) per class; several numbers give a folder each and share the encoding")
    parser.add_argument("--seed", default=0, type=int, help="seed of latents and clustering")
    parser.add_argument("--batch_size", default=64, type=int, least=1, help="images encoded at once")
    parser.add_argument("--format", default="safetensors", choices=("safetensors", "json"),
                        help="json: also the original's single file, <save_prototype_path>/<dataset>-ipc<N>-kmexpand<M>.json")
    parser.add_argument("--save_prototype_path", default="prototypes", help="folder that gets one folder per run")
    args = parser.parse_args()
    check_prototype_flags(args)
    return args


def add_prototype_flags(parser) -> None:
    """Add the flags of prototypes, shared by gen_prototype and distill."""
    # images
    parser.add_argument("--size", default=None, type=int, least=8, help="resolution to encode at (default: the checkpoint's)")
    parser.add_argument("--resize", default="squash", choices=("squash", "crop"),
                        help="squash ignores the aspect ratio, as D4M does; crop takes the centre square")
    parser.add_argument("--num_workers", default=4, type=int, least=0, help="threads decoding images")
    # model
    parser.add_checkpoint_flags()
    parser.add_argument("--latent", default="sample", choices=("sample", "mean"),
                        help="latent of an image: a sample of the autoencoder's posterior, or its mean")
    # clustering
    parser.add_argument("--km_expand", default=None, type=int, least=1,
                        help="k-means batch = km_expand * ipc latents (default: 1, and at least 1,024 latents)")
    parser.add_argument("--kmeans", default="minibatch", choices=("minibatch", "full"), help="scikit-learn's estimator")
    parser.add_argument("--prototype", default="centroid", choices=("centroid", "medoid", "member", "random"),
                        help="medoid: the real latent nearest to the centroid; member: a random one of the cluster; random: "
                             "the latents of the images that gen_syn_image --method random draws, without k-means")
    parser.add_argument("--outliers", default="none", choices=("none", "lof"),
                        help="lof: drop a tenth of each class before clustering, by local outlier factor")


def check_prototype_flags(args) -> None:
    """Raise InputError for flags that do not fit together."""
    if args.prototype == "random" and args.outliers != "none":
        raise InputError(f"--outliers {args.outliers} does not go with --prototype random, which has no k-means")
    if args.prototype == "random" and args.resize != "squash":
        raise InputError("--resize crop does not go with --prototype random, whose images are cut as --method random does")
    if args.km_expand and (args.kmeans == "full" or args.prototype == "random"):
        raise InputError("--km_expand needs --kmeans minibatch and another --prototype than random")


def main(args):
    from distillation.checkpoints import load_pipeline
    from distillation.datasets import check_enough_images, load_split
    from distillation.encoding import size_to_encode
    from distillation.prototypes import class_file, folder_name, write_class
    from scripts.parallel import all_done, begin_together, my_unfinished, new_accelerator
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline

    accelerator = new_accelerator()
    split = load_split(split="train", **dataset_flags(args))
    check_enough_images(split, max(args.ipc))
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, args.diffusion_checkpoints_path, accelerator.device, args.dtype,
                             args.revision)
    size, root = size_to_encode(pipeline, args.size), Path(args.save_prototype_path)
    wanted = {ipc: root / folder_name(args.dataset, ipc, args.km_expand, args.prototype, args.outliers) for ipc in args.ipc}
    configs = {ipc: configuration(args, ipc, split, size, accelerator.device) for ipc in wanted}
    folders = {}    # that are not complete
    for ipc, folder in wanted.items():
        if not begin_together(folder, "prototypes", configs[ipc], accelerator):
            folders[ipc] = folder

    def files(label: int) -> dict[int, Path]:
        return {ipc: folder / class_file(label, split.classes[label]["name"]) for ipc, folder in folders.items()}
    labels, seconds = list(range(len(split.classes))) if folders else [], {}
    done = sum(file.exists() for label in labels for file in files(label).values())
    if done and accelerator.is_main_process:
        print(f"{', '.join(map(str, folders.values()))}: {done} of {len(labels) * len(folders)} classes are there already")
    mine = my_unfinished(labels, lambda label: all(file.exists() for file in files(label).values()), accelerator,
                         costs=[len(split.rows_of(label)) for label in labels])
    for label, found in prototypes_of(pipeline, split, mine, size, args, list(folders), seconds):
        for ipc, folder in folders.items():
            write_class(folder, label, split.classes[label]["name"], found[ipc])
        stop_if_asked()
    if all_done(accelerator):
        for ipc, folder in folders.items():
            complete(folder, split, configs[ipc], pipeline, seconds_of(ipc, seconds))
        for folder in wanted.values() if args.format == "json" else ():
            write_originals_file(folder)


def seconds_of(ipc: int, seconds: dict) -> dict:
    """Seconds of one set of prototypes: the encoding, which all sets share, and its own clustering."""
    own = {"cluster": seconds[f"cluster-{ipc}"]} if f"cluster-{ipc}" in seconds else {}
    return {**{part: spent for part, spent in seconds.items() if not part.startswith("cluster-")}, **own}


def prototypes_of(pipeline, split, labels: list[int], size: int, args, ipcs: list[int], seconds: dict):
    """Yield (label, {IPC: Prototypes}) for each of `labels`: encode the class, then cluster it for each of `ipcs`.

    Adds to `seconds`: "encode", its part "wait", and "cluster-<IPC>".
    """
    if args.prototype == "random":
        for label in labels:
            yield label, {ipc: drawn_prototypes(pipeline, split, label, size, args, ipc, seconds) for ipc in ipcs}
        return
    from distillation.datasets import check_enough_readable
    from distillation.encoding import Encoding, encode_classes
    from distillation.prototypes import find_prototypes
    from scripts.randomness import seed_for
    how = Encoding(args.seed, args.latent, args.batch_size, args.num_workers, args.resize)
    for label, latents, rows in encode_classes(pipeline, split, labels, size, how, seconds):
        check_enough_readable(split, label, rows, len(split.rows_of(label)), max(ipcs))
        found = {}
        for ipc in ipcs:
            started = time.perf_counter()
            found[ipc] = find_prototypes(latents, ipc, args.km_expand, seed_for(args.seed, "kmeans", label), kmeans=args.kmeans,
                                         prototype=args.prototype, outliers=args.outliers).over(split.rows_of(label), rows)
            seconds[f"cluster-{ipc}"] = seconds.get(f"cluster-{ipc}", 0.0) + time.perf_counter() - started
        yield label, found


def drawn_prototypes(pipeline, split, label: int, size: int, args, ipc: int, seconds: dict):
    """Prototypes of the images that gen_syn_image --method random draws, in its order; no other image is encoded."""
    import numpy as np
    import torch

    from distillation.prototypes import Prototypes
    from distillation.real_subset import at_random, random_order
    from scripts.randomness import generator_for
    started = time.perf_counter()
    (_, images, rows), = at_random(split, [label], ipc, size, args.seed, args.num_workers)
    noise = torch.randn(len(images), *pipeline.latent_shape(size), generator=generator_for(args.seed, "latent", label))
    own = split.rows_of(label)
    order = own[random_order(len(own), args.seed, label)]
    tried = order[:np.flatnonzero(order == rows[-1])[0] + 1]    # the last one tried was readable
    places, skipped = (torch.from_numpy(np.searchsorted(own, some)) for some in (rows, np.setdiff1d(tried, rows)))
    names = [f"class {split.classes[label]['name']}, image {place}" for place in places]
    parts = [slice(first, first + args.batch_size) for first in range(0, len(images), args.batch_size)]
    latents = torch.cat([pipeline(images[part], noise[part] if args.latent == "sample" else None, names[part]).cpu()
                         for part in parts])
    seconds["encode"] = seconds.get("encode", 0.0) + time.perf_counter() - started
    return Prototypes(latents, torch.ones(len(images), dtype=torch.long), torch.tensor(0.0), places, skipped)


def configuration(args, ipc: int, split, size: int, device) -> dict:
    """Everything that decides the prototypes; no paths."""
    from distillation.checkpoints import checkpoint_identity, stored_dtype
    from distillation.prototypes import LEAST_BATCH
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    names = ("dataset", "ipc", "km_expand", "kmeans", "prototype", "outliers", "latent", "resize", "batch_size", "seed")
    clustered = args.kmeans == "minibatch" and args.prototype != "random"
    least = clustered and args.km_expand is not None and args.km_expand * ipc < LEAST_BATCH
    return {**{name: getattr(args, name) for name in names}, "ipc": ipc, "km_expand": args.km_expand or 1,
            "dtype": stored_dtype(args.dtype, device), **({"kmeans_batch": args.km_expand * ipc} if least else {}),
            "size": size, "data": split.identity(),
            **validation_of(args.validation),
            **({"drawn": "and cut as --method random"} if args.prototype == "random" else {}),  # earlier folders have others
            **({"prompts": hashlib.sha256("\n".join(entry["prompt"] for entry in split.classes).encode()).hexdigest()}
               if args.label_file_path or args.prompt_template else {}),    # else the data set's own
            **({"prompt_template": args.prompt_template} if args.prompt_template else {}),
            "checkpoint": checkpoint_identity(args.diffusion_checkpoints_path, StableDiffusionGenLatentsPipeline.parts,
                                              args.revision)}


def complete(folder: Path, split, config: dict, pipeline, seconds: dict) -> None:
    from distillation.prototypes import class_file
    from scripts.artefact import finish, write_result
    from scripts.files import read_tensors
    files = [class_file(label, entry["name"]) for label, entry in enumerate(split.classes)]
    left_out = [int(split.rows_of(label)[index]) for label, file in enumerate(files)
                for index in read_tensors(folder / file)["skipped"]]
    skipped = split.describe_bad(left_out)
    made = len(files) * config["ipc"]
    encoded = made if config["prototype"] == "random" else len(split.labels) - len(left_out)
    counts = {"classes": len(files), "prototypes": made, "images": encoded}
    write_result(folder, "prototypes", config, counts, seconds)
    finish(folder, "prototypes", split.classes, config, files, counts=counts, skipped=skipped,
           latent_shape=list(pipeline.latent_shape(config["size"])), autoencoder=pipeline.autoencoder)
    spent = sum(seconds.get(part, 0.0) for part in ("encode", "cluster"))
    print(f"{folder}: {counts['prototypes']} prototypes of {counts['images']} images in {spent:.1f} s"
          + (f"; {len(left_out)} unreadable images left out, listed in manifest.json" if left_out else ""))


def write_originals_file(folder: Path) -> None:
    """Write the original's JSON file beside the finished `folder`, unless it is there and not older than the folder."""
    from distillation.prototypes import read_prototypes, write_json_file
    from scripts.cli import finished
    path = folder.with_name(folder.name + ".json")
    finished.append(path)
    if path.exists() and path.stat().st_mtime_ns >= (folder / "manifest.json").stat().st_mtime_ns:
        print(f"{path}: there already, left as it is")
        return
    classes, found, _ = read_prototypes(folder)
    write_json_file(path, classes, found)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB of JSON")


if __name__ == "__main__":
    run(parse_args, main, "save_prototype_path")
