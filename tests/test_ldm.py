"""Training a checkpoint by its command line; killed once in the UNet's training and continued."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, SIZE, manifest_in, new_checkpoint, run_stage
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from test_bad_input import refused

from distillation.datasets import decode, load_split
from distillation.fine_tuning import add_lora, encode_split, fine_tune, load_source
from distillation.ldm import Recipe, diffusion_loss, draw_noising, encode_moments, new_scheduler, to_signed
from scripts.cli import DIGITS_LDM, ROOT, InputError
from scripts.randomness import generator_for
from scripts.training import averaged

WEIGHTS = [*(f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")), "text_encoder/model.safetensors"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, image_data):
    flags = ["--dataset", "folder", "--data_dir", image_data, "--size", SIZE, "--vae_channels", 8, 8, 8, "--unet_channels", 16,
             16, "--text_width", 16, "--vae_steps", 4, "--unet_steps", 6, "--batch_size", 16, "--save_seconds", 0]
    return run_stage(tmp_path_factory.mktemp("ldm"), "distillation.train_ldm", flags, "--output_dir", "unet.pt")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return new_checkpoint(tmp_path_factory.mktemp("source") / "velocity", prediction_type="v_prediction")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, image_data, source):
    flags = ["--init", source, "--dataset", "folder", "--data_dir", image_data, "--unet_steps", 20, "--unet_lr", 5e-3,
             "--batch_size", 16, "--save_seconds", 0]
    return run_stage(tmp_path_factory.mktemp("tuned"), "distillation.train_ldm", flags, "--output_dir", "unet.pt")


def one_image(folder: Path, size: int):
    """Stock diffusers loads the folder and makes an image of `size` pixels; its pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("ant", num_inference_steps=2, output_type="np").images.shape == (1, size, size, 3)
    return pipeline


def test_latents_of_other_channels_trained_with_bf16(here, image_data, tmp_path):
    answer = here("distillation.train_ldm", "--dataset", "folder", "--data_dir", image_data, "--size", SIZE, "--bf16",
                  "--vae_channels", 8, 8, "--latent_channels", 6, "--unet_channels", 16, 16, "--text_width", 16,
                  "--vae_steps", 2, "--unet_steps", 2, "--batch_size", 8, "--output_dir", tmp_path)
    assert answer.code == 0 and one_image(tmp_path, SIZE).unet.config.in_channels == 6
    assert manifest_in(tmp_path)["config"] | {"bf16": True, "latent_channels": 6} == manifest_in(tmp_path)["config"]


def test_stock_diffusers_runs_the_folder_whose_weights_are_half_precision(trained):
    assert one_image(trained.folder, SIZE).vae.config.scaling_factor != 0.18215
    assert {tensor.dtype for name in WEIGHTS for tensor in load_file(trained.folder / name).values()
            if tensor.is_floating_point()} == {torch.float16}
    assert [line for line in trained.err.splitlines() if line and "img/s" not in line and "?" not in line] == []


def test_the_psnr_is_that_of_the_written_autoencoder(trained, image_data):
    split = load_split("folder", image_data, "train")
    images, vae = decode(split, range(len(split.labels)), SIZE), AutoencoderKL.from_pretrained(trained.folder / "vae").float()
    with torch.no_grad():
        decoded = vae.decode(vae.encode(to_signed(images)).latent_dist.mode()).sample
    errors = (255 * (decoded.clamp(-1, 1) + 1) / 2 - images.float()).numpy().astype(float)
    ratios = [10 * math.log10(255 ** 2 / (error ** 2).mean()) for error in errors]
    assert manifest_in(trained.folder)["psnr"] == pytest.approx(sum(ratios) / len(ratios), abs=0.02) and len(ratios) == 168


def test_the_card_names_data_command_and_seconds_and_the_manifest_every_file_but_it(trained):
    card = (trained.folder / "README.md").read_text()
    assert "`folder`" in card and "training split only: 168 images of 12 classes at 32 pixels" in card
    assert "python -m distillation.train_ldm --dataset folder" in card and "--unet_steps 6" in card
    assert "| autoencoder | 4 |" in card and "| unet | 6 |" in card and "seconds" in card
    manifest = manifest_in(trained.folder)
    assert f"PSNR {manifest['psnr']:.2f} dB" in card
    assert [entry["name"] for entry in manifest["classes"]] == CLASSES
    there = {path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*") if path.is_file()}
    assert there - set(manifest["files"]) == {"config.json", "manifest.json", "README.md", "result.json"}
    assert "samples.png" in there


@pytest.mark.parametrize(("name", "steps"), [("trained", 6), ("tuned", 20)])
def test_killed_training_ends_in_the_same_weights(request, here, own_image_data, name, steps):
    """Continued where the test images are missing: only the training split is read."""
    stage = request.getfixturevalue(name)
    killed = stage.killed
    state = torch.load(killed / "state" / "unet.pt", weights_only=True)
    assert state["step"] < steps and not (killed / "manifest.json").exists()
    shutil.rmtree(own_image_data / "test")
    words = (stage.module, *stage.flags, "--data_dir", own_image_data, stage.output_flag, stage.killed_root)
    for said in ("continuing at step", "complete, nothing to do"):
        answer = here(*words)
        assert answer.code == 0 and said in answer.out, answer.err
    for file in (*WEIGHTS, *(f"tokenizer/{path.name}" for path in (stage.folder / "tokenizer").iterdir())):
        assert (killed / file).read_bytes() == (stage.folder / file).read_bytes(), file


@pytest.mark.parametrize(("flag", "value", "others"), [
    ("--prompt_drop", 1.5, []), ("--size", 30, []), ("--size", 30, ["--init", DIGITS_LDM]), ("--lora_rank", 4, []),
    ("--vae_steps", 7, ["--init", DIGITS_LDM]), ("--kl_weight", 0, ["--init", DIGITS_LDM]),
    ("--train_text_encoder", None, ["--init", DIGITS_LDM, "--lora_rank", 2]), ("--gradient_accumulation_steps", 65, [])])
def test_impossible_settings_are_refused(here, tmp_path, flag, value, others):
    given = [flag] if value is None else [flag, value]
    answer = here("distillation.train_ldm", *others, *given, "--output_dir", tmp_path / "ldm")
    assert refused(answer, f"error: {flag}: expected") and not (tmp_path / "ldm").exists()


# going on from a checkpoint


def same(one: dict, other: dict) -> set[str]:
    """Names of tensors with the same type and bits."""
    assert one.keys() == other.keys()
    return {name for name in one if one[name].dtype == other[name].dtype and torch.equal(one[name], other[name])}


def test_fine_tuning_changes_the_unet_alone(tuned, source):
    unet, *others = WEIGHTS
    for name in others:
        assert same(load_file(tuned.folder / name), load_file(source / name)) == load_file(source / name).keys()
    before, after = load_file(source / unet), load_file(tuned.folder / unet)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    assert not same({name: tensor.half() for name, tensor in before.items()}, after)
    name = "scheduler/scheduler_config.json"
    assert (tuned.folder / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((source / name).read_text())["prediction_type"] == "v_prediction"
    card = (tuned.folder / "README.md").read_text()
    assert "`velocity " in card and "with its UNet trained further on the training split only: 168 images" in card
    assert "| unet | 20 |" in card and "autoencoder |" not in card and "--init" in card


def test_fine_tuning_lowers_the_loss(tuned, source, image_data):
    """On the training images, with the same noise for both."""
    split, losses = load_split("folder", image_data, "train"), []
    for folder in (source, tuned.folder):
        pipeline = load_source(str(folder), "cpu")
        posteriors, readable = encode_split(pipeline.vae, split, SIZE)
        assert readable is split and posteriors.means.shape == (168, 4, 8, 8)
        latents = posteriors.draw(torch.arange(168), generator_for(3))
        noise, timesteps, _ = draw_noising(latents.shape, 1000, 0, generator_for(2))
        text = pipeline.embed([entry["prompt"] for entry in split.classes])[split.labels].clone()
        with torch.no_grad():
            losses.append(float(diffusion_loss(pipeline.unet, pipeline.scheduler, latents, noise, timesteps, text)))
    assert losses[1] < 0.9 * losses[0]


def test_bad_images_are_left_out_of_fine_tuning_when_asked(source, own_image_data):
    """Each latent keeps the label of its image."""
    (own_image_data / "train" / CLASSES[1] / "03.png").write_bytes(b"nothing")
    vae = load_source(str(source), "cpu").vae
    split = load_split("folder", own_image_data, "train", on_bad_image="skip")
    posteriors, readable = encode_split(vae, split, SIZE)
    assert [len(readable.rows_of(label)) for label in range(12)] == [14, 13] + [14] * 10
    image = decode(readable, [20], SIZE)
    assert readable.labels[20] == 1 and torch.allclose(posteriors.means[20], encode_moments(vae, image)[0][0], atol=1e-5)
    with pytest.raises(InputError, match="03.png"):
        encode_split(vae, load_split("folder", own_image_data, "train"), SIZE)


def test_lora_changes_the_attentions_alone_and_by_its_rank(here, trained, image_data, tmp_path, monkeypatch):
    """From a checkpoint in half precision, at another resolution; what is written is a plain checkpoint."""
    unet, *others = WEIGHTS
    answer = here("distillation.train_ldm", "--init", trained.folder, "--lora_rank", 2, "--dataset", "folder", "--data_dir",
                  image_data, "--size", 16, "--unet_steps", 12, "--unet_lr", 1e-2, "--batch_size", 8, "--output_dir", tmp_path)
    assert answer.code == 0, answer.err
    assert all((tmp_path / name).read_bytes() == (trained.folder / name).read_bytes() for name in others)
    before, after = load_file(trained.folder / unet), load_file(tmp_path / unet)
    changed = before.keys() - same(before, after)
    assert changed == {name for name in before if name.endswith((
        "to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))}
    for name in changed:
        sizes = torch.linalg.svdvals(after[name].float() - before[name].float())
        assert sizes[2:].max() < 0.1 * sizes[0], name  # not 0: rounding to half precision has every rank
    one_image(tmp_path, 16)
    assert "merged LoRA updates of rank 2" in (tmp_path / "README.md").read_text()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="--lora_rank: .*pip install peft"):
        add_lora(torch.nn.Linear(1, 1), 2)


def test_parts_of_a_batch_sum_to_it_and_the_text_encoder_learns_when_asked(trained, image_data, tmp_path):
    """With and without activations computed twice."""
    split = load_split("folder", image_data, "train")
    recipe = Recipe(steps=2, batch_size=8, learning_rate=1e-3, seed=0, state_path=tmp_path / "state.pt", save_seconds=9,
                    ema_decay=0.9)
    runs = [fine_tune(load_source(str(trained.folder), "cpu"), split, SIZE, tmp_path / str(parts),
                      replace(recipe, accumulation=parts, recompute=parts > 1), lora_rank=None, with_text_encoder=True,
                      workers=1)[0] for parts in (1, 3)]
    assert runs[0]["losses"] == pytest.approx(runs[1]["losses"], rel=1e-5)
    unet, _, text_encoder = WEIGHTS
    for name in (unet, text_encoder):
        before, whole, parts = (load_file(folder / name) for folder in (trained.folder, tmp_path / "1", tmp_path / "3"))
        moved = torch.cat([(whole[key].float() - before[key].float()).flatten() for key in before])
        apart = torch.cat([(whole[key].float() - parts[key].float()).flatten() for key in before])
        assert moved.norm() > 20 * apart.norm(), name


@pytest.mark.parametrize(("name", "key", "value"), [
    (None, "", 0), ("scheduler/scheduler_config.json", "prediction_type", "sample"), ("unet/config.json", "in_channels", 9)])
def test_what_cannot_be_gone_on_from_is_refused(here, source, tmp_path, name, key, value):
    copy = tmp_path / "copy"
    if name:
        shutil.copytree(source, copy)
        (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), key: value}))
    else:
        copy.mkdir()
    answer = here("distillation.train_ldm", "--init", copy, "--output_dir", tmp_path / "out")
    assert refused(answer, f"error: {copy}: expected")


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


def test_schedule_range_of_the_images_and_dropped_prompts_are_those_asked_for():
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")     # Stable Diffusion's
    assert torch.equal(new_scheduler("epsilon").alphas_cumprod, theirs.alphas_cumprod)
    assert to_signed(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
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


def test_the_shipped_checkpoint_is_small_half_precision_and_names_its_training():
    folder = ROOT / DIGITS_LDM
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"{DIGITS_LDM} is not there: train it with distillation/train_ldm.sh")
    manifest = manifest_in(folder)
    assert sum((folder / name).stat().st_size for name in manifest["files"]) <= 10e6
    assert [entry["prompt"] for entry in manifest["classes"]] == \
        [entry["prompt"] for entry in load_split("digits", "", "train").classes]
    assert "training split only: 1352 images" in (folder / "README.md").read_text()
