"""Stages 1 and 2 in one go, with no files between: from a data set to its distilled images.

    python -m distillation.distill --dataset digits --ipc 10 --strength 0.3 --save_init_image_path distilled

Writes the images that gen_prototype and gen_syn_image would write, under <save_init_image_path>/<dataset>_ipc<N>_.../, a few
classes at a time. The same command resumes; under `accelerate launch` classes are divided among
the processes.
"""

import shutil
import time
from pathlib import Path

from distillation.gen_prototype import (
    add_prototype_flags,
    check_enough_images,
    check_prototype_flags,
    checked_size,
    prototypes_of,
)
from distillation.gen_prototype import configuration as prototypes_configuration
from distillation.gen_syn_image import (
    add_synthesis_flags,
    check_synthesis_flags,
    complete,
    configuration,
    folder_name,
    load_filter,
    load_images_pipeline,
)
from scripts.cli import Parser, add_dataset_flags, dataset_flags, run, stop_if_asked


def parse_args():
    parser = Parser(__doc__)
    add_dataset_flags(parser)
    add_prototype_flags(parser)
    add_synthesis_flags(parser)
    parser.add_argument("--seed", default=0, type=int, help="seed of latents, clustering and noise")
    parser.add_argument("--batch_size", default=50, type=int, help="images encoded, and denoised, at once")
    parser.add_argument("--save_init_image_path", default="distilled", help="folder that gets one folder per run")
    parser.set_defaults(method="d4m")
    args = parser.parse_args()
    check_prototype_flags(args)
    check_synthesis_flags(args)
    return args


def main(args):
    from distillation.datasets import load_split
    from distillation.image_maker import ImageMaker
    from distillation.synthesis import check_latent_shape
    from scripts.artefact import read_json
    from scripts.parallel import all_done, begin_together, new_accelerator
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline

    accelerator = new_accelerator()
    split = load_split(split="train", **dataset_flags(args))
    check_enough_images(split, args.ipc)
    pipeline = load_images_pipeline(args, accelerator.device)
    encoder = StableDiffusionGenLatentsPipeline(pipeline.vae)
    size, images_per_class = checked_size(encoder, args.size), args.ipc * (args.repeats or 1)
    check_latent_shape(pipeline, encoder.latent_shape(size), size, args.diffusion_checkpoints_path)
    teacher = load_filter(args, split.classes, images_per_class, accelerator.device)
    source = prototypes_configuration(args, split, size)
    folder = Path(args.save_init_image_path) / folder_name(args, images_per_class, source)
    config = configuration(args, args.image_size or min(size, 224), source, images_per_class)
    if begin_together(folder, "distilled", config, accelerator):
        if accelerator.is_main_process:
            clear_parts(folder)
        accelerator.print(f"{folder}: complete, nothing to do")
        return
    seconds: dict[str, float] = {}
    maker = ImageMaker(pipeline, split.classes, folder, config, teacher, args.num_workers)
    distil(encoder, maker, split, size, args, accelerator, seconds)
    if all_done(accelerator):
        rows = [each for label in range(len(split.classes)) for each in read_json(part_file(folder, label))]
        complete(folder, split.classes, config, rows, {name: seconds.get(name, 0.0) for name in ("encode", "cluster", "make")})
        clear_parts(folder)


def distil(encoder, maker, split, size: int, args, accelerator, seconds: dict) -> None:
    """Make the images of this process's classes: as many classes together as fill a batch."""
    from scripts.artefact import write_json
    from scripts.parallel import my_unfinished

    labels, together = list(range(len(split.classes))), classes_together(args)
    groups = [labels[first:first + together] for first in range(0, len(labels), together)]

    def done(group: list[int]) -> bool:
        return all(part_file(maker.folder, label).exists() for label in group)
    # whole groups are made again after an interruption: rounding may depend on a batch's size
    costs = [cost(group, split, args) for group in groups]
    mine = my_unfinished(groups, done, accelerator, costs)
    ends, found = {group[-1]: group for group in mine}, {}
    wanted = [label for group in mine for label in group]
    for label, prototypes in prototypes_of(encoder, split, wanted, size, args, seconds):
        found[label] = prototypes
        if label in ends:
            started = time.perf_counter()
            for made, rows in make_group(maker, ends[label], found, args).items():
                write_json(part_file(maker.folder, made), rows)
            seconds["make"] = seconds.get("make", 0.0) + time.perf_counter() - started
            found = {}
            stop_if_asked()


def make_group(maker, labels: list[int], prototypes: dict, args) -> dict[int, list[dict]]:
    """Make and write the images of the classes `labels`; returns the rows of what was written, by label."""
    from distillation.image_maker import plan_rows
    rows = [row for label in labels
            for row in plan_rows(maker.classes, {label: prototypes[label].weights}, args.repeats or 1, args.seed,
                                 args.image_format)]
    for batch in maker.batches(rows):
        maker.make(batch, prototypes)
    maker.wait()
    return {label: [maker.made(row) for row in rows if row["label"] == label] for label in labels}


def classes_together(args) -> int:
    """How many classes fill a batch."""
    return max(1, args.batch_size // denoised(args))


def denoised(args) -> int:
    """Images denoised per class."""
    return args.ipc * (args.repeats or 1) * (args.candidates if args.filter_teacher else 1)


def cost(group: list[int], split, args) -> int:
    """Passes through a network: of every real image of the classes through the encoder, of what is denoised at every step."""
    return sum(len(split.rows_of(label)) for label in group) + len(group) * denoised(args) * args.num_inference_steps


def part_file(folder: Path, label: int) -> Path:
    """Where the rows of a class wait for the manifest."""
    return folder / "parts" / f"{label:05d}.json"


def clear_parts(folder: Path) -> None:
    """Remove what waited for the manifest, also after a run killed in between: readers would take its folder for a class."""
    shutil.rmtree(part_file(folder, 0).parent, ignore_errors=True)


if __name__ == "__main__":
    run(parse_args, main)
