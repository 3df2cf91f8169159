"""Checkpoints in other layouts than the shipped one: Stable Diffusion 1.5's and 2.1's, small; and v1.5's in full size."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import manifest_in
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from distillation.ldm import byte_level_tokenizer, new_scheduler, stable_diffusion_v15
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
V1 = {"unet": {"attention_head_dim": 8, "cross_attention_dim": 32}, "hidden_act": "quick_gelu",
      "scheduler": diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False)}
V2 = {"unet": {"attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 48, "use_linear_projection": True},
      "hidden_act": "gelu", "scheduler": diffusers.DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False,
                                                                 set_alpha_to_one=False)}
LAYOUTS = {  # the two families differ in the UNet's heads and projections, the text encoder, the scheduler
    "v1.5, PNDM": V1, "v2.1, DDIM": V2,
    "v2.1, Euler": {**V2, "scheduler": diffusers.EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction")},
    "8 channels, halved": {**V1, "latent_channels": 8, "vae_levels": 2, "unet_levels": 2},
    "16 channels, quartered": {**V1, "latent_channels": 16, "vae_levels": 3, "unet_levels": 2}}


def write_layout(folder: Path, unet: dict, hidden_act: str, scheduler, latent_channels: int = 4, vae_levels: int = 4,
                 unet_levels: int = 4) -> Path:
    """A checkpoint of few channels and random weights, whose latents are 8x8."""
    width, side = unet["cross_attention_dim"], 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.StableDiffusionPipeline(
            vae=diffusers.AutoencoderKL(
                sample_size=side * 2 ** (vae_levels - 1), block_out_channels=(8,) * vae_levels, norm_num_groups=4,
                latent_channels=latent_channels, layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * vae_levels,
                up_block_types=("UpDecoderBlock2D",) * vae_levels),
            unet=diffusers.UNet2DConditionModel(
                sample_size=side, in_channels=latent_channels, out_channels=latent_channels, norm_num_groups=8,
                block_out_channels=(8, 16, 32, 32)[:unet_levels], layers_per_block=2,
                down_block_types=("CrossAttnDownBlock2D",) * (unet_levels - 1) + ("DownBlock2D",),
                up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (unet_levels - 1), **unet),
            text_encoder=CLIPTextModel(CLIPTextConfig(
                vocab_size=514, hidden_size=width, intermediate_size=width, num_hidden_layers=2, num_attention_heads=4,
                hidden_act=hidden_act, bos_token_id=512, eos_token_id=513, pad_token_id=513)),
            tokenizer=byte_level_tokenizer(folder / "tokenizer"), scheduler=scheduler, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_other_layouts_give_prototypes_and_images(here, image_data, tmp_path, name):
    """Stages 1 and 2 by their command lines."""
    checkpoint, layout = write_layout(tmp_path / "checkpoint", **LAYOUTS[name]), LAYOUTS[name]
    assert json.loads((checkpoint / "model_index.json").read_text())["safety_checker"] == [None, None]
    common, root = ("--dataset", "folder", "--diffusion_checkpoints_path", checkpoint), tmp_path / "out"
    answer = here("distillation.gen_prototype", *common, "--data_dir", image_data, "--ipc", 1, "--save_prototype_path", root)
    assert answer.code == 0, answer.err
    answer = here("distillation.gen_syn_image", *common, "--prototype_path", root / "folder-ipc1-kmexpand1", "--strength", 0.7,
                  "--num_inference_steps", 4, "--save_init_image_path", root)
    assert answer.code == 0, answer.err
    side = 8 * 2 ** (layout.get("vae_levels", 4) - 1)
    assert [Image.open(path).size for path in root.rglob("*.png")] == [(side, side)] * 12
    assert manifest_in(root / "folder-ipc1-kmexpand1")["latent_shape"] == [layout.get("latent_channels", 4), 8, 8]


@torch.no_grad()
def test_stable_diffusion_v15_in_full_size_passes_through_both_pipelines(tmp_path):
    """Shapes only, on the meta device, which computes nothing; parameters as published for the released weights."""
    with torch.device("meta"):
        vae, unet, text_encoder = stable_diffusion_v15()
    assert [sum(weight.numel() for weight in part.parameters()) for part in (vae, unet, text_encoder)] == \
        [83_653_863, 859_520_964, 123_060_480]
    latents = StableDiffusionGenLatentsPipeline(vae)(torch.zeros(3, 3, 512, 512, dtype=torch.uint8), torch.zeros(3, 4, 64, 64))
    assert latents.shape == (3, 4, 64, 64)
    pipeline = StableDiffusionLatents2ImgPipeline(
        vae=vae, unet=unet, text_encoder=text_encoder, tokenizer=byte_level_tokenizer(tmp_path),
        scheduler=new_scheduler("epsilon"), safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    prompts = pipeline.embed(["", "", "", "goldfish", "hen", "great white shark"])
    assert prompts.shape == (6, 77, 768)
    noise = pipeline.unet(torch.cat([latents, latents]), torch.ones(6, device="meta"), encoder_hidden_states=prompts).sample
    assert noise.shape == (6, 4, 64, 64)
    assert pipeline.decode(noise[:3]).shape == (3, 3, 512, 512)
