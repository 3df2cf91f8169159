"""SRe2L: images optimised from noise until a frozen teacher recognises them and its BatchNorm statistics match.

    python -m distillation.sre2l --teacher runs/digits/teacher --ipc 10 --save_init_image_path runs/distilled

"Squeeze" is the teacher's training, "recover" this command, "relabel" matching.generate_soft_label (Yin et al. 2023, arXiv
2306.13092; the released code also shifts the views at random, weights the first layer's statistics tenfold, and has priors on
pixels). Writes `<save_init_image_path>/<dataset>_sre2l_ipc<IPC>`, a distilled set as gen_syn_image does. The teacher is
train_teacher's, or for ImageNet torchvision's (--weights). The same command resumes, also in the middle of a batch.
"""

import time
from pathlib import Path

from scripts.cli import InputError, Parser, run, validation_of

DECIDING = ("ipc", "steps", "batch_size", "learning_rate", "bn_weight", "min_scale_crops", "flip", "seed")


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("--teacher", default=None, help="folder of matching.train_teacher; it needs BatchNorm")
    parser.add_argument("-a", "--arch", default=None, help="with --weights: torchvision's network (default: resnet18)")
    parser.add_argument("--weights", default=None, help="torchvision's weights for ImageNet, such as IMAGENET1K_V1")
    parser.add_argument("--ipc", default=10, type=int, least=1, most=1e6, help="images per class")
    parser.add_argument("--save_init_image_path", default="runs/distilled", help="the set becomes a folder below it")
    parser.add_argument("--steps", default=1000, type=int, least=1, most=1e9,
                        help="optimiser steps of a batch (SRe2L on ImageNet-1K: 4000)")
    parser.add_argument("--batch_size", default=100, type=int, least=1, most=1e6,
                        help="images optimised together; their statistics are matched")
    parser.add_argument("-lr", "--learning-rate", default=0.25, type=float, least=0, most=1000,
                        help="of Adam, cosine to zero; normalised pixels")
    parser.add_argument("--bn_weight", default=0.01, type=float, least=0, most=1e6,
                        help="weight of the BatchNorm loss beside cross-entropy")
    parser.add_argument("--min-scale-crops", default=0.08, type=float, least=1e-4, most=1,
                        help="smallest area of a random crop, as a fraction")
    parser.add_argument("--flip", default=0.5, type=float, least=0, most=1,
                        help="probability of a flip; 0 where left and right matter")
    parser.add_argument("--seed", default=0, type=int, help="seed of noise and crops")
    parser.add_argument("--save_seconds", default=60, type=float, help="seconds between resume points")
    args = parser.parse_args()
    if (args.teacher is None) == (args.weights is None):
        raise InputError("--teacher or --weights: expected one of them, found " + ("both" if args.teacher else "none"))
    if args.teacher and args.arch:
        raise InputError(f"--arch needs --weights (got {args.arch})")
    return args


def main(args):
    from distillation.distilled_set import complete, row, write_image
    from distillation.images import to_pil
    from scripts.parallel import all_done, begin_together, my_unfinished, new_accelerator
    from scripts.randomness import seed_for

    accelerator = new_accelerator()
    teacher, classes, facts = load_teacher(args)
    teacher = teacher.to(accelerator.device).requires_grad_(False)
    layers = hook_statistics(teacher, args.teacher or args.weights)
    folder = Path(args.save_init_image_path) / f"{facts['dataset']}_sre2l_ipc{args.ipc}"
    config = {"method": "sre2l", **{name: getattr(args, name) for name in DECIDING}, **facts}
    if begin_together(folder, "distilled", config, accelerator):
        return
    rows = [row(label, entry["name"], index, 0, seed_for(args.seed, "sre2l", label, index), 1 / args.ipc)
            for index in range(args.ipc) for label, entry in enumerate(classes)]
    batches = {first: rows[first:first + args.batch_size] for first in range(0, len(rows), args.batch_size)}
    started = time.perf_counter()
    for first in my_unfinished(list(batches), lambda first: all((folder / each["file_name"]).exists() for each in
                                                                batches[first]), accelerator):
        noise = draw_noise(batches[first], facts["image_size"], args.seed)
        images = recover(teacher, layers, noise, batches[first], args, folder / f"state-{first}.pt")
        for image, each in zip(images, batches[first], strict=True):
            write_image(folder, each["file_name"], to_pil(image))
    if all_done(accelerator):
        for state in folder.glob("state-*.pt"):
            state.unlink()
        seconds = time.perf_counter() - started
        found = measure(teacher, layers, list(batches.values()), folder, facts["image_size"], args.seed)
        complete(folder, classes, config, rows, {"recover": seconds}, found)


def load_teacher(args) -> tuple:
    """The network, its classes, and what the set's configuration says of it; the data set is the teacher's."""
    from distillation.prompts import by_wnid
    from scripts.artefact import identity
    from scripts.networks import build, load_model
    if args.teacher:
        network, manifest = load_model(args.teacher, "teacher")
        config = manifest["config"]
        return network, manifest["classes"], {
            "dataset": config.get("dataset", "folder"), "image_size": config["input_size"], "teacher": identity(args.teacher),
            **validation_of(config.get("validation", 0))}
    names = by_wnid("imagenet")
    classes = [{"name": wnid, "prompt": name} for wnid, name in names.items()]
    arch = args.arch or "resnet18"
    return build(arch, len(names), weights=args.weights).eval(), classes, {
        "dataset": "imagenet", "image_size": 224, "teacher": f"{arch} {args.weights}"}


def hook_statistics(network, name: str) -> list:
    """A list that gets the BatchNorm loss [] of each such layer in a forward pass.

    It is ||mean - running mean||_2 + ||variance - running variance||_2 (Yin et al. 2020, arXiv 1912.08795, eq. 4). Raises
    InputError for a network without BatchNorm.
    """
    from scripts.parallel import batch_norms
    layers, found = batch_norms(network), []
    if not layers:
        raise InputError(f"{name}: expected a teacher with BatchNorm, whose statistics are matched, found none")

    def add(layer, inputs) -> None:
        variance, mean = inputs[0].var((0, 2, 3), correction=0), inputs[0].mean((0, 2, 3))
        found.append((mean - layer.running_mean).norm() + (variance - layer.running_var).norm())
    for layer in layers:
        layer.register_forward_pre_hook(add)
    return found


def losses(teacher, layers: list, images, labels) -> tuple:
    """Cross-entropy [] and summed BatchNorm loss [] of normalised images [B, 3, H, W] with labels [B]."""
    import torch.nn.functional as F
    layers.clear()
    return F.cross_entropy(teacher(images), labels), sum(layers)


def draw_noise(rows: list[dict], size: int, seed: int):
    """The first, normalised images [B, 3, size, size]."""
    import torch

    from scripts.randomness import generator_for
    return torch.stack([torch.randn(3, size, size, generator=generator_for(seed, "sre2l", each["label"], each["prototype"]))
                        for each in rows])


def recover(teacher, layers: list, noise, rows: list[dict], args, state_path: Path):
    """Images uint8 [B, 3, H, W] optimised from normalised `noise` of that shape."""
    import torch

    from distillation.images import to_uint8
    from scripts.networks import normalised_range
    from scripts.training import Loop, cosine
    device = next(teacher.parameters()).device
    low, high = normalised_range(device)
    labels = torch.tensor([each["label"] for each in rows], device=device)
    module = torch.nn.ParameterDict({"pixels": noise.to(device)})
    loop = Loop(module, torch.optim.Adam(module.parameters(), args.learning_rate, betas=(0.5, 0.9)), args.steps,
                lambda step: cosine(step, args.steps), state_path, name="recover", images_per_step=len(rows),
                save_seconds=args.save_seconds)
    for step in loop:
        view = random_view(module["pixels"], noise.shape[-1], args, (state_path.stem, step))
        classification, matching = losses(teacher, layers, view, labels)
        loop.backward(classification + args.bn_weight * matching)
        loop.step()
        with torch.no_grad():
            module["pixels"].clamp_(low, high)
    return to_uint8((module["pixels"].detach() - low) / (high - low))


def measure(teacher, layers: list, batches: list[list[dict]], folder: Path, size: int, seed: int) -> dict[str, float]:
    """Both losses of the noise and of the images as they were written, means over batches."""
    import torch
    from torchvision.transforms.v2.functional import pil_to_tensor

    from distillation.images import open_image
    from scripts.networks import normalise
    device, found = next(teacher.parameters()).device, []
    with torch.inference_mode():
        for rows in batches:
            images = torch.stack([pil_to_tensor(open_image(folder / each["file_name"])) for each in rows]).float() / 255
            labels = torch.tensor([each["label"] for each in rows], device=device)
            found.append([loss for each in (draw_noise(rows, size, seed), normalise(images))
                          for loss in losses(teacher, layers, each.to(device), labels)])
    names = ("first_cross_entropy", "first_batch_norm", "last_cross_entropy", "last_batch_norm")
    means = dict(zip(names, torch.tensor(found).mean(0).tolist(), strict=True))
    print(", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in means.items()))
    return means


def random_view(images, size: int, args, place: tuple):
    """A random resized crop, flipped or not, one for all `images` [B, 3, H, W], as a function of (seed, place)."""
    import torch
    from torchvision.transforms.v2 import Compose, RandomHorizontalFlip, RandomResizedCrop

    from scripts.randomness import seed_for
    with torch.random.fork_rng(devices=[]):     # torchvision's draws take no generator
        torch.manual_seed(seed_for(args.seed, "sre2l-view", *place))
        return Compose([RandomResizedCrop(size, (args.min_scale_crops, 1)), RandomHorizontalFlip(args.flip)])(images)


if __name__ == "__main__":
    run(parse_args, main, "save_init_image_path")
