"""Train networks on a class-incremental stream and measure accuracy, forgetting and cost.

    python -m continual.train_continual --method er task_arithmetic --stream real random distilled \\
        --distilled runs/digits-ipc10 --seed 0 1 2

Each combination of method, stream and seed is a run. It writes `<output-dir>/<method>-<stream>-seed<k>/result.json` and its
buffer. Before the seed, the folder's name has `-soft` labels, `-memory-<source>`, `-class-balanced`, and `-steps<N>` with
`--schedule steps`. The same command resumes, also in the middle of a task. Under `accelerate launch` each process takes whole
runs. Tests use the real test split: Class-IL and Task-IL accuracy matrices.
"""

import math
import time
from pathlib import Path

from scripts.cli import InputError, Parser, check_optimizer, check_range, dataset_flags, run

METHODS = ("finetune", "joint", "er", "agem", "derpp", "task_arithmetic")
SOURCES = ("real", "random", "distilled")


def parse_args():
    parser = Parser(__doc__)
    # what is compared
    parser.add_argument("--method", default=["er"], nargs="+", choices=METHODS, help="one or more methods")
    parser.add_argument("--stream", default=["real"], nargs="+", choices=SOURCES, help="one or more sources of the stream")
    parser.add_argument("--seed", default=[0], type=int, nargs="+", help="one or more seeds of weights, order and draws")
    parser.add_argument("--output-dir", default="runs/continual", help="one folder per run below it")
    parser.add_argument("--save-seconds", default=20, type=float, least=0, help="seconds between resume points")
    # data
    parser.add_dataset_flags()
    parser.add_argument("--distilled", default=None, help="folder of a distilled set")
    parser.add_argument("--random", default=None,
                        help="folder of random real images in the same format (default: drawn by the seed, as many per class "
                             "as the distilled set has)")
    parser.add_argument("--size", default=None, type=int, least=1, help="pixels (default: the data set's own, or 224)")
    parser.add_argument("--tasks", default=5, type=int, least=1, help="number of tasks")
    parser.add_argument("--class-order", default="seeded", choices=("seeded", "natural"), help="order of the classes")
    # labels
    parser.add_argument("--labels", default="hard", choices=("hard", "soft"),
                        help="soft: the logits of --teacher on the augmented views, of stream and buffer "
                             "(merging in task_arithmetic has the buffer's hard labels)")
    parser.add_argument("--teacher", default=None, help="folder of matching.train_teacher, for soft labels")
    parser.add_argument("--temperature", default=4.0, type=float, least=1e-3, help="temperature of soft labels")
    # buffer
    parser.add_argument("--buffer-size", default=200, type=int, help="images in the buffer")
    parser.add_argument("--buffer-source", default=None, choices=SOURCES,
                        help="source of the buffer's images (default: the stream)")
    parser.add_argument("--buffer", default="reservoir", choices=("reservoir", "class-balanced"),
                        help="buffer of er and derpp: equal probability per image, or equal number per class (agem and "
                             "task_arithmetic store an equal number per task)")
    parser.add_argument("--replay-batch-size", default=32, type=int, least=2, help="buffer images per step")
    # network and schedule
    parser.add_argument("--arch", default="resnet18", help="network trained: torchvision's name, or convnet_d3_w128")
    parser.add_argument("--stem", default="imagenet", choices=("imagenet", "cifar"), help="first layers of a ResNet")
    parser.add_argument("--schedule", default=None, choices=("epochs", "steps"),
                        help="steps: the number of steps is a part of the folder's name too (default: the unit of --epochs or "
                             "--steps, with one name for all lengths)")
    parser.add_argument("--epochs", default=None, type=float, nargs="+",
                        least=1e-9,
                        help="passes over a task (default: 2); one value, or one per --stream")
    parser.add_argument("--steps", default=None, type=int, least=1, nargs="+",
                        help="steps per task; one value, or one per --stream")
    parser.add_argument("--bf16", action="store_true",
                        help="forward and backward in bfloat16 where that is safe and the device has it")
    parser.add_argument("--batch-size", default=32, type=int, least=2, help="stream images per step")
    parser.add_argument("--optimizer", default="adamw", choices=("sgd", "adamw"), help="optimiser, new for every task")
    parser.add_argument("--lr", default=1e-3, type=float, help="highest learning rate")
    parser.add_argument("--lr-schedule", default="one-cycle", choices=("one-cycle", "constant"),
                        help="learning-rate curve within a task")
    parser.add_argument("--momentum", default=None, type=float, help="momentum of SGD (default: 0.9)")
    parser.add_argument("--weight-decay", default=5e-4, type=float, help="weight decay of kernels and matrices")
    parser.add_argument("--bn-momentum", default=0.3, type=float, least=0, most=1,
                        help="momentum of BatchNorm's running statistics (PyTorch's 0.1 is too slow for short runs)")
    parser.add_argument("--min-scale-crops", default=0.6, type=float, least=0, most=1,
                        help="smallest area of a random crop, as a fraction")
    parser.add_argument("--flip", default=0.0, type=float, least=0, most=1,
                        help="probability of a horizontal flip (digits: none)")
    # DER++
    parser.add_argument("--alpha", default=0.1, type=float, least=0, help="weight of the squared error to the stored logits")
    parser.add_argument("--beta", default=0.5, type=float, least=0, help="weight of the loss on the buffer's labels")
    # Task Arithmetic
    parser.add_argument("--start", default="distilled",
                        help="common start of the experts: random, task1 (the first expert), imagenet (torchvision's weights, "
                             "downloaded where needed), distilled (pre-trained on --distilled, so it has seen all classes), or "
                             "the folder of a teacher or student")
    parser.add_argument("--experts", default="parallel", choices=("parallel", "sequential"),
                        help="each expert begins at the common start, or where the last one ended")
    parser.add_argument("--start-steps", default=40, type=int, least=1, help="steps of the distilled start")
    parser.add_argument("--merge", default="mean", choices=("sum", "mean", "magmax", "ties"), help="merge rule")
    parser.add_argument("--scale", default=[0.5, 1.0], type=float, least=-math.inf, nargs="+",
                        help="candidate scales of the merged vector; the best on the buffer is used")
    parser.add_argument("--refit-head", default=50, type=int, least=0, metavar="STEPS",
                        help="steps of the head alone on the buffer after each merge, 0 for none")
    args = parser.parse_args()
    check(args)
    return args


def check(args) -> None:
    """Raise InputError for numbers out of range and for flags that contradict each other."""
    if args.momentum is not None and args.optimizer != "sgd":
        raise InputError("--momentum needs --optimizer sgd")
    args.momentum = 0.9 if args.momentum is None else args.momentum
    stored = args.tasks if set(args.method) - {"finetune", "joint"} else 0  # these two have no buffer
    check_range("--buffer-size", args.buffer_size, stored)
    check_optimizer(args)
    if "task_arithmetic" in args.method and args.start == "distilled" and not args.distilled:
        raise InputError("--start distilled, the default of task_arithmetic, needs --distilled; --start task1 needs nothing")
    if (args.labels == "soft") != bool(args.teacher):
        raise InputError("--labels soft and --teacher: expected both or neither, found "
                         + ("no --teacher" if args.labels == "soft" else "--labels hard"))
    chosen = schedule_of(args)
    for schedule, values in (("epochs", args.epochs), ("steps", args.steps)):
        if values and schedule != chosen:
            raise InputError(f"--schedule {chosen}: expected no --{schedule}, found {' '.join(map(str, values))}")
        if values and len(values) not in (1, len(args.stream)):
            raise InputError(f"--{schedule}: expected one value or one per --stream ({len(args.stream)}), found {len(values)}")
    if chosen == "steps" and not args.steps:
        raise InputError("--schedule steps: expected --steps, found none")


def schedule_of(args) -> str:
    """The schedule, by its name or by the flag of its length."""
    return args.schedule or ("steps" if args.steps else "epochs")


def main(args):
    from continual.experiment import perform
    from scripts.parallel import my_share, new_accelerator
    accelerator = new_accelerator()
    started = time.perf_counter()
    sources, teacher = load_sources(args, accelerator.device)
    runs = [run_of(args, sources, method, index, seed)
            for seed in args.seed for method in args.method for index in range(len(args.stream))]
    accelerator.print(f"images read in {time.perf_counter() - started:.1f} s; {len(runs)} runs in {args.output_dir}")
    for one in my_share(runs, accelerator, [each.cost for each in runs]):
        result = perform(one, sources, Path(args.output_dir), accelerator.device, args.save_seconds, teacher)
        print(table_row(result) if result else f"{Path(args.output_dir) / one.name}: complete, nothing to do")


def load_sources(args, device):
    """Real, distilled and random images at the training size, and the teacher if there is one, on the device."""
    from continual.experiment import Sources
    from continual.start import STARTS, check_start
    from continual.streams import set_at
    from continual.training import read_teacher
    from distillation.datasets import load_splits
    from matching.image_set import distilled_images, real_images
    from scripts.artefact import check_held_out
    random = args.random if "random" in (*args.stream, args.buffer_source) else None
    start = args.start if "task_arithmetic" in args.method and args.start not in STARTS else None
    check_held_out(args.validation, args.distilled, random, args.teacher, start)
    splits = load_splits(**dataset_flags(args))
    size, fit = args.size or splits[0].native_size_pixels or 224, "squash" if splits[0].native_size_pixels else "centre"
    if "task_arithmetic" in args.method:
        check_start(args.start, args.arch, args.stem, size, splits[0].classes)
    folders = [distilled_images(folder) if folder else None for folder in (args.distilled, random)]
    teacher = read_teacher(args.teacher, args.temperature, splits[0].classes, size, device) if args.teacher else None
    return Sources(*(real_images(split, size, fit=fit).to(device) for split in splits),
                   *(set_at(images, size).to(device) if images else None for images in folders)), teacher


def run_of(args, sources, method: str, index: int, seed: int):
    """One combination: the stream at `index` of --stream, with its own length."""
    from continual.experiment import Merging, Run
    from continual.training import Recipe
    stream, schedule = args.stream[index], schedule_of(args)
    images, values = sources.of(stream, seed), (args.steps if schedule == "steps" else args.epochs) or [2.0]
    length = values[index % len(values)]  # the stream's own, or the only one
    steps = length if schedule == "steps" else max(1, math.ceil(length * len(images) / args.tasks / args.batch_size))
    recipe = Recipe(args.optimizer, args.lr, args.weight_decay, args.momentum, args.lr_schedule, args.batch_size,
                    args.replay_batch_size, args.min_scale_crops, args.flip, args.bn_momentum, args.bf16)
    merging = Merging(args.start, args.start_steps, args.merge, args.scale, args.refit_head, args.experts)
    return Run(method, stream, args.buffer_source or stream, seed, args.tasks, args.class_order, args.arch, args.stem,
               images.images.shape[-1], steps, args.buffer_size, recipe,
               merging if method == "task_arithmetic" else None,
               dark={"alpha": args.alpha, "beta": args.beta} if method == "derpp" else None,
               buffer=args.buffer if method in ("er", "derpp") else "reservoir", labels=args.labels,
               temperature=args.temperature if args.labels == "soft" else None, schedule=schedule,
               schedule_in_name=args.schedule == "steps", validation=args.validation)


def table_row(result: dict) -> str:
    """One line for the screen."""
    class_il, task_il = (100 * result[kind]["acc"] for kind in ("class_il", "task_il"))
    forgetting, start = result["class_il"]["forgetting"], result.get("start")
    row = (f"{result['method']:16} {result['stream']:10} seed {result['seed']:<3} ACC {class_il:5.1f} %  "
           f"Task-IL {task_il:5.1f} %  forgetting {'    -' if forgetting is None else f'{100 * forgetting:5.1f}'}  "
           f"{result['seconds']['train']:7.1f} s  {result['steps']} steps  {result['images_per_second']:.0f} images/s")
    if not start:
        return row
    alone = f", {100 * start['class_il_acc']:.1f} % before training" if "class_il_acc" in start else ""
    return f"{row}  start: {start['note']}{alone} ({start['seconds']:.1f} s more)"


if __name__ == "__main__":
    run(parse_args, main, "output_dir")
