"""Stages 1 and 2 in one command, with no files between them: from a data set to its distilled images.

    python -m distillation.distill --dataset digits --ipc 10 --strength 0.3 --save_init_image_path distilled

Writes what gen_prototype and gen_syn_image would write to <save_init_image_path>/<dataset>_ipc<N>_.../, a few classes at a
time. The same command resumes; `accelerate launch -m distillation.distill ...` divides the classes among processes.
"""

import shutil
import time
from pathlib import Path

from distillation.gen_prototype import add_prototype_flags, check_prototype_flags, prototypes_of, seconds_of
from distillation.gen_prototype import configuration as prototypes_configuration
from distillation.gen_syn_image import (
    add_synthesis_flags,
    check_different,
    check_synthesis_flags,
    configuration,
    folder_name,
    load_filter,
    load_images_pipeline,
)
from scripts.cli import Parser, dataset_flags, run, stop_if_asked


def parse_args():
    parser = Parser(__doc__)
    parser.add_dataset_flags()
    add_prototype_flags(parser)
    add_synthesis_flags(parser)
    parser.add_argument("--ipc", default=10, type=int, least=1, help="prototypes per class")
    parser.add_argument("--seed", default=0, type=int, help="seed of latents, clustering and noise")
    parser.add_argument("--batch_size", default=50, type=int, least=1, help="images encoded, and denoised, at once")
    parser.add_argument("--save_init_image_path", default="distilled", help="folder that gets one folder per run")
    parser.set_defaults(method="d4m")
    args = parser.parse_args()
    check_prototype_flags(args)
    check_synthesis_flags(args)
    return args


def main(args):
    from distillation.datasets import check_enough_images, load_split
    from distillation.distilled_set import complete
    from distillation.encoding import size_to_encode
    from distillation.synthesis import ImageMaker, check_latent_shape
    from scripts.files import read_json
    from scripts.parallel import all_done, begin_together, new_accelerator
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline

    accelerator = new_accelerator()
    split = load_split(split="train", **dataset_flags(args))
    check_enough_images(split, args.ipc)
    pipeline = load_images_pipeline(args, accelerator.device)
    encoder = StableDiffusionGenLatentsPipeline(pipeline.vae)
    size, images_per_class = size_to_encode(encoder, args.size), args.ipc * (args.repeats or 1)
    check_latent_shape(pipeline, encoder.latent_shape(size), size, args.diffusion_checkpoints_path)
    teacher = load_filter(args, split.classes, images_per_class, accelerator.device)
    source = prototypes_configuration(args, args.ipc, split, size, accelerator.device)
    folder = Path(args.save_init_image_path) / folder_name(args, images_per_class, source)
    config = configuration(args, args.image_size or min(size, 224), source, images_per_class, accelerator.device)
    check_different(config)
    if begin_together(folder, "distilled", config, accelerator):
        if accelerator.is_main_process:
            clear_parts(folder)
        return

    seconds = {"encode": 0.0, "wait": 0.0, f"cluster-{args.ipc}": 0.0, "make": 0.0}
    maker = ImageMaker(pipeline, split.classes, folder, config, teacher, args.num_workers)
    distil(encoder, maker, split, size, args, accelerator, seconds)
    if all_done(accelerator):
        rows = [row for label in range(len(split.classes)) for row in read_json(part_file(folder, label))]
        spent = seconds_of(args.ipc, seconds)
        complete(folder, split.classes, config, rows, {name: spent[name] for name in ("encode", "cluster", "make")})
        clear_parts(folder)


def distil(encoder, maker, split, size: int, args, accelerator, seconds: dict) -> None:
    """Make the images of this process's classes, in groups of classes that fill a batch."""
    from scripts.files import write_json
    from scripts.parallel import my_unfinished

    labels, together = list(range(len(split.classes))), max(1, args.batch_size // denoised(args))  # classes that fill a batch
    groups = [labels[first:first + together] for first in range(0, len(labels), together)]

    # an interrupted group is made again as a whole, since rounding may depend on the batch's size
    mine = my_unfinished(groups, lambda group: all(part_file(maker.folder, label).exists() for label in group), accelerator,
                         costs=[cost(group, split, args) for group in groups])
    group_ending_at, found = {group[-1]: group for group in mine}, {}
    for label, prototypes in prototypes_of(encoder, split, [label for group in mine for label in group], size, args, [args.ipc],
                                           seconds):
        found[label] = prototypes[args.ipc]
        if label in group_ending_at:
            started = time.perf_counter()
            for made, rows in make_group(maker, group_ending_at[label], found, args).items():
                write_json(part_file(maker.folder, made), rows)
            seconds["make"] += time.perf_counter() - started
            found = {}
            stop_if_asked()


def make_group(maker, labels: list[int], prototypes: dict, args) -> dict[int, list[dict]]:
    """Make and write the images of the classes `labels`; returns the written rows by label."""
    from distillation.synthesis import plan_rows
    rows = plan_rows(maker.classes, {label: prototypes[label].weights for label in labels}, args.repeats or 1, args.seed,
                     args.image_format)
    for batch in maker.batches(rows):
        maker.make(batch, prototypes)
    maker.wait()
    return {label: [maker.made(row) for row in rows if row["label"] == label] for label in labels}


def denoised(args) -> int:
    """Images denoised per class."""
    return args.ipc * (args.repeats or 1) * (args.candidates if args.filter_teacher else 1)


def cost(group: list[int], split, args) -> int:
    """Passes through a network: one for each real image, and one for each step of each image denoised."""
    return sum(len(split.rows_of(label)) for label in group) + len(group) * denoised(args) * args.num_inference_steps


def part_file(folder: Path, label: int) -> Path:
    """The file of a class's rows until the manifest is written."""
    return folder / "parts" / f"{label:05d}.json"


def clear_parts(folder: Path) -> None:
    """Remove the part files, which readers would take for a class; a run killed after its manifest leaves them."""
    shutil.rmtree(part_file(folder, 0).parent, ignore_errors=True)


if __name__ == "__main__":
    run(parse_args, main, "save_init_image_path")
