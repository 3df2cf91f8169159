"""Checkpoints in other layouts than the shipped one: Stable Diffusion 1.5's and 2.1's, small; and v1.5's in full size."""

import json
import shutil
from pathlib import Path

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
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from distillation.checkpoints import load_pipeline
from distillation.ldm import byte_level_tokenizer, new_scheduler, stable_diffusion_v15
from scripts.cli import DIGITS_LDM, InputError
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline, load_network
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


def prototypes_and_images(here, checkpoint: Path, image_data: Path, root: Path) -> list[Path]:
    """Run stages 1 and 2 by their command lines; the images of the second."""
    common = ("--dataset", "folder", "--diffusion_checkpoints_path", checkpoint)
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


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_encoder_written_by_transformers_4_or_5_is_read(tmp_path, prefix):
    part = Path(shutil.copytree(Path(DIGITS_LDM) / "text_encoder", tmp_path / "text_encoder"))
    tensors = load_file(Path(DIGITS_LDM) / "text_encoder" / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, part / "model.safetensors", {"format": "pt"})
    found = load_network(CLIPTextModel, str(tmp_path), "text_encoder").state_dict()
    torch.testing.assert_close({name.removeprefix("text_model."): tensor for name, tensor in found.items()},
                               {name: tensor.float() for name, tensor in tensors.items()}, rtol=0, atol=0)


@pytest.mark.parametrize("problem", ["missing", "unexpected", "mismatched"])
@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_a_network_with_other_tensors_than_its_config_asks_for_is_refused(checkpoint, tmp_path, part, problem):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    path, = (checkpoint / part).glob("*.safetensors")
    tensors = load_file(path)
    name = max(tensors)
    tensor = tensors.pop(name)
    if problem != "missing":
        tensors[name if problem == "mismatched" else "added.weight"] = tensor.new_zeros(len(tensor) + 1)
    if problem == "unexpected":
        tensors[name] = tensor
    save_file(tensors, copy / part / path.name, {"format": "pt"})
    with pytest.raises(InputError, match=f"{copy}: expected a Stable Diffusion checkpoint .* found .*"):
        load_pipeline(StableDiffusionLatents2ImgPipeline, str(copy), "cpu")


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
