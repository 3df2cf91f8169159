"""MTT: images on which a student's weights move as an expert's do on the real images (trajectory matching).

    python -m distillation.mtt --dataset digits --ipc 1 --experts_path runs/digits/experts --save_init_image_path runs/distilled

First the experts: networks trained on the real images, with their weights after every epoch in `--experts_path`. Then the
images and the student's learning rate: a student starts at an expert's weights, takes `--student_steps` steps on the images,
and has to end near the expert's weights `--expert_epochs_ahead` epochs later (Cazenavette et al. 2022, arXiv 2203.11932,
algorithm 1; here without augmentation and whitening). Writes `<save_init_image_path>/<dataset>_mtt_ipc<IPC>`, a distilled set
as gen_syn_image does. The same command resumes.
"""

import time
from pathlib import Path

from scripts.cli import InputError, Parser, Progress, dataset_flags, run, stop_if_asked, validation_of

OF_EXPERTS = ("dataset", "arch", "size", "experts", "expert_epochs", "expert_lr", "expert_batch", "seed")
OF_IMAGES = ("ipc", "iterations", "student_steps", "expert_epochs_ahead", "last_start", "images_lr", "student_lr", "rate_lr",
             "student_batch", "image_format")


def parse_args():
    parser = Parser(__doc__)
    parser.add_dataset_flags()
    parser.add_argument("-a", "--arch", default="convnet_d3_w128", help="network of experts and student, without BatchNorm")
    parser.add_argument("--size", default=32, type=int, least=1, help="pixels")
    parser.add_argument("--seed", default=0, type=int, help="seed of weights, batches and the first images")
    parser.add_argument("--num_workers", default=4, type=int, least=0, help="threads decoding images")
    # experts
    parser.add_argument("--experts_path", default="runs/experts", help="folder of the experts, for any number of images")
    parser.add_argument("--experts", default=10, type=int, least=1, help="experts (MTT: 100)")
    parser.add_argument("--expert_epochs", default=20, type=int, least=1, help="epochs of an expert (MTT: 50)")
    parser.add_argument("--expert_lr", default=0.01, type=float, least=0, help="of plain SGD")
    parser.add_argument("--expert_batch", default=256, type=int, least=1, help="images a step")
    # images
    parser.add_argument("--ipc", default=1, type=int, least=1, help="images per class")
    parser.add_argument("--iterations", default=1000, type=int, least=1, help="steps of the images (MTT: 5000)")
    parser.add_argument("--student_steps", default=20, type=int, least=1,
                        help="steps of the student before weights are compared, N")
    parser.add_argument("--expert_epochs_ahead", default=2, type=int, least=1, help="epochs of the expert meanwhile, M")
    parser.add_argument("--last_start", default=5, type=int, least=0, help="the student starts after 0 to this many epochs, T+")
    parser.add_argument("--images_lr", default=100.0, type=float, least=0,
                        help="of SGD with momentum 0.5, on normalised pixels")
    parser.add_argument("--student_lr", default=0.01, type=float, least=0,
                        help="the student's first learning rate; it is learnt too")
    parser.add_argument("--rate_lr", default=1e-5, type=float, least=0, help="rate at which the student's is learnt")
    parser.add_argument("--student_batch", default=256, type=int, least=1, help="images of a student's step, at most all")
    parser.add_argument("--image_format", default="png", choices=("png", "webp"), help="both are lossless")
    parser.add_argument("--save_init_image_path", default="runs/distilled", help="the set becomes a folder below it")
    parser.add_argument("--save_seconds", default=60, type=float, help="seconds between resume points")
    args = parser.parse_args()
    if args.last_start + args.expert_epochs_ahead > args.expert_epochs:
        raise InputError(f"--last_start plus --expert_epochs_ahead: expected at most the {args.expert_epochs} epochs of an "
                         f"expert, found {args.last_start + args.expert_epochs_ahead}")
    return args


def main(args):
    from accelerate import Accelerator

    from distillation.datasets import check_enough_images, decode_all, load_split
    from scripts.artefact import begin, identity
    from scripts.parallel import batch_norms, begin_together, require_one_process

    accelerator = Accelerator()
    require_one_process(accelerator, "mtt")
    split = load_split(split="train", **dataset_flags(args))
    check_enough_images(split, args.ipc)
    network = network_of(args, len(split.classes), 0)
    if batch_norms(network) or not all(value.is_floating_point() for value in network.state_dict().values()):
        raise InputError("--arch: expected a network without BatchNorm and with floating-point numbers only, such as "
                         f"convnet_d3_w128, found {args.arch}")
    experts, folder = Path(args.experts_path), Path(args.save_init_image_path) / f"{args.dataset}_mtt_ipc{args.ipc}"
    shared = {**{name: getattr(args, name) for name in OF_EXPERTS}, "data": split.identity(), **validation_of(args.validation)}
    if begin(experts, "experts", shared, wait=True):     # sets of other sizes may train them at this moment
        print(f"{experts}: complete, nothing to do")
    else:
        train_experts(experts, shared, *decode_all(split, args.size, args.num_workers, "centre"), args, accelerator.device)
    config = {"method": "mtt", **shared, **{name: getattr(args, name) for name in OF_IMAGES}, "image_size": args.size,
              "trajectories": identity(experts)}
    if not begin_together(folder, "distilled", config, accelerator):
        match(folder, config, experts, split, args, accelerator.device)


def network_of(args, classes: int, seed: int):
    from scripts.networks import seeded
    return seeded(args.arch, classes, "imagenet", seed, args.size)


# experts

def weights_file(expert: int, epoch: int) -> str:
    return f"{expert:03d}/{epoch:03d}.safetensors"


def train_experts(folder: Path, config: dict, images, split, args, device) -> None:
    """Train each expert on `images` uint8 [N, 3, H, W] with cross-entropy and plain SGD, and write its weights."""
    import torch
    import torch.nn.functional as F

    from scripts.artefact import finish, write_result
    from scripts.files import write_tensors
    from scripts.networks import normalise
    from scripts.randomness import generator_for, seed_for, seed_network
    images, labels = images.to(device), torch.from_numpy(split.labels).to(device)
    started, files = time.perf_counter(), []
    for expert in Progress(range(args.experts), desc="experts", unit="expert"):
        names = [weights_file(expert, epoch) for epoch in range(args.expert_epochs + 1)]
        files += names
        if (folder / names[-1]).exists():
            continue
        network = network_of(args, len(split.classes), seed_for(args.seed, "expert", expert)).to(device)
        optimizer = torch.optim.SGD(network.parameters(), args.expert_lr)
        for epoch, name in enumerate(names):
            write_tensors(folder / name, network.state_dict())
            seed_network(args.seed, "expert", expert, epoch)
            order = torch.randperm(len(images), generator=generator_for(args.seed, "expert", expert, epoch)).to(device)
            for rows in order.split(args.expert_batch) if name != names[-1] else ():
                optimizer.zero_grad()
                F.cross_entropy(network(normalise(images[rows].float() / 255)), labels[rows]).backward()
                optimizer.step()
                stop_if_asked()
    seconds = time.perf_counter() - started
    write_result(folder, "experts", config, {"experts": args.experts}, {"train": seconds})
    finish(folder, "experts", split.classes, config, files)
    print(f"{folder}: {args.experts} experts of {args.expert_epochs} epochs in {seconds:.1f} s")


# images

def match(folder: Path, config: dict, experts: Path, split, args, device) -> None:
    """Optimise images and learning rate, which start as random real images and --student_lr; write the distilled set."""
    import torch

    from distillation.distilled_set import complete, row, write_image
    from distillation.images import to_pil, to_uint8
    from distillation.real_subset import at_random
    from scripts.files import read_tensors
    from scripts.networks import normalise, normalised_range
    from scripts.randomness import generator_for, seed_network
    from scripts.training import Loop
    chosen = torch.cat([images for _, images, _ in at_random(split, list(range(len(split.classes))), args.ipc, args.size,
                                                             args.seed, args.num_workers)])
    labels = torch.arange(len(split.classes), device=device).repeat_interleave(args.ipc)
    low, high = normalised_range(device)
    learnt = torch.nn.ParameterDict({"pixels": normalise(chosen.float() / 255).to(device),
                                     "rate": torch.tensor(args.student_lr, device=device)})
    network = network_of(args, len(split.classes), 0).to(device)
    optimizer = torch.optim.SGD([{"params": [learnt["pixels"]], "lr": args.images_lr},
                                 {"params": [learnt["rate"]], "lr": args.rate_lr}], momentum=0.5)
    state = folder / "state.pt"
    loop = Loop(learnt, optimizer, args.iterations, lambda step: 1.0, state, name="match", images_per_step=len(labels),
                save_seconds=args.save_seconds)
    for step in loop:
        # draw the expert, the start and the student's batches
        generator = generator_for(args.seed, "match", step)
        seed_network(args.seed, "match", step)
        expert, epoch = (int(torch.randint(limit, (), generator=generator)) for limit in (args.experts, args.last_start + 1))
        start, target = (read_tensors(experts / weights_file(expert, at)) for at in (epoch, epoch + args.expert_epochs_ahead))
        batches = [torch.randperm(len(labels), generator=generator)[:args.student_batch].to(device)
                   for _ in range(args.student_steps)]

        # move the images and the rate
        loop.backward(trajectory_loss(network, *({name: value.to(device) for name, value in weights.items()}
                                                 for weights in (start, target)),
                                      [(learnt["pixels"][rows], labels[rows]) for rows in batches], learnt["rate"]))
        loop.step()
        with torch.no_grad():
            learnt["pixels"].clamp_(low, high)  # what a file can hold
            learnt["rate"].clamp_(min=1e-6)

    pictures = to_uint8((learnt["pixels"].detach() - low) / (high - low))
    rows = [row(label, entry["name"], index, 0, args.seed, 1 / args.ipc, args.image_format)
            for label, entry in enumerate(split.classes) for index in range(args.ipc)]
    for picture, each in zip(pictures, rows, strict=True):
        write_image(folder, each["file_name"], to_pil(picture))
    part = max(1, args.iterations // 20)
    first, last = (sum(losses) / len(losses) for losses in (loop.losses[:part], loop.losses[-part:]))
    print(f"matching loss {first:.3f} -> {last:.3f}, learning rate of the student {learnt['rate'].item():.4f}")
    state.unlink(missing_ok=True)
    complete(folder, split.classes, config, rows, {"match": loop.seconds},
             {"first_loss": first, "last_loss": last, "student_learning_rate": learnt["rate"].item()}, added_up=True)


def trajectory_loss(network, start: dict, target: dict, batches: list[tuple], rate):
    """||student - target||^2 / ||start - target||^2 (eq. 2), differentiable in the images and the rate.

    The student begins at `start` and takes a gradient step of `rate` on each batch (images [B, 3, H, W], labels [B]).
    """
    import torch
    import torch.nn.functional as F
    student = {name: value.requires_grad_() for name, value in start.items()}
    for images, labels in batches:
        loss = F.cross_entropy(torch.func.functional_call(network, student, (images,)), labels)
        gradients = torch.autograd.grad(loss, list(student.values()), create_graph=True)
        student = {name: value - rate * gradient for (name, value), gradient in zip(student.items(), gradients, strict=True)}

    def distance(weights: dict):
        return sum((value - target[name]).pow(2).sum() for name, value in weights.items())
    return distance(student) / distance({name: value.detach() for name, value in start.items()})


if __name__ == "__main__":
    run(parse_args, main, "save_init_image_path")
