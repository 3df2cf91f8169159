"""Stage 4: a student trained on a distilled set with stored soft labels (or hard ones), tested on real images.

    python -m validate.train_FKD --train-dir distilled/digits_ipc10_10_s0.7_g8.0_kmexpand1 --fkd-path runs/fkd --cos -T 20 \\
        --model resnet18 --epochs 60 --batch-size 50 --dataset digits --output-dir runs/student

Writes model.safetensors, result.json (last-epoch accuracy on the real test split) and manifest.json. The same command resumes.
"""

import argparse
from pathlib import Path

from distillation.entry import InputError, add_dataset_flags, answer_retired, check_range, check_views, run

RETIRED = {"start_epoch": "the same command resumes by itself", "wandb_project": "results are written to result.json",
           "wandb_api_key": "results are written to result.json; keep keys off the command line"}
MACHINE_ONLY = ("output_dir", "save_seconds", "data_dir", "workers", "val_dir", "train_dir", "fkd_path", "label_file_path",
                *RETIRED)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # images
    parser.add_argument("--train-dir", default=None, help="distilled set (default: the real training split of --dataset)")
    add_dataset_flags(parser)
    parser.add_argument("--val-dir", default=None, help="real test images, one folder per class (default: of --dataset)")
    parser.add_argument("-j", "--workers", default=4, type=int, help="threads decoding images")
    parser.add_argument("--output-dir", default="./save/student", help="folder of the model")
    # labels
    parser.add_argument("--labels", default="soft", choices=("soft", "hard"), help="the teacher's, or the images' classes")
    parser.add_argument("--fkd-path", default=None, help="folder of generate_soft_label, for --labels soft")
    parser.add_argument("-T", "--temperature", default=3.0, type=float, help="of the distillation loss")
    parser.add_argument("--keep-topk", default=1000, type=int, help="teacher probabilities kept, the rest spread evenly")
    parser.add_argument("--cluster-weights", action="store_true", help="weight the loss by the share of each image's cluster")
    # student and training
    parser.add_argument("--model", default="resnet18", help="torchvision's name of the student")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="first layers of a ResNet")
    parser.add_argument("--batch-size", default=1024, type=int)
    parser.add_argument("--gradient-accumulation-steps", default=1, type=int, help="parts of a batch, for small memories")
    parser.add_argument("--epochs", default=300, type=int)
    parser.add_argument("--seed", default=0, type=int, help="seed of the weights (and of the views with hard labels)")
    parser.add_argument("--cos", action="store_true", help="cosine learning rate instead of linear")
    parser.add_argument("--sgd", action="store_true", help="SGD instead of AdamW")
    parser.add_argument("-lr", "--learning-rate", default=1.024, type=float, help="of SGD")
    parser.add_argument("--momentum", default=0.875, type=float, help="of SGD")
    parser.add_argument("--weight-decay", default=3e-5, type=float, help="of SGD")
    parser.add_argument("--adamw-lr", default=0.001, type=float)
    parser.add_argument("--adamw-weight-decay", default=0.01, type=float)
    # views, stored with soft labels: what is given here must agree with them
    parser.add_argument("--mix-type", default=None, choices=("mixup", "cutmix"), help="default: as stored; hard: none")
    parser.add_argument("--fkd_seed", default=None, type=int, help="default: as stored")
    parser.add_argument("--input-size", default=None, type=int, help="pixels of a view (default: as stored; hard: 224)")
    parser.add_argument("--min-scale-crops", default=None, type=float, help="default: as stored; hard: 0.08")
    parser.add_argument("--max-scale-crops", default=None, type=float, help="default: as stored; hard: 1")
    parser.add_argument("--flip", default=None, type=float, help="default: as stored; hard: 0.5")
    parser.add_argument("--save-seconds", default=20, type=float, help="seconds between resume points")
    # of the original, replaced
    parser.add_argument("--start-epoch", default=0, type=int, help="replaced: the same command resumes")
    parser.add_argument("--wandb-project", default=None, help="replaced by result.json")
    parser.add_argument("--wandb-api-key", default=None, help="replaced by result.json")
    args = parser.parse_args()
    answer_retired(parser, args, RETIRED)
    for flag in ("batch_size", "epochs", "gradient_accumulation_steps", "workers", "keep_topk"):
        check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), 1)
    check_range("--temperature", args.temperature, 1e-3)
    check_views(args)
    if args.labels == "soft" and not args.fkd_path:
        raise InputError("--fkd-path: expected a folder of generate_soft_label for --labels soft, found nothing")
    return args


def main(args):
    from accelerate import Accelerator

    from distillation.architectures import seeded
    from distillation.distribution import require_one_process
    from distillation.manifest import begin
    from matching.image_set import check_same_classes, real_images
    from matching.training import STATE, cosine, finish_model, linear, train

    accelerator = Accelerator()
    require_one_process(accelerator, "train_FKD")
    size, settings = view_settings(args)
    images, test_split = training_images(args, size).to(accelerator.device), load_test(args)
    folder, config = Path(args.output_dir), configuration(args, images, test_split, size, settings)
    if begin(folder, "student", config):
        print(f"{folder}: complete, nothing to do")
        return
    test = real_images(test_split, size, args.workers, "centre").to(accelerator.device)
    check_same_classes(images, test)
    epoch_of, loss_of = labelled(args, images, size, settings)
    network = seeded(args.model, len(images.classes), args.stem, args.seed).to(accelerator.device)
    done = train(network, images, epoch_of, loss_of, make_optimizer(args, network), epochs=args.epochs,
                 batch_size=args.batch_size, size=size, schedule=cosine if args.cos else linear,
                 state_path=folder / STATE, name="student", chunks=args.gradient_accumulation_steps,
                 save_seconds=args.save_seconds)
    finish_model(folder, "student", network, images, test, config, done)


def view_settings(args) -> tuple[int, dict]:
    """View size and how views are drawn: as stored with soft labels, as given for hard ones."""
    from matching.soft_labels import read_store
    plain = {"input_size": 224, "min_scale_crops": 0.08, "max_scale_crops": 1.0, "flip": 0.5, "mix_type": None,
             "fkd_seed": None}
    stored = read_store(args.fkd_path)["config"] if args.labels == "soft" else {}
    settings = {}
    for name, default in plain.items():
        given = getattr(args, name)
        if stored and given is not None and given != stored[name]:
            raise InputError(f"--{name.replace('_', '-')}: expected {stored[name]}, as {args.fkd_path} stores it, "
                             f"found {given}")
        settings[name] = stored.get(name, default if given is None else given)
    return settings.pop("input_size"), settings


def training_images(args, size: int):
    """The set to train on."""
    from distillation.datasets import load_split
    from matching.image_set import distilled_images, real_images
    if args.train_dir:
        return distilled_images(args.train_dir, args.workers)
    return real_images(load_split(args.dataset, args.data_dir, "train", args.label_file_path), size, args.workers, "centre")


def load_test(args):
    """The split of real images to test on."""
    from distillation.datasets import image_folder, load_split
    if args.val_dir and not Path(args.val_dir).is_dir():
        raise InputError(f"--val-dir: expected a folder with one folder per class, found nothing at {args.val_dir}")
    if args.val_dir:
        return image_folder("val", Path(args.val_dir))
    return load_split(args.dataset, args.data_dir, "test", args.label_file_path)


def labelled(args, images, size: int, settings: dict):
    """Where an epoch's views and labels come from, and the loss that fits."""
    import torch

    from matching.soft_labels import SoftLabels, soft_loss
    from matching.training import drawn_views, hard_loss_of
    weights = images.weights if args.cluster_weights else torch.ones_like(images.weights)
    if args.labels == "hard":
        scale = (settings["min_scale_crops"], settings["max_scale_crops"])
        return (drawn_views(images, size, args.seed, scale=scale, flip=settings["flip"], mix=settings["mix_type"] or "none"),
                hard_loss_of(images, weights))
    store = SoftLabels(args.fkd_path, images)
    if store.epochs < args.epochs:
        raise InputError(f"--epochs: expected at most {store.epochs}, which {args.fkd_path} holds, found {args.epochs}")

    def loss_of(logits, teacher, _drawn, rows):
        return soft_loss(logits, teacher, args.temperature, weights[rows], args.keep_topk)
    return lambda epoch: store.epoch(epoch, images.images.device), loss_of


def make_optimizer(args, network):
    """AdamW, or SGD with --sgd, without weight decay on biases and normalisation."""
    import torch

    from distillation.optimisation import parameter_groups
    if args.sgd:
        return torch.optim.SGD(parameter_groups(network, args.weight_decay), lr=args.learning_rate, momentum=args.momentum)
    return torch.optim.AdamW(parameter_groups(network, args.adamw_weight_decay), lr=args.adamw_lr, fused=True)


def configuration(args, images, test_split, size: int, settings: dict) -> dict:
    """What decides the student."""
    from distillation.manifest import identity
    given = {name: value for name, value in vars(args).items() if name not in MACHINE_ONLY}
    labels = identity(args.fkd_path) if args.labels == "soft" else None
    return {**given, **settings, "arch": args.model, "input_size": size, "images": images.digest,
            "test": test_split.identity(), "soft_labels": labels}


if __name__ == "__main__":
    run(parse_args, main)
