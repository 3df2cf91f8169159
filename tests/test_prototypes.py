"""Prototypes in full: k-means against scikit-learn's own, medoids, outliers, the original's JSON file, resolutions."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import CLASSES, IPC, PER_CLASS, SIZE, manifest_in
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.neighbors import LocalOutlierFactor
from test_bad_input import refused

from distillation.checkpoints import load_pipeline
from distillation.datasets import decode, load_split
from distillation.encoding import Encoding, encode_classes
from distillation.prototypes import cluster, find_prototypes, inliers, nearest_members, random_members, read_prototypes
from matching.image_set import distilled_images
from scripts import cli
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
from scripts.randomness import generator_for


def blobs(count: int, *place) -> torch.Tensor:
    """Latents [count, 4, 3, 3] around five centres."""
    draw = generator_for(0, "blobs", *place)
    centres = torch.randn(5, 4, 3, 3, generator=generator_for(0, "centres")) * 4
    return centres[torch.randint(5, (count,), generator=draw)] + torch.randn(count, 4, 3, 3, generator=draw)


@pytest.fixture(scope="module")
def pipeline(checkpoint):
    return load_pipeline(StableDiffusionGenLatentsPipeline, str(checkpoint), "cpu")


@pytest.fixture
def gen_prototype(here, prototypes, tmp_path):
    """The command of `prototypes` with other flags; the answer and the folder it wrote."""
    def call(*flags, name=f"folder-ipc{IPC}-kmexpand1"):
        return here(prototypes.module, *prototypes.flags, *flags, prototypes.output_flag, tmp_path), tmp_path / name
    return call


@pytest.mark.parametrize("prototype", ["centroid", "random"])
def test_several_numbers_of_prototypes_share_the_encoding(gen_prototype, tmp_path, prototype):
    ending = "" if prototype == "centroid" else "-random"
    how, names = ("--prototype", prototype), [f"folder-ipc{ipc}-kmexpand1{ending}" for ipc in (1, 3)]
    alone = {}
    for ipc, name in zip((1, 3), names, strict=True):
        answer, folder = gen_prototype(*how, "--ipc", ipc, name=name)
        assert answer.code == 0, answer.err
        alone[name] = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        shutil.rmtree(folder)
    answer, _ = gen_prototype(*how, "--ipc", 1, 3)
    assert answer.code == 0 and answer.out.count(" prototypes of ") == 2, answer.err
    for name in names:
        assert {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")} == alone[name]
    shutil.rmtree(tmp_path / names[0])
    answer, _ = gen_prototype(*how, "--ipc", 3, 1)      # the other one alone
    assert answer.code == 0 and answer.out.count(" prototypes of ") == 1 and (tmp_path / names[0] / "manifest.json").exists()


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("kmeans", "km_expand", "batch"), [
    ("full", None, 0), ("minibatch", None, 1024), ("minibatch", 1, 6), ("minibatch", 10, 60)])
def test_kmeans_equals_scikit_learns_whatever_the_order(kmeans, km_expand, batch, order):
    latents = blobs(1300)[torch.randperm(1300, generator=generator_for(order))]
    found = cluster(latents, 6, km_expand, seed=7, kmeans=kmeans)
    estimator = KMeans(6, random_state=7, n_init="auto") if kmeans == "full" else \
        MiniBatchKMeans(6, random_state=7, n_init="auto", batch_size=batch)
    estimator.fit(latents.reshape(1300, -1).numpy())
    np.testing.assert_allclose(found.centroids.reshape(6, -1), estimator.cluster_centers_, rtol=1e-5, atol=1e-5)
    assert found.sizes.tolist() == np.bincount(estimator.labels_, minlength=6).tolist()
    assert float(found.inertia) == pytest.approx(estimator.inertia_, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_latents_and_prototypes_do_not_depend_on_the_batch_they_are_encoded_in(pipeline, image_data, batch_size):
    split = load_split("folder", image_data, "train")
    found = {label: latents for label, latents, _ in encode_classes(pipeline, split, [3, 1], SIZE,
                                                                    Encoding(5, batch_size=batch_size))}
    assert list(found) == [3, 1]
    noise = torch.randn(PER_CLASS, 4, 8, 8, generator=generator_for(5, "latent", 1))
    expected = pipeline(decode(split, split.rows_of(1), SIZE), noise)
    torch.testing.assert_close(found[1], expected, atol=1e-5, rtol=1e-5)
    ours, scikit = cluster(found[1], 4, 1, 9, "full"), KMeans(4, random_state=9, n_init="auto").fit(expected.flatten(1).numpy())
    np.testing.assert_allclose(ours.centroids.flatten(1), scikit.cluster_centers_, atol=1e-4)
    (_, means, rows), = encode_classes(pipeline, split, [2], SIZE, Encoding(5, "mean", batch_size=batch_size))
    torch.testing.assert_close(means, pipeline(decode(split, rows, SIZE)), atol=1e-5, rtol=1e-5)
    assert rows.tolist() == split.rows_of(2).tolist()


@pytest.mark.parametrize("kmeans", ["full", "minibatch"])
def test_medoids_are_the_members_nearest_to_the_centroids(kmeans):
    latents = blobs(90)
    centroids, medoids = (find_prototypes(latents, 7, 1, 3, kmeans=kmeans, prototype=name) for name in ("centroid", "medoid"))
    assert torch.equal(medoids.sizes, centroids.sizes) and torch.equal(medoids.nearest, centroids.nearest)
    distances = torch.cdist(latents.flatten(1), centroids.centroids.flatten(1))
    own = torch.where(distances.argmin(1)[:, None] == torch.arange(7), distances, torch.inf)
    assert medoids.nearest.tolist() == own.argmin(0).tolist() and len(set(medoids.nearest.tolist())) == 7
    assert torch.equal(medoids.centroids, latents[medoids.nearest])


def test_random_prototypes_are_latents_of_the_images_that_random_draws(here, checkpoint, pipeline, tmp_path):
    data = ("--ipc", 3, "--seed", 5, "--diffusion_checkpoints_path", checkpoint)    # of digits
    answer = here("distillation.gen_prototype", *data, "--prototype", "random", "--latent", "mean", "--batch_size", 2,
                  "--save_prototype_path", tmp_path)
    assert answer.code == 0, answer.err
    assert here("distillation.gen_syn_image", *data, "--method", "random", "--save_init_image_path", tmp_path).code == 0
    _, found, _ = read_prototypes(tmp_path / "digits-ipc3-kmexpand1-random")
    assert "30 prototypes of 30 images" in answer.out
    assert here("misc.verify", tmp_path / "digits-ipc3-kmexpand1-random").code == 0
    images = distilled_images(tmp_path / "digits_random_ipc3")
    assert images.images.shape[-1] == SIZE == pipeline.size_pixels
    for label in (0, 7):
        expected = pipeline(images.images[images.labels == label])
        torch.testing.assert_close(found[label].centroids, expected, atol=1e-5, rtol=1e-4)
        assert found[label].sizes.tolist() == [1, 1, 1]
    assert refused(here("distillation.gen_prototype", *data, "--prototype", "random", "--outliers", "lof"), "--outliers lof")


def test_outliers_are_those_of_scikit_learn():
    latents = blobs(120)
    latents[[5, 77]] += 40
    kept = inliers(latents, at_least=10)
    expected = LocalOutlierFactor(n_neighbors=10, contamination=0.1).fit_predict(latents.flatten(1).numpy())
    assert kept.tolist() == np.flatnonzero(expected == 1).tolist()
    assert len(kept) == 108 and not {5, 77} & set(kept.tolist())
    found = find_prototypes(latents, 5, 1, 0, kmeans="full", outliers="lof")
    assert int(found.sizes.sum()) == 108
    direct = KMeans(5, random_state=0, n_init="auto").fit(latents[kept].flatten(1).numpy())
    np.testing.assert_allclose(found.centroids.flatten(1), direct.cluster_centers_, atol=1e-4)
    within = cluster(latents[kept], 5, 1, 0, "full").nearest.numpy()
    medoids = find_prototypes(latents, 5, 1, 0, kmeans="full", prototype="medoid", outliers="lof")
    assert found.nearest.tolist() == medoids.nearest.tolist() == kept[within].tolist() != within.tolist()
    assert torch.equal(medoids.centroids, latents[kept][within])


def test_a_medoid_belongs_to_its_own_cluster():
    line = torch.tensor([-10.0, 10.0, 3.0, 4.0])[:, None, None, None]
    centroids, members = torch.tensor([0.0, 3.6])[:, None, None, None], torch.tensor([0, 0, 1, 1])
    assert nearest_members(line, centroids, members).tolist() == [0, 3]     # 3.0 is nearer to 0.0, but of the other cluster
    empty = nearest_members(line, torch.tensor([0.0, 3.6])[:, None, None, None], torch.tensor([0, 0, 0, 0]))
    assert empty.tolist() == [2, 3]


def test_members_are_drawn_from_each_cluster():
    latents = blobs(300)
    centroids, *drawn = (find_prototypes(latents, 7, 1, seed, kmeans="full", prototype=name)
                         for name, seed in (("centroid", 3), ("member", 3), ("member", 4)))
    first, other = drawn
    assert torch.equal(first.centroids, latents[first.nearest]) and torch.equal(first.sizes, centroids.sizes)
    distances = torch.cdist(first.centroids.flatten(1), centroids.centroids.flatten(1))
    assert distances.argmin(1).tolist() == list(range(7))       # each in its own cluster
    assert first.nearest.tolist() != centroids.nearest.tolist() and first.nearest.tolist() != other.nearest.tolist()
    counts = torch.stack([random_members(latents, torch.zeros(2), torch.arange(300) // 299, seed=seed) for seed in range(9)])
    assert (counts[:, 1] == 299).all() and len(counts[:, 0].unique()) > 1
    assert random_members(latents, torch.zeros(2), torch.zeros(300, dtype=int), seed=0)[1] < 300     # an empty cluster


@pytest.mark.parametrize("count", [1, 2, 3, 10, 11])
def test_outlier_removal_leaves_enough_for_the_prototypes(count):
    kept = inliers(blobs(count), at_least=count)
    assert kept.tolist() == list(range(count))
    if count > 2:
        assert len(inliers(blobs(count), at_least=count - 1)) == count - 1
        assert find_prototypes(blobs(count), count - 1, 1, 0, kmeans="full", outliers="lof").centroids.isfinite().all()


def test_the_command_writes_medoids_without_outliers_beside_the_plain_prototypes(gen_prototype, pipeline, image_data):
    answer, folder = gen_prototype("--prototype", "medoid", "--outliers", "lof", "--latent", "mean",
                                   name=f"folder-ipc{IPC}-kmexpand1-medoid-lof")
    assert answer.code == 0, answer.err
    _, found, config = read_prototypes(folder)
    assert (config["prototype"], config["outliers"]) == ("medoid", "lof")
    split = load_split("folder", image_data, "train")
    for label in (0, 11):
        assert int(found[label].sizes.sum()) == PER_CLASS - 2   # a tenth of 14, rounded up as scikit-learn does
        images = decode(split, split.rows_of(label)[found[label].nearest.numpy()], SIZE)
        torch.testing.assert_close(found[label].centroids, pipeline(images), atol=1e-4, rtol=1e-4)


def test_km_expand_decides_the_batch_and_without_it_configurations_stay(here, prototypes, tmp_path):
    def config_of(*flags):
        assert here("distillation.gen_prototype", *prototypes.flags, *flags, "--save_prototype_path", tmp_path).code == 0
        folder = tmp_path / f"folder-ipc{IPC}-kmexpand{flags[1]}"
        return json.loads((folder / "config.json").read_text())["config"]
    usual = json.loads((prototypes.folder / "config.json").read_text())["config"]
    assert usual["km_expand"] == 1 and "kmeans_batch" not in usual and prototypes.folder.name.endswith("kmexpand1")
    assert config_of("--km_expand", 2) == {**usual, "km_expand": 2, "kmeans_batch": 2 * IPC}
    assert config_of("--km_expand", 400) == {**usual, "km_expand": 400}
    for flags in (("--kmeans", "full"), ("--prototype", "random")):     # no mini-batches: they would change the name only
        answer = here("distillation.gen_prototype", *prototypes.flags, "--km_expand", 2, *flags)
        assert refused(answer, "--km_expand needs --kmeans minibatch")
    answer = here("distillation.gen_prototype", *prototypes.flags, "--prototype", "random", "--resize", "crop")
    assert refused(answer, "--resize crop does not go with --prototype random")


def test_json_round_trip_in_the_originals_layout(gen_prototype):
    for _ in range(2):
        answer, folder = gen_prototype("--format", "json")
        assert answer.code == 0, answer.err
    assert "left as it is" in answer.out
    path = folder.with_suffix(".json")
    assert path in cli.finished     # the same command makes it again where it is gone
    path.unlink()
    assert gen_prototype("--format", "json")[0].code == 0 and path.exists()
    shutil.rmtree(folder)     # other prototypes in its place
    assert gen_prototype("--format", "json", "--seed", 1)[0].code == 0
    content = json.loads(path.read_text())
    assert list(content) == [name.replace("_", " ") for name in CLASSES]
    assert np.array(list(content.values())).shape == (12, IPC, 4, 8, 8)
    classes, read, _ = read_prototypes(path)
    assert [entry["prompt"] for entry in classes] == list(content)
    assert all(torch.equal(a.centroids, b.centroids) for a, b in zip(read, read_prototypes(folder)[1], strict=True))


def test_prompts_that_are_not_unique_cannot_go_into_json(gen_prototype, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"{name if name != 'bear' else 'ant'}\n" for name in CLASSES))
    answer, folder = gen_prototype("--label_file_path", tmp_path / "prompts.txt", "--format", "json")
    assert refused(answer, "found ant more than once")
    assert (folder / "manifest.json").exists() and not list(tmp_path.glob("*.json*"))   # nothing finished is lost


@pytest.mark.parametrize(("size", "side"), [(16, 4), (64, 16), (30, None)])
def test_other_resolutions_give_other_latents_or_are_refused(gen_prototype, size, side):
    answer, folder = gen_prototype("--size", size, "--resize", "crop")
    if side:
        assert answer.code == 0, answer.err
        _, found, config = read_prototypes(folder)
        assert found[0].centroids.shape == (IPC, 4, side, side) and config["size"] == size
    else:
        assert refused(answer, "--size: expected a multiple of 4")


def test_damaged_images_end_the_run_or_are_left_out_and_listed(gen_prototype, own_image_data, pipeline):
    damaged = [own_image_data / "train" / "bear" / name for name in ("00.png", "07.png")]
    damaged[0].write_bytes(damaged[0].read_bytes()[:60])
    damaged[1].write_text("no image")
    assert refused(gen_prototype("--data_dir", own_image_data)[0], damaged[0])
    answer, folder = gen_prototype("--data_dir", own_image_data, "--ipc", 4, "--on_bad_image", "skip",
                                   name="folder-ipc4-kmexpand1")
    assert answer.code == 0 and "2 unreadable images left out" in answer.out, answer.err
    assert "2 unreadable images of class bear are left out" in answer.err
    manifest = manifest_in(folder)
    assert [entry["file"] for entry in manifest["skipped"]] == ["bear/00.png", "bear/07.png"]
    assert all(entry["reason"] for entry in manifest["skipped"])
    assert manifest["counts"]["images"] == 12 * PER_CLASS - 2
    _, found, _ = read_prototypes(folder)
    assert [int(each.sizes.sum()) for each in found[:3]] == [PER_CLASS, PER_CLASS - 2, PER_CLASS]
    assert found[1].skipped.tolist() == [0, 7] and not {0, 7} & set(found[1].nearest.tolist())

    # the rest of the class has the latents it has among all
    split = load_split("folder", own_image_data, "train", on_bad_image="skip")
    (_, latents, rows), = encode_classes(pipeline, split, [1], SIZE, Encoding(0, batch_size=5))
    noise = torch.randn(PER_CLASS, 4, 8, 8, generator=generator_for(0, "latent", 1))
    readable = [place for place in range(PER_CLASS) if place not in (0, 7)]
    assert rows.tolist() == split.rows_of(1)[readable].tolist()
    torch.testing.assert_close(latents, pipeline(decode(split, rows, SIZE), noise[readable]), atol=1e-5, rtol=1e-5)

    # of random prototypes, the files that were tried: here all but one
    answer, folder = gen_prototype("--data_dir", own_image_data, "--ipc", PER_CLASS - 2, "--on_bad_image", "skip",
                                   "--prototype", "random", name=f"folder-ipc{PER_CLASS - 2}-kmexpand1-random")
    assert answer.code == 0 and [entry["file"] for entry in manifest_in(folder)["skipped"]] == ["bear/07.png"]


@pytest.mark.parametrize("method", ["random", "herding"])
def test_real_images_are_chosen_among_the_readable(here, own_image_data, checkpoint, tmp_path, method):
    for path in sorted((own_image_data / "train" / "bear").iterdir())[:-4]:
        path.write_text("no image")
    flags = ["--dataset", "folder", "--data_dir", own_image_data, "--method", method, "--on_bad_image", "skip",
             "--diffusion_checkpoints_path", checkpoint, "--save_init_image_path", tmp_path, "--ipc"]
    answer = here("distillation.gen_syn_image", *flags, 4)
    assert answer.code == 0, answer.err
    assert len(list((tmp_path / f"folder_{method}_ipc4" / "00001_bear").iterdir())) == 4
    assert refused(here("distillation.gen_syn_image", *flags, 5), "expected at most 4, the readable images of class bear")
