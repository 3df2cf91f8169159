"""Stage 3a: the teacher, trained on real images with hard labels.

    python -m matching.train_teacher --dataset digits --arch resnet18 --output-dir runs/teacher

Writes model.safetensors, metrics.jsonl (a line per epoch), result.json and manifest.json. For ImageNet take torchvision's
weights instead (generate_soft_label --weights IMAGENET1K_V1). The same command resumes. Under `accelerate launch` each process
takes its rows of every batch; for digits and images of CIFAR's size one device is better.
"""

from pathlib import Path

from scripts.cli import Parser, add_dataset_flags, check_range, check_views, dataset_flags, run

OPTIMIZERS = {"adamw": (1e-3, 0.01), "sgd": (0.1, 5e-4)}  # learning rate and weight decay where none are given


def parse_args():
    parser = Parser(__doc__)
    # data and network
    add_dataset_flags(parser)
    parser.add_argument("-a", "--arch", default="resnet18", help="torchvision's name, or convnet_d3_w128")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="first layers of a ResNet")
    parser.add_argument("--input-size", default=32, type=int, help="pixels")
    parser.add_argument("-j", "--workers", default=4, type=int, help="threads decoding images")
    parser.add_argument("--output-dir", default="runs/teacher", help="folder of the model")
    # training
    parser.add_argument("-b", "--batch-size", default=64, type=int, help="images a step, over all processes")
    parser.add_argument("--epochs", default=10, type=int)
    parser.add_argument("--optimizer", default="adamw", choices=tuple(OPTIMIZERS), help="sgd: with Nesterov momentum")
    parser.add_argument("-lr", "--learning-rate", default=None, type=float, help="the highest (default: AdamW 1e-3, SGD 0.1)")
    parser.add_argument("--momentum", default=0.9, type=float, help="of SGD")
    parser.add_argument("--weight-decay", default=None, type=float,
                        help="none on biases and normalisation (default: AdamW 0.01, SGD 5e-4)")
    parser.add_argument("--schedule", default="warm-cosine", choices=("warm-cosine", "cosine", "one-cycle"),
                        help="learning rate per epoch; one-cycle: per step, up during the first quarter, then down to zero")
    parser.add_argument("--ema", default=0.0, type=float, help="decay of averaged weights, to be kept (0: the last weights)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe; weights stay float32")
    parser.add_argument("--label-smoothing", default=0.0, type=float)
    parser.add_argument("--seed", default=0, type=int, help="seed of weights and views")
    # views
    parser.add_argument("--crop", default="resized", choices=("resized", "pad"),
                        help="a random part resized, or --input-size pixels anywhere in the padded image")
    parser.add_argument("--pad", default=4, type=int, help="pixels reflected at each side, for --crop pad")
    parser.add_argument("--min-scale-crops", default=0.5, type=float, help="smallest share of the image in a crop")
    parser.add_argument("--max-scale-crops", default=1.0, type=float, help="largest share of the image in a crop")
    parser.add_argument("--flip", default=0.5, type=float, help="share of views flipped; 0 where left and right matter")
    parser.add_argument("--mix-type", default="none", choices=("none", "cutmix", "mixup"))
    parser.add_argument("--cutout", default=0, type=int, help="side in pixels of a square set to the mean (0: none)")
    parser.add_argument("--save-seconds", default=20, type=float, help="seconds between resume points")
    args = parser.parse_args()
    for flag in ("batch_size", "epochs", "input_size", "workers"):
        check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), 1)
    for flag, high in (("pad", 1000), ("cutout", 10_000), ("ema", 0.999999), ("label_smoothing", 1), ("momentum", 0.999999),
                       ("learning_rate", 1000), ("weight_decay", 1000)):
        if getattr(args, flag) is not None:
            check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), 0, high)
    check_views(args)
    return args


def main(args):
    from distillation.datasets import load_split
    from matching.image_set import real_images
    from matching.training import METRICS, SCHEDULES, STATE, finish_model, hard_loss_of, train
    from scripts.networks import channels_last, seeded
    from scripts.parallel import Team, begin_together, new_accelerator
    from scripts.training import averaged

    accelerator = new_accelerator()
    team = Team(accelerator)
    train_split, test_split = (load_split(split=part, **dataset_flags(args)) for part in ("train", "test"))
    images, test = (real_images(split, args.input_size, args.workers, "centre").to(accelerator.device)
                    for split in (train_split, test_split))
    folder, config = Path(args.output_dir), configuration(args, images, test)
    network = seeded(args.arch, len(images.classes), args.stem, args.seed, args.input_size).to(accelerator.device)
    seen, epoch_of, alter = views_of(args, images)
    team.check_rows(len(images), args.batch_size)
    if begin_together(folder, "teacher", config, accelerator):
        accelerator.print(f"{folder}: complete, nothing to do")
        return
    network = channels_last(network) if args.bf16 else network
    average = averaged(network, args.ema) if args.ema else None
    done = train(network, seen, epoch_of, hard_loss_of(images, images.weights, args.label_smoothing),
                 make_optimizer(network, args.optimizer, config["learning_rate"], config["weight_decay"], args.momentum),
                 epochs=args.epochs, batch_size=args.batch_size, size=args.input_size, schedule=SCHEDULES[args.schedule],
                 rate_per_step=args.schedule == "one-cycle", bf16=args.bf16, average=average, alter=alter,
                 state_path=folder / STATE, metrics_path=folder / METRICS, name="teacher", save_seconds=args.save_seconds,
                 team=team)
    if team.main:
        finish_model(folder, "teacher", average.module if average else network, images, test, config, done)


def configuration(args, images, test) -> dict:
    """What decides the teacher."""
    rate, decay = OPTIMIZERS[args.optimizer]
    return {**{name: value for name, value in vars(args).items() if name not in MACHINE_ONLY},
            "learning_rate": rate if args.learning_rate is None else args.learning_rate,
            "weight_decay": decay if args.weight_decay is None else args.weight_decay,
            "images": images.digest, "test": test.digest}


def views_of(args, images):
    """The images to cut views from, where an epoch's views come from, and what is done to them after (or None)."""
    from matching.cifar_augmentation import drawn_cutout, pad_images, shifted_views
    from matching.training import drawn_views
    alter = drawn_cutout(len(images), args.input_size, args.cutout, args.seed) if args.cutout else None
    if args.crop == "pad":
        padded = pad_images(images, args.pad)
        return padded, shifted_views(padded, args.input_size, args.seed, flip=args.flip, mix=args.mix_type), alter
    return images, drawn_views(images, args.input_size, args.seed, scale=(args.min_scale_crops, args.max_scale_crops),
                               flip=args.flip, mix=args.mix_type), alter


def make_optimizer(network, name: str, rate: float, weight_decay: float, momentum: float):
    """AdamW, or SGD with Nesterov momentum, without weight decay on biases and normalisation."""
    import torch

    from scripts.training import parameter_groups
    groups = parameter_groups(network, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0, fused=True)


# say where and how, not what
MACHINE_ONLY = ("output_dir", "save_seconds", "data_dir", "workers", "label_file_path", "prompt_template", "on_bad_image")


if __name__ == "__main__":
    run(parse_args, main)
