"""Stages 1 and 2: latents, prototypes, images; each against scikit-learn, diffusers or torchvision called independently."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, IPC, PER_CLASS, REPEATS, SIZE
from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline
from PIL import Image
from sklearn.cluster import KMeans
from torchvision.datasets import ImageFolder

from distillation.checkpoints import load_pipeline
from distillation.datasets import load_split
from distillation.distilled_set import finish_distilled, read_distilled, row, write_image
from distillation.ldm import byte_level_tokenizer, tokenize
from distillation.prototypes import cluster, read_prototypes
from distillation.synthesis import Denoising, synthesize, to_uint8
from scripts.artefact import identity
from scripts.cli import InputError
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
from scripts.randomness import generator_for, seed_for


def random_latents(count: int, *place) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=generator_for(0, "test", *place))


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.fixture(scope="module")
def image_pipeline(checkpoint):
    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, str(checkpoint), "cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# data sets

def test_digits_train_and_test_share_no_image():
    train, test = (load_split("digits", "nowhere", part) for part in ("train", "test"))
    pictures = [{split.read(place).tobytes() for place in range(len(split.labels))} for split in (train, test)]
    assert (len(train.labels), len(test.labels)) == (1352, 445)
    assert not pictures[0] & pictures[1]
    assert [entry["prompt"] for entry in train.classes] == \
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert train.read(0).size == (SIZE, SIZE) and train.read(0).mode == "RGB"


# stage 1: latents and prototypes

def test_latents_are_the_autoencoders_times_its_scaling_factor(checkpoint, image_data):
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, str(checkpoint), "cpu")
    images = torch.stack([torch.from_numpy(np.array(load_split("folder", image_data, "train").read(place))).permute(2, 0, 1)
                          for place in range(3)])
    vae = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")
    with torch.no_grad():
        posterior = vae.encode(images.float() / 255 * 2 - 1).latent_dist
    noise = random_latents(3)
    scale = vae.config.scaling_factor
    torch.testing.assert_close(pipeline(images), posterior.mean * scale)
    torch.testing.assert_close(pipeline(images, noise), (posterior.mean + posterior.std * noise) * scale)
    assert pipeline.latent_shape(SIZE) == (4, 8, 8)


def test_the_latents_pipeline_reads_nothing_but_the_autoencoder(checkpoint, tmp_path):
    shutil.copytree(checkpoint / "vae", tmp_path / "bare" / "vae")
    shutil.copy(checkpoint / "model_index.json", tmp_path / "bare")
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, str(tmp_path / "bare"), "cpu")
    assert list(pipeline.components) == ["vae"]
    assert pipeline(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("kmeans", ["full", "minibatch"])
@pytest.mark.parametrize("count", [10, 11, 60])
def test_every_latent_belongs_to_one_prototype(kmeans, count):
    found = cluster(random_latents(count), ipc=10, km_expand=1, seed=0, kmeans=kmeans)
    assert found.centroids.shape == (10, 4, 8, 8)
    assert int(found.sizes.sum()) == count
    assert float(found.weights.sum()) == pytest.approx(1)
    assert torch.isfinite(found.centroids).all()


@pytest.mark.parametrize("kmeans", ["full", "minibatch"])
def test_the_last_latents_take_part(kmeans):
    """The original dropped what did not fill its last mini-batch of ipc * km_expand latents."""
    latents = torch.cat([random_latents(20), random_latents(1) + 100])
    found = cluster(latents, ipc=2, km_expand=1, seed=0, kmeans=kmeans)
    assert sorted(found.sizes.tolist()) == [1, 20]
    assert found.centroids[found.sizes.argmin()].min() > 10  # not exactly the latent: mini-batch centroids are running means


def test_fewer_latents_than_prototypes_are_refused():
    with pytest.raises(ValueError, match="at least 5 latents, found 4"):
        cluster(random_latents(4), ipc=5, km_expand=1, seed=0)


def test_a_prototypes_folder_tells_all(prototypes):
    classes, found, config = read_prototypes(prototypes.folder)
    assert [entry["name"] for entry in classes] == CLASSES
    assert {tuple(each.centroids.shape) for each in found} == {(IPC, 4, 8, 8)}
    assert {int(each.sizes.sum()) for each in found} == {PER_CLASS}
    assert (config["ipc"], config["size"], config["kmeans"]) == (IPC, SIZE, "minibatch")
    manifest = json.loads((prototypes.folder / "manifest.json").read_text())
    assert manifest["counts"] == {"classes": 12, "prototypes": 12 * IPC, "images": 12 * PER_CLASS}
    assert [line for line in prototypes.err.splitlines() if line and "img/s" not in line] == []


def test_the_command_clusters_all_latents_of_the_class(here, checkpoint, image_data, tmp_path):
    assert here("distillation.gen_prototype", "--dataset", "folder", "--data_dir", image_data, "--ipc", 4, "--kmeans", "full",
                "--latent", "mean", "--seed", 5, "--diffusion_checkpoints_path", checkpoint, "--save_prototype_path",
                tmp_path).code == 0
    _, found, _ = read_prototypes(tmp_path / "folder-ipc4-kmexpand1")
    vae, label = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae"), 7
    images = np.stack([pixels(path) for path in sorted((image_data / "train" / CLASSES[label]).iterdir())])
    with torch.no_grad():
        signed = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        latents = vae.encode(signed).latent_dist.mean * vae.config.scaling_factor
    expected = KMeans(4, random_state=seed_for(5, "kmeans", label), n_init="auto").fit(latents.flatten(1).numpy())
    assert np.allclose(found[label].centroids.reshape(4, -1), expected.cluster_centers_, atol=1e-4)


# stage 2: images

def test_torchvision_reads_the_classes_in_order(distilled):
    """Folders named 0, 1, 10, ... would be sorted as text and permute the labels."""
    theirs = ImageFolder(distilled.folder)
    classes, paths, labels, _ = read_distilled(distilled.folder)
    assert [name.split("_", 1)[1] for name in theirs.classes] == [entry["name"] for entry in classes] == CLASSES
    assert sorted(theirs.samples) == sorted(zip(map(str, paths), labels.tolist(), strict=True))
    assert len(labels) == 12 * IPC * REPEATS
    assert [line for line in distilled.err.splitlines() if line and "img/s" not in line] == []


def test_class_order_is_kept_where_names_sort_otherwise(tmp_path):
    names = ["truck", "ant", "10", "9", "Zebra", "a/b", "été"] + [f"c{place}" for place in range(6)]
    classes = [{"name": name, "prompt": name} for name in names]
    rows = [row(label, name, 0, 0, 0, 1.0) for label, name in enumerate(names)]
    for entry in rows:
        write_image(tmp_path, entry["file_name"], Image.new("RGB", (4, 4), (entry["label"],) * 3))
    finish_distilled(tmp_path, classes, {}, rows)
    for image, label in ImageFolder(tmp_path):
        assert image.getpixel((0, 0)) == (label,) * 3
    assert read_distilled(tmp_path)[2].tolist() == list(range(len(names)))


def test_metadata_and_manifest_say_the_same(distilled):
    manifest = json.loads((distilled.folder / "manifest.json").read_text())
    rows = [json.loads(line) for line in (distilled.folder / "metadata.jsonl").read_text().splitlines()]
    assert rows == manifest["rows"]
    assert sorted(manifest["files"]) == sorted([entry["file_name"] for entry in rows] + ["metadata.jsonl", "README.md"])
    assert {path.relative_to(distilled.folder).as_posix() for path in distilled.folder.rglob("*.png")} == \
        {entry["file_name"] for entry in rows}
    assert all(manifest["classes"][entry["label"]]["name"] in entry["file_name"] for entry in rows)
    for label in range(12):
        assert sum(entry["weight"] for entry in rows if entry["label"] == label) == pytest.approx(1, abs=1e-6)
    assert len({entry["seed"] for entry in rows}) == len(rows)


def test_weights_are_the_shares_of_the_clusters(prototypes, distilled):
    _, found, _ = read_prototypes(prototypes.folder)
    for entry in json.loads((distilled.folder / "manifest.json").read_text())["rows"]:
        share = found[entry["label"]].sizes[entry["prototype"]] / PER_CLASS
        assert entry["weight"] == pytest.approx(float(share) / REPEATS, abs=1e-6)


def test_prototype_1_repeat_11_and_prototype_11_repeat_1_have_different_names():
    names = {row(0, "ant", prototype, repeat, 0, 1)["file_name"] for prototype in range(112) for repeat in range(112)}
    assert len(names) == 112 * 112


def test_folders_of_the_original_are_read_in_numeric_order(tmp_path):
    for label in range(12):
        (tmp_path / str(label)).mkdir()
        Image.new("RGB", (4, 4), (label,) * 3).save(tmp_path / str(label) / "image0.png")
    classes, paths, labels, weights = read_distilled(tmp_path)
    assert [Image.open(path).getpixel((0, 0))[0] for path in paths] == labels.tolist() == list(range(12))
    assert [entry["name"] for entry in classes] == [str(label) for label in range(12)]
    assert weights.tolist() == [1.0] * 12


def test_the_originals_json_file_is_read_and_used(here, checkpoint, prototypes, tmp_path):
    _, found, _ = read_prototypes(prototypes.folder)
    content = {name: each.centroids.tolist() for name, each in zip(CLASSES, found, strict=True)}
    (tmp_path / "original.json").write_text(json.dumps(content))
    classes, read, config = read_prototypes(tmp_path / "original.json")
    assert [entry["prompt"] for entry in classes] == CLASSES and config == {}
    assert all(torch.equal(a.centroids, b.centroids) for a, b in zip(read, found, strict=True))
    flags = ("--dataset", "folder", "--method", "prototype", "--diffusion_checkpoints_path", checkpoint)
    for name, path in (("json", tmp_path / "original.json"), ("folder", prototypes.folder)):
        assert here("distillation.gen_syn_image", *flags, "--prototype_path", path, "--save_init_image_path",
                    tmp_path / name).code == 0
    pictures = [sorted((tmp_path / name).rglob("*.png")) for name in ("json", "folder")]
    assert len(pictures[0]) == 12 * IPC
    assert [path.name for path in pictures[0]] == [path.name for path in pictures[1]]
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(*pictures, strict=True))


def test_images_equal_the_stock_pipelines(checkpoint, image_pipeline):
    """The patched pipeline adds convenience, not mathematics: stock img2img from the same latents gives the same picture."""
    stock = StableDiffusionImg2ImgPipeline.from_pretrained(checkpoint, safety_checker=None, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    latents = random_latents(2)
    text = image_pipeline.embed(["a cat", "a dog"])
    negative = image_pipeline.embed(["cartoon"]).expand_as(text)

    def call(pipeline, **latents_as):
        return pipeline(**latents_as, prompt_embeds=text, negative_prompt_embeds=negative, strength=0.6, guidance_scale=4.0,
                        num_inference_steps=5, generator=[generator_for(0, place) for place in range(2)])
    expected = call(stock, image=latents, output_type="pt").images
    torch.testing.assert_close(call(image_pipeline, latents=latents), expected, atol=2e-3, rtol=0)
    assert expected.std() > 0.01


def test_strength_0_decodes_the_prototype(here, checkpoint, prototypes, image_pipeline, tmp_path):
    for method, strength in (("d4m", 0), ("prototype", 0.7)):
        assert here("distillation.gen_syn_image", "--dataset", "folder", "--method", method, "--strength", strength,
                    "--prototype_path", prototypes.folder, "--diffusion_checkpoints_path", checkpoint,
                    "--save_init_image_path", tmp_path / method).code == 0
    made = [sorted((tmp_path / method).rglob("*.png")) for method in ("d4m", "prototype")]
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(*made, strict=True))
    centroids = read_prototypes(prototypes.folder)[1][0].centroids
    vae = image_pipeline.vae
    with torch.no_grad():
        decoded = vae.decode(centroids / vae.config.scaling_factor).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round()
    assert np.abs(pixels(made[0][0]).astype(int) - expected[0].permute(1, 2, 0).numpy()).max() <= 1


def test_each_image_has_its_own_noise(image_pipeline):
    latents = random_latents(1).expand(3, -1, -1, -1)
    text = image_pipeline.embed(["a cat"]).expand(3, -1, -1)

    def make(seed):
        return synthesize(image_pipeline, latents, text, image_pipeline.embed([""]), [(0, 0, 0), (0, 0, 1), (0, 0, 0)], seed,
                          Denoising(strength=0.8, guidance_scale=2, num_inference_steps=4))
    images = make(0)
    assert torch.equal(images[0], images[2]) and torch.equal(images, make(0))
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[0], make(1)[0])


def test_repeats_of_a_prototype_differ(distilled):
    rows = json.loads((distilled.folder / "manifest.json").read_text())["rows"]
    for place in range(IPC):
        first, second = (pixels(distilled.folder / entry["file_name"]) for entry in rows
                         if entry["label"] == 11 and entry["prototype"] == place)
        assert not np.array_equal(first, second)


def test_the_tokenizer_takes_any_text(tmp_path):
    tokenizer = byte_level_tokenizer(tmp_path)
    for text in ("a horse", "日本 naïve 😀", "ÀÉ\t x", "don't 12ab", ""):
        ids = tokenize(tokenizer, [text])[0].tolist()
        assert len(ids) == 77 and ids[0] == 512
        assert ids.index(513) - 1 == len("".join(text.lower().split()).encode())  # one token a byte, none unknown
    ids = tokenize(tokenizer, ["x" * 300, "abc", "abd"])
    assert ids.shape == (3, 77) and ids[0, -1] == 513 and not torch.equal(ids[1], ids[2])


def test_seeds_are_functions_of_their_place():
    assert len({seed_for(0, "kmeans", label) for label in range(1000)}) == 1000
    assert seed_for(0, "image", 1, 11) != seed_for(0, "image", 11, 1) != seed_for(1, "image", 11, 1)
    a, b = (torch.randn(4, generator=generator_for(3, "x", 7)) for _ in range(2))
    assert torch.equal(a, b)


def test_identity_changes_with_any_file(prototypes, tmp_path):
    copy = Path(shutil.copytree(prototypes.folder, tmp_path / "copy"))
    assert identity(copy) == identity(prototypes.folder)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][next(iter(manifest["files"]))] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert identity(copy) != identity(prototypes.folder)


def test_to_uint8_rounds():
    assert to_uint8(torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.0])).tolist() == [0, 0, 1, 255]


def test_an_artefact_with_a_missing_file_is_refused(distilled, tmp_path):
    copy = Path(shutil.copytree(distilled.folder, tmp_path / "copy"))
    min(copy.rglob("*.png")).unlink()
    with pytest.raises(InputError, match="p000-r00.png: expected a file, found nothing"):
        read_distilled(copy)
