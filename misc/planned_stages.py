"""What each command of a pipeline has to do, write and hold: units of work, bytes on disk, bytes of memory."""

import math
import os
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from distillation.encoding import AHEAD
from distillation.prototypes import Prototypes, class_file, write_class
from distillation.synthesis import to_pil
from matching.augmentation import draw_epoch
from matching.soft_labels import epoch_file, leading_answers, stored_epochs, write_epoch
from misc.counting import Unit, diffusion_parts, latent_shape, network_bytes, unit
from misc.stage_commands import Command
from misc.unit_rates import photographs
from scripts.cli import InputError
from validate.protocols import resolve


@dataclass(frozen=True)
class Data:
    """A data set by its numbers: classes, training and test images, those of its largest class, pixels of its images."""

    name: str
    classes: int
    train: int
    test: int
    largest: int
    size_pixels: int


# of data sets that are not in this repository, as their makers give them; ImageNet's images vary, stages ask for 224 pixels
KNOWN = {one.name: one for one in (
    Data("cifar10", 10, 50_000, 10_000, 5_000, 32), Data("cifar100", 100, 50_000, 10_000, 500, 32),
    Data("tiny_imagenet", 200, 100_000, 10_000, 500, 64), Data("imagenet", 1000, 1_281_167, 50_000, 1_300, 224))}


@dataclass(frozen=True)
class Part:
    """`count` units; `group` of them are not divided among processes. `of` names the rate where a unit has several.

    `threads` of the host share the work beside an accelerator.
    """

    what: Unit
    count: int
    group: int = 1
    of: str = "seconds"
    threads: int = 1

    def longest(self, processes: int) -> int:
        """Units of the process that has most to do."""
        return min(self.count, math.ceil(math.ceil(self.count / self.group) / processes) * self.group)


@dataclass(frozen=True)
class Work:
    """A command's parts, what it leaves on disk, holds in the host's memory beside libraries, and of images on the device.

    `start` is the module whose imports it takes to start, where that is not the command's own.
    """

    parts: tuple[Part, ...]
    disk_bytes: int
    host_bytes: int
    device_images_bytes: int = 0
    start: str = ""


def data_of(name: str) -> Data:
    """The numbers of a data set; the digits are counted."""
    if name != "digits":
        return KNOWN[name]
    from distillation.datasets import load_split
    train, test = (load_split("digits", "data", part) for part in ("train", "test"))
    return Data(name, len(train.classes), len(train.labels), len(test.labels), int(np.bincount(train.labels).max()),
                train.native_size_pixels)


def work_of(command: Command, data: Data, ipc: int) -> Work:
    """What a command has to do for `data` at `ipc` images per class. Raises InputError for one that is no stage."""
    if command.module not in STAGES:
        raise InputError(f"{command.module}: expected one of {', '.join(STAGES)}")
    work = STAGES[command.module](command.args, data, ipc)
    return replace(work, parts=(Part(unit("start", module=work.start or command.module), 1), *work.parts))


def prototypes(args, data: Data, ipc: int) -> Work:
    """Encode every training image and cluster, class by class; the host holds a class's latents, in parts and as a whole."""
    checkpoint = args.diffusion_checkpoints_path
    size = args.size or own_size(checkpoint)
    latent = latent_shape(checkpoint, size)
    encode = unit("encode", checkpoint=checkpoint, size=size, batch=args.batch_size)
    parts = (Part(encode, 1, of="set_up_seconds"), Part(encode, data.train, data.largest),
             Part(unit("cluster", checkpoint=checkpoint, size=size, images=data.largest, ipc=ipc, km_expand=args.km_expand,
                       kmeans=args.kmeans), data.classes))
    return Work(parts, data.classes * prototype_bytes(ipc, latent),
                2 * data.largest * math.prod(latent) * 4 + (AHEAD + 1) * args.batch_size * 3 * size ** 2)


def images(args, data: Data, ipc: int) -> Work:
    """Denoise, decode and write one image per prototype; the baselines of real images are only read and written."""
    count, checkpoint = data.classes * ipc, args.diffusion_checkpoints_path
    size = args.image_size or min(own_size(checkpoint), 224)
    if args.method not in ("d4m", "prototype", "noise"):
        files = Part(unit("read", size=size), count)
        return Work((files,), count * png_bytes(data.name, size), 0, start="distillation.datasets")
    strength = {"d4m": args.strength, "prototype": 0.0, "noise": 1.0}[args.method]
    evaluations = int(strength * args.num_inference_steps)
    latent, batch = latent_shape(checkpoint, own_size(checkpoint)), min(args.batch_size, count)
    decode = unit("decode", checkpoint=checkpoint, batch=batch, image_size=size)
    parts = (Part(unit("denoise", checkpoint=checkpoint, batch=batch), count * evaluations, batch * max(evaluations, 1)),
             Part(decode, 1, of="set_up_seconds"), Part(decode, count, batch))
    return Work(parts, count * png_bytes(data.name, size), count * math.prod(latent) * 4)


def teacher(args, data: Data, ipc: int) -> Work:
    """Train on the real training images and test."""
    network = {"arch": args.arch, "stem": args.stem, "size": args.input_size, "classes": data.classes}
    return training(network, data, data.train, args.epochs, args.batch_size, 1, args)


def soft_labels(args, data: Data, ipc: int) -> Work:
    """Read the images, ask the teacher about a view of each in every epoch that is stored."""
    count = data.classes * ipc if args.data else data.train
    size, epochs = args.input_size, stored_epochs(args.epochs, args.keep_epochs)
    each, header = label_bytes(data.classes, args.keep_topk or data.classes, args.mix_type, args.use_fp16, size)
    stem = args.stem if args.teacher else "imagenet"
    parts = (reading(count, size, args.workers),
             Part(unit("forward", arch=args.arch, stem=stem, size=size, classes=data.classes, batch=args.batch_size),
                  epochs * count, count))
    answers = count * data.classes * 4
    return Work(parts, epochs * (header + count * each), 2 * answers + pixels(count, size), pixels(count, size))


def student(args, data: Data, ipc: int) -> Work:
    """Train on the images and test on the real ones; each epoch's labels are on the device while it lasts."""
    count = data.classes * ipc if args.train_dir else data.train
    filled, _ = resolve({**vars(args), "lr_schedule": args.lr_schedule or ("cosine" if args.cos else None)}, args.protocol,
                        data.classes, count)
    size = args.input_size or (data.size_pixels if data.name != "imagenet" else 224)
    network = {"arch": args.model, "stem": args.stem, "size": size, "classes": data.classes}
    return training(network, data, count, filled["epochs"], filled["batch_size"], filled["gradient_accumulation_steps"],
                    args)


def training(network: dict, data: Data, count: int, epochs: int, batch: int, chunks: int, args) -> Work:
    """Read images, train for `epochs` on `count`, test on the real test images."""
    batch, size = min(batch, count), network["size"]
    parts = (reading(count + data.test, size, args.workers),
             Part(unit("train", **network, batch=batch, chunks=chunks, bf16=args.bf16), epochs * count),
             Part(unit("forward", **network, batch=min(256, data.test)), data.test, data.test))
    stored = pixels(count + data.test, size)
    return Work(parts, network_bytes(network["arch"], network["classes"], network["stem"], size), stored, stored)


def continual(args, data: Data, ipc: int) -> Work:
    """Every method on every stream and seed: set-up, steps and ends of tasks, and tests on all tasks after each."""
    parts, runs = [], len(args.stream) * len(args.seed)
    size = args.size or data.size_pixels
    for method in args.method:
        network = {"arch": args.arch, "stem": args.stem, "size": size, "classes": data.classes}
        own = unit("learner", method=method, **network, tasks=args.tasks, batch=args.batch_size,
                   replay=args.replay_batch_size, buffer=args.buffer_size, refit=args.refit_head, scales=len(args.scale))
        steps = sum(task_steps(args, data, ipc, place) for place in range(len(args.stream))) * args.tasks * len(args.seed)
        ends = 1 if method == "joint" else args.tasks
        start = method == "task_arithmetic" and args.start == "distilled"
        tests = runs * (ends + 1 + (method == "task_arithmetic")) * data.test
        parts += [Part(own, steps + start * args.start_steps * len(args.seed)), Part(own, runs * ends, of="end_seconds"),
                  Part(own, runs, of="set_up_seconds"),
                  Part(unit("forward", **network, batch=min(256, data.test // args.tasks)), tests)]
    stored = pixels(data.train + data.test + 2 * data.classes * ipc, size)
    return Work((reading(data.train + data.test, size), *parts),
                runs * len(args.method) * args.buffer_size * (3 * size ** 2 + 8), stored, stored)


def task_steps(args, data: Data, ipc: int, place: int) -> int:
    """Steps per task of the stream at `place`. Raises InputError for a budget, which is no number of steps."""
    from continual.train_continual import at, lengths, schedule_of
    schedule = schedule_of(args)
    value = at(place, lengths(args)[schedule][1] or [2.0])
    if schedule == "budget":
        raise InputError("--budget-seconds: expected --steps or --epochs, which can be planned")
    count = data.train if args.stream[place] == "real" else data.classes * ipc
    return value if schedule == "steps" else max(1, math.ceil(value * count / args.tasks / args.batch_size))


def stages_of(works: list[tuple[Command, Work]], rates: dict, gpus: int) -> list[dict]:
    """Stage by stage: seconds of the longest process, bytes on disk, bytes of host and device memory of one process."""
    return [stage(name, list(own), rates, gpus) for name, own in groupby(works, lambda pair: pair[0].stage)]


def stage(name: str, works: list[tuple[Command, Work]], rates: dict, gpus: int) -> dict:
    """One stage; commands that run aside of others share the cores with them. On a CPU the host holds what a device would."""
    spent, counts, host, device = [0.0, 0.0], {}, 0, 0
    for command, work in works:
        own = [(part, rates[str(part.what)]) for part in work.parts]
        spent[command.aside] += sum(part.longest(max(gpus, 1)) * rate[part.of] / (part.threads if gpus else 1)
                                    for part, rate in own)
        tensors = max(rate.get("device_bytes", 0) for _, rate in own)
        held = max(rate.get("host_bytes", 0) for _, rate in own) + work.host_bytes
        host, device = max(host, held + (0 if gpus else tensors)), max(device, tensors + work.device_images_bytes)
        for part in work.parts:
            if part.what.kind != "start" and part.of == "seconds":
                counts[part.what] = counts.get(part.what, 0) + part.count
    return {"stage": name, "seconds": max(*spent, sum(spent) / (os.cpu_count() or 1)), "host_bytes": host,
            "device_bytes": device if gpus else None, "disk_bytes": sum(work.disk_bytes for _, work in works),
            "units": [{"unit": str(one), "what": described(one), "count": count, "per_second": 1 / rates[str(one)]["seconds"]}
                      for one, count in counts.items() if count]}


def described(one: Unit) -> str:
    """A unit in the table's words."""
    return WORDS.get(one.kind) or f"steps of {dict(one.settings)['method']}"


WORDS = {"read": "files read", "encode": "images encoded", "cluster": "classes clustered", "denoise": "guided steps",
         "decode": "images decoded", "train": "views trained on", "forward": "views answered"}
STAGES = {"distillation.gen_prototype": prototypes, "distillation.gen_syn_image": images, "matching.train_teacher": teacher,
          "matching.generate_soft_label": soft_labels, "validate.train_FKD": student, "continual.train_continual": continual}


def reading(count: int, size: int, threads: int = 1) -> Part:
    """Images read from their files, by every process all of them."""
    return Part(unit("read", size=size), count, count, threads=threads)


def own_size(checkpoint: str) -> int:
    """Pixels of the images that a checkpoint makes."""
    return diffusion_parts(checkpoint, False)["vae"].config.sample_size


def pixels(count: int, size: int) -> int:
    """Bytes of decoded images."""
    return count * 3 * size ** 2


@lru_cache
def prototype_bytes(ipc: int, latent: tuple[int, int, int]) -> int:
    """Bytes of one class's file, by writing one."""
    found = Prototypes(torch.zeros(ipc, *latent), torch.zeros(ipc, dtype=torch.int64), torch.tensor(0.0),
                       torch.zeros(ipc, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    with TemporaryDirectory() as folder:
        write_class(Path(folder), 0, "class", found)
        return (Path(folder) / class_file(0, "class")).stat().st_size


@lru_cache
def label_bytes(classes: int, kept: int, mix: str, half: bool, size: int, views: int = 64) -> tuple[int, int]:
    """Bytes of one view, and those of a file beside its views: by writing files of `views` and twice as many."""
    def written(count: int) -> int:
        drawn = draw_epoch(count, (size, size), size, np.random.default_rng(0), mix=mix)
        with TemporaryDirectory() as folder:
            write_epoch(Path(folder), 0, drawn, leading_answers(torch.zeros(count, classes), kept, 20.0),
                        torch.float16 if half else torch.float32)
            return (Path(folder) / epoch_file(0)).stat().st_size
    few, many = written(views), written(2 * views)
    each = (many - few) // views
    return each, few - views * each


@lru_cache
def png_bytes(dataset: str, size: int, count: int = 50) -> int:
    """Mean bytes of a PNG of `size` pixels, of training digits, or of two photographs for other data sets."""
    from distillation.datasets import decode, load_split
    split = load_split("digits", "data", "train") if dataset == "digits" else photographs(2)
    found = []
    for image in decode(split, range(min(count, len(split.labels))), size):
        file = BytesIO()
        to_pil(image).save(file, format="PNG")
        found.append(len(file.getvalue()))
    return round(sum(found) / len(found))
