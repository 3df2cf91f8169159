"""Stage 3b: soft labels (FKD), a teacher's answer for every augmented view of every epoch.

    python -m matching.generate_soft_label --data distilled/digits_ipc10_10_s0.7_g8.0_kmexpand1 --teacher runs/teacher \\
        --epochs 60 --input-size 32 --mix-type cutmix --use-fp16 --fkd-path runs/fkd

Writes one safetensors file per epoch with all that was drawn, so a student needs no sampler, batch size or torch version in
common with this run. The same command resumes; under `accelerate launch` epochs are shared out.
"""

import argparse
import time
from pathlib import Path

from distillation.entry import InputError, add_dataset_flags, answer_retired, check_range, check_views, run

LAUNCH = "several processes: `accelerate launch -m matching.generate_soft_label ...`"
RETIRED = {"world_size": LAUNCH, "rank": LAUNCH, "dist_url": LAUNCH, "dist_backend": LAUNCH, "gpu": LAUNCH,
           "multiprocessing_distributed": LAUNCH, "seed": "--fkd-seed decides everything that is drawn"}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # images
    parser.add_argument("--data", metavar="DIR", default=None,
                        help="distilled set (default: the real training split of --dataset)")
    add_dataset_flags(parser)
    parser.add_argument("-j", "--workers", default=4, type=int, help="threads decoding images")
    # teacher
    parser.add_argument("-a", "--arch", default="resnet18", help="torchvision's name, with --weights")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="torchvision's weights (V1 is the paper's family)")
    parser.add_argument("--teacher", metavar="DIR", default=None, help="folder of train_teacher, instead of --weights")
    parser.add_argument("-b", "--batch-size", default=256, type=int, help="views the teacher sees at once")
    # labels
    parser.add_argument("--fkd-path", default="./FKD_soft_label", help="folder of the soft labels")
    parser.add_argument("--fkd-seed", default=42, type=int, help="seed of all that is drawn")
    parser.add_argument("--epochs", default=300, type=int)
    parser.add_argument("--use-fp16", action="store_true", help="store logits as float16 instead of float32")
    parser.add_argument("--mode", default="fkd_save", choices=("fkd_save",), help="as in the original")
    # views
    parser.add_argument("--input-size", default=224, type=int, help="pixels of a view")
    parser.add_argument("--min-scale-crops", default=0.08, type=float, help="smallest share of the image in a crop")
    parser.add_argument("--max-scale-crops", default=1.0, type=float, help="largest share of the image in a crop")
    parser.add_argument("--flip", default=0.5, type=float, help="share of views flipped; 0 where left and right matter")
    parser.add_argument("--mix-type", default=None, choices=("mixup", "cutmix"), help="default: no mixing")
    parser.add_argument("--mixup", default=0.8, type=float, help="alpha of MixUp")
    parser.add_argument("--cutmix", default=1.0, type=float, help="alpha of CutMix")
    # of the original, replaced
    parser.add_argument("--world-size", default=-1, type=int, help="replaced by accelerate launch")
    parser.add_argument("--rank", default=-1, type=int, help="replaced by accelerate launch")
    parser.add_argument("--dist-url", default=None, help="replaced by accelerate launch")
    parser.add_argument("--dist-backend", default=None, help="replaced by accelerate launch")
    parser.add_argument("--multiprocessing-distributed", action="store_true", help="replaced by accelerate launch")
    parser.add_argument("--gpu", default=None, type=int, help="replaced by accelerate launch")
    parser.add_argument("--seed", default=None, type=int, help="replaced by --fkd-seed")
    args = parser.parse_args()
    answer_retired(parser, args, RETIRED)
    for flag in ("batch_size", "epochs", "input_size", "workers"):
        check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), 1)
    for flag in ("mixup", "cutmix"):
        check_range(f"--{flag}", getattr(args, flag), 1e-3)
    check_views(args)
    return args


def main(args):
    import numpy as np
    import torch
    from accelerate import Accelerator
    from tqdm import tqdm

    from distillation.datasets import load_split
    from distillation.distribution import my_share
    from distillation.manifest import begin, finish, write_result
    from distillation.randomness import seed_for
    from matching.augmentation import draw_epoch
    from matching.image_set import distilled_images, real_images
    from matching.soft_labels import epoch_file, relabel, write_epoch

    accelerator = Accelerator()
    if args.data:
        images = distilled_images(args.data, args.workers)
    else:
        split = load_split(args.dataset, args.data_dir, "train", args.label_file_path)
        images = real_images(split, args.input_size, args.workers, "centre")
    images = images.to(accelerator.device)
    teacher, teacher_name = load_teacher(args, images)
    folder, config = Path(args.fkd_path), configuration(args, images, teacher_name)
    if begin(folder, "soft_labels", config):
        print(f"{folder}: complete, nothing to do")
        return
    teacher = teacher.to(accelerator.device).eval()
    started = time.perf_counter()
    alpha = {"mixup": args.mixup, "cutmix": args.cutmix}.get(args.mix_type, 1.0)
    with tqdm(total=args.epochs * len(images), desc="relabel", unit="img", unit_scale=True, disable=None) as bar:
        for epoch in my_share(list(range(args.epochs)), accelerator):
            if not (folder / epoch_file(epoch)).exists():
                drawn = draw_epoch(len(images), tuple(images.images.shape[-2:]), args.input_size,
                                   np.random.default_rng(seed_for(args.fkd_seed, "views", epoch)), flip=args.flip,
                                   scale=(args.min_scale_crops, args.max_scale_crops), mix=args.mix_type or "none", alpha=alpha)
                logits = relabel(teacher, images, drawn, args.input_size, args.batch_size)
                write_epoch(folder, epoch, drawn, logits.to(torch.float16 if args.use_fp16 else torch.float32))
            bar.update(len(images))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = [epoch_file(epoch) for epoch in range(args.epochs)]
        stored = sum((folder / name).stat().st_size for name in files)
        write_result(folder, "soft_labels", config, {"images": len(images), "bytes": stored},
                     {"relabel": time.perf_counter() - started})
        finish(folder, "soft_labels", images.classes, config, files, images=images.digest, bytes=stored)
        print(f"{folder}: {args.epochs} epochs of {len(images)} images, {stored / 1e6:.1f} MB")


def load_teacher(args, images):
    """The teacher and what to call it; raises InputError when it knows other classes."""
    from distillation.architectures import build, load_model
    from distillation.distilled_set import check_class_names
    if not args.teacher:
        return build(args.arch, len(images.classes), weights=args.weights), f"{args.arch} {args.weights}"
    network, manifest = load_model(args.teacher, "teacher")
    check_class_names(images.name, images.classes, args.teacher, manifest["classes"])
    if manifest["config"]["input_size"] != args.input_size:
        raise InputError(f"--input-size: expected {manifest['config']['input_size']}, which {args.teacher} was trained at, "
                         f"found {args.input_size}")
    return network, manifest["files"]["model.safetensors"]


def configuration(args, images, teacher: str) -> dict:
    """What decides the labels."""
    names = ("epochs", "batch_size", "fkd_seed", "use_fp16", "input_size", "min_scale_crops", "max_scale_crops", "flip",
             "mix_type", "mixup", "cutmix")
    return {**{name: getattr(args, name) for name in names}, "images": images.name, "teacher": teacher}


if __name__ == "__main__":
    run(parse_args, main)
