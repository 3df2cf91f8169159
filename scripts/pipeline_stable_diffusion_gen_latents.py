"""Images to latents: the part of Stable Diffusion that stage 1 needs, which is its autoencoder alone."""

import logging
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel

from scripts.files import check_finite, likely_cause

TRANSFORMERS = int(version("transformers").split(".")[0])
TEXT_NAMES = {r"^(text_model\.)?": "text_model."}  # transformers 4 writes and needs this prefix; 5 writes none and reads both


def load_network(network_class, checkpoint: str, part: str, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """The network in the folder `part` of a Stable Diffusion checkpoint (hub name, or folder, of the variant fp16 too).

    Raises ValueError for a tensor that is missing, unknown or of another shape; the libraries would leave it random.
    """
    weights = [path.suffixes for path in Path(checkpoint, part).glob("*") if path.suffix in (".safetensors", ".bin")]
    if weights and all(".fp16" in suffixes for suffixes in weights):
        options["variant"] = "fp16"
    if network_class is CLIPTextModel:
        options |= {"ignore_mismatched_sizes": True, **({"key_mapping": TEXT_NAMES} if TRANSFORMERS < 5 else {})}
    logging.disable(logging.ERROR)  # of what is in the report, and of files tried in vain
    try:
        network, report = network_class.from_pretrained(checkpoint, subfolder=part, output_loading_info=True, **options)
    finally:
        logging.disable(logging.NOTSET)
    for problem in ("missing", "unexpected", "mismatched"):
        if names := report[f"{problem}_keys"]:
            raise ValueError(f"{len(names)} {problem} tensors in its {part}, such as {min(map(str, names))}")
    return nn.Module.to(network, dtype)  # diffusers' own `to` warns, and its versions name their option differently


class StableDiffusionGenLatentsPipeline(DiffusionPipeline):
    """Encodes images into scaled latents. Loads no UNet, text encoder or safety checker."""

    parts = ("vae",)

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.register_modules(vae=vae)

    @classmethod
    def from_pretrained(cls, checkpoint: str, **kwargs):
        """Load the `vae` part of a Stable Diffusion checkpoint (hub name or folder); nothing else is read or downloaded."""
        return cls(load_network(AutoencoderKL, checkpoint, "vae", **kwargs))

    @property
    def size_pixels(self) -> int:
        """The side of the images the autoencoder was trained on."""
        return self.vae.config.sample_size

    @property
    def downsampling(self) -> int:
        """How many times smaller latents are than images, per side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, size_pixels: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a square image."""
        side = size_pixels // self.downsampling
        return self.vae.config.latent_channels, side, side

    @torch.inference_mode()
    def __call__(self, images: Tensor, noise: Tensor | None = None, names: list[str] | None = None) -> Tensor:
        """Latents [B, C, h, w], times the scaling factor, of uint8 `images` [B, 3, H, W].

        With `noise` [B, C, h, w] a sample of the posterior, mean + std * noise; without, its mean. Raises InputError for
        latents that are not finite, with the image's name.
        """
        signed = (images.to(self.device).float() / 127.5 - 1).to(self.vae.dtype)
        posterior = self.vae.encode(signed).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        check_finite(dict(zip(names or range(len(latents)), latents, strict=True)), "encoder", likely_cause(self.vae.dtype))
        return latents.float() * self.vae.config.scaling_factor
