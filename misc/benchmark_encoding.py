"""Latents of image files with decoding ahead against batch by batch, and the memory of stage 1 on few and many classes."""

import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from distillation.checkpoints import load_pipeline
from distillation.datasets import Split, load_split
from distillation.encoding import encode_classes
from misc.measuring import compared, interleaved, peak_memory_bytes
from scripts.cli import DIGITS_LDM
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline


def encoding(folder: Path, device, repetitions: int, checkpoint: str = DIGITS_LDM, files: int = 512, file_pixels: int = 256,
             batch_size: int = 64) -> dict:
    """Files decoded ahead in threads against decoding and encoding in turn, batch by batch; the latents must be the same."""
    root = write_photos(folder / f"photos-{file_pixels}-{files}", 4, files // 4, file_pixels)
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, checkpoint, device)
    split, size, vae = load_split("folder", root, "train"), pipeline.size_pixels, pipeline.vae
    latents: dict[str, Tensor] = {}
    waits: list[dict] = []

    def ours():
        waits.append({})
        latents["ours"] = torch.cat([each.latents for each in encode_classes(
            pipeline, split, list(range(len(split.classes))), size, seed=0, latent="mean", batch_size=batch_size,
            seconds=waits[-1])])

    def stock():
        latents["stock"] = torch.cat([part for label in range(len(split.classes))
                                      for part in stock_latents(vae, split, split.rows_of(label), size, batch_size)])
    seconds = interleaved({"ours": ours, "stock": stock}, repetitions, f"encoding, {Path(checkpoint).name}")
    shares = [spent["wait"] / spent["encode"] for spent in waits[1:]]
    return {"settings": {"checkpoint": Path(checkpoint).name, "dtype": str(vae.dtype), "files": len(split.labels),
                         "file_pixels": file_pixels, "size_pixels": size, "batch_size": batch_size, "workers": 4},
            "largest_difference": check_same_latents(latents["ours"], latents["stock"]),
            **compared(seconds, {"ours": len(split.labels), "stock": len(split.labels)}),
            "waiting_share": statistics.median(shares), "waiting": [{key: round(value, 4) for key, value in spent.items()}
                                                                    for spent in waits[1:]]}


@torch.inference_mode()
def stock_latents(vae: AutoencoderKL, split: Split, rows, size_pixels: int, batch_size: int):
    """Latents of image files, each batch decoded and then encoded, in this thread."""
    for part in np.array_split(rows, math.ceil(len(rows) / batch_size)):
        images = [np.asarray(split.read(int(row)).resize((size_pixels, size_pixels), Image.BILINEAR)) for row in part]
        signed = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
        yield vae.encode(signed).latent_dist.mean.float().cpu() * vae.config.scaling_factor


def check_same_latents(ours: Tensor, stock: Tensor) -> float:
    """The largest difference in units of the latents' spread; raises RuntimeError above a hundredth, which is for halves."""
    found = float((ours - stock).abs().max() / stock.std())
    if not found <= 0.01:
        raise RuntimeError(f"encoding: expected the same latents to 0.01 of their standard deviation, found {found:.4f}")
    return found


def write_photos(root: Path, classes: int, per_class: int, side: int) -> Path:
    """Write `classes` folders of JPEG files below root/train, coarse noise under fine, and return `root`."""
    for label in range(classes):
        folder = root / "train" / f"class{label:03d}"
        folder.mkdir(parents=True)
        for place in range(per_class):
            rng = np.random.default_rng([label, place])
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
            fine = rng.integers(-8, 9, (side, side, 1))
            Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(folder / f"{place:05d}.jpg")
    return root


def memory(folder: Path, classes: tuple[int, int] = (10, 100), per_class: int = 100, checkpoint: str = DIGITS_LDM) -> dict:
    """Peak memory of gen_prototype on few and on many classes of equally many small files."""
    peaks = {}
    for count in tqdm(classes, desc="memory", unit="run", disable=None):
        root = write_photos(folder / f"classes-{count}", count, per_class, 32)
        peaks[count * per_class] = peak_memory_bytes([
            sys.executable, "-m", "distillation.gen_prototype", "--dataset", "folder", "--data_dir", str(root), "--ipc", "10",
            "--diffusion_checkpoints_path", str(checkpoint), "--save_prototype_path", str(root / "prototypes")])
    few, many = peaks.values()
    return {"settings": {"checkpoint": Path(checkpoint).name, "images_per_class": per_class, "ipc": 10},
            "peak_bytes": {str(images): peak for images, peak in peaks.items()}, "growth": many / few - 1}
