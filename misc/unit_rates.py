"""Seconds of one unit of each kind of work, measured by doing a few with the project's own code."""

import ast
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from distillation.checkpoints import load_pipeline
from distillation.datasets import Split, load_split
from distillation.encoding import encode_classes
from distillation.images import open_image
from distillation.prototypes import find_prototypes
from matching.augmentation import Views
from matching.image_set import ImageSet, image_set
from matching.training import METRICS, Labels, Recipe, train
from misc.counting import Unit, counted, latent_shape
from misc.measuring import costs_of_command, peak_device_bytes, seconds_of
from scripts.cli import ROOT
from scripts.networks import predict, seeded
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
from scripts.training import parameter_groups

EVALUATIONS = 3  # of the UNet, timed against none
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass(frozen=True)
class Bench:
    """Where rates are measured: on `device`, by a clock's name, with room in `scratch`, on images of `dataset`."""

    device: torch.device
    clock: str
    scratch: Path
    dataset: str

    @property
    def now(self) -> Callable[[], float]:
        """The clock."""
        return CLOCKS[self.clock]

    @cached_property
    def split(self) -> Split:
        """Training images: the digits, or for other data sets the two photographs that scikit-learn ships, in turns."""
        return load_split("digits", "data", "train") if self.dataset == "digits" else photographs()

    def few(self, images: int) -> Split:
        """The first images of the first class."""
        return self.split.only(self.split.rows_of(0)[:images])

    def measure(self, one: Unit) -> dict:
        """"seconds" of a unit, "flops" and "device_bytes" where a device does it, and of a start the process's "host_bytes".

        Bytes are the most that tensors took at once: as the device tells, else counted.
        """
        found, spent = counted(one, half=self.device.type != "cpu"), {}
        peak = peak_device_bytes(lambda: spent.update(MEASURES[one.kind](self, **dict(one.settings))))
        return {**spent, **({"flops": found.flops, "device_bytes": peak or found.device_bytes} if found else {})}


def photographs(images: int = 2000) -> Split:
    """scikit-learn's two JPEG photographs (640 x 427), read anew for each of `images` rows."""
    from sklearn.datasets import load_sample_images
    paths = [Path(name) for name in load_sample_images().filenames]
    return Split("photographs", [{"name": "photograph", "prompt": "photograph"}], torch.zeros(images).long().numpy(),
                 lambda row: open_image(paths[row % len(paths)]), paths=[paths[row % len(paths)] for row in range(images)])


def start_up(bench: Bench, module: str) -> dict:
    """A process that imports all that `module` does, wherever it does, and ends."""
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
    imports = dict.fromkeys(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    began = time.perf_counter()
    work = "\n".join([*imports, "from accelerate import Accelerator", "Accelerator()"])
    peak, processor = costs_of_command([sys.executable, "-c", work])
    return {"seconds": processor if bench.clock == "processor" else time.perf_counter() - began, "host_bytes": peak}


def read(bench: Bench, size: int, images: int = 64) -> dict:
    """Read an image's file and bring it to `size`."""
    from distillation.datasets import decode
    rows = range(images)
    return {"seconds": seconds_of(lambda: decode(bench.split, rows, size, workers=1), bench.now) / images}


def encode(bench: Bench, checkpoint: str, size: int, batch: int) -> dict:
    """Read and encode an image; beside it what the autoencoder's start takes, its first batch included."""
    weights, images = own_weights(bench, checkpoint), bench.few(batch)
    began = bench.now()
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, weights, bench.device)

    def work():
        list(encode_classes(pipeline, images, [0], size, seed=0, batch_size=batch))
    work()
    started, spent = bench.now() - began, seconds_of(work, bench.now)
    return {"seconds": spent / len(images.labels), "set_up_seconds": max(started - spent, 0.0)}


def cluster(bench: Bench, checkpoint: str, size: int, images: int, ipc: int, km_expand: int, kmeans: str) -> dict:
    """Cluster one class: its own latents with a checkpoint that is there, else as many of normal noise."""
    if Path(checkpoint).is_dir():
        pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, checkpoint, bench.device)
        latents = next(iter(encode_classes(pipeline, bench.few(images), [0], size, seed=0))).latents
    else:
        latents = torch.randn(images, *latent_shape(checkpoint, size), generator=torch.Generator().manual_seed(0))
    find_prototypes(latents, ipc, km_expand, 0, kmeans=kmeans)
    return {"seconds": seconds_of(lambda: find_prototypes(latents, ipc, km_expand, 0, kmeans=kmeans), bench.now)}


def images_seconds(bench: Bench, checkpoint: str, batch: int, image_size: int, evaluations: int) -> tuple[float, float]:
    """Seconds of one batch of images with so many evaluations of the UNet, files included, and of loading the pipeline."""
    from misc.benchmark_synthesis import load_ours, make_ours, plan_images
    weights, dtype = own_weights(bench, checkpoint), "float32" if bench.device.type == "cpu" else "float16"
    began = bench.now()
    pipeline = load_ours(weights, bench.device, dtype)
    loading = bench.now() - began
    plan = plan_images(pipeline, batch, {"strength": evaluations / 10, "num_inference_steps": 10, "guidance_scale": 8,
                                         "negative_prompt": "", "image_size": image_size})
    make_ours(pipeline, plan, bench.scratch / "images")  # the first of its size is slow
    return seconds_of(lambda: make_ours(pipeline, plan, bench.scratch / "images"), bench.now), loading


def decode_images(bench: Bench, checkpoint: str, batch: int, image_size: int) -> dict:
    """Decode a latent and write its file; beside it what loading the pipeline takes."""
    spent, loading = images_seconds(bench, checkpoint, batch, image_size, 0)
    return {"seconds": spent / batch, "set_up_seconds": loading}


def denoise(bench: Bench, checkpoint: str, batch: int) -> dict:
    """One step of one image with guidance: its latent with the prompt and without."""
    none, some = (images_seconds(bench, checkpoint, batch, 32, evaluations)[0] for evaluations in (0, EVALUATIONS))
    return {"seconds": max(some - none, 0.0) / EVALUATIONS / batch}


def own_weights(bench: Bench, checkpoint: str) -> str:
    """The checkpoint where it is a local folder, else one of the same architecture with random weights."""
    from misc.benchmark_synthesis import write_stable_diffusion
    folder = bench.scratch / "checkpoint"
    return checkpoint if Path(checkpoint).is_dir() else str(folder if folder.exists() else write_stable_diffusion(folder))


def random_set(bench: Bench, images: int, size: int, classes: int) -> ImageSet:
    """Images of noise on the device."""
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return image_set("noise", [{"name": str(label)} for label in range(classes)], pixels,
                     torch.arange(images) % classes).to(bench.device)


def train_views(bench: Bench, arch: str, stem: str, size: int, batch: int, classes: int, chunks: int = 1,
                bf16: bool = False) -> dict:
    """A training step, divided by the images of its batch."""
    images = random_set(bench, batch, size, classes)
    network = seeded(arch, classes, stem, 0, size).to(bench.device)
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.01), lr=1e-3, fused=True)
    folder = bench.scratch / f"{arch}-{len(list(bench.scratch.iterdir()))}"
    folder.mkdir()
    recipe = Recipe(4, batch, Views(size, 0, mix="cutmix"), "cosine", parts=chunks, bf16=bf16)
    train(network, images, Labels(images.weights), recipe, optimizer, folder, "train")
    marks = [json.loads(line)["seconds"] for line in (folder / METRICS).read_text().splitlines()]
    steps = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return {"seconds": statistics.median(steps) / batch}


def forward_views(bench: Bench, arch: str, stem: str, size: int, batch: int, classes: int) -> dict:
    """A view through a network in evaluation mode."""
    images = random_set(bench, batch, size, classes)
    network = seeded(arch, classes, stem, 0, size).to(bench.device)

    def work():
        with torch.inference_mode():
            predict(network, images.images, batch)
    work()
    return {"seconds": seconds_of(work, bench.now) / batch}


def learner(bench: Bench, method: str, arch: str, stem: str, size: int, classes: int, tasks: int, batch: int, replay: int,
            buffer: int, refit: int, scales: int) -> dict:
    """A step of a continual method on real images, with memory to look at; beside it the end of a task and a run's set-up."""
    from continual.experiment import Dark, Merging, Run, Sources, prepare
    from continual.streams import batches
    from continual.training import Recipe
    from matching.image_set import real_images
    real, test = (real_images(load_split(bench.dataset, "data", part), size).to(bench.device) for part in ("train", "test"))
    recipe = Recipe("adamw", 1e-3, 5e-4, 0.9, "one-cycle", batch, replay, 0.6, 0.0, 0.3)
    run = Run(method, "real", "real", 0, tasks, "seeded", arch, stem, size, 5, buffer, recipe,
              Merging("random", 1, "mean", [1 / (1 + place) for place in range(scales)], refit)
              if method == "task_arithmetic" else None, Dark(0.1, 0.5) if method == "derpp" else None)
    made = []
    set_up = seconds_of(lambda: made.append(prepare(run, Sources(real, test, None, None), bench.device)), bench.now)
    own, task = made[0].learner, made[0].stream[0]
    drawn = batches(task.train, range(5), batch, 0, 0)
    own.begin(task, 5)
    own.step(next(drawn))
    end = seconds_of(lambda: own.end(task), bench.now)
    own.begin(task, 5)
    own.step(next(drawn))
    return {"seconds": statistics.median(seconds_of(lambda: own.step(next(drawn)), bench.now) for _ in range(3)),
            "end_seconds": end, "set_up_seconds": set_up}


MEASURES = {"start": start_up, "read": read, "encode": encode, "cluster": cluster, "decode": decode_images,
            "denoise": denoise, "train": train_views, "forward": forward_views, "learner": learner}


def computed(one: Unit, tflops: float) -> dict | None:
    """The same of a unit by its operations alone, at `tflops` TFLOP/s; None for what no accelerator works on."""
    found = counted(one)
    return found and {"seconds": found.flops / tflops / 1e12, "set_up_seconds": 0.0, "end_seconds": 0.0, **found._asdict()}
