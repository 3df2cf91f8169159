"""Stage 3a: the teacher, trained on real images with hard labels.

    python -m matching.train_teacher --dataset digits --arch resnet18 --output-dir runs/teacher

Writes model.safetensors, result.json and manifest.json. For ImageNet take torchvision's weights instead
(generate_soft_label --weights IMAGENET1K_V1). The same command resumes.
"""

import argparse
from pathlib import Path

from distillation.entry import add_dataset_flags, check_range, check_views, run


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # data and network
    add_dataset_flags(parser)
    parser.add_argument("-a", "--arch", default="resnet18", help="torchvision's name of the network")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="first layers of a ResNet")
    parser.add_argument("--input-size", default=32, type=int, help="pixels")
    parser.add_argument("-j", "--workers", default=4, type=int, help="threads decoding images")
    parser.add_argument("--output-dir", default="runs/teacher", help="folder of the model")
    # training
    parser.add_argument("-b", "--batch-size", default=64, type=int)
    parser.add_argument("--epochs", default=10, type=int)
    parser.add_argument("-lr", "--learning-rate", default=1e-3, type=float, help="AdamW, warm-up then cosine to zero")
    parser.add_argument("--weight-decay", default=0.01, type=float, help="none on biases and normalisation")
    parser.add_argument("--label-smoothing", default=0.0, type=float)
    parser.add_argument("--seed", default=0, type=int, help="seed of weights and views")
    # views
    parser.add_argument("--min-scale-crops", default=0.5, type=float, help="smallest share of the image in a crop")
    parser.add_argument("--max-scale-crops", default=1.0, type=float, help="largest share of the image in a crop")
    parser.add_argument("--flip", default=0.5, type=float, help="share of views flipped; 0 where left and right matter")
    parser.add_argument("--mix-type", default="none", choices=("none", "cutmix", "mixup"))
    parser.add_argument("--save-seconds", default=20, type=float, help="seconds between resume points")
    args = parser.parse_args()
    for flag in ("batch_size", "epochs", "input_size", "workers"):
        check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), 1)
    check_views(args)
    return args


def main(args):
    import torch
    from accelerate import Accelerator

    from distillation.architectures import seeded
    from distillation.datasets import load_split
    from distillation.distribution import require_one_process
    from distillation.manifest import begin
    from distillation.optimisation import parameter_groups
    from matching.image_set import real_images
    from matching.training import STATE, drawn_views, finish_model, hard_loss_of, train, warm_cosine

    accelerator = Accelerator()
    require_one_process(accelerator, "train_teacher")
    train_split, test_split = (load_split(args.dataset, args.data_dir, part, args.label_file_path)
                               for part in ("train", "test"))
    images, test = (real_images(split, args.input_size, args.workers, "centre").to(accelerator.device)
                    for split in (train_split, test_split))
    folder = Path(args.output_dir)
    config = {**{name: value for name, value in vars(args).items() if name not in MACHINE_ONLY},
              "images": images.digest, "test": test.digest}
    if begin(folder, "teacher", config):
        print(f"{folder}: complete, nothing to do")
        return
    network = seeded(args.arch, len(images.classes), args.stem, args.seed).to(accelerator.device)
    optimizer = torch.optim.AdamW(parameter_groups(network, args.weight_decay), lr=args.learning_rate, fused=True)
    epoch_of = drawn_views(images, args.input_size, args.seed, scale=(args.min_scale_crops, args.max_scale_crops),
                           flip=args.flip, mix=args.mix_type)
    done = train(network, images, epoch_of, hard_loss_of(images, images.weights, args.label_smoothing), optimizer,
                 epochs=args.epochs, batch_size=args.batch_size, size=args.input_size, schedule=warm_cosine,
                 state_path=folder / STATE, name="teacher", save_seconds=args.save_seconds)
    finish_model(folder, "teacher", network, images, test, config, done)


MACHINE_ONLY = ("output_dir", "save_seconds", "data_dir", "workers", "label_file_path")  # say where and how, not what


if __name__ == "__main__":
    run(parse_args, main)
