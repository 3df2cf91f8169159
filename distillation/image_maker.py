"""From rows and prototypes to image files: what gen_syn_image and distill have in common."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from distillation.distilled_set import row, write_image
from distillation.prototypes import Prototypes
from distillation.synthesis import synthesize, to_pil, use_scheduler
from scripts.randomness import seed_for

SEED_PLACE = ("label", "prototype", "repeat")  # what an image's noise is a function of


def plan_rows(classes: list[dict], weights: dict[int, Tensor], repeats: int, seed: int, image_format: str) -> list[dict]:
    """One row per image to make, in the order of `weights`: label -> the prototypes' shares of their class [IPC]."""
    return [image_row(classes, label, prototype, repeat, seed, share.item() / repeats, image_format)
            for label, shares in weights.items() for repeat in range(repeats) for prototype, share in enumerate(shares)]


def image_row(classes: list[dict], label: int, prototype: int, repeat: int, seed: int, weight: float,
              image_format: str) -> dict:
    """The row of one image of a prototype."""
    return row(label, classes[label]["name"], prototype, repeat, seed_for(seed, "image", label, prototype, repeat),
               round(weight, 8), image_format)


class ImageMaker:
    """Makes the images of rows, in batches across classes, and writes them while the next batch is made.

    `config` is the distilled set's configuration. With a `teacher` filter each row stands for `config["candidates"]` images, of
    which one is kept; its number stands in its file's name as the repeat.
    """

    def __init__(self, pipeline, classes: list[dict], folder: Path, config: dict, teacher=None, workers: int = 4):
        self.pipeline, self.classes, self.folder, self.config, self.teacher = pipeline, classes, folder, config, teacher
        self.candidates = config["candidates"] or 1
        self.mode = (config["mode_scale"], config["stop_t"]) if config["guidance"] == "mode" else None
        use_scheduler(pipeline, config["scheduler"], self.mode is not None)
        self.prompts = pipeline.embed([entry["prompt"] for entry in classes])
        self.negative = pipeline.embed([config["negative_prompt"]])
        self.pool, self.writing = ThreadPoolExecutor(workers), []

    def batches(self, rows: list[dict]) -> list[list[dict]]:
        """Rows that are made together, also after an interruption, since rounding may depend on a batch's size."""
        size = max(1, self.config["batch_size"] // self.candidates)
        return [rows[first:first + size] for first in range(0, len(rows), size)]

    def choices(self, row: dict) -> list[dict]:
        """The rows of an image's candidates: the row itself without a filter."""
        if self.teacher is None:
            return [row]
        first = row["repeat"] * self.candidates
        ending = Path(row["file_name"]).suffix[1:]
        return [image_row(self.classes, row["label"], row["prototype"], repeat, self.config["seed"], row["weight"], ending)
                for repeat in range(first, first + self.candidates)]

    def made(self, row: dict) -> dict | None:
        """The row of the candidate that was kept and written, None while there is none."""
        return next((each for each in self.choices(row) if (self.folder / each["file_name"]).exists()), None)

    def make(self, rows: list[dict], prototypes: Mapping[int, Prototypes]) -> None:
        """Make the images of `rows` and begin to write them; `prototypes` are indexed by label."""
        offered = [self.choices(row) for row in rows]
        flat = [each for group in offered for each in group]
        size = self.config["batch_size"]
        images = torch.cat([self.draw(flat[first:first + size], prototypes) for first in range(0, len(flat), size)])
        if self.teacher is not None:
            groups = images.unflatten(0, (len(rows), self.candidates))
            kept = self.teacher.choose(groups, torch.tensor([row["label"] for row in rows]))
            images = groups[torch.arange(len(rows)), kept]
            flat = [group[place] for group, place in zip(offered, kept.tolist(), strict=True)]
        self.wait()
        self.writing = [self.pool.submit(write_image, self.folder, each["file_name"], to_pil(image, self.config["image_size"]))
                        for image, each in zip(images, flat, strict=True)]

    def draw(self, rows: list[dict], prototypes: Mapping[int, Prototypes]) -> Tensor:
        """Images uint8 [B, 3, H, W] of `rows`."""
        latents = torch.stack([prototypes[row["label"]].centroids[row["prototype"]] for row in rows])
        return synthesize(self.pipeline, latents, self.prompts[[row["label"] for row in rows]], self.negative,
                          [tuple(row[name] for name in SEED_PLACE) for row in rows], self.config["seed"],
                          self.config["strength"], self.config["guidance_scale"], self.config["num_inference_steps"], self.mode)

    def wait(self) -> None:
        """Wait until what was made is written; raises what went wrong while writing."""
        for each in self.writing:
            each.result()
        self.writing = []
