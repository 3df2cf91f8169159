"""Stage 3b: soft labels (FKD), a teacher's logits for every augmented view of every epoch.

    python -m matching.generate_soft_label --data distilled/digits_ipc10_10_s0.7_g8.0_kmexpand1 --teacher runs/teacher \\
        --epochs 60 --input-size 32 --mix-type cutmix --use-fp16 --fkd-path runs/fkd

Writes one safetensors file per epoch, with logits and draws, so that a student can make the same views again. `--keep-topk`
and `--keep-epochs` store less; the manifest says what was kept, and its bytes. The same command resumes. `accelerate launch`
divides epochs among processes.
"""

import sys
import time
from pathlib import Path

if not __package__:  # python matching/generate_soft_label.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.cli import Parser, check_views, dataset_flags, run, stop_if_asked, validation_of


def parse_args():
    parser = Parser(__doc__)
    # images
    parser.add_argument("--data", metavar="DIR", default=None,
                        help="distilled set (default: the real training split of --dataset)")
    parser.add_dataset_flags()
    parser.add_argument("-j", "--workers", default=4, type=int, least=0, help="threads that decode images")
    parser.add_argument("--data-path", default="auto", choices=("auto", "device", "pil"),
                        help="decode all images on the device, or read them by Pillow for every batch (auto: if too many)")
    # teacher
    parser.add_argument("-a", "--arch", "--teacher-arch", default="resnet18",
                        help="torchvision's name of the teacher, for --weights or a checkpoint file")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"),
                        help="first layers of a checkpoint's ResNet")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="torchvision's weights (V1 as in the paper)")
    parser.add_argument("--teacher", default=None, help="instead of --weights: folder of train_teacher, or a checkpoint file")
    parser.add_argument("-b", "--batch-size", default=256, type=int, least=1,
                        help="views per forward pass of the teacher; with --mix-per batch the student's batch too")
    # labels
    parser.add_argument("--fkd-path", default="./FKD_soft_label", help="folder of the soft labels")
    parser.add_argument("--fkd-seed", default=42, type=int, help="seed of all draws")
    parser.add_argument("--epochs", default=300, type=int, least=1)
    parser.add_argument("--use-fp16", action="store_true", help="store logits as float16 instead of float32")
    parser.add_argument("--keep-topk", default=None, type=int, least=1, metavar="K",
                        help="store the K largest logits of a view and one for all others (default: all)")
    parser.add_argument("-T", "--temperature", default=20.0, type=float, least=1e-3,
                        help="the student's temperature, at which --keep-topk keeps the K probabilities exactly")
    parser.add_argument("--keep-epochs", default=1.0, type=float, least=1e-6, most=1, metavar="FRACTION",
                        help="store this fraction of the epochs, which the student uses in turn (LPLD)")
    parser.add_argument("--mode", default="fkd_save", choices=("fkd_save",),
                        help="as in the original; labels without storage: train_FKD --mode on-the-fly")
    # views
    parser.add_argument("--input-size", default=224, type=int, least=1, help="pixels of a view")
    parser.add_argument("--min-scale-crops", default=0.08, type=float, help="smallest area of a crop, relative to the image")
    parser.add_argument("--max-scale-crops", default=1.0, type=float, help="largest area of a crop, relative to the image")
    parser.add_argument("--flip", default=0.5, type=float, help="probability of a flip; 0 where left and right matter")
    parser.add_mix_flags()
    args = parser.parse_args()
    check_views(args)
    return args


def main(args):
    import torch

    from matching.augmentation import Views, draw_views, mix_of
    from matching.soft_labels import epoch_file, leading_answers, relabel, stored_epochs, write_epoch
    from matching.teachers import load_teacher
    from scripts.artefact import check_held_out, finish, write_result
    from scripts.cli import Progress
    from scripts.parallel import all_done, begin_together, my_unfinished, new_accelerator

    accelerator = new_accelerator()
    check_held_out(args.validation, args.data, args.teacher)
    images = training_images(args, args.data, args.input_size, accelerator.device)
    teacher, teacher_name = load_teacher(args.teacher, args.arch, args.stem, args.weights, images, args.input_size)
    folder, config = Path(args.fkd_path), configuration(args, images, teacher_name)
    if begin_together(folder, "soft_labels", config, accelerator):
        return
    views = Views(args.input_size, args.fkd_seed, (args.min_scale_crops, args.max_scale_crops), args.flip, **mix_of(args))
    started, stored = time.perf_counter(), stored_epochs(args.epochs, args.keep_epochs)
    precision = torch.float16 if args.use_fp16 else torch.float32
    files = [epoch_file(epoch) for epoch in range(stored)]
    done = sum((folder / name).exists() for name in files)
    with Progress(total=stored * len(images), initial=done * len(images), desc="relabel", unit="img", unit_scale=True) as bar:
        for epoch in my_unfinished(list(range(stored)), lambda epoch: (folder / files[epoch]).exists(), accelerator):
            drawn = draw_views(views, images, epoch)
            logits = relabel(teacher, images, drawn, args.input_size, args.batch_size)
            kept = leading_answers(logits, args.keep_topk or logits.shape[1], args.temperature)
            write_epoch(folder, epoch, drawn, kept, precision)
            bar.update(len(images))
            stop_if_asked()
    if all_done(accelerator):
        facts = {"epochs": args.epochs, "stored_epochs": stored, "views": stored * len(images), "classes": len(images.classes),
                 "stored_logits": min(args.keep_topk or len(images.classes), len(images.classes)),
                 "bytes": sum((folder / name).stat().st_size for name in files)}
        write_result(folder, "soft_labels", config, {"images": len(images), **facts},
                     {"relabel": time.perf_counter() - started})
        finish(folder, "soft_labels", images.classes, config, files, images=images.digest, kept=facts)
        print(f"{folder}: {stored} of {args.epochs} epochs of {len(images)} images, {facts['stored_logits']} of "
              f"{facts['classes']} logits, {facts['bytes'] / 1e6:.1f} MB")


def training_images(args, folder: str | None, size: int, device):
    """The distilled set in `folder`, or without one the real training split at `size` pixels."""
    from distillation.datasets import load_split
    from matching.image_set import distilled_images, real_images
    if folder:
        return distilled_images(folder, args.workers, args.data_path, device)
    return real_images(load_split(split="train", **dataset_flags(args)), size, args.workers, "centre", args.data_path, device)


def configuration(args, images, teacher: str) -> dict:
    """What decides the labels."""
    from matching.augmentation import mix_config
    from matching.image_set import stored_path
    names = ("epochs", "batch_size", "fkd_seed", "use_fp16", "keep_topk", "temperature", "keep_epochs",
             "input_size", "min_scale_crops", "max_scale_crops", "flip", "mix_type", "mixup", "cutmix")
    mix = mix_config(args, with_alpha=False)  # mixup and cutmix are there
    return {"data_path": stored_path(args.data_path, images), **{name: getattr(args, name) for name in names}, **mix,
            "images": images.name, "images_digest": images.digest, "teacher": teacher, **validation_of(args.validation)}


if __name__ == "__main__":
    run(parse_args, main, "fkd_path")
