"""Checkpoints in other layouts than the shipped one: Stable Diffusion 1.5's and 2.1's, small; and v1.5's in full size."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from distillation.checkpoints import load_pipeline
from distillation.ldm import byte_level_tokenizer, new_scheduler, stable_diffusion_v15
from distillation.prototypes import read_prototypes
from distillation.synthesis import Denoising, synthesize
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
LAYOUTS = {  # what differs between the two families: the UNet's heads and projections, the text encoder, the scheduler
    "v1.5, PNDM": {"unet": {"attention_head_dim": 8, "cross_attention_dim": 32}, "hidden_act": "quick_gelu",
                   "scheduler": PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False)},
    "v2.1, DDIM": {"unet": {"attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 48, "use_linear_projection": True},
                   "hidden_act": "gelu",
                   "scheduler": DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False,
                                              set_alpha_to_one=False)},
    "v2.1, Euler": {"unet": {"attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 48, "use_linear_projection": True},
                    "hidden_act": "gelu", "scheduler": EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction")},
}


def write_layout(folder: Path, unet: dict, hidden_act: str, scheduler, latent_channels: int = 4, vae_levels: int = 4,
                 unet_levels: int = 4) -> Path:
    """A checkpoint of few channels and random weights, whose latents are 8x8."""
    width, side = unet["cross_attention_dim"], 8
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionPipeline(
            vae=AutoencoderKL(
                sample_size=side * 2 ** (vae_levels - 1), block_out_channels=(8,) * vae_levels, norm_num_groups=4,
                latent_channels=latent_channels, layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * vae_levels,
                up_block_types=("UpDecoderBlock2D",) * vae_levels),
            unet=UNet2DConditionModel(
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


def prototypes_and_images(here, checkpoint: Path, image_data: Path, root: Path, *flags) -> list[Path]:
    """Run stages 1 and 2 by their command lines; the images of the second."""
    common = ("--dataset", "folder", "--diffusion_checkpoints_path", checkpoint, *flags)
    answer = here("distillation.gen_prototype", *common, "--data_dir", image_data, "--ipc", 1, "--save_prototype_path", root)
    assert answer.code == 0, answer.err
    answer = here("distillation.gen_syn_image", *common, "--prototype_path", root / "folder-ipc1-kmexpand1", "--strength", 0.7,
                  "--num_inference_steps", 4, "--save_init_image_path", root)
    assert answer.code == 0, answer.err
    return sorted(root.rglob("*.png"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_families_of_stable_diffusion_give_prototypes_and_images(here, image_data, tmp_path, name):
    checkpoint = write_layout(tmp_path / "checkpoint", **LAYOUTS[name])
    assert json.loads((checkpoint / "model_index.json").read_text())["safety_checker"] == [None, None]
    images = prototypes_and_images(here, checkpoint, image_data, tmp_path / "out")
    assert [Image.open(path).size for path in images] == [(64, 64)] * 12
    assert json.loads(next((tmp_path / "out").glob("folder-*/manifest.json")).read_text())["latent_shape"] == [4, 8, 8]


@pytest.mark.parametrize(("channels", "vae_levels"), [(8, 2), (16, 3)])
def test_latents_of_other_channels_and_downsampling(here, image_data, tmp_path, channels, vae_levels):
    checkpoint = write_layout(tmp_path / "checkpoint", **LAYOUTS["v1.5, PNDM"], latent_channels=channels, vae_levels=vae_levels,
                              unet_levels=2)
    images = prototypes_and_images(here, checkpoint, image_data, tmp_path / "out")
    assert [Image.open(path).size for path in images] == [(8 * 2 ** (vae_levels - 1),) * 2] * 12
    shape = json.loads(next((tmp_path / "out").glob("folder-*/manifest.json")).read_text())["latent_shape"]
    assert shape == [channels, 8, 8] and SIZE == 32


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


# precision and speed: what runs on an accelerator, on the CPU

@pytest.fixture
def two_images(image_data, tmp_path) -> Path:
    """One image in each of two classes."""
    for name in ("ant", "bear"):
        (tmp_path / "few" / "train" / name).mkdir(parents=True)
        shutil.copy(image_data / "train" / name / "00.png", tmp_path / "few" / "train" / name)
    return tmp_path / "few"


@pytest.fixture
def in_precision(here, checkpoint, two_images, tmp_path):
    """Centroids and pixels of both stages in `dtype`, with the autoencoder's `force_upcast`, None for none.

    The autoencoder's weights are the same in bfloat16, so that only the precision of computing differs.
    """
    def call(dtype: str, upcast: bool | None) -> tuple[torch.Tensor, np.ndarray]:
        root = tmp_path / f"{dtype}-{upcast}"
        copy = Path(shutil.copytree(checkpoint, root / "checkpoint"))
        config = json.loads((copy / "vae" / "config.json").read_text()) | {"force_upcast": upcast}
        (copy / "vae" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
        save_file({name: value.bfloat16().float() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
        images = prototypes_and_images(here, copy, two_images, root / "out", "--dtype", dtype)
        vae = load_pipeline(StableDiffusionLatents2ImgPipeline, str(copy), "cpu", dtype).vae
        assert vae.dtype == (torch.float32 if upcast else getattr(torch, dtype))
        return read_prototypes(root / "out" / "folder-ipc1-kmexpand1")[1][0].centroids, np.stack([
            np.array(Image.open(path)).astype(int) for path in images])
    return call


def test_bfloat16_is_close_to_float32_and_an_autoencoder_that_asks_for_float32_has_it(in_precision):
    """As in the SDXL pipelines of diffusers; v1.5 does not name `force_upcast`, and its default is not taken for a wish."""
    centroids, pixels = in_precision("float32", True)
    for upcast in (True, False, None):
        found, made = in_precision("bfloat16", upcast)
        assert torch.equal(found, centroids) == bool(upcast)
        torch.testing.assert_close(found, centroids, atol=0.02, rtol=0.02)
        assert 0 < np.abs(made - pixels).mean() < 3


def images_of(pipeline) -> torch.Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return synthesize(pipeline, latents, pipeline.embed(["ant", "bear"]), pipeline.embed([""]), [(0,), (1,)], 0,
                      Denoising(0.5, 3.0, 4)).int()


def test_scaled_dot_product_attention_and_channels_last_make_the_same_images(checkpoint):
    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, str(checkpoint), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    fused = images_of(pipeline)
    for part in (pipeline.unet, pipeline.vae):
        assert {type(each) for each in part.attn_processors.values()} == {AttnProcessor2_0}
        part.set_attn_processor(AttnProcessor())
    assert (images_of(pipeline) - fused).abs().max() <= 1
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    assert (images_of(pipeline) - fused).abs().max() <= 1


@pytest.mark.skipif(not os.environ.get("COMPILE") or shutil.which(os.environ.get("CXX", "g++")) is None,
                    reason="takes a C++ compiler minutes; COMPILE=1 sh scripts/test.sh -k compiled")
def test_a_compiled_unet_makes_the_same_images(here, checkpoint, two_images, tmp_path):
    plain = prototypes_and_images(here, checkpoint, two_images, tmp_path / "plain")
    answer = here("distillation.gen_syn_image", "--dataset", "folder", "--diffusion_checkpoints_path", checkpoint,
                  "--prototype_path", tmp_path / "plain" / "folder-ipc1-kmexpand1", "--strength", 0.7,
                  "--num_inference_steps", 4, "--save_init_image_path", tmp_path / "compiled", "--compile")
    assert answer.code == 0, answer.err
    for one, other in zip(plain, sorted((tmp_path / "compiled").rglob("*.png")), strict=True):
        assert np.abs(np.array(Image.open(one)).astype(int) - np.array(Image.open(other))).max() <= 1
