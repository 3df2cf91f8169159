"""Prototypes to images: denoise in batches across classes, and write files while the next batch is denoised.

Two ways to better images: mode guidance (MGD3, arXiv 2505.18963), and a teacher that chooses among candidates (CaO2, arXiv
2506.22637).
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from distillation.checkpoints import converted
from distillation.distilled_set import check_class_names, row, write_image
from distillation.images import resized, to_pil, to_uint8
from distillation.prototypes import Prototypes
from scripts.cli import InputError
from scripts.networks import load_model, predict
from scripts.randomness import generator_for, seed_for

UNFIT = ("DPMSolverSDEScheduler", "EDMEulerScheduler")  # noise of its own, not from the generator; for EDM's networks
SEED_PLACE = ("label", "prototype", "repeat")  # the noise of an image is a function of (seed, these)


@dataclass(frozen=True)
class Denoising:
    """How latents are denoised; `mode` is (scale, steps) of mode guidance."""

    strength: float
    guidance_scale: float
    num_inference_steps: int
    mode: tuple[float, int] | None = None


def synthesize(pipeline, latents: Tensor, prompts: Tensor, negative: Tensor, places: list[tuple], seed: int,
               how: Denoising, names: list[str] | None = None) -> Tensor:
    """Images uint8 [B, 3, H, W] on the CPU from prototype latents [B, C, h, w] and prompt embeddings [B, tokens, width].

    D4M, section 3.3: add noise to `strength`, denoise under the prompt with classifier-free guidance. With mode guidance: start
    from noise and guide to the prototypes during the first steps; the scheduler must be a ModeGuidedScheduler. The generator
    of an image is a function of (seed, its place), so an image does not depend on its batch. Raises InputError, with the
    image's name or index, for one that is not finite.
    """
    generators = [generator_for(seed, "image", *place) for place in places]
    strength = how.strength
    if how.mode is not None:
        pipeline.scheduler.aim(latents, *how.mode)
        latents, strength = torch.zeros_like(latents), 1.0
    images = pipeline(latents=latents, prompt_embeds=prompts, negative_prompt_embeds=negative.expand_as(prompts),
                      strength=strength, guidance_scale=how.guidance_scale, num_inference_steps=how.num_inference_steps,
                      generator=generators, names=names)
    return to_uint8(images)


def latent_shape(pipeline) -> tuple[int, int, int]:
    """(C, h, w) of the latents the checkpoint was trained on."""
    side = pipeline.unet.config.sample_size
    return pipeline.unet.config.in_channels, side, side


def check_latent_shape(pipeline, shape: tuple[int, ...], size_pixels: int | None, source: str) -> None:
    """Raise InputError when latents [C, h, w] are not what `pipeline` makes of images of `size_pixels`."""
    channels = pipeline.unet.config.in_channels
    side = size_pixels // pipeline.vae_scale_factor if size_pixels else shape[1]
    if tuple(shape) != (channels, side, side):
        raise InputError(f"{source}: expected latents of shape {(channels, side, side)}, as the checkpoint has them, found "
                         f"{tuple(shape)}")


def use_scheduler(pipeline, name: str | None, mode_guided: bool = False) -> None:
    """Give `pipeline` diffusers' scheduler `name` (None: keep the checkpoint's), with the checkpoint's noise schedule.

    Raises InputError for a scheduler that does not fit, and for mode guidance with any but DDIM.
    """
    if mode_guided:
        if name not in (None, "DDIMScheduler"):
            raise InputError(f"--scheduler: expected DDIMScheduler, which --guidance mode builds on, found {name}")
        scheduler = ModeGuidedScheduler
    elif name is None:
        return
    else:
        fitting = {each.__name__: each for each in pipeline.scheduler.compatibles if each.__name__ not in UNFIT}
        if name not in fitting:
            raise InputError(f"--scheduler: expected one of {', '.join(sorted(fitting))}, found {name}")
        scheduler = fitting[name]
    pipeline.scheduler = converted(pipeline.scheduler, scheduler)


# mode guidance

def pull(predicted: Tensor, prototypes: Tensor, alpha_bar: Tensor, previous: Tensor, scale: float) -> Tensor:
    """What mode guidance adds to the next latents: scale * sigma * (prototype - x0), with x0 `predicted` [B, C, h, w].

    sigma^2 = (1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous) is the variance of the step's posterior (Ho et al.
    2020, eq. 7), between the noise levels `alpha_bar` and `previous`.
    """
    sigma = ((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)).sqrt()
    return scale * sigma * (prototypes - predicted)


class ModeGuidedScheduler(DDIMScheduler):
    """DDIM with mode guidance after each of the first steps; plain DDIM before `aim` is called."""

    prototypes: Tensor | None = None

    def aim(self, prototypes: Tensor, scale: float, stop: int) -> None:
        """Guide the next batch to `prototypes` [B, C, h, w] (scaled latents) with strength `scale` for `stop` steps."""
        self.prototypes, self.scale, self.left = prototypes, scale, stop

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, *rest, return_dict: bool = True, **options):
        """One step of DDIM; then the pull."""
        stepped = super().step(model_output, timestep, sample, *rest, **options)
        if self.prototypes is not None and self.left > 0:
            self.left -= 1
            before = timestep - self.config.num_train_timesteps // self.num_inference_steps
            previous = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
            moved = pull(stepped.pred_original_sample.float(), self.prototypes.to(sample.device), self.alphas_cumprod[timestep],
                         previous, self.scale)
            stepped.prev_sample = (stepped.prev_sample.float() + moved).to(stepped.prev_sample.dtype)
        return stepped if return_dict else stepped.to_tuple()


# a teacher that chooses among candidates

class TeacherFilter:
    """A trained classifier keeps one of several candidates: a "confident" one (typical) or a "hard" one (just recognised)."""

    def __init__(self, folder: str | Path, classes: list[dict], keep: str, device):
        """Raises InputError for a teacher of other classes."""
        network, manifest = load_model(folder, "teacher")
        check_class_names(str(folder), manifest["classes"], "the images to make", classes)
        self.network = network.to(device)
        self.size, self.keep, self.device = manifest["config"]["input_size"], keep, device

    def choose(self, candidates: Tensor, labels: Tensor) -> Tensor:
        """The candidate to keep [G] of uint8 images [G, M, 3, H, W] of classes `labels` [G]."""
        flat = resized(candidates.flatten(0, 1).to(self.device), self.size)
        logits = predict(self.network, flat).cpu()
        return best_candidates(logits.unflatten(0, candidates.shape[:2]), labels, self.keep)


def best_candidates(logits: Tensor, labels: Tensor, keep: str) -> Tensor:
    """Indices [G] among M candidates with logits [G, M, K]: of those recognised as their class `labels` [G] the one of highest
    ("confident") or lowest ("hard") probability; if none is recognised, the one with the highest probability of its class.
    """
    certainty = logits.softmax(-1).gather(-1, labels[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    right = logits.argmax(-1) == labels[:, None]
    if keep == "hard":
        hardest = torch.where(right, certainty, torch.inf).argmin(1)
        return torch.where(right.any(1), hardest, certainty.argmax(1))
    return torch.where(right, certainty + 1, certainty).argmax(1)


# rows and files

def plan_rows(classes: list[dict], weights: dict[int, Tensor], repeats: int, seed: int, image_format: str) -> list[dict]:
    """One row per image, in the order of `weights`: label -> each prototype's fraction of the class [IPC]."""
    return [image_row(classes, label, prototype, repeat, seed, fraction.item() / repeats, image_format)
            for label, shares in weights.items() for repeat in range(repeats) for prototype, fraction in enumerate(shares)]


def image_row(classes: list[dict], label: int, prototype: int, repeat: int, seed: int, weight: float,
              image_format: str) -> dict:
    """The row of one image of a prototype."""
    return row(label, classes[label]["name"], prototype, repeat, seed_for(seed, "image", label, prototype, repeat),
               round(weight, 8), image_format)


class ImageMaker:
    """Makes the images of rows in batches across classes, and writes each batch while the next one is made.

    `config` is the distilled set's configuration. With a `teacher` filter, `config["candidates"]` images are made for each row
    and one is kept; its file name has the candidate's number as the repeat.
    """

    def __init__(self, pipeline, classes: list[dict], folder: Path, config: dict, teacher: TeacherFilter | None = None,
                 workers: int = 4):
        self.pipeline, self.classes, self.folder, self.config, self.teacher = pipeline, classes, folder, config, teacher
        self.candidates = config["candidates"] or 1
        mode = (config["mode_scale"], config["stop_t"]) if config["guidance"] == "mode" else None
        self.how = Denoising(config["strength"], config["guidance_scale"], config["num_inference_steps"], mode)
        use_scheduler(pipeline, config["scheduler"], mode_guided=mode is not None)
        self.prompts = pipeline.embed([entry["prompt"] for entry in classes])
        self.negative = pipeline.embed([config["negative_prompt"]])
        self.pool, self.writing = ThreadPoolExecutor(max(1, workers)), []

    def batches(self, rows: list[dict]) -> list[list[dict]]:
        """Split rows into batches. A continued run keeps them, since rounding may depend on the batch's size."""
        size = max(1, self.config["batch_size"] // self.candidates)
        return [rows[first:first + size] for first in range(0, len(rows), size)]

    def candidate_rows(self, row: dict) -> list[dict]:
        """The rows of an image's candidates; without a filter the row itself."""
        if self.teacher is None:
            return [row]
        first, ending = row["repeat"] * self.candidates, Path(row["file_name"]).suffix[1:]
        return [image_row(self.classes, row["label"], row["prototype"], repeat, self.config["seed"], row["weight"], ending)
                for repeat in range(first, first + self.candidates)]

    def made(self, row: dict) -> dict | None:
        """The row of the written image (with a filter: of the candidate that was kept); None before it is written."""
        return next((each for each in self.candidate_rows(row) if (self.folder / each["file_name"]).exists()), None)

    def make(self, rows: list[dict], prototypes: Mapping[int, Prototypes]) -> None:
        """Make the images of `rows` and start to write them; `prototypes` are indexed by label."""
        candidates = [self.candidate_rows(row) for row in rows]
        chosen = [each for group in candidates for each in group]
        size = self.config["batch_size"]
        images = torch.cat([self.denoise(chosen[first:first + size], prototypes) for first in range(0, len(chosen), size)])
        if self.teacher is not None:
            groups = images.unflatten(0, (len(rows), self.candidates))
            best = self.teacher.choose(groups, torch.tensor([row["label"] for row in rows]))
            images = groups[torch.arange(len(rows)), best]
            chosen = [group[index] for group, index in zip(candidates, best.tolist(), strict=True)]
        self.wait()
        self.writing = [self.pool.submit(write_image, self.folder, each["file_name"], to_pil(image, self.config["image_size"]))
                        for image, each in zip(images, chosen, strict=True)]

    def denoise(self, rows: list[dict], prototypes: Mapping[int, Prototypes]) -> Tensor:
        """Images uint8 [B, 3, H, W] of `rows`."""
        latents = torch.stack([prototypes[row["label"]].centroids[row["prototype"]] for row in rows])
        return synthesize(self.pipeline, latents, self.prompts[[row["label"] for row in rows]], self.negative,
                          [tuple(row[name] for name in SEED_PLACE) for row in rows], self.config["seed"], self.how,
                          [row["file_name"] for row in rows])

    def wait(self) -> None:
        """Wait until all images are written; raises the errors of writing."""
        for each in self.writing:
            each.result()
        self.writing = []
