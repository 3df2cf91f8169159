"""The baselines of real images: a few of each class, at random or chosen by their latents (`gen_syn_image --method ...`)."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distillation.datasets import Split, check_enough_images, check_enough_readable, decode, decode_readable, load_split
from distillation.distilled_set import complete, row, write_image
from distillation.encoding import Encoding, encode_classes, size_to_encode
from distillation.images import to_pil
from scripts.cli import Progress, dataset_flags, stop_if_asked, validation_of
from scripts.parallel import all_done, begin_together, my_unfinished
from scripts.randomness import seed_for


def choose_real(args, accelerator) -> None:
    """Write `args.ipc` real training images of each class as a distilled set."""
    split = load_split(split="train", **dataset_flags(args))
    check_enough_images(split, args.ipc)
    size = args.image_size or split.native_size_pixels or 224
    folder = Path(args.save_init_image_path) / f"{args.dataset}_{args.method}_ipc{args.ipc}"
    pipeline, settings = (None, {}) if args.method == "random" else load_encoder(args, accelerator.device)
    config = {**{name: getattr(args, name) for name in ("method", "dataset", "ipc", "seed", "image_format")},
              "image_size": size, "data": split.identity(), **settings, **validation_of(args.validation)}
    if begin_together(folder, "distilled", config, accelerator):
        return
    started = time.perf_counter()
    rows = [[row(label, entry["name"], index, 0, args.seed, 1 / args.ipc, args.image_format) for index in range(args.ipc)]
            for label, entry in enumerate(split.classes)]

    def done(label: int) -> bool:
        return all((folder / each["file_name"]).exists() for each in rows[label])
    costs = [1 if args.method == "random" else len(split.rows_of(label)) for label in range(len(rows))]
    mine = my_unfinished(list(range(len(rows))), done, accelerator, costs)
    chosen = at_random(split, mine, args.ipc, size, args.seed, args.num_workers) if args.method == "random" else \
        by_latents(pipeline, split, mine, settings["size"], size, args)
    for label, images, _ in chosen:
        for image, each in zip(images, rows[label], strict=True):
            write_image(folder, each["file_name"], to_pil(image, size))
        stop_if_asked()
    if all_done(accelerator):
        complete(folder, split.classes, config, [each for group in rows for each in group],
                 {"choose": time.perf_counter() - started})


def load_encoder(args, device) -> tuple:
    """The autoencoder, and the settings that decide its latents."""
    from distillation.checkpoints import checkpoint_identity, load_pipeline, stored_dtype
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    checkpoint = args.diffusion_checkpoints_path
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, checkpoint, device, args.dtype, args.revision)
    identity = checkpoint_identity(checkpoint, pipeline.parts, args.revision)
    return pipeline, {"size": size_to_encode(pipeline, args.size), "dtype": stored_dtype(args.dtype, device),
                      "batch_size": args.batch_size, "checkpoint": identity}


def at_random(split: Split, labels: list[int], count: int, size_pixels: int, seed: int, workers: int,
              fit: str = "centre") -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """Yield (label, uint8 [count, 3, size, size], their rows): images drawn without replacement, a function of (seed, class).

    If the split skips unreadable images, the next images in the random order replace them. Raises InputError when there are
    too few.
    """
    for label in Progress(labels, desc="choose (random)", unit="class"):
        rows = split.rows_of(label)
        order = rows[random_order(len(rows), seed, label)]
        images, found, taken = torch.empty(0, 3, size_pixels, size_pixels, dtype=torch.uint8), order[:0], 0
        while len(images) < count and taken < len(order):
            wanted = order[taken:taken + count - len(images)]
            more, readable = decode_readable(split, wanted, size_pixels, workers, fit)
            images, found, taken = torch.cat([images, more]), np.concatenate([found, readable]), taken + len(wanted)
        check_enough_readable(split, label, found, taken, count)
        yield label, images, found


def by_latents(pipeline, split: Split, labels: list[int], encode_at_pixels: int, size_pixels: int,
               args) -> Iterator[tuple[int, Tensor, np.ndarray]]:
    """Yield (label, uint8 [ipc, 3, size, size], their rows): images chosen by the posterior means of their latents.

    Raises InputError when there are too few.
    """
    choose = {"herding": herding, "kcenter": k_center}[args.method]
    how = Encoding(args.seed, "mean", args.batch_size, args.num_workers)
    for label, latents, rows in encode_classes(pipeline, split, labels, encode_at_pixels, how):
        check_enough_readable(split, label, rows, len(split.rows_of(label)), args.ipc)
        chosen = rows[choose(latents, args.ipc)]
        yield label, decode(split, chosen, size_pixels, args.num_workers, "centre"), chosen


# which images

def random_order(count: int, seed: int, label: int) -> np.ndarray:
    """The indices 0 ... count - 1 of class `label` in random order; the first n are n random images."""
    return np.random.default_rng(seed_for(seed, "random", label)).permutation(count)


def herding(latents: Tensor, count: int) -> list[int]:
    """Indices of `count` of the latents [N, ...]: each next one keeps the mean of the chosen nearest to the mean of all.

    Welling 2009; as in iCaRL (Rebuffi et al. 2017, algorithm 4) no image is chosen twice. Raises ValueError when N < count.
    """
    flat = _flat(latents, count)
    mean, total, chosen = flat.mean(0), torch.zeros_like(flat[0]), []
    for step in range(1, count + 1):
        distances = (mean - (total + flat) / step).pow(2).sum(1)
        distances[chosen] = torch.inf
        chosen.append(int(distances.argmin()))
        total += flat[chosen[-1]]
    return chosen


def k_center(latents: Tensor, count: int) -> list[int]:
    """Indices of `count` of the latents [N, ...]: the one nearest to the mean, then each time the one farthest from the chosen.

    The greedy 2-approximation of the k-center problem (Gonzalez 1985; Sener & Savarese 2018, algorithm 1). Raises ValueError
    when N < count.
    """
    flat = _flat(latents, count)
    chosen = [int((flat - flat.mean(0)).pow(2).sum(1).argmin())]
    distances = torch.full((len(flat),), torch.inf, dtype=flat.dtype)
    while len(chosen) < count:
        distances = torch.minimum(distances, (flat - flat[chosen[-1]]).pow(2).sum(1))
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    return chosen


def _flat(latents: Tensor, count: int) -> Tensor:
    if len(latents) < count:
        raise ValueError(f"expected at least {count} latents, found {len(latents)}")
    return latents.flatten(1).double()
