"""What `python -m misc.benchmark matching` measures, and its tables."""

import tempfile
import time
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from continual.training import augment
from distillation.datasets import load_split
from matching.augmentation import Drawn, Views, draw_epoch
from matching.image_set import ImageSet, image_set, real_images
from matching.soft_labels import SoftLabels, epoch_file, leading_answers, relabel, write_epoch
from matching.training import Labels, Recipe, train
from misc.benchmark_encoding import write_photos
from misc.measuring import compared, flops_of, interleaved, matrix_product_flops
from misc.report.tables import NONE, NOT_RUN, Section
from scripts.artefact import finish
from scripts.networks import MEAN, STD, seeded

COMMAND = "python -m misc.benchmark matching"
MIXES = {"cutmix": "CutMix", "none": "no mixing"}
SIZES = (224, 32)


def measure(device, only: tuple[str, ...], repetitions: int) -> dict:
    """The sections named in `only`, but what needs an accelerator where there is none."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        if "augmentation" in only:
            found["augmentation"] = [augmentation(repetitions, size, mix) for size in SIZES for mix in MIXES]
        if "small_batch" in only:
            found["small_batch"] = small_batch(repetitions)
        if "labels" in only:
            found["labels"] = labels(Path(folder) / "labels", repetitions)
        if "training" in only and device.type != "cpu":
            found["training"] = training(Path(folder) / "training", device, repetitions)
    return found


def augmentation(repetitions: int, size: int, mix: str, images: int = 256, batch_size: int = 64) -> dict:
    """Views of decoded images, a batch at once against torchvision's functions on Pillow images one by one.

    Each on one core of the CPU, in seconds of the processor. The same draws, so the views must be the same.
    """
    decoded = sources(images, size)
    pictures = [TF.to_pil_image(image) for image in decoded.images]
    drawn = draw_epoch(images, decoded.source, size, np.random.default_rng(0), mix=mix)
    parts = drawn.order.long().split(batch_size)
    variants = {"ours": lambda part: decoded.views(drawn, part, size), "stock": partial(stock_views, pictures, drawn, size)}
    apart = check_same_views(*(variant(parts[0]) for variant in variants.values()))
    with one_thread():
        seconds = interleaved({name: partial(drain, variant, parts) for name, variant in variants.items()}, repetitions,
                              f"augmentation, {size} pixels, {mix}", time.process_time)
    return {"settings": {"size_pixels": size, "source_pixels": size, "mix": mix, "images": images, "batch_size": batch_size},
            "largest_difference_of_255": apart, **compared(seconds, {"ours": images, "stock": images})}


def drain(work, parts) -> None:
    """Do `work` for each of `parts` and keep nothing."""
    for part in parts:
        work(part)


def sources(count: int, size: int) -> ImageSet:
    """`count` real images of `size` pixels: handwritten digits up to 32 pixels, above that patches of two photographs."""
    if size <= 32:
        digits = load_split("digits", "", "train")
        return real_images(digits.only(np.arange(count)), size)
    return image_set("photographs", [{"name": "patch", "prompt": "patch"}], photograph_patches(count, size), torch.zeros(count))


def photograph_patches(count: int, size: int) -> Tensor:
    """uint8 [count, 3, size, size] cut from scikit-learn's two sample photographs (427 x 640 pixels), in turn."""
    photographs, rng = load_sample_images().images, np.random.default_rng(0)
    patches = []
    for place in range(count):
        photograph = photographs[place % len(photographs)]
        top, left = (rng.integers(0, side - size + 1) for side in photograph.shape[:2])
        patches.append(photograph[top:top + size, left:left + size].transpose(2, 0, 1))
    return torch.from_numpy(np.stack(patches))


def stock_views(pictures: list[Image.Image], drawn: Drawn, size: int, rows: Tensor) -> Tensor:
    """Views [B, 3, S, S] as a data loader's worker makes them: torchvision's functions, one image after another."""
    def crop(row: int) -> Image.Image:
        view = TF.resized_crop(pictures[row], *drawn.crop[row].tolist(), [size, size], InterpolationMode.BILINEAR)
        return TF.hflip(view) if drawn.flip[row] else view
    made = []
    for row in rows.tolist():
        view, (top, left, bottom, right) = crop(row), drawn.box[row].tolist()
        if bottom > top and right > left:
            view.paste(crop(int(drawn.partner[row])).crop((left, top, right, bottom)), (left, top))
        made.append(TF.normalize(TF.to_tensor(view), MEAN, STD))
    return torch.stack(made)


def check_same_views(ours: Tensor, stock: Tensor) -> float:
    """The largest difference of a pixel (0 to 255); raises RuntimeError above 1.5, which rounding may make."""
    found = float(((ours - stock).abs() * torch.tensor(STD)[:, None, None]).max() * 255)
    if not found <= 1.5:
        raise RuntimeError(f"augmentation: expected torchvision's views, at most 1.5/255 apart, found {found:.2f}/255")
    return found


@contextmanager
def one_thread():
    """torch on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def small_batch(repetitions: int, batch_size: int = 64, size: int = 32, batches: int = 20) -> dict:
    """Drawing and making the views of a small batch, as continual learning does at every step, on one core."""
    images, rng = sources(batch_size, size).images, np.random.default_rng(0)
    pictures = [TF.to_pil_image(image) for image in images]

    def ours():
        for _ in range(batches):
            augment(images, rng, 0.5, 0.5)

    def stock():
        for _ in range(batches):
            drawn = draw_epoch(batch_size, (size, size), size, rng, scale=(0.5, 1.0))
            stock_views(pictures, drawn, size, torch.arange(batch_size))
    with one_thread():
        seconds = interleaved({"ours": ours, "stock": stock}, repetitions, "small batch", time.process_time)
    return {"settings": {"batch_size": batch_size, "size_pixels": size},
            **compared(seconds, {"ours": batches * batch_size, "stock": batches * batch_size})}


def labels(folder: Path, repetitions: int, images: int = 10_000, classes: int = 1000, keep: tuple[int, ...] = (10, 50)) -> dict:
    """Bytes of one epoch's labels by how many classes are kept, in half precision, and seconds to open it.

    `seconds_to_open` is with one batch of 100 answers, `seconds_to_read` with all; files are mapped, and in the page cache.
    """
    names = [{"name": str(label), "prompt": str(label)} for label in range(classes)]
    labelled = image_set("none", names, torch.zeros(images, 3, 1, 1, dtype=torch.uint8), torch.zeros(images))
    drawn = draw_epoch(images, (1, 1), 224, np.random.default_rng(0), mix="cutmix")
    logits = torch.randn(images, classes, generator=torch.Generator().manual_seed(0))
    sizes, variants = {}, {}
    for k in (classes, *keep):
        store = folder / str(k)
        store.mkdir(parents=True)
        write_epoch(store, 0, drawn, leading_answers(logits, k, temperature=20.0))
        config = {"epochs": 1, "input_size": 224, "fkd_seed": 0, "images": labelled.name}
        finish(store, "soft_labels", names, config, [epoch_file(0)], images=labelled.digest)
        sizes[str(k)] = (store / epoch_file(0)).stat().st_size / images
        variants["open", k] = partial(open_epoch, SoftLabels(store, labelled))
        variants["read", k] = partial(open_epoch, SoftLabels(store, labelled), images)
    seconds = interleaved(variants, repetitions, "labels")
    return {"settings": {"images": images, "classes": classes, "precision": "float16"}, "bytes_per_image": sizes,
            **{f"seconds_to_{what}": {str(k): median(seconds[what, k]) for k in (classes, *keep)} for what in ("open", "read")}}


def open_epoch(store: SoftLabels, batches: int = 1) -> None:
    """Open an epoch and ask for the answers of its first `batches` batches of 100 images."""
    drawn, answers = store.epoch(0, "cpu")
    for rows in drawn.order.long().split(100)[:batches]:
        answers[rows]


def training(folder: Path, device, repetitions: int, arch: str = "resnet18", size: int = 224, images: int = 4096,
             batch_size: int = 256, workers: int = 8, matrix_side: int = 8192) -> dict:
    """Relabelling and one epoch of a student in bfloat16, of decoded images on the device against JPEG files and Pillow.

    The share of the peak is against a product of two square matrices of `matrix_side`; idle is the time without a kernel.
    """
    split = load_split("folder", write_photos(folder / "photos", 8, images // 8, size), "train")
    teacher, student = (seeded(arch, 8, "imagenet", seed).to(device) for seed in (0, 1))
    teacher.eval()
    drawn = draw_epoch(images, (size, size), size, np.random.default_rng(0), mix="cutmix").to(device)
    sets = {name: real_images(split, size, workers, "squash", path, device) for name, path in
            (("ours", "device"), ("stock", "pil"))}
    variants = {name: partial(relabel_and_train, teacher, student, each, drawn, size, batch_size, folder)
                for name, each in sets.items()}
    seconds = interleaved(variants, repetitions, "training")
    found = compared(seconds, {"ours": images, "stock": images})
    two = torch.zeros(2, 3, size, size, device=device)
    with torch.no_grad():
        flops = flops_of(lambda: teacher(two)) / 2
    flops += flops_of(lambda: student(two).sum().backward()) / 2
    peak = matrix_product_flops(device, torch.bfloat16, matrix_side)
    return {"settings": {"arch": arch, "size_pixels": size, "images": images, "batch_size": batch_size, "workers": workers,
                         "dtype": "bfloat16"}, **found, "flops_per_image": flops,
            "share_of_peak": {name: flops * speed / peak for name, speed in found["images_per_second"].items()},
            "matrix_product_flops_per_second": peak,
            "idle_share": {name: idle_share(work) for name, work in variants.items()}}


def relabel_and_train(teacher, student, images, drawn: Drawn, size: int, batch_size: int, folder: Path) -> None:
    """Ask the teacher about every view of an epoch, then train the student on them."""
    with torch.autocast(images.device.type, torch.bfloat16):
        answers = relabel(teacher, images, drawn, size, batch_size).to(images.device).float()
    labels = Labels(images.weights, store=SimpleNamespace(epoch=lambda *_: (drawn, answers)), temperature=20.0)
    recipe = Recipe(1, batch_size, Views(size, 0), "linear", bf16=True, save_seconds=inf)
    train(student, images, labels, recipe, torch.optim.SGD(student.parameters(), 0.01), folder, "student")


def idle_share(work) -> float | None:
    """The share of the time of `work` in which the GPU runs no kernel; None where that is not counted."""
    if not torch.cuda.is_available():
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        spent = time.perf_counter() - began
    return 1 - sum(each.self_device_time_total for each in profiler.key_averages()) / 1e6 / spent


def report(result: dict) -> list[Section]:
    """The table of a result."""
    sections = result["sections"]
    apart = [each["largest_difference_of_255"] for each in sections.get("augmentation", [])]
    says = (f"One run on {result['hardware']}, {result['cores']} cores, load {result['load']:.1f} before and "
            f"{result['load_at_end']:.1f} after it; medians of {result['options']['repetitions']} rounds in which variants "
            "take turns.")
    if apart:
        says += f" Pixels of views made both ways differ by at most {max(apart):.1f}/255."
    return [Section("Against the plain way", says, ("What", "Here", "Compared with", "Ratio", "Aim"),
                    tuple(map(tuple, (*view_rows(sections), *training_rows(sections.get("training")),
                                      *label_rows(sections.get("labels"))))))]


def view_rows(sections: dict):
    """Views on one core."""
    other, aim = "torchvision's functions on Pillow images", "at least 4"
    found = {(each["settings"]["size_pixels"], each["settings"]["mix"]): each for each in sections.get("augmentation", [])}
    for size in SIZES:
        for mix, name in MIXES.items():
            yield speed_row(f"Views of {size} pixels, {name}, images/s of one core", found.get((size, mix)), other, aim)
    small, name = sections.get("small_batch"), "Drawing and making 64 views of 32 pixels, one core (ms)"
    if small is None:
        yield [name, NOT_RUN, other, NOT_RUN, "at most 1"]
    else:
        spent = {side: 1e3 * small["settings"]["batch_size"] / speed for side, speed in small["images_per_second"].items()}
        yield [name, f"{spent['ours']:.2f}", f"{spent['stock']:.2f}, {other}", f"{small['times_faster']:.2f}", "at most 1"]


def training_rows(measured: dict | None):
    """What needs an accelerator."""
    what = "relabelling and an epoch of ResNet-18, 224 pixels"
    yield speed_row(f"On an accelerator: {what}, images/s", measured, "files and Pillow, 8 workers", "at least 3")
    for key, name, aim in (("share_of_peak", "of the matrix product's speed", NONE), ("idle_share", "idle", "below 10")):
        shares = measured[key] if measured else {}
        cells = [NOT_RUN if side not in shares else NONE if shares[side] is None else f"{100 * shares[side]:.1f}"
                 for side in ("ours", "stock")]
        yield [f"The same, {name} (%)", *cells, NONE, aim]


def label_rows(measured: dict | None):
    """Bytes of labels and how long it takes to open them."""
    if measured is None:
        yield ["Soft labels of one image and epoch (bytes)", NOT_RUN, NONE, NOT_RUN, NONE]
        yield ["Opening an epoch of soft labels (ms)", NOT_RUN, NONE, NOT_RUN, "below 50"]
        return
    images, classes = measured["settings"]["images"], measured["settings"]["classes"]
    whole = measured["bytes_per_image"][str(classes)]
    for k, size in measured["bytes_per_image"].items():
        name = "whole" if int(k) == classes else f"top {k}"
        yield [f"Soft labels of one image and epoch, {classes:,} classes, {name} (bytes)", f"{size:.0f}", f"{whole:.0f}, whole",
               f"{whole / size:.1f}", NONE]
    for k, seconds in measured["seconds_to_open"].items():
        name = "whole" if int(k) == classes else f"top {k}"
        yield [f"Opening an epoch of {images:,} images, {name} (ms)", f"{1e3 * seconds:.1f}",
               f"{1e3 * measured['seconds_to_read'][k]:.1f}, every answer read", NONE, "below 50"]


def speed_row(name: str, section: dict | None, other: str, aim: str) -> list[str]:
    """Images per second here and the other way."""
    if section is None:
        return [name, NOT_RUN, other, NOT_RUN, aim]
    speed = section["images_per_second"]
    return [name, f"{speed['ours']:,.0f}", f"{speed['stock']:,.0f}, {other}", f"{section['times_faster']:.2f}", aim]
