"""Stage 4: a student trained on a distilled set with stored soft labels (or hard ones), tested on real images.

    python -m validate.train_FKD --train-dir distilled/digits_ipc10_10_s0.7_g8.0_kmexpand1 --fkd-path runs/fkd --cos -T 20 \\
        --model resnet18 --epochs 60 --batch-size 50 --dataset digits --output-dir runs/student

Writes model.safetensors, result.json (last-epoch accuracy on the real test split) and manifest.json. The same command resumes.
Under `accelerate launch` each process takes its rows of every batch; for small images or batches one device is better.
"""

import argparse
from pathlib import Path

from scripts.cli import (
    InputError,
    Parser,
    add_dataset_flags,
    answer_retired,
    check_range,
    check_views,
    dataset_flags,
    run,
)

RETIRED = {"start_epoch": "the same command resumes by itself",
           "wandb_api_key": "`wandb login` keeps it off the command line"}
MACHINE_ONLY = ("output_dir", "save_seconds", "data_dir", "workers", "val_dir", "train_dir", "fkd_path", "teacher",
                "label_file_path", "prompt_template", "on_bad_image", "tensorboard", "wandb_project", *RETIRED)
VIEWS = ("input_size", "min_scale_crops", "max_scale_crops", "flip", "mix_type", "fkd_seed")  # what soft labels store


def parse_args():
    parser = Parser(__doc__)
    # images
    parser.add_argument("--train-dir", default=None, help="distilled set (default: the real training split of --dataset)")
    add_dataset_flags(parser)
    parser.add_argument("--val-dir", default=None, help="real test images, one folder per class (default: of --dataset)")
    parser.add_argument("-j", "--workers", default=4, type=int, help="threads decoding images")
    parser.add_argument("--data-path", default="auto", choices=("auto", "device", "pil"),
                        help="images decoded on the device, or read by Pillow for every batch (auto: if too many)")
    parser.add_argument("--output-dir", default="./save/student", help="folder of the model")
    # labels
    parser.add_argument("--labels", default="soft", choices=("soft", "hard"), help="the teacher's, or the images' classes")
    parser.add_argument("--mode", default=None, choices=("fkd_load", "on-the-fly"),
                        help="soft labels from --fkd-path (default), or asked of the teacher for every batch")
    parser.add_argument("--fkd-path", default=None, help="folder of generate_soft_label")
    parser.add_argument("--teacher", default=None, help="on the fly: folder of train_teacher, or a checkpoint of --arch")
    parser.add_argument("-a", "--arch", dest="teacher_arch", default="resnet18",
                        help="on the fly: torchvision's teacher, with --weights")
    parser.add_argument("--teacher-stem", default="imagenet", choices=("imagenet", "cifar"), help="of a checkpoint's --arch")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="on the fly: torchvision's weights")
    parser.add_argument("-T", "--temperature", default=None, type=float, help="of the distillation loss (default: 3)")
    parser.add_argument("--keep-topk", default=1000, type=int, help="teacher probabilities kept, the rest spread evenly")
    parser.add_argument("--cluster-weights", action="store_true", help="weight the loss by the share of each image's cluster")
    # student and training
    parser.add_argument("--protocol", default=None, choices=("d4m", "rded"),
                        help="fill what is not given as this paper does; what it sets is printed")
    parser.add_argument("--model", default="resnet18", help="torchvision's name of the student, or convnet_d3_w128")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="first layers of a ResNet")
    parser.add_argument("--batch-size", default=None, type=int, help="images a step, over all processes (default: 1024)")
    parser.add_argument("--gradient-accumulation-steps", default=None, type=int, help="parts of a batch (default: 1)")
    parser.add_argument("--epochs", default=None, type=int, help="default: 300")
    parser.add_argument("--seed", default=0, type=int, help="seed of the weights (and of the views with hard labels)")
    parser.add_argument("--lr-schedule", default=None, choices=("linear", "cosine", "half-cosine"),
                        help="to zero, or by half a cosine's first half to a half (default: linear)")
    parser.add_argument("--cos", action="store_true", help="--lr-schedule cosine")
    parser.add_argument("--sgd", action="store_true", help="SGD instead of AdamW")
    parser.add_argument("-lr", "--learning-rate", default=1.024, type=float, help="of SGD")
    parser.add_argument("--momentum", default=0.875, type=float, help="of SGD")
    parser.add_argument("--weight-decay", default=3e-5, type=float, help="of SGD")
    parser.add_argument("--ema", default=0.0, type=float, help="decay of averaged weights, to be tested and kept (0: the last)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe; weights stay float32")
    parser.add_argument("--adamw-lr", default=None, type=float, help="default: 0.001")
    parser.add_argument("--adamw-weight-decay", default=None, type=float, help="default: 0.01")
    # views, stored with soft labels: what is given here must agree with them
    parser.add_argument("--mix-type", default=None, choices=("cutmix", "mixup", "none"), help="default: as stored, else none")
    parser.add_argument("--fkd_seed", default=None, type=int, help="default: as stored, else 42")
    parser.add_argument("--input-size", default=None, type=int, help="pixels of a view (default: as stored, else 224)")
    parser.add_argument("--min-scale-crops", default=None, type=float, help="default: as stored, else 0.08")
    parser.add_argument("--max-scale-crops", default=None, type=float, help="default: as stored, else 1")
    parser.add_argument("--flip", default=None, type=float, help="default: as stored, else 0.5")
    # the run
    parser.add_argument("--save-seconds", default=20, type=float, help="seconds between resume points")
    parser.add_argument("--tensorboard", action="store_true", help="log there too (tensorboard must be installed)")
    parser.add_argument("--wandb-project", default=None, help="log there too (wandb must be installed and logged in)")
    # of the original, replaced
    parser.add_argument("--start-epoch", default=0, type=int, help="replaced: the same command resumes")
    parser.add_argument("--wandb-api-key", default=None, help="replaced by `wandb login`")
    args = parser.parse_args()
    answer_retired(parser, args, RETIRED)
    check(args)
    return args


def check(args) -> None:
    """Refuse numbers that make no sense and flags that contradict each other, naming them; values left open pass."""
    for flag in ("batch_size", "epochs", "gradient_accumulation_steps", "workers", "keep_topk", "input_size"):
        if getattr(args, flag) is not None:
            check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), 1)
    if args.temperature is not None:
        check_range("--temperature", args.temperature, 1e-3)
    check_range("--ema", args.ema, 0, 0.999999)
    check_views(args)
    if args.cos and args.lr_schedule not in (None, "cosine"):
        raise InputError(f"--cos: expected no other --lr-schedule beside it, found {args.lr_schedule}")
    mode = label_mode(args)
    if mode == "hard" and args.mode:
        raise InputError(f"--mode: expected none with --labels hard, found {args.mode}")
    if mode != "on-the-fly" and args.teacher:
        raise InputError(f"--teacher: expected none but with --mode on-the-fly, found {args.teacher}")
    if mode == "fkd_load" and not args.fkd_path:
        raise InputError("--fkd-path: expected a folder of generate_soft_label for --labels soft, found nothing "
                         "(--mode on-the-fly asks the teacher instead)")
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
    from distillation.distilled_set import check_class_names
    from matching.image_set import real_images
    from matching.training import METRICS, SCHEDULES, STATE, finish_model, train
    from scripts.networks import channels_last, seeded
    from scripts.parallel import Team, begin_together, new_accelerator
    from scripts.training import averaged
    from validate.protocols import ORIGINAL, resolve

    accelerator = new_accelerator(log_with=trackers(args) or None, project_dir=args.output_dir)
    team = Team(accelerator)
    stored = stored_views(args)
    size = stored.get("input_size") or args.input_size or ORIGINAL["input_size"]
    images, test_split = training_images(args, size, accelerator.device), load_test(args)
    given = {**vars(args), **stored, "lr_schedule": "cosine" if args.cos else args.lr_schedule, "mode": label_mode(args)}
    filled, chosen = resolve(given, args.protocol, len(images.classes), len(images))
    settings = argparse.Namespace(**filled)
    if args.protocol:
        accelerator.print(f"protocol {args.protocol} sets {', '.join(f'{name} {value}' for name, value in chosen.items())}")
    folder, config = Path(args.output_dir), configuration(settings, images, test_split)
    check_class_names(images.name, images.classes, test_split.name, test_split.classes)
    epoch_of, loss_of = labelled(settings, images)
    network = seeded(args.model, len(images.classes), args.stem, args.seed, size).to(accelerator.device)
    team.check_rows(len(images), settings.batch_size, settings.gradient_accumulation_steps)
    if begin_together(folder, "student", config, accelerator):
        accelerator.print(f"{folder}: complete, nothing to do")
        return
    test = real_images(test_split, size, args.workers, "centre").to(accelerator.device) if team.main else None
    network = channels_last(network) if args.bf16 else network
    average = averaged(network, args.ema) if args.ema else None
    accelerator.init_trackers(args.wandb_project or "train_FKD", plain(config))
    done = train(network, images, epoch_of, loss_of, make_optimizer(settings, network), epochs=settings.epochs,
                 batch_size=settings.batch_size, size=size, schedule=SCHEDULES[settings.lr_schedule],
                 state_path=folder / STATE, name="student", chunks=settings.gradient_accumulation_steps, bf16=args.bf16,
                 average=average, metrics_path=folder / METRICS, log=lambda line: accelerator.log(line, step=line["epoch"]),
                 save_seconds=args.save_seconds, team=team)
    if team.main:
        top1 = finish_model(folder, "student", average.module if average else network, images, test, config, done)
        accelerator.log({"test_accuracy": top1}, step=settings.epochs)
    accelerator.end_training()


def trackers(args) -> list[str]:
    """Where to log beside metrics.jsonl. Raises InputError for what is not installed."""
    from importlib.util import find_spec
    asked = [name for name, flag in (("tensorboard", args.tensorboard), ("wandb", args.wandb_project)) if flag]
    for name in asked:
        if find_spec(name) is None:
            raise InputError(f"{name}: expected to be installed (pip install {name}), found nothing; metrics.jsonl needs none")
    return asked


def plain(config: dict) -> dict:
    """A configuration as trackers take it."""
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in config.items()}


def stored_views(args) -> dict:
    """How the stored views were drawn; nothing without --fkd-path. Raises InputError where a flag says something else."""
    from matching.soft_labels import read_store
    if not args.fkd_path:
        return {}
    config = read_store(args.fkd_path)["config"]
    if missing := [name for name in VIEWS if name not in config]:
        raise InputError(f"{args.fkd_path}: expected {missing[0]} in the configuration of its manifest, found none")
    stored = {name: config[name] for name in VIEWS}
    for name, value in stored.items():
        given = getattr(args, name)
        if given is not None and given != value:
            raise InputError(f"--{name.replace('_', '-')}: expected {value}, as {args.fkd_path} stores it, found {given}")
    return stored


def training_images(args, size: int, device):
    """The set to train on, on the device or to be read from its files."""
    from distillation.datasets import load_split
    from matching.image_set import distilled_images, real_images
    if args.train_dir:
        return distilled_images(args.train_dir, args.workers, args.data_path, device)
    return real_images(load_split(split="train", **dataset_flags(args)), size, args.workers, "centre", args.data_path, device)


def load_test(args):
    """The split of real images to test on."""
    from distillation.datasets import image_folder, load_split
    if args.val_dir and not Path(args.val_dir).is_dir():
        raise InputError(f"--val-dir: expected a folder with one folder per class, found nothing at {args.val_dir}")
    if args.val_dir:
        return image_folder("val", Path(args.val_dir), on_bad_image=args.on_bad_image)
    return load_split(split="test", **dataset_flags(args))


def labelled(settings, images):
    """Where an epoch's views and labels come from, and the loss that fits."""
    import torch

    from matching.soft_labels import SoftLabels, soft_loss
    from matching.teachers import load_teacher
    from matching.training import asked_labels, drawn_views, hard_loss_of, stored_labels
    weights = images.weights if settings.cluster_weights else torch.ones_like(images.weights)
    scale, mix = (settings.min_scale_crops, settings.max_scale_crops), settings.mix_type
    if settings.mode == "hard":
        views = drawn_views(images, settings.input_size, settings.seed, scale=scale, flip=settings.flip, mix=mix)
        return views, hard_loss_of(images, weights)

    def loss_of(logits, teacher, _drawn, rows):
        return soft_loss(logits, teacher, settings.temperature, weights[rows], settings.keep_topk)
    if settings.mode == "on-the-fly":
        teacher, _ = load_teacher(settings.teacher, settings.teacher_arch, settings.teacher_stem, settings.weights, images,
                                  settings.input_size)
        views = drawn_views(images, settings.input_size, settings.fkd_seed, scale=scale, flip=settings.flip, mix=mix)
        return asked_labels(views, teacher), loss_of
    store = SoftLabels(settings.fkd_path, images)
    if store.epochs < settings.epochs:
        raise InputError(f"--epochs: expected at most {store.epochs}, which {settings.fkd_path} holds, found {settings.epochs}")
    return stored_labels(store, images.device), loss_of


def make_optimizer(settings, network):
    """AdamW, or SGD with --sgd, without weight decay on biases and normalisation."""
    import torch

    from scripts.training import parameter_groups
    if settings.sgd:
        return torch.optim.SGD(parameter_groups(network, settings.weight_decay), lr=settings.learning_rate,
                               momentum=settings.momentum)
    return torch.optim.AdamW(parameter_groups(network, settings.adamw_weight_decay), lr=settings.adamw_lr, fused=True)


def configuration(settings, images, test_split) -> dict:
    """What decides the student."""
    from scripts.artefact import identity
    decisive = {name: value for name, value in vars(settings).items() if name not in MACHINE_ONLY}
    source = {"fkd_load": settings.fkd_path, "on-the-fly": settings.teacher}.get(settings.mode)
    return {**decisive, "arch": settings.model, "images": images.digest, "test": test_split.identity(),
            "soft_labels": identity(source) if source else None}


if __name__ == "__main__":
    run(parse_args, main)
