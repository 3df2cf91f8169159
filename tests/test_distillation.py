"""Stages 1 and 2: latents, prototypes, images; each against scikit-learn, diffusers or torchvision called independently."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, IPC, PER_CLASS, REPEATS, SIZE, edit, manifest_in, pixels, rows_of
from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline
from PIL import Image
from sklearn.cluster import KMeans

from distillation.checkpoints import load_pipeline
from distillation.datasets import decode, load_split
from distillation.distilled_set import check_class_names, read_distilled, row
from distillation.images import to_uint8
from distillation.ldm import byte_level_tokenizer, tokenize
from distillation.prototypes import cluster, read_prototypes
from scripts.artefact import identity
from scripts.cli import InputError
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
from scripts.randomness import generator_for, seed_for


def random_latents(count: int, *place) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=generator_for(0, "test", *place))


def pictures(here, checkpoint, root: Path, *flags) -> dict[str, list]:
    """What gen_syn_image makes: pixels by file name."""
    answer = here("distillation.gen_syn_image", "--dataset", "folder", "--diffusion_checkpoints_path", checkpoint,
                  "--save_init_image_path", root, *flags)
    assert answer.code == 0, answer.err
    return {path.name: pixels(path).tolist() for path in root.rglob("*.png")}


@pytest.fixture(scope="module")
def image_pipeline(checkpoint):
    return load_pipeline(StableDiffusionLatents2ImgPipeline, str(checkpoint), "cpu")


# stage 1: latents and prototypes
def test_latents_are_the_autoencoders_times_its_scaling_factor(checkpoint, image_data, tmp_path):
    """Of a checkpoint of which only the autoencoder is there: nothing else is read."""
    shutil.copytree(checkpoint / "vae", tmp_path / "bare" / "vae")
    shutil.copy(checkpoint / "model_index.json", tmp_path / "bare")
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, str(tmp_path / "bare"), "cpu")
    images = decode(load_split("folder", image_data, "train"), range(3), SIZE)
    vae = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")
    with torch.no_grad():
        posterior = vae.encode(images.float() / 255 * 2 - 1).latent_dist
    noise, scale = random_latents(3), vae.config.scaling_factor
    torch.testing.assert_close(pipeline(images), posterior.mean * scale)
    torch.testing.assert_close(pipeline(images, noise), (posterior.mean + posterior.std * noise) * scale)
    assert pipeline.latent_shape(SIZE) == (4, 8, 8) and list(pipeline.components) == ["vae"]


@pytest.mark.parametrize("kmeans", ["full", "minibatch"])
@pytest.mark.parametrize("count", [10, 11, 60])
def test_every_latent_belongs_to_one_prototype(kmeans, count):
    found = cluster(random_latents(count), ipc=10, km_expand=None, seed=0, kmeans=kmeans)
    assert found.centroids.shape == (10, 4, 8, 8) and torch.isfinite(found.centroids).all()
    assert int(found.sizes.sum()) == count and float(found.weights.sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match=f"at least {count + 1} latents, found {count}"):
        cluster(random_latents(count), ipc=count + 1, km_expand=None, seed=0, kmeans=kmeans)


@pytest.mark.parametrize("kmeans", ["full", "minibatch"])
def test_the_last_latents_take_part(kmeans):
    """The original dropped what did not fill its last mini-batch of ipc * km_expand latents."""
    latents = torch.cat([random_latents(20), random_latents(1) + 100])
    found = cluster(latents, ipc=2, km_expand=None, seed=0, kmeans=kmeans)
    assert sorted(found.sizes.tolist()) == [1, 20]
    assert found.centroids[found.sizes.argmin()].min() > 10  # not exactly the latent: mini-batch centroids are running means


def test_a_prototypes_folder_tells_all(prototypes):
    classes, found, config = read_prototypes(prototypes.folder)
    assert [entry["name"] for entry in classes] == CLASSES
    assert {(tuple(each.centroids.shape), int(each.sizes.sum())) for each in found} == {((IPC, 4, 8, 8), PER_CLASS)}
    assert (config["ipc"], config["size"], config["kmeans"]) == (IPC, SIZE, "minibatch")
    assert manifest_in(prototypes.folder)["counts"] == {"classes": 12, "prototypes": 12 * IPC, "images": 12 * PER_CLASS}
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


def test_metadata_and_manifest_say_the_same(distilled, prototypes):
    manifest, rows = manifest_in(distilled.folder), rows_of(distilled.folder)
    classes, paths, labels, weights = read_distilled(distilled.folder)
    assert [entry["name"] for entry in classes] == CLASSES and len(rows) == 12 * IPC * REPEATS
    assert list(zip(paths, labels.tolist(), weights.tolist(), strict=True)) == [
        (distilled.folder / entry["file_name"], entry["label"], pytest.approx(entry["weight"])) for entry in rows]
    assert [line for line in distilled.err.splitlines() if line and "img/s" not in line] == []
    assert [json.loads(line) for line in (distilled.folder / "metadata.jsonl").read_text().splitlines()] == rows
    assert sorted(manifest["files"]) == sorted([entry["file_name"] for entry in rows] + ["metadata.jsonl", "README.md"])
    assert {path.relative_to(distilled.folder).as_posix() for path in distilled.folder.rglob("*.png")} == \
        {entry["file_name"] for entry in rows}
    assert len({entry["seed"] for entry in rows}) == len(rows)
    found = read_prototypes(prototypes.folder)[1]
    for entry in rows:
        assert manifest["classes"][entry["label"]]["name"] in entry["file_name"]
        share = found[entry["label"]].sizes[entry["prototype"]] / PER_CLASS     # of the cluster in its class
        assert entry["weight"] == pytest.approx(float(share) / REPEATS, abs=1e-6)
    repeats = [pixels(distilled.folder / entry["file_name"]).tobytes() for entry in rows if entry["label"] == 11]
    assert len(set(repeats)) == IPC * REPEATS


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
    made, others = (pictures(here, checkpoint, tmp_path / path.stem, "--method", "prototype", "--prototype_path", path)
                    for path in (tmp_path / "original.json", prototypes.folder))
    assert len(made) == 12 * IPC and made == others
    named = [{"name": f"n{label:08d}", "prompt": prompt} for label, prompt in enumerate(CLASSES)]
    check_class_names("the set", classes, "a teacher", named)      # its names are the prompts of the others
    with pytest.raises(InputError, match="the set: expected the 12 classes of a teacher"):
        check_class_names("the set", classes, "a teacher", named[::-1])


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
    made, decoded = (pictures(here, checkpoint, tmp_path / method, "--prototype_path", prototypes.folder, "--method", method,
                              "--strength", strength) for method, strength in (("d4m", 0), ("prototype", 0.7)))
    assert made == decoded
    vae = image_pipeline.vae
    with torch.no_grad():
        images = vae.decode(read_prototypes(prototypes.folder)[1][0].centroids / vae.config.scaling_factor).sample
    expected = ((images / 2 + 0.5).clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(made["00000-p000-r00.png"] - expected).max() <= 1


def test_the_tokenizer_takes_any_text(tmp_path):
    tokenizer = byte_level_tokenizer(tmp_path)
    for text in ("a horse", "日本 naïve 😀", "ÀÉ\t x", "don't 12ab", ""):
        ids = tokenize(tokenizer, [text])[0].tolist()
        assert len(ids) == 77 and ids[0] == 512
        assert ids.index(513) - 1 == len("".join(text.lower().split()).encode())  # one token a byte, none unknown
    ids = tokenize(tokenizer, ["x" * 300, "abc", "abd"])
    assert ids.shape == (3, 77) and ids[0, -1] == 513 and not torch.equal(ids[1], ids[2])


def test_names_and_seeds_are_functions_of_their_place():
    names = {row(0, "ant", prototype, repeat, 0, 1)["file_name"] for prototype in range(112) for repeat in range(112)}
    assert len(names) == 112 * 112      # also prototype 1, repeat 11 and prototype 11, repeat 1
    assert len({seed_for(0, "kmeans", label) for label in range(1000)}) == 1000
    assert seed_for(0, "image", 1, 11) != seed_for(0, "image", 11, 1) != seed_for(1, "image", 11, 1)
    assert torch.equal(*(torch.randn(4, generator=generator_for(3, "x", 7)) for _ in range(2)))


def test_identity_changes_with_any_file_and_a_missing_one_is_refused(distilled, copied):
    copy = copied("distilled")
    assert identity(copy) == identity(distilled.folder)
    edit(copy, lambda manifest: manifest["files"].update({"README.md": "0" * 64}))
    assert identity(copy) != identity(distilled.folder)
    min(copy.rglob("*.png")).unlink()
    with pytest.raises(InputError, match="p000-r00.png: expected a file, found nothing"):
        read_distilled(copy)


def test_to_uint8_rounds():
    assert to_uint8(torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.0])).tolist() == [0, 0, 1, 255]
