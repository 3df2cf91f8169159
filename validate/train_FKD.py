"""Stage 4: a student trained on a distilled set with soft or hard labels, tested on real images.

    python -m validate.train_FKD --train-dir distilled/digits_ipc10_10_s0.7_g8.0_kmexpand1 --fkd-path runs/fkd --cos -T 20 \\
        --model resnet18 --epochs 60 --batch-size 50 --dataset digits --output-dir runs/student

Writes model.safetensors, metrics.jsonl, result.json (last-epoch accuracy on the real test split) and manifest.json. The same
command resumes. `accelerate launch` divides every batch among processes; for small images or batches one device is faster.
"""

import argparse
import hashlib
import math
import sys
from dataclasses import replace
from pathlib import Path

if not __package__:  # python validate/train_FKD.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.cli import MIX, InputError, Parser, check_optimizer, check_views, dataset_flags, run, validation_of

MACHINE_ONLY = ("output_dir", "save_seconds", "data_dir", "workers", "val_dir", "train_dir", "fkd_path", "teacher",
                "label_file_path", "prompt_template", "on_bad_image", "val_labels", "tensorboard", "wandb_project",
                "validation", "mix_per", "mixup", "cutmix")   # the last four are stored elsewhere
VIEWS = ("input_size", "min_scale_crops", "max_scale_crops", "flip", "mix_type", "fkd_seed")  # settings that soft labels store


def parse_args():
    parser = Parser(__doc__)
    # images
    parser.add_argument("--train-dir", default=None, help="distilled set (default: the real training split of --dataset)")
    parser.add_dataset_flags()
    parser.add_argument("--val-dir", default=None, help="real test images, one folder per class (default: of --dataset)")
    parser.add_argument("-j", "--workers", default=4, type=int, least=0, help="threads that decode images")
    parser.add_argument("--data-path", default="auto", choices=("auto", "device", "pil"),
                        help="decode all images on the device, or read them by Pillow for every batch (auto: if too many)")
    parser.add_argument("--output-dir", default="./save/student", help="folder of the model")
    # labels
    parser.add_argument("--labels", default="soft", choices=("soft", "hard"), help="the teacher's, or the images' classes")
    parser.add_argument("--mode", default=None, choices=("fkd_load", "on-the-fly"),
                        help="soft labels stored in --fkd-path (default), or computed by the teacher for every batch")
    parser.add_argument("--fkd-path", default=None, help="folder of generate_soft_label")
    parser.add_argument("--teacher", default=None, help="on the fly: folder of train_teacher, or a checkpoint file")
    parser.add_argument("--teacher-arch", default="resnet18",
                        help="on the fly: torchvision's name of the teacher, for --weights or a checkpoint file")
    parser.add_argument("--teacher-stem", default="imagenet", choices=("imagenet", "cifar"),
                        help="on the fly: first layers of a checkpoint's ResNet")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="on the fly: torchvision's weights of the teacher")
    parser.add_argument("-T", "--temperature", default=None, type=float, least=1e-3,
                        help="of the distillation loss (default: 3)")
    parser.add_argument("--keep-topk", default=None, type=int, least=1,
                        help="teacher probabilities kept, the rest spread evenly (default: 1000)")
    parser.add_argument("--cluster-weights", action="store_true", help="weight the loss of an image by its cluster's size")
    # student and training
    parser.add_argument("--protocol", default=None, choices=("d4m", "rded"),
                        help="take values that are not given from this paper; they are printed")
    parser.add_argument("-a", "--arch", "--model", dest="model", default="resnet18",
                        help="torchvision's name of the student, or convnet_d3_w128")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="first layers of a ResNet")
    parser.add_argument("--batch-size", default=None, type=int, least=1,
                        help="images per step, over all processes (default: 1024)")
    parser.add_argument("--gradient-accumulation-steps", default=None, type=int, least=1, help="parts of a batch (default: 1)")
    parser.add_argument("--epochs", default=None, type=int, least=1, help="default: 300")
    parser.add_argument("--seed", default=0, type=int, help="seed of the weights (with hard labels also of the views)")
    parser.add_argument("--lr-schedule", default=None, choices=("linear", "cosine", "half-cosine"),
                        help="learning rate per epoch; half-cosine ends at half of it, the others at 0 (default: linear)")
    parser.add_argument("--cos", action="store_true", help="--lr-schedule cosine")
    parser.add_argument("--sgd", action="store_true", help="SGD instead of AdamW")
    parser.add_argument("-lr", "--learning-rate", default=None, type=float, help="learning rate of SGD (default: 1.024)")
    parser.add_argument("--momentum", default=None, type=float, help="momentum of SGD (default: 0.875)")
    parser.add_argument("--weight-decay", default=None, type=float, help="weight decay of SGD (default: 3e-5)")
    parser.add_argument("--ema", default=0.0, type=float, least=0, most=0.999999,
                        help="test and keep averaged weights of this decay (0: the last)")
    parser.add_argument("--bf16", action="store_true",
                        help="compute in bfloat16 where that is safe and the device has it; weights stay float32")
    parser.add_argument("--adamw-lr", default=None, type=float, help="learning rate of AdamW (default: 0.001)")
    parser.add_argument("--adamw-weight-decay", default=None, type=float, help="weight decay of AdamW (default: 0.01)")
    # views; with stored soft labels a value given here must agree with them
    parser.add_mix_flags(defaults={})
    parser.add_argument("--fkd_seed", default=None, type=int, help="default: as stored, else 42")
    parser.add_argument("--input-size", default=None, type=int, least=1, help="pixels of a view (default: as stored, else 224)")
    parser.add_argument("--min-scale-crops", default=None, type=float, help="default: as stored, else 0.08")
    parser.add_argument("--max-scale-crops", default=None, type=float, help="default: as stored, else 1")
    parser.add_argument("--flip", default=None, type=float, help="default: as stored, else 0.5")
    # the run
    parser.add_argument("--save-seconds", default=20, type=float, help="seconds between resume points")
    parser.add_argument("--tensorboard", action="store_true", help="log there too (tensorboard must be installed)")
    parser.add_argument("--wandb-project", default=None, help="log there too (wandb must be installed and logged in)")
    args = parser.parse_args()
    check(args)
    return args


def check(args) -> None:
    """Raise InputError for impossible numbers and for flags that contradict each other; None passes."""
    check_views(args)
    check_optimizer(args)
    for flag in ("adamw_lr", "adamw_weight_decay") if args.sgd else ("learning_rate", "momentum", "weight_decay"):
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')}: expected {'no --sgd' if args.sgd else '--sgd'} beside it, found "
                             f"{'--sgd' if args.sgd else 'none'}")
    if args.cos and args.lr_schedule not in (None, "cosine"):
        raise InputError(f"--cos: expected no other --lr-schedule beside it, found {args.lr_schedule}")
    mode = label_mode(args)
    for flag in ("mode", "fkd_seed", "temperature", "keep_topk") if mode == "hard" else ():
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} needs --labels soft (got hard)")
    if mode != "on-the-fly" and args.teacher:
        raise InputError(f"--teacher needs --mode on-the-fly (got {args.mode or args.labels})")
    if mode == "fkd_load" and not args.fkd_path:
        raise InputError("--fkd-path: expected a folder of generate_soft_label for --labels soft, found nothing "
                         "(--mode on-the-fly needs none)")
    if mode != "fkd_load" and args.fkd_path:
        raise InputError(f"--fkd-path: expected none with {'hard labels' if mode == 'hard' else '--mode on-the-fly'}, "
                         f"found {args.fkd_path}")


def label_mode(args) -> str:
    """Where labels come from: `hard`, `fkd_load` or `on-the-fly`."""
    from validate.protocols import ORIGINAL, PROTOCOLS
    if args.labels == "hard":
        return "hard"
    return args.mode or PROTOCOLS.get(args.protocol, ORIGINAL)["mode"]


def main(args):
    from matching.generate_soft_label import training_images
    from matching.image_set import real_images
    from matching.training import finish_model, train
    from scripts.artefact import check_held_out
    from scripts.networks import repeat_statistics, seeded
    from scripts.parallel import Team, begin_together, new_accelerator
    from validate.protocols import ORIGINAL, line, preset, resolve

    # settings: flags, then the stored labels' views, then the protocol, then the original's defaults
    accelerator = new_accelerator(log_with=trackers(args) or None, project_dir=args.output_dir)
    team = Team(accelerator)
    check_held_out(args.validation, args.train_dir, args.fkd_path, args.teacher)
    stored = stored_views(args)
    size = stored.get("input_size") or args.input_size or ORIGINAL["input_size"]
    images = training_images(args, args.train_dir, size, accelerator.device)
    test_split = load_test(args, images.classes)
    given = {**vars(args), **stored, "lr_schedule": "cosine" if args.cos else args.lr_schedule, "mode": label_mode(args)}
    values = preset(args.protocol, args.dataset, len(images.classes), len(images), args.model, size)
    settings = argparse.Namespace(**resolve(given, values))
    if args.protocol:
        accelerator.print(line(args.protocol, values, given))

    # checks
    check_views(settings)
    folder, config = Path(args.output_dir), configuration(settings, images, test_split)
    labels = new_labels(settings, images)
    network = seeded(args.model, len(images.classes), args.stem, args.seed, size).to(accelerator.device)
    repeat_statistics(network, values.get("bn_updates", 1))
    team.check_rows(network, len(images), settings.batch_size)
    if begin_together(folder, "student", config, accelerator):
        return

    # training and test
    fit = "sevenths" if "test_size" in values else "centre"
    test = real_images(test_split, size, args.workers, fit).to(accelerator.device) if team.main else None
    accelerator.init_trackers(args.wandb_project or "train_FKD", {  # which take plain values
        name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in config.items()})
    model, loop = train(network, images, labels, new_recipe(settings), student_optimizer(settings, network), folder, "student",
                        team)
    if team.main:
        top1 = finish_model(folder, "student", model, images, test, config, loop)
        accelerator.log({"test_accuracy": top1}, step=settings.epochs)
    accelerator.end_training()


def trackers(args) -> list[str]:
    """Trackers to log to besides metrics.jsonl. Raises InputError if one is not installed."""
    from importlib.util import find_spec
    asked = [name for name, flag in (("tensorboard", args.tensorboard), ("wandb", args.wandb_project)) if flag]
    for name in asked:
        if find_spec(name) is None:
            raise InputError(f"{name}: expected to be installed (pip install {name}), found nothing; metrics.jsonl needs none")
    return asked


def stored_views(args) -> dict:
    """The settings of stored views, none without --fkd-path. Raises InputError for a flag that contradicts them."""
    from matching.soft_labels import read_store
    if not args.fkd_path:
        return {}
    manifest = read_store(args.fkd_path)
    config = manifest["config"]
    if missing := [name for name in VIEWS if name not in config]:
        raise InputError(f"{args.fkd_path}: expected {missing[0]} in the configuration of its manifest, found none")
    stored = {name: config[name] for name in VIEWS} | {name: config.get(name, MIX[name]) for name in MIX}
    if stored["mix_per"] == "batch":
        stored["batch_size"] = config["batch_size"]
    if (config.get("keep_topk") or math.inf) < len(manifest["classes"]):     # exact at this temperature alone
        stored["temperature"] = config["temperature"]
    for name, value in stored.items():
        given = getattr(args, name)
        if given is not None and given != value:
            raise InputError(f"--{name.replace('_', '-')}: expected {value}, as {args.fkd_path} stores it, found {given}")
    return stored


def load_test(args, classes: list[dict]):
    """The split of real images of the training `classes` to test on."""
    from distillation.datasets import image_folder, listed, load_split, matched
    if args.val_dir and not Path(args.val_dir).is_dir():
        raise InputError(f"--val-dir: expected a folder with one folder per class, found nothing at {args.val_dir}")
    if args.val_dir and args.validation:
        raise InputError(f"--validation: expected none with --val-dir, whose images are the test, found {args.validation}")
    if args.val_dir:
        folder = Path(args.val_dir)
        split = listed("val", folder, Path(args.val_labels)) if args.val_labels else image_folder("val", folder)
        return matched(replace(split, on_bad_image=args.on_bad_image), classes)
    return load_split(split="test", **dataset_flags(args), classes=classes)


def new_labels(settings, images):
    """Hard labels, stored soft labels, or a teacher."""
    import torch

    from matching.soft_labels import SoftLabels
    from matching.teachers import load_teacher
    from matching.training import Labels
    weights = images.weights if settings.cluster_weights else torch.ones_like(images.weights)
    if settings.mode == "hard":
        return Labels(weights)
    store = teacher = None
    if settings.mode == "on-the-fly":
        teacher, _ = load_teacher(settings.teacher, settings.teacher_arch, settings.teacher_stem, settings.weights, images,
                                  settings.input_size)
    else:
        store = SoftLabels(settings.fkd_path, images)
        if store.epochs < settings.epochs:
            raise InputError(f"--epochs: expected at most {store.epochs}, the epochs of {settings.fkd_path}, found "
                             f"{settings.epochs}")
    return Labels(weights, store=store, teacher=teacher, temperature=settings.temperature, keep_topk=settings.keep_topk)


def new_recipe(settings):
    """How the student is trained; stored soft labels have their own views."""
    from matching.augmentation import Views, mix_of
    from matching.training import Recipe
    views = Views(settings.input_size, settings.seed if settings.mode == "hard" else settings.fkd_seed,
                  (settings.min_scale_crops, settings.max_scale_crops), settings.flip, **mix_of(settings))
    return Recipe(settings.epochs, settings.batch_size, views, settings.lr_schedule, settings.gradient_accumulation_steps,
                  settings.ema, settings.bf16, settings.save_seconds, settings.seed)


def student_optimizer(settings, network):
    """AdamW, or SGD with --sgd, without weight decay on biases and normalisation."""
    from scripts.training import new_optimizer, parameter_groups
    if settings.sgd:
        return new_optimizer("sgd", parameter_groups(network, settings.weight_decay), settings.learning_rate,
                             momentum=settings.momentum, fused=False)
    return new_optimizer("adamw", parameter_groups(network, settings.adamw_weight_decay), settings.adamw_lr)


def configuration(settings, images, test_split) -> dict:
    """What decides the student."""
    from matching.augmentation import mix_config
    from matching.image_set import stored_path
    from scripts.artefact import identity
    decisive = {name: value for name, value in vars(settings).items() if name not in MACHINE_ONLY}
    source = {"fkd_load": settings.fkd_path, "on-the-fly": settings.teacher}.get(settings.mode)
    mix = mix_config(settings, with_alpha=settings.mode != "fkd_load")
    facts = {"test_bytes": sum(path.stat().st_size for path in test_split.paths)} if test_split.paths else {}
    if settings.cluster_weights:
        facts["weights"] = hashlib.sha256(images.weights.cpu().numpy()).hexdigest()
    return {**decisive, **mix, **facts, "data_path": stored_path(settings.data_path, images), "arch": settings.model,
            "images": images.digest, "test": test_split.identity(), "soft_labels": identity(source) if source else None,
            **validation_of(settings.validation)}


if __name__ == "__main__":
    run(parse_args, main, "output_dir")
