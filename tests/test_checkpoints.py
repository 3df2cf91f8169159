"""Checkpoints in other layouts than the shipped one: Stable Diffusion 1.5's and 2.1's, small; and v1.5's in full size."""

import json
import os
import shlex
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import manifest_in, pixels
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from safetensors.torch import load_file, save_file
from test_bad_input import refused
from transformers import CLIPTextConfig, CLIPTextModel

from distillation.checkpoints import checkpoint_identity, load_pipeline, stored_dtype
from distillation.ldm import byte_level_tokenizer, new_scheduler, stable_diffusion_v15
from distillation.prototypes import read_prototypes
from distillation.synthesis import Denoising, synthesize
from scripts.cli import DIGITS_LDM, ROOT, InputError
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline, load_network
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
def test_other_layouts_give_prototypes_and_images(here, image_data, tmp_path, name):
    checkpoint, layout, root = write_layout(tmp_path / "checkpoint", **LAYOUTS[name]), LAYOUTS[name], tmp_path / "out"
    assert json.loads((checkpoint / "model_index.json").read_text())["safety_checker"] == [None, None]
    side = 8 * 2 ** (layout.get("vae_levels", 4) - 1)
    assert [Image.open(path).size for path in prototypes_and_images(here, checkpoint, image_data, root)] == [(side, side)] * 12
    assert manifest_in(root / "folder-ipc1-kmexpand1")["latent_shape"] == [layout.get("latent_channels", 4), 8, 8]


def rename_to_fp16(folder: Path, parts: str = "*") -> None:
    for path in list(folder.glob(f"{parts}/*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))


def name_safety_checker(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
              "feature_extractor": ["transformers", "CLIPImageProcessor"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))


def move_to_cache(folder: Path) -> None:
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0" * 20)
    (folder / "snapshots" / ("0b" * 20)).mkdir(parents=True)  # an older commit
    moved = folder / "snapshots" / ("c0" * 20)
    moved.mkdir()
    for path in list(folder.iterdir()):
        if path.name not in ("refs", "snapshots"):
            path.rename(moved / path.name)


FOLDERS = {"fp16 alone": (rename_to_fp16,), "fp16 of the autoencoder alone": (lambda folder: rename_to_fp16(folder, "vae"),),
           "a safety checker that is not there": (name_safety_checker,), "a hub's cache": (move_to_cache,),
           "all of it": (rename_to_fp16, name_safety_checker, move_to_cache)}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_other_layouts_load_the_same_tensors(checkpoint, tmp_path, name):
    folder = shutil.copytree(checkpoint, tmp_path / "models--owner--name")
    for change in FOLDERS[name]:
        change(folder)
    for pipeline_class in (StableDiffusionGenLatentsPipeline, StableDiffusionLatents2ImgPipeline):
        found, expected = (load_pipeline(pipeline_class, str(path), "cpu") for path in (folder, checkpoint))
        for part in {"vae", "unet", "text_encoder"} & {*pipeline_class.parts}:
            state, wanted = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
            assert state.keys() == wanted.keys() and all(torch.equal(state[key], wanted[key]) for key in wanted), part
    digests = {checkpoint_identity(str(path), ("vae",)).split()[1] for path in (folder, checkpoint)}
    assert len(digests) == 1


def test_both_stages_read_a_cached_fp16_checkpoint_without_its_safety_checker(here, checkpoint, image_data, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "models--owner--name")
    for change in FOLDERS["all of it"]:
        change(folder)
    assert len(prototypes_and_images(here, folder, image_data, tmp_path / "out")) == 12
    made = manifest_in(tmp_path / "out" / "folder-ipc1-kmexpand1")
    assert made["config"]["checkpoint"] == checkpoint_identity(str(folder), ("vae",))


def test_a_cache_without_its_main_commit_and_a_single_file_are_refused_with_what_to_do(here, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "models--owner--name")
    move_to_cache(folder)
    (folder / "refs" / "main").write_text("f" * 40)
    single = tmp_path / "it's one.safetensors"
    single.write_bytes(b"x")
    for path, words in ((folder, ("found 2 others", f"such as {folder / 'snapshots' / ('0b' * 20)}")),
                        (single, ("found a single file; convert it", "from_single_file", str(tmp_path)))):
        answer = here("distillation.gen_prototype", "--diffusion_checkpoints_path", path)
        assert answer.code == 2 and answer.err.count("\n") == 1, answer.err
        assert all(word in answer.err for word in words), answer.err
    compile(shlex.split(answer.err.partition("needs a hub: ")[2])[2], "command", "exec")


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_encoder_written_by_transformers_4_or_5_is_read(tmp_path, prefix):
    part = Path(shutil.copytree(Path(DIGITS_LDM) / "text_encoder", tmp_path / "text_encoder"))
    tensors = load_file(Path(DIGITS_LDM) / "text_encoder" / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, part / "model.safetensors", {"format": "pt"})
    found = load_network(CLIPTextModel, str(tmp_path), "text_encoder").state_dict()
    torch.testing.assert_close({name.removeprefix("text_model."): tensor for name, tensor in found.items()},
                               {name: tensor.float() for name, tensor in tensors.items()}, rtol=0, atol=0)


@pytest.mark.parametrize(("changed", "words"), [
    ({"addition_embed_type": "text_time"}, "a UNet with added conditions"), ({"in_channels": 9}, "9 channels in and 4 out")])
def test_unets_of_another_kind_are_refused_in_stage_1(here, checkpoint, image_data, tmp_path, changed, words):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    config = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").write_text(json.dumps(config | changed))
    answer = here("distillation.gen_prototype", "--dataset", "folder", "--data_dir", image_data, "--ipc", 1,
                  "--diffusion_checkpoints_path", copy, "--save_prototype_path", tmp_path / "out")
    assert refused(answer, words) and not (tmp_path / "out").exists()
    assert [stored_dtype(None, device) for device in ("cpu", "cuda")] == [None, "float16"]


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


def with_autoencoder(checkpoint: Path, folder: Path, change) -> Path:
    """A copy of a checkpoint in another folder, with its autoencoder changed by `change`."""
    shutil.copytree(checkpoint, folder)
    vae = diffusers.AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")
    with torch.no_grad():
        change(vae)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae", safe_serialization="pickled" not in folder.name)
    return folder


def test_an_autoencoder_has_one_digest_for_all_its_files_and_precisions(checkpoint, tmp_path):
    half = with_autoencoder(checkpoint, tmp_path / "half-pickled", lambda vae: vae.half())
    other = with_autoencoder(checkpoint, tmp_path / "other", lambda vae: vae.decoder.conv_out.bias.add_(0.01))
    digests = {(folder, dtype): load_pipeline(StableDiffusionGenLatentsPipeline, str(folder), "cpu", dtype).autoencoder
               for folder in (checkpoint, half, other) for dtype in ("float32", "float16", "bfloat16")}
    assert len({digest for (folder, _), digest in digests.items() if folder != other}) == 1
    assert len({digest for (folder, _), digest in digests.items() if folder == other}) == 1 and len(set(digests.values())) == 2


def test_prototypes_of_another_autoencoder_are_refused(here, tmp_path):
    """Before, they were decoded to wrong images with exit code 0."""
    own, images = ROOT / DIGITS_LDM, ROOT / "tests/data/before_the_move/images"
    other = with_autoencoder(own, tmp_path / "other", lambda vae: vae.decoder.conv_out.bias.add_(0.01))
    half = with_autoencoder(own, tmp_path / "half", lambda vae: vae.half())
    assert here("distillation.gen_prototype", "--dataset", "folder", "--data_dir", images, "--ipc", 2, "--save_prototype_path",
                tmp_path).code == 0
    prototypes = tmp_path / "folder-ipc2-kmexpand1"
    before = Path(shutil.copytree(prototypes, tmp_path / "before"))
    manifest = json.loads((before / "manifest.json").read_text())
    del manifest["autoencoder"]
    (before / "manifest.json").write_text(json.dumps(manifest))

    def made(folder, checkpoint):
        return here("distillation.gen_syn_image", "--dataset", "folder", "--method", "prototype", "--prototype_path", folder,
                    "--diffusion_checkpoints_path", checkpoint, "--save_init_image_path", tmp_path / "made" / checkpoint.name)
    for folder, checkpoint in ((prototypes, own), (prototypes, half), (before, other)):
        assert (answer := made(folder, checkpoint)).code == 0, answer.err
    shown = here("misc.show_distilled", tmp_path / "made" / own.name / "folder_prototype_ipc2", "--prototype_path", prototypes,
                 "--data_dir", images, "--diffusion_checkpoints_path", other, "--output_dir", tmp_path / "shown")
    for answer in (made(prototypes, other), shown):
        assert answer.code == 2 and answer.err.count("\n") == 1, answer.err
        assert f"{prototypes}: expected latents of the autoencoder in {other}" in answer.err


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
        centroids = read_prototypes(root / "out" / "folder-ipc1-kmexpand1")[1][0].centroids
        return centroids, np.stack([pixels(path) for path in images])
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
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
