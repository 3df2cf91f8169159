"""Stage 3a: the teacher, trained on real images with hard labels.

    python -m matching.train_teacher --dataset digits --arch resnet18 --output-dir runs/teacher

Writes model.safetensors, metrics.jsonl (a line per epoch), result.json and manifest.json. For ImageNet use torchvision's
weights instead (generate_soft_label --weights IMAGENET1K_V1). The same command resumes. `accelerate launch` divides every batch
among processes; for images of 32 pixels one device is faster.
"""

from pathlib import Path

from scripts.cli import InputError, Parser, check_optimizer, check_views, dataset_flags, run, validation_of

OPTIMIZERS = {"adamw": (1e-3, 0.01), "sgd": (0.1, 5e-4)}  # default learning rate and weight decay
MACHINE_ONLY = ("output_dir", "save_seconds", "data_dir", "workers", "label_file_path", "prompt_template", "on_bad_image",
                "val_labels", "validation", "mix_per", "mixup", "cutmix")   # the last four are stored elsewhere


def parse_args():
    parser = Parser(__doc__)
    # data and network
    parser.add_dataset_flags()
    parser.add_argument("-a", "--arch", default="resnet18", help="torchvision's name, or convnet_d3_w128")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="first layers of a ResNet")
    parser.add_argument("--input-size", default=32, type=int, least=1, help="pixels")
    parser.add_argument("-j", "--workers", default=4, type=int, least=0, help="threads that decode images")
    parser.add_argument("--output-dir", default="runs/teacher", help="folder of the model")
    # training
    parser.add_argument("-b", "--batch-size", default=64, type=int, least=1, help="images per step, over all processes")
    parser.add_argument("--epochs", default=10, type=int, least=1)
    parser.add_argument("--optimizer", default="adamw", choices=tuple(OPTIMIZERS), help="sgd: with Nesterov momentum")
    parser.add_argument("-lr", "--learning-rate", default=None, type=float, help="maximum (default: AdamW 1e-3, SGD 0.1)")
    parser.add_argument("--momentum", default=None, type=float, help="momentum of SGD (default: 0.9)")
    parser.add_argument("--weight-decay", default=None, type=float,
                        help="none on biases and normalisation (default: AdamW 0.01, SGD 5e-4)")
    parser.add_argument("--lr-schedule", "--schedule", dest="schedule", default="warm-cosine",
                        choices=("warm-cosine", "cosine", "triangle"),
                        help="learning rate per epoch; triangle: per step, up during the first quarter, then down to zero")
    parser.add_argument("--ema", default=0.0, type=float, least=0, most=0.999999,
                        help="keep averaged weights of this decay (0: the last weights)")
    parser.add_argument("--bf16", action="store_true",
                        help="compute in bfloat16 where that is safe and the device has it; weights stay float32")
    parser.add_argument("--label-smoothing", default=0.0, type=float, least=0, most=1)
    parser.add_argument("--seed", default=0, type=int, help="seed of weights and views")
    # views
    parser.add_argument("--crop", default="resized", choices=("resized", "pad"),
                        help="resize a random part, or cut --input-size pixels anywhere in the padded image")
    parser.add_argument("--pad", default=None, type=int, least=0, most=1000,
                        help="pixels reflected at each side, for --crop pad (default: 4)")
    parser.add_argument("--min-scale-crops", default=None, type=float,
                        help="smallest area of a crop, relative to the image (default: 0.5)")
    parser.add_argument("--max-scale-crops", default=None, type=float,
                        help="largest area of a crop, relative to the image (default: 1)")
    parser.add_argument("--flip", default=0.5, type=float, help="probability of a flip; 0 where left and right matter")
    parser.add_mix_flags()
    parser.add_argument("--cutout", default=0, type=int, least=0, most=10_000,
                        help="side in pixels of a square set to the mean (0: none)")
    parser.add_argument("--save-seconds", default=20, type=float, help="seconds between resume points")
    args = parser.parse_args()
    for flag, usual, asked, needed in (("momentum", 0.9, args.optimizer, "sgd"), ("pad", 4, args.crop, "pad"),
                                       ("min_scale_crops", 0.5, args.crop, "resized"),
                                       ("max_scale_crops", 1.0, args.crop, "resized")):
        if getattr(args, flag) is None:
            setattr(args, flag, usual)
        elif asked != needed:
            raise InputError(f"--{flag.replace('_', '-')} needs --{'optimizer' if needed == 'sgd' else 'crop'} {needed}")
    check_optimizer(args)
    check_views(args)
    return args


def main(args):
    from distillation.datasets import load_splits
    from matching.augmentation import Views, mix_of
    from matching.image_set import pad_images, real_images
    from matching.training import Labels, Recipe, finish_model, train
    from scripts.networks import seeded
    from scripts.parallel import Team, begin_together, new_accelerator
    from scripts.training import new_optimizer, parameter_groups

    accelerator = new_accelerator()
    team = Team(accelerator)
    images, test = (real_images(split, args.input_size, args.workers, "centre").to(accelerator.device)
                    for split in load_splits(**dataset_flags(args)))
    folder, config = Path(args.output_dir), configuration(args, images, test)
    network = seeded(args.arch, len(images.classes), args.stem, args.seed, args.input_size).to(accelerator.device)
    padded = pad_images(images, args.pad) if args.crop == "pad" else images
    team.check_rows(network, len(images), args.batch_size)
    if begin_together(folder, "teacher", config, accelerator):
        return
    crops = {"shifts": True} if args.crop == "pad" else {"scale": (args.min_scale_crops, args.max_scale_crops)}
    views = Views(args.input_size, args.seed, flip=args.flip, cutout=args.cutout, **mix_of(args), **crops)
    recipe = Recipe(args.epochs, args.batch_size, views, args.schedule, ema=args.ema, bf16=args.bf16,
                    save_seconds=args.save_seconds, seed=args.seed)
    optimizer = new_optimizer(args.optimizer, parameter_groups(network, config["weight_decay"]), config["learning_rate"],
                              momentum=args.momentum, nesterov=args.momentum > 0)
    model, loop = train(network, padded, Labels(images.weights, args.label_smoothing), recipe, optimizer, folder, "teacher",
                        team)
    if team.main:
        finish_model(folder, "teacher", model, images, test, config, loop)


def configuration(args, images, test) -> dict:
    """What decides the teacher."""
    from matching.augmentation import mix_config
    rate, decay = OPTIMIZERS[args.optimizer]
    return {**{name: value for name, value in vars(args).items() if name not in MACHINE_ONLY},
            "schedule": "one-cycle" if args.schedule == "triangle" else args.schedule,  # its name in earlier versions
            "learning_rate": rate if args.learning_rate is None else args.learning_rate,
            "weight_decay": decay if args.weight_decay is None else args.weight_decay,
            **mix_config(args), "images": images.digest, "test": test.digest, **validation_of(args.validation)}


if __name__ == "__main__":
    run(parse_args, main, "output_dir")
