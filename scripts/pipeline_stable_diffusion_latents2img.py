"""Prototype latents and prompts to images: Stable Diffusion's image-to-image, started from latents."""

import torch
from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from scripts.files import check_finite, likely_cause
from scripts.pipeline_stable_diffusion_gen_latents import load_network

NETWORKS = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}


@torch.inference_mode()
def decode_latents(vae, latents: Tensor, names: list[str] | None = None) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of scaled latents [B, C, h, w]; all it needs is the autoencoder.

    Raises InputError for latents or images that are not finite, with the image's name.
    """
    signed = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
    for part, output in (("UNet", latents), ("decoder", signed)):  # after decoding: the host waits for the device anyway
        check_finite(dict(zip(names or range(len(latents)), output, strict=True)), part, likely_cause(output.dtype))
    return (signed.float() / 2 + 0.5).clamp(0, 1)


class StableDiffusionLatents2ImgPipeline(StableDiffusionImg2ImgPipeline):
    """The stock pipeline with prompt embeddings computed once, no safety checker, and strength 0 allowed."""

    parts = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")

    @classmethod
    def from_pretrained(cls, checkpoint: str, dtype: torch.dtype = torch.float32, **kwargs):
        """Load a Stable Diffusion checkpoint (hub name or folder)."""
        networks = {part: load_network(network, checkpoint, part, dtype, **kwargs) for part, network in NETWORKS.items()}
        return super().from_pretrained(checkpoint, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
                                       **kwargs, **networks)

    @torch.inference_mode()
    def embed(self, prompts: list[str]) -> Tensor:
        """Prompt embeddings [len(prompts), tokens, width]. Raises InputError where they are not finite."""
        found = self.encode_prompt(prompts, self.device, num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
        check_finite(dict(zip(prompts, found, strict=True)), "text encoder", likely_cause(found.dtype))
        return found

    def decode(self, latents: Tensor, names: list[str] | None = None) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of scaled latents [B, C, h, w], without any diffusion."""
        return decode_latents(self.vae, latents, names)

    def __call__(self, latents: Tensor, strength: float = 0.7, num_inference_steps: int = 50, names: list[str] | None = None,
                 **stock) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]: noise `latents` [B, C, h, w] to `strength` and denoise them under the prompts.

        Errors name an image by `names`.
        `stock` goes to the stock pipeline: `prompt_embeds`, `negative_prompt_embeds`, `guidance_scale`, `generator` (one per
        image makes a picture independent of its batch), ... Where strength leaves no step the prototype is decoded as it is.
        """
        if int(strength * num_inference_steps) < 1:
            return self.decode(latents, names)
        self.image_processor.register_to_config(vae_latent_channels=latents.shape[1])  # so that latents pass as such
        denoised = super().__call__(image=latents, strength=strength, num_inference_steps=num_inference_steps,
                                    output_type="latent", **stock).images
        return self.decode(denoised, names)

    def prepare_latents(self, image, timestep, batch_size, num_images_per_prompt, dtype, device, generator=None):
        """Noise the prototypes to `timestep`; unlike the stock method, latents may have any number of channels.

        Drawn in float32 for every precision: older versions of torch draw other numbers for bfloat16 than for float32.
        """
        from diffusers.utils.torch_utils import randn_tensor
        image = image.to(device=device, dtype=dtype)
        noise = randn_tensor(image.shape, generator, image.device, torch.float32).to(dtype)
        return self.scheduler.add_noise(image, noise, timestep)
