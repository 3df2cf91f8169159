"""Making images beyond the plain way: mode guidance, teacher filter, schedulers, herding, k-center, both stages in one."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, IPC, REPEATS, SIZE, kill_when, manifest_in, pixels, rows_of, start
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from test_bad_input import refused
from torchvision.datasets import ImageFolder

from distillation.checkpoints import converted, load_pipeline
from distillation.distilled_set import read_distilled
from distillation.ldm import new_scheduler
from distillation.prototypes import read_prototypes
from distillation.real_subset import herding, k_center, random_order
from distillation.synthesis import (
    UNFIT,
    Denoising,
    ModeGuidedScheduler,
    TeacherFilter,
    best_candidates,
    synthesize,
    use_scheduler,
)
from scripts.artefact import check_configuration
from scripts.cli import DIGITS_LDM, ROOT, InputError
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
from scripts.randomness import generator_for


def drawn(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=generator_for(0, "test", *shape))


def same_pictures(one: Path, other: Path) -> int:
    """The largest difference between the pictures of two distilled sets with the same rows."""
    assert rows_of(one) == rows_of(other)
    return max(np.abs(pixels(one / row["file_name"]) - pixels(other / row["file_name"])).max() for row in rows_of(one))


@pytest.fixture
def make(here, checkpoint, prototypes, image_data, tmp_path):
    """gen_syn_image on the tiny world; returns the folder it wrote."""
    def call(*flags, steps=4):
        root = tmp_path / f"made{len(list(tmp_path.iterdir()))}"
        answer = here("distillation.gen_syn_image", "--dataset", "folder", "--data_dir", image_data, "--prototype_path",
                      prototypes.folder, "--diffusion_checkpoints_path", checkpoint, "--num_inference_steps", steps,
                      "--batch_size", 9, "--save_init_image_path", root, *flags)
        assert answer.code == 0, answer.err
        assert [line for line in answer.err.splitlines() if line and "img/s" not in line] == []
        return next(root.iterdir())
    return call


# one image, whatever shares its batch

@pytest.mark.parametrize("batch_size", [1, 64])
def test_an_image_is_the_same_at_batch_size(make, distilled, batch_size):
    """Bit for bit where convolutions round alike, else within one grey level: the last bits of a sum depend on the batch."""
    folder = make("--ipc", IPC * REPEATS, "-s", 0.5, "-g", 3, "--batch_size", batch_size)
    assert same_pictures(folder, distilled.folder) <= 1


@pytest.mark.parametrize("mode", [None, (0.2, 3)])
def test_an_image_of_the_shipped_checkpoint_does_not_depend_on_its_batch(mode):
    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, str(ROOT / DIGITS_LDM), "cpu")
    use_scheduler(pipeline, None, mode_guided=mode is not None)
    latents, text, negative = drawn(12, 4, 8, 8), pipeline.embed(["three"]).expand(12, -1, -1), pipeline.embed([""])

    def images(part):
        return synthesize(pipeline, latents[part], text[part], negative, [(0, index, 0) for index in range(12)[part]], 0,
                          Denoising(0.7, 8, 6, mode)).int()
    together = images(slice(0, 12))
    assert (torch.cat([images(slice(0, 1)), images(slice(1, 8))]) - together[:8]).abs().max() <= 1
    assert together.float().std() > 5


# one command for both stages


@pytest.fixture(scope="module")
def distil_flags(checkpoint, image_data):
    return ["--dataset", "folder", "--data_dir", image_data, "--ipc", IPC, "--repeats", REPEATS, "-s", 0.5, "-g", 3,
            "--num_inference_steps", 4, "--num_workers", 2, "--batch_size", 2 * IPC * REPEATS,
            "--diffusion_checkpoints_path", checkpoint, "--save_init_image_path"]


def test_one_command_makes_what_the_two_stages_make(here, distil_flags, distilled, tmp_path):
    answer = here("distillation.distill", *distil_flags, tmp_path)
    assert answer.code == 0, answer.err
    folder = tmp_path / distilled.folder.name
    assert same_pictures(folder, distilled.folder) <= 1     # other batches
    assert not (folder / "parts").exists()
    (folder / "parts").mkdir()      # as a kill after the manifest leaves it
    (folder / "parts" / "00000.json").write_text("[]")
    assert "complete, nothing to do" in here("distillation.distill", *distil_flags, tmp_path).out
    assert not (folder / "parts").exists()


def test_one_command_killed_and_continued_equals_one_go(here, distil_flags, tmp_path):
    process = start("distillation.distill", *distil_flags, tmp_path / "killed")
    kill_when(process, tmp_path / "killed", "parts/00003.json")
    for name in ("killed", "whole"):
        assert here("distillation.distill", *distil_flags, tmp_path / name).code == 0
    assert same_pictures(*(next((tmp_path / name).iterdir()) for name in ("killed", "whole"))) == 0


# mode guidance

def test_a_guided_step_worked_by_hand():
    """Noise levels 0.25 -> 0.64: x0 = (1 - sqrt(0.75) * 0.5) / 0.5 = 1.1339746, DDIM's step 0.8 * x0 + 0.6 * 0.5 = 1.2071797;
    sigma = sqrt(0.36 / 0.75 * (1 - 0.25 / 0.64)) = 0.5408327, so a prototype at 2.1339746 adds 0.1 * sigma = 0.0540833."""
    guided = ModeGuidedScheduler(num_train_timesteps=2, trained_betas=[0.36, 0.609375], clip_sample=False)     # 0.64, 0.25
    guided.set_timesteps(2)
    guided.aim(torch.full((1, 1, 1, 1), 2.1339746), 0.1, 1)
    noise, sample = torch.full((1, 1, 1, 1), 0.5), torch.ones(1, 1, 1, 1)
    assert guided.timesteps.tolist() == [1, 0]
    assert guided.step(noise, 1, sample, return_dict=False)[0].item() == pytest.approx(1.2071797 + 0.0540833, abs=1e-6)
    assert guided.step(noise, 1, sample).prev_sample.item() == pytest.approx(1.2071797, abs=1e-6)    # `stop` is reached


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_guided_step_is_ddims_and_then_the_pull_of_mgd3(prediction_type):
    """MGD3 moves x_{t-1} by 0.1 * sigma_t * (mode - x0) for either kind of network, sigma_t of DDPM's step."""
    guided, plain = (converted(new_scheduler(prediction_type), kind) for kind in (ModeGuidedScheduler, DDIMScheduler))
    ddpm = converted(plain, DDPMScheduler)
    for scheduler in (guided, plain, ddpm):
        scheduler.set_timesteps(10)
    sample, prediction, prototype = drawn(2, 4, 3, 3), drawn(2, 4, 3, 3) * 0.9, drawn(2, 4, 3, 3) * 0.8
    guided.aim(prototype, 0.1, 2)
    for place, timestep in enumerate(guided.timesteps[:4]):
        expected = plain.step(prediction, timestep, sample)
        pulled = 0.1 * ddpm._get_variance(timestep).sqrt() * (prototype - expected.pred_original_sample) if place < 2 else 0
        sample = guided.step(prediction, timestep, sample).prev_sample
        torch.testing.assert_close(sample, expected.prev_sample + pulled)


def test_mode_guidance_draws_images_to_their_prototypes(make):
    """The more guidance, the nearer to the decoded prototype; with none it is the image of noise alone."""
    decoded, noise = make("--method", "prototype"), make("--method", "noise", "--ipc", IPC, "-g", 1, steps=8)
    near = [make("--guidance", "mode", "--mode_scale", scale, "--stop_t", 8, "-g", 1, steps=8) for scale in (0, 0.1, 0.8)]
    assert [folder.name for folder in near] == [
        f"folder_ipc{IPC}_{IPC}_mode{scale}-8_g1.0_kmexpand1" for scale in (0.0, 0.1, 0.8)]

    def apart(one, other):
        return np.mean([(pixels(path) - pixels(other / path.relative_to(one))) ** 2 for path in one.glob("*/*.png")])
    distances = [apart(folder, decoded) for folder in near]
    assert distances[0] > distances[1] > distances[2]
    assert apart(near[0], noise) == 0 and len({pixels(path).tobytes() for path in noise.glob("*/*.png")}) == 12 * IPC
    config = manifest_in(near[1])["config"]
    assert (config["guidance"], config["mode_scale"], config["stop_t"], config["strength"]) == ("mode", 0.1, 8, 1.0)
    assert "mode_update" not in json.loads((noise / "manifest.json").read_text())["config"]
    before = {key: value for key, value in config.items() if key != "mode_update"}      # begun before the fix
    (near[1] / "config.json").write_text(json.dumps({"kind": "distilled", "config": before}))
    with pytest.raises(InputError, match="mode_update"):
        check_configuration(near[1], "distilled", config)


# schedulers, repeats, formats

def test_another_scheduler_is_used(make):
    plain, ddim, solver = (make(*flags, "-s", 0.9, steps=6) for flags in (
        [], ["--scheduler", "DDIMScheduler"], ["--scheduler", "DPMSolverMultistepScheduler"]))
    assert solver.name.endswith("_DPMSolverMultistepScheduler")
    images = [pixels(next(folder.glob("*/*.png"))) for folder in (plain, ddim, solver)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def written_as(folder: Path, name: str, **settings) -> str:
    """A copy of the shipped checkpoint with the scheduler that many checkpoints have: its class and these settings alone."""
    shutil.copytree(ROOT / DIGITS_LDM, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", name]}))
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": name, **betas, **settings}))
    return str(folder)


DRAWING = {"DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"}  # noise at every step


def test_every_scheduler_makes_the_images_of_the_checkpoints_own(tmp_path):
    """At 50 steps, mean grey levels apart in an image: at most 3.7 from PNDM without noise; 1.7 among those that draw noise.

    This is the error of the solvers: images of clipped latents are about 60 apart.
    """
    own = written_as(tmp_path / "own", "PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, own, "cpu")
    latents, text, negative = drawn(2, 4, 8, 8), pipeline.embed(["one", "four"]), pipeline.embed([""])
    its_own, made = pipeline.scheduler, {}
    for name in [None, *(each.__name__ for each in its_own.compatibles if each.__name__ not in UNFIT)]:
        pipeline.scheduler = its_own
        use_scheduler(pipeline, name)
        made[name] = synthesize(pipeline, latents, text, negative, [(0, 0, 0), (0, 1, 0)], 0, Denoising(0.7, 2, 50)).float()
    assert len(made) == 14 and set(made) > DRAWING

    def apart(one, other):
        return (made[one] - made[other]).abs().mean((1, 2, 3)).max()
    assert apart("PNDMScheduler", None) == 0
    assert {name: float(apart(name, None)) for name in set(made) - DRAWING if apart(name, None) > 5} == {}
    assert {name: float(apart(name, "DDPMScheduler")) for name in DRAWING if apart(name, "DDPMScheduler") > 2.5} == {}
    assert (made["DDPMScheduler"].std((1, 2, 3)) - made[None].std((1, 2, 3))).abs().max() < 15


def test_a_converted_scheduler_ends_where_the_checkpoints_own_ends():
    own = {"steps_offset": 1, "beta_schedule": "scaled_linear"}
    for scheduler, last in ((PNDMScheduler(**own), 0.9999), (EulerDiscreteScheduler(**own), 1.0)):
        ddim = converted(scheduler, DDIMScheduler)
        assert float(ddim.final_alpha_cumprod) == pytest.approx(last, abs=1e-6) and not ddim.config.clip_sample
        euler = converted(scheduler, EulerDiscreteScheduler)
        assert ddim.config.timestep_spacing == euler.config.timestep_spacing == scheduler.config.timestep_spacing
    assert converted(DDIMScheduler(clip_sample=True), DDIMScheduler).config.clip_sample    # the checkpoint's own does


@pytest.mark.parametrize(("flags", "words"), [
    (["--scheduler", "NoScheduler"], "--scheduler: expected one of"),
    (["--scheduler", "DPMSolverSDEScheduler"], "--scheduler: expected one of"),
    (["--scheduler", "EDMEulerScheduler"], "UniPCMultistepScheduler, found EDMEulerScheduler"),
    (["--scheduler", "PNDMScheduler", "--guidance", "mode"], "expected DDIMScheduler"),
    (["--repeats", 2, "--ipc", IPC], f"expected {2 * IPC}"),
    (["--filter_teacher", "nothing-here"], "expected a finished folder of kind teacher, found nothing"),
    (["--candidates", 4], "--candidates needs --filter_teacher"),
    (["--mode_scale", 0.2], "--mode_scale needs --guidance mode"),
    (["--guidance", "mode", "--mode_scale", "inf"], "--mode_scale: expected a value in [0"),
    (["--stop_t", 0], "--stop_t: expected a value in [1"),
    (["--stop_t", 3], "--stop_t needs --guidance mode"),
    (["--filter_keep", "hard"], "--filter_keep needs --filter_teacher"),
    (["--km_expand", 5], "--km_expand: expected that of the prototypes"),
    (["--guidance", "mode", "--method", "noise", "--ipc", 1], "--guidance mode needs --method d4m (got noise)"),
    (["--repeats", 2, "--method", "random", "--ipc", 1], "--repeats needs --method d4m, prototype or noise (got random)"),
    (["--scheduler", "DDIMScheduler", "--method", "random", "--ipc", 1], "--scheduler needs --method d4m"),
    (["--method", "prototype", "--ipc", 2 * IPC], "expected one image per prototype where no step of diffusion runs, found 2"),
    (["-s", 0.1, "--num_inference_steps", 4, "--filter_teacher", None], "found 2, which would be equal"),
    (["--method", "noise", "--ipc", 1, "--size", 30], "--size: expected a multiple of 4"),
    (["--method", "noise", "--ipc", 1, "--dataset", "digits", "--filter_teacher", None], "expected the 10 classes"),
    (["--dataset", "digits"], "--dataset: expected that of the prototypes")])
def test_what_does_not_fit_is_refused_in_one_line(here, checkpoint, prototypes, image_data, teacher, tmp_path, flags, words):
    flags = [teacher.folder if flag is None else flag for flag in flags]
    answer = here("distillation.gen_syn_image", "--dataset", "folder", "--data_dir", image_data, "--prototype_path",
                  prototypes.folder, "--diffusion_checkpoints_path", checkpoint, "--save_init_image_path", tmp_path, *flags)
    assert refused(answer, words) and not list(tmp_path.rglob("*.png"))


def test_noise_has_the_size_that_is_asked_for(make):
    small, large = (make("--method", "noise", "--ipc", 1, *size) for size in ((), ("--size", 48)))
    assert [pixels(folder / rows_of(folder)[0]["file_name"]).shape for folder in (small, large)] == [(32, 32, 3), (48, 48, 3)]


def test_repeats_are_what_ipc_asks_for_and_the_seed_decides_them(make, distilled):
    flags = ("--repeats", REPEATS, "-s", 0.5, "-g", 3, "--batch_size", 5)
    assert same_pictures(make(*flags), distilled.folder) == 0
    other = make(*flags, "--seed", 1)
    for row in rows_of(other):
        assert (pixels(other / row["file_name"]) != pixels(distilled.folder / row["file_name"])).any()


def test_webp_has_the_pixels_of_png_at_the_size_asked_for(make):
    png, webp = (make("-s", 0.5, "--image_size", 20, "--image_format", name) for name in ("png", "webp"))
    rows = rows_of(webp)
    assert {Path(row["file_name"]).suffix for row in rows} == {".webp"} and len(rows) == 12 * IPC
    for row in rows:
        image, other = pixels(webp / row["file_name"]), pixels((png / row["file_name"]).with_suffix(".png"))
        assert image.shape == (20, 20, 3) and np.array_equal(image, other)
    assert ImageFolder(webp).targets == [row["label"] for row in rows]


def test_prompts_given_to_stage_2_replace_the_stored_ones(make, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"one {name}\n" for name in CLASSES))
    folders = [make("-s", 0.9, *flags) for flags in (
        [], ["--prompt_template", "a photo of a {}"], ["--label_file_path", tmp_path / "prompts.txt"])]
    assert [read_distilled(folder)[0][11]["prompt"] for folder in folders] == [
        "sea lion", "a photo of a sea lion", "one sea_lion"]
    plain, wrapped = ([pixels(path) for path in sorted(folder.glob("*/*.png"))] for folder in folders[:2])
    assert not np.array_equal(plain, wrapped)


def test_images_of_prototypes_with_other_prompts_are_refused(here, prototypes, checkpoint, tmp_path):
    def both(template):
        assert here(prototypes.module, *prototypes.flags, "--prompt_template", template, prototypes.output_flag,
                    tmp_path / template[0]).code == 0
        return here("distillation.gen_syn_image", "--dataset", "folder", "--prototype_path",
                    tmp_path / template[0] / prototypes.folder.name, "--diffusion_checkpoints_path", checkpoint,
                    "--num_inference_steps", 2, "--save_init_image_path", tmp_path / "images")
    assert both("a photo of a {}").code == 0
    answer = both("drawing of a {}")
    assert answer.code == 2 and "prompts" in answer.err
    words = ("distillation.gen_syn_image", "--dataset", "folder", "--prototype_path", tmp_path / "a" / prototypes.folder.name,
             "--diffusion_checkpoints_path", checkpoint, "--num_inference_steps", 2, "--save_init_image_path",
             tmp_path / "same", "--prompt_template")
    assert refused(here(*words, "a drawing of a {}"), "--prompt_template: expected none, or that of the prototypes")
    assert here(*words, "a photo of a {}").code == 0
    (made,) = (tmp_path / "same").iterdir()
    assert read_distilled(made)[0][11]["prompt"] == "a photo of a sea lion"      # not wrapped twice
    (tmp_path / "prompts.txt").write_text("".join(f"one {name}\n" for name in CLASSES))   # bare lines: wrapped again
    assert here(*words[:-2], tmp_path / "file", "--label_file_path", tmp_path / "prompts.txt").code == 0
    (made,) = (tmp_path / "file").iterdir()
    assert read_distilled(made)[0][11]["prompt"] == "a photo of a one sea_lion"


# the teacher's filter

def test_the_best_candidate_by_hand():
    logits = torch.tensor([[[4.0, 0.0], [1.0, 0.0], [0.0, 9.0]],      # class 0: sure, hardly, wrong
                           [[0.0, -1.0], [3.0, 2.0], [2.0, 1.5]]])    # class 1: none is recognised; the third comes nearest
    labels = torch.tensor([0, 1])
    assert best_candidates(logits, labels, "confident").tolist() == [0, 2]
    assert best_candidates(logits, labels, "hard").tolist() == [1, 2]


def test_the_filter_keeps_what_its_teacher_prefers(make, teacher, prototypes):
    candidates = make("--ipc", 4 * IPC, "-s", 0.8)      # repeats 0 and 1 are the first image's candidates, 2 and 3 the second's
    kept = make("-s", 0.8, "--repeats", 2, "--filter_teacher", teacher.folder, "--candidates", 2)
    assert kept.name.endswith("_filter2")
    classes, rows = read_distilled(kept)[0], rows_of(kept)
    assert len(rows) == 24 * IPC and len({(row["label"], row["prototype"], row["repeat"] // 2) for row in rows}) == 24 * IPC
    judge = TeacherFilter(teacher.folder, classes, "confident", "cpu")
    for row in rows:
        first = row["repeat"] // 2 * 2
        offered = np.stack([pixels(candidates / row["file_name"].replace(f"-r{row['repeat']:02d}", f"-r{place:02d}"))
                            for place in (first, first + 1)])
        images = torch.from_numpy(offered.astype(np.uint8)).permute(0, 3, 1, 2)
        assert int(judge.choose(images[None], torch.tensor([row["label"]]))[0]) == row["repeat"] % 2
        assert np.array_equal(pixels(kept / row["file_name"]), offered[row["repeat"] % 2])
    assert {row["repeat"] for row in rows} == set(range(4))
    shares = [found.weights for found in read_prototypes(prototypes.folder)[1]]
    assert [row["weight"] for row in rows] == pytest.approx(
        [float(shares[row["label"]][row["prototype"]]) / 2 for row in rows], abs=1e-6)


# real images by their latents

def test_herding_keeps_the_mean_and_equals_a_search_step_by_step():
    latents = drawn(40, 4, 2, 2)
    flat, chosen = latents.flatten(1).double(), []
    for _ in range(6):
        means = [(flat[[*chosen, place]].mean(0) - flat.mean(0)).norm() if place not in chosen else torch.inf
                 for place in range(40)]
        chosen.append(int(np.argmin(means)))
    assert herding(latents, 6) == chosen
    random = [flat[list(random_order(40, seed, 0)[:6])].mean(0) for seed in range(200)]
    assert (flat[chosen].mean(0) - flat.mean(0)).norm() < min((mean - flat.mean(0)).norm() for mean in random)
    assert sorted(herding(latents, 40)) == list(range(40))


def test_k_center_is_within_twice_the_best_radius():
    latents = drawn(14, 4, 1, 1)
    distances = torch.cdist(latents.flatten(1).double(), latents.flatten(1).double())

    def radius(centres):
        return float(distances[:, list(centres)].min(1).values.max())
    chosen = k_center(latents, 4)
    assert len(set(chosen)) == 4 and chosen[1] == int(distances[chosen[0]].argmax())
    assert radius(chosen) <= 2 * min(radius(centres) for centres in itertools.combinations(range(14), 4)) + 1e-9
    assert sorted(k_center(torch.zeros(5, 4, 1, 1), 5)) == list(range(5))      # also where all are the same image
    for method in (herding, k_center):
        with pytest.raises(ValueError, match="at least 4 latents, found 3"):
            method(drawn(3, 4, 1, 1), 4)


@pytest.mark.parametrize("method", ["random", "herding", "kcenter"])
def test_chosen_images_are_training_images_of_their_class(make, image_data, method):
    sets = []
    for seed in (0, 0, 1) if method == "random" else (0,):
        folder = make("--method", method, "--ipc", 4, "--image_size", SIZE, "--seed", seed)
        classes, paths, labels, _ = read_distilled(folder)
        sets.append([pixels(path).tobytes() for path in paths])
        assert folder.name == f"folder_{method}_ipc4" and len(set(sets[-1])) == len(paths) == 48
    real = [{pixels(path).tobytes() for path in (image_data / "train" / entry["name"]).iterdir()} for entry in classes]
    assert all(picture in real[label] for picture, label in zip(sets[-1], labels.tolist(), strict=True))
    assert method != "random" or sets[0] == sets[1] != sets[2]
