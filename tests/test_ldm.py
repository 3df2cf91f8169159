"""Training a checkpoint by its command line; killed once in the UNet's training and continued."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, SIZE, run_stage
from diffusers import DDIMScheduler, StableDiffusionPipeline

from distillation.datasets import load_split
from distillation.ldm import diffusion_loss, draw_noising, new_scheduler, to_signed
from distillation.optimisation import averaged
from distillation.randomness import generator_for
from distillation.train_ldm import warm_cosine

WEIGHTS = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
           "text_encoder/model.safetensors"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, image_data):
    flags = ["--dataset", "folder", "--data_dir", image_data, "--size", SIZE, "--vae_channels", 8, 8, 8, "--unet_channels", 16,
             16, "--text_width", 16, "--vae_steps", 4, "--unet_steps", 6, "--batch_size", 16, "--save_seconds", 0]
    return run_stage("distillation.train_ldm", flags, "--output_dir", tmp_path_factory.mktemp("ldm"), "unet.pt")


def test_stock_diffusers_loads_and_runs_the_folder(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained.folder, dtype=torch.float32, safety_checker=None,
                                                       requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("ant", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, SIZE, SIZE, 3)
    assert pipeline.vae.config.scaling_factor != 0.18215


def test_the_command_says_nothing_on_stderr_but_bars(trained):
    assert [line for line in trained.err.splitlines() if line and "it/s]" not in line and "?" not in line] == []


def test_weights_are_half_precision(trained):
    from safetensors.torch import load_file
    assert {tensor.dtype for name in WEIGHTS for tensor in load_file(trained.folder / name).values()
            if tensor.is_floating_point()} == {torch.float16}


def test_the_card_names_data_command_and_seconds(trained):
    card = (trained.folder / "README.md").read_text()
    assert "`folder`" in card and "training split only: 168 images of 12 classes at 32 pixels" in card
    assert "python -m distillation.train_ldm --dataset folder" in card and "--unet_steps 6" in card
    assert "| autoencoder | 4 |" in card and "| unet | 6 |" in card and "seconds" in card
    assert (trained.folder / "samples.png").is_file()


def test_the_manifest_names_every_file(trained):
    manifest = json.loads((trained.folder / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["classes"]] == CLASSES
    there = {path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*") if path.is_file()}
    assert there - set(manifest["files"]) - {"config.json", "manifest.json"} == {
        name for name in there if name.startswith("state/")}


def test_killed_training_ends_in_the_same_weights(here, trained, own_image_data):
    """Continued where the test images are missing: only the training split is read."""
    killed = trained.killed
    assert (killed / "state" / "unet.pt").is_file() and not (killed / "manifest.json").exists()
    assert torch.load(killed / "state" / "unet.pt", weights_only=True)["step"] < 6
    shutil.rmtree(own_image_data / "test")
    flags = [own_image_data if before == "--data_dir" else flag
             for before, flag in zip(["", *trained.flags], trained.flags, strict=False)]
    answer = here(trained.module, *flags, trained.output_flag, trained.killed_root)
    assert answer.code == 0 and "continuing at step" in answer.out
    for name in WEIGHTS:
        assert (killed / name).read_bytes() == (trained.folder / name).read_bytes(), name
    answer = here(trained.module, *flags, trained.output_flag, trained.killed_root)
    assert answer.code == 0 and "complete, nothing to do" in answer.out


def test_a_trained_checkpoint_makes_prototypes_and_images(here, trained, image_data, tmp_path):
    checkpoint = ("--dataset", "folder", "--diffusion_checkpoints_path", trained.folder)
    assert here("distillation.gen_prototype", *checkpoint, "--data_dir", image_data, "--ipc", 1, "--save_prototype_path",
                tmp_path).code == 0
    assert here("distillation.gen_syn_image", *checkpoint, "--prototype_path", tmp_path / "folder-ipc1-kmexpand1",
                "--num_inference_steps", 2, "--save_init_image_path", tmp_path).code == 0
    assert len(list(Path(tmp_path).rglob("*.png"))) == 12


@pytest.mark.parametrize(("flag", "value"), [("--prompt_drop", 1.5), ("--size", 30)])
def test_impossible_settings_are_refused(here, tmp_path, flag, value):
    answer = here("distillation.train_ldm", flag, value, "--output_dir", tmp_path / "ldm")
    assert answer.code == 2 and answer.err.startswith(f"error: {flag}: expected") and answer.err.count("\n") == 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_has_no_loss(prediction_type):
    """The loss asks for what the stock scheduler turns back into the clean latents."""
    class Perfect(torch.nn.Module):
        def forward(self, noisy, timesteps, encoder_hidden_states):
            share = scheduler.alphas_cumprod[timesteps][:, None, None, None]
            epsilon = (noisy - share.sqrt() * latents) / (1 - share).sqrt()
            answer = epsilon if prediction_type == "epsilon" else share.sqrt() * epsilon - (1 - share).sqrt() * latents
            return type("Answer", (), {"sample": answer})
    scheduler = new_scheduler(prediction_type)
    latents = torch.randn(8, 4, 8, 8, generator=generator_for(0))
    noise, timesteps, _ = draw_noising(latents.shape, 1000, 0.1, generator_for(1))
    assert float(diffusion_loss(Perfect(), scheduler, latents, noise, timesteps, torch.zeros(8, 77, 16))) < 1e-6


def test_the_schedule_is_stable_diffusions():
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.equal(new_scheduler("epsilon").alphas_cumprod, theirs.alphas_cumprod)


def test_prompts_are_dropped_at_the_rate_asked():
    _, timesteps, drop = draw_noising((4000, 1), 1000, 0.1, generator_for(0))
    assert 0.08 < float(drop.float().mean()) < 0.12
    assert 0 <= int(timesteps.min()) < 10 and 990 < int(timesteps.max()) <= 999


def test_the_average_of_weights_ends_up_slow_and_starts_fast():
    module = torch.nn.Linear(1, 1, bias=False)
    average = averaged(module, 0.9)
    torch.nn.init.constant_(module.weight, 0.0)
    average.update_parameters(module)
    for step in range(400):
        torch.nn.init.constant_(module.weight, float(step == 399))
        average.update_parameters(module)
    assert average.module.weight.item() == pytest.approx(0.1, abs=1e-6)


def test_learning_rate_warms_up_and_ends_at_zero():
    rate = warm_cosine(1000)
    assert rate(0) == pytest.approx(1 / 50, rel=1e-2) and rate(60) > 0.98 and rate(999) < 1e-4


def test_images_are_signed_as_stable_diffusion_has_them():
    assert to_signed(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_the_shipped_checkpoint_is_small_half_precision_and_names_its_training():
    from distillation.entry import DIGITS_LDM, ROOT
    folder = ROOT / DIGITS_LDM
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"{DIGITS_LDM} is not there: train it with distillation/train_ldm_digits.sh")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sum((folder / name).stat().st_size for name in manifest["files"]) <= 10e6
    assert [entry["prompt"] for entry in manifest["classes"]] == \
        [entry["prompt"] for entry in load_split("digits", "", "train").classes]
    assert "training split only: 1352 images" in (folder / "README.md").read_text()
