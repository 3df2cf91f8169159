"""Images of stage 2 in batches against diffusers' own pipeline one by one; and the paper's setting on an accelerator."""

import math
import statistics
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from PIL import Image
from tqdm import tqdm

from distillation.datasets import decode, load_split
from distillation.gen_syn_image import load_images_pipeline
from distillation.ldm import PROMPT_TOKENS, byte_level_tokenizer, new_scheduler, stable_diffusion_v15
from distillation.ldm_folder import write_checkpoint
from distillation.prototypes import Prototypes
from distillation.synthesis import SEED_PLACE, ImageMaker, plan_rows
from misc.measuring import (
    compared,
    flops_of,
    interleaved,
    matrix_product_flops,
    peak_device_bytes,
    rounded,
    times_faster,
)
from scripts.cli import DIGITS_LDM
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
from scripts.randomness import generator_for

DIGITS = {"strength": 0.7, "num_inference_steps": 20, "guidance_scale": 2, "negative_prompt": "", "image_size": 32}
MAKER = {"seed": 0, "candidates": None, "guidance": "cfg", "scheduler": None}  # what else ImageMaker wants to know


@dataclass(frozen=True)
class Plan:
    """Images to make and how: `rows` as in a distilled set, `prototypes` by label, `config` as in its configuration."""

    classes: list[dict]
    rows: list[dict]
    prototypes: dict[int, Prototypes]
    config: dict

    def first(self, images: int) -> "Plan":
        """The first `images` of them, in one batch."""
        return replace(self, rows=self.rows[:images], config={**self.config, "batch_size": images})


def plan_images(pipeline, images: int, config: dict) -> Plan:
    """A plan for `images` images, class after class in turn; prototypes are the latents of single training digits."""
    split, encoder = load_split("digits", "data", "train"), StableDiffusionGenLatentsPipeline(pipeline.vae)
    per_class = math.ceil(images / len(split.classes))
    prototypes = {}
    for label in range(len(split.classes)):
        latents = encoder(decode(split, split.rows_of(label)[:per_class], encoder.size_pixels)).cpu()
        prototypes[label] = Prototypes(latents, torch.ones(per_class), torch.tensor(0.0))
    rows = plan_rows(split.classes, {label: each.weights for label, each in prototypes.items()}, 1, MAKER["seed"], "png")
    rows.sort(key=lambda row: row["prototype"])
    return Plan(split.classes, rows, prototypes, {**MAKER, **config}).first(images)


def make_ours(pipeline, plan: Plan, folder: Path) -> None:
    """Make and write the images of a plan as gen_syn_image does."""
    maker = ImageMaker(pipeline, plan.classes, folder, plan.config)
    for batch in maker.batches(plan.rows):
        maker.make(batch, plan.prototypes)
    maker.wait()


def make_stock(pipeline: StableDiffusionImg2ImgPipeline, plan: Plan, folder: Path) -> None:
    """Make and write the images of a plan one by one with diffusers' own pipeline, as D4M's released code does."""
    for row in plan.rows:
        place = tuple(row[name] for name in SEED_PLACE)
        how = {name: plan.config[name] for name in ("negative_prompt", "strength", "num_inference_steps", "guidance_scale")}
        image = pipeline(prompt=plan.classes[row["label"]]["prompt"],
                         image=plan.prototypes[row["label"]].centroids[row["prototype"]][None],
                         generator=generator_for(plan.config["seed"], "image", *place), **how).images[0]
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        side = plan.config["image_size"]
        (image if image.size == (side, side) else image.resize((side, side), Image.BICUBIC)).save(path)


def load_ours(checkpoint: str, device, dtype: str, compiled: bool = False):
    """The pipeline as gen_syn_image loads it."""
    return load_images_pipeline(SimpleNamespace(diffusion_checkpoints_path=checkpoint, revision=None, dtype=dtype,
                                                compile=compiled), device)


def load_stock(checkpoint: str, device, dtype: str) -> StableDiffusionImg2ImgPipeline:
    """The same weights in diffusers' own pipeline."""
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype), safety_checker=None, requires_safety_checker=False).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def largest_difference(ours: Path, stock: Path, plan: Plan) -> int:
    """By how much (0 to 255) a pixel of a plan's images differs at most between two folders."""
    def pixels(folder, row):
        with Image.open(folder / row["file_name"]) as image:
            return np.asarray(image).astype(int)
    return max(int(abs(pixels(ours, row) - pixels(stock, row)).max()) for row in plan.rows)


def check_same_images(ours: Path, stock: Path, plan: Plan) -> int:
    """The largest difference of a pixel (0 to 255); raises RuntimeError above 1, which rounding may make."""
    found = largest_difference(ours, stock, plan)
    if found > 1:
        raise RuntimeError(f"synthesis: expected the stock pipeline's images, at most 1/255 apart, found {found}/255")
    return found


def synthesis(folder: Path, device, repetitions: int, checkpoint: str = DIGITS_LDM, images: int = 64,
              stock_images: int = 12) -> dict:
    """`images` in one batch against `stock_images` of them one by one, in single precision; they must be the same."""
    folders = {name: folder / name for name in ("ours", "stock")}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pipeline = load_ours(checkpoint, device, "float32")
        plan = plan_images(pipeline, images, DIGITS)
        both = plan.first(stock_images)
        seconds = interleaved({
            "ours": partial(make_ours, pipeline, plan, folders["ours"]),
            "stock": partial(make_stock, load_stock(checkpoint, device, "float32"), both, folders["stock"])},
            repetitions, "synthesis")
    return {"settings": {"checkpoint": Path(checkpoint).name, "dtype": "float32", **plan.config},
            "images": {"ours": images, "stock": stock_images},
            "largest_difference_of_255": check_same_images(folders["ours"], folders["stock"], both),
            **compared(seconds, {"ours": images, "stock": stock_images})}


def write_stable_diffusion(folder: Path) -> Path:
    """Write a checkpoint of Stable Diffusion v1.5's architecture with random weights (2 GB, half precision)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae, unet, text_encoder = (part.half() for part in stable_diffusion_v15())
    write_checkpoint(folder, vae=vae, unet=unet, text_encoder=text_encoder, scheduler=new_scheduler("epsilon"),
                     tokenizer=byte_level_tokenizer(folder / "tokenizer"))  # its ids are among CLIP's, and take any text
    return folder


@dataclass(frozen=True)
class Setting:
    """What to measure of a large model."""

    config: dict
    batch_sizes: tuple[int, ...]
    stock_images: int
    matrix_side: int


PAPER = Setting({"strength": 0.7, "num_inference_steps": 50, "guidance_scale": 8, "image_size": 224,
                 "negative_prompt": "cartoon, anime, painting"}, batch_sizes=(8, 16, 32), stock_images=2, matrix_side=8192)


def stable_diffusion(folder: Path, device, repetitions: int, checkpoint: str, kinds: list[tuple[str, bool]],
                     setting: Setting = PAPER) -> dict:
    """Batches of several sizes against the stock pipeline one by one, per kind: (precision, whether the UNet is compiled)."""
    flops = flops_per_image(checkpoint, setting.config)
    return {"settings": {**MAKER, **asdict(setting)}, "flops": flops,
            "runs": [measure_kind(folder, device, repetitions, checkpoint, setting, flops["image"], *kind) for kind in kinds]}


def measure_kind(folder: Path, device, repetitions: int, checkpoint: str, setting: Setting, image_flops: int, dtype: str,
                 compiled: bool) -> dict:
    """One precision; memory is read in a round of its own, before the stock pipeline takes its share."""
    pipeline = load_ours(checkpoint, device, dtype, compiled)
    plan = plan_images(pipeline, max(setting.batch_sizes), setting.config)
    few = plan.first(setting.stock_images)
    ours = {size: partial(make_ours, pipeline, plan.first(size), folder / "ours") for size in sorted(setting.batch_sizes)}
    memory = {size: peak_device_bytes(work) for size, work in tqdm(ours.items(), desc="memory", unit="run", disable=None)}
    stock = partial(make_stock, load_stock(checkpoint, device, dtype), few, folder / "stock")
    seconds = interleaved({"stock": stock, **ours}, repetitions, f"{dtype}{', compiled' if compiled else ''}")
    one_by_one = [spent / setting.stock_images for spent in seconds.pop("stock")]
    batches = {}
    for size, spent in seconds.items():
        each = [one / size for one in spent]
        typical = statistics.median(each)
        batches[str(size)] = {"seconds": rounded(spent), "seconds_per_image": typical, "peak_device_bytes": memory[size],
                              "times_faster": times_faster(each, one_by_one), "flops_per_second": image_flops / typical}
    return {"dtype": dtype, "compiled": compiled, "size_pixels": pipeline.unet.config.sample_size * pipeline.vae_scale_factor,
            "stock_seconds_per_image": statistics.median(one_by_one), "batches": batches,
            "largest_difference_of_255": largest_difference(folder / "ours", folder / "stock", few),
            "matrix_product_flops_per_second": matrix_product_flops(device, getattr(torch, dtype), setting.matrix_side)}


def flops_per_image(checkpoint: str, config: dict) -> dict:
    """Floating-point operations: one UNet forward of one latent, one decoding, and all that one image takes with guidance."""
    with torch.device("meta"):
        unet, vae = (part.from_config(part.load_config(checkpoint, subfolder=name))
                     for part, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")))
        latent = torch.empty(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        text = torch.empty(1, PROMPT_TOKENS, unet.config.cross_attention_dim)
        forward = flops_of(lambda: unet(latent, torch.ones(1), text))
        decoding = flops_of(lambda: vae.decode(latent))
    evaluations = int(config["strength"] * config["num_inference_steps"])
    return {"unet_forward": forward, "decoding": decoding, "unet_evaluations": evaluations,
            "image": 2 * evaluations * forward + decoding}
