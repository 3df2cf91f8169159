"""A class-incremental world of four classes: what the tests of the continual stage share."""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from continual import train_continual
from continual.training import Recipe
from distillation.distilled_set import finish_distilled, row, write_image
from matching.image_set import image_set
from scripts.artefact import finish
from scripts.cli import run
from scripts.files import write_tensors
from scripts.networks import seeded
from scripts.randomness import generator_for

CLASSES = [{"name": str(label), "prompt": str(label)} for label in range(4)]
RECIPE = Recipe("sgd", lr=0.05, weight_decay=0.0, momentum=0.9, schedule="constant", batch_size=8, replay_batch_size=8,
                min_scale=0.7, flip=0.5, bn_momentum=0.3)
FAST = "convnet_d2_w8"  # a step takes 6 ms, counting its operations 60 ms; shufflenet_v2_x0_5, with BatchNorm, 45 and 1,500


class Small(nn.Sequential):
    """The smallest network with a convolution, BatchNorm and a head; its weights depend on `seed` alone."""

    def __init__(self, seed=0, classes=4, bias=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(nn.Conv2d(3, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
                             nn.Flatten(), nn.Linear(16, classes, bias=bias))


def chi_square(counts, expected, probability):
    """Of counts of items that are each stored with `probability`, as many every time."""
    return ((counts - expected) ** 2 / (expected * (1 - probability))).sum() * (len(counts) - 1) / len(counts)


def some_images(per_class=12, classes=4, size=32, seed=0):
    labels = torch.arange(classes).repeat_interleave(per_class)
    pixels = torch.randint(0, 256, (len(labels), 3, size, size), generator=generator_for(seed, "pixels"), dtype=torch.uint8)
    return image_set("some", CLASSES[:classes], pixels, labels)


def write_data(folder: Path, size: int = 32) -> Path:
    """A folder data set of four classes, 12 training and 3 test images each, and a distilled set of two images a class."""
    images = some_images(17, size=size)
    rows = [row(label, f"c{label}", place, 0, 0, 0.5) for label in range(4) for place in range(2)]
    for label in range(4):
        own = [Image.fromarray(pixels) for pixels in images.images[images.labels == label].permute(0, 2, 3, 1).numpy()]
        for place, image in enumerate(own[:15]):
            write_image(folder / "real", f"{'train' if place < 12 else 'test'}/c{label}/{place:02d}.png", image)
        for entry, image in zip(rows[2 * label:2 * label + 2], own[15:], strict=True):
            write_image(folder / "set", entry["file_name"], image)
    finish_distilled(folder / "set", [{"name": f"c{label}", "prompt": f"c{label}"} for label in range(4)], {}, rows)
    return folder


def tiny(data, output, *words):
    return ("--dataset", "folder", "--data-dir", data / "real", "--size", 32, "--distilled", data / "set",
            "--output-dir", output, "--steps", 2, "--batch-size", 4, "--replay-batch-size", 4, "--buffer-size", 8,
            "--start-steps", 2, "--scale", 0.5, 1, "--refit-head", 2, "--arch", "shufflenet_v2_x0_5", *words)


def write_teacher(folder: Path, size: int = 32) -> Path:
    """An untrained teacher of the four classes, in the format of matching.train_teacher."""
    network = seeded(FAST, 4, "imagenet", 7, size)
    write_tensors(folder / "model.safetensors", network.state_dict())
    classes = [{"name": f"c{label}", "prompt": f"c{label}"} for label in range(4)]
    finish(folder, "teacher", classes, {"arch": FAST, "stem": "imagenet", "input_size": size},
           ["model.safetensors"])
    return folder


def in_process(monkeypatch, *words):
    """The command line, without a process of its own."""
    monkeypatch.setattr(sys, "argv", ["train_continual", *map(str, words)])
    run(train_continual.parse_args, train_continual.main)
