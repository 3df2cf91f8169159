"""Pictures of a distilled set: what their panels show, read back from the PNGs and computed again without our code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, IPC, PER_CLASS, REPEATS, SIZE, edit, new_checkpoint, rows_of
from diffusers import AutoencoderKL
from PIL import Image
from scipy import ndimage
from test_bad_input import refused

from distillation.distilled_set import finish_distilled, row, write_image
from distillation.prototypes import read_prototypes
from misc import show_distilled

SHOWN = [place * 12 // 10 for place in range(10)]    # 10 of 12 classes, evenly
PANEL = 60                                           # pixels; letters and marks are smaller


def pixels(image) -> np.ndarray:
    """float [32, 32, 3] of a file or picture."""
    image = Image.open(image) if isinstance(image, Path) else image
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.BOX), dtype=float)


def panels(path: Path) -> list[list[np.ndarray]]:
    """The images within a picture, row by row: what is not white and large, without its frame."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    places = [place for place in ndimage.find_objects(ndimage.label((picture < 250).any(2))[0])
              if min(side.stop - side.start for side in place) > PANEL]
    rows = {}
    for down, right in sorted(places, key=lambda place: (place[0].start, place[1].start)):
        near = next((start for start in rows if abs(start - down.start) < PANEL / 2), down.start)
        inside = picture[down.start + 2:down.stop - 2, right.start + 2:right.stop - 2]
        rows.setdefault(near, []).append((right.start, pixels(Image.fromarray(inside))))
    return [[panel for _, panel in sorted(row, key=lambda entry: entry[0])] for row in rows.values()]


def recognise(panel: np.ndarray, images: list[np.ndarray]) -> int:
    """Which of `images` a panel shows; it must be close to that one, and to no other."""
    distances = [np.abs(panel - image).mean() for image in images]
    first, second = sorted(distances)[:2]
    assert first < 12 and second > 1.5 * first, (first, second)    # a frame's width and the resampling cost a few levels
    return int(np.argmin(distances))


def training_files(image_data: Path, label: int) -> list[Path]:
    return sorted((image_data / "train" / CLASSES[label]).iterdir())


def heaviest(rows: list[dict], label: int) -> list[dict]:
    """The first image of each of the two largest clusters of a class."""
    return sorted((entry for entry in rows if entry["label"] == label and entry["repeat"] == 0),
                  key=lambda entry: -entry["weight"])[:2]


def grey(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels and three channels, 0 to 1."""
    return image.reshape(16, 2, 16, 2, 3).mean((1, 3, 4)).ravel() / 255


def encoded(vae, files: list[Path]) -> np.ndarray:
    images = torch.from_numpy(np.stack([pixels(path) for path in files])).float().permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        return (vae.encode(images).latent_dist.mean * vae.config.scaling_factor).flatten(1).numpy()


@pytest.fixture(scope="module")
def vae(checkpoint):
    return AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")


@pytest.fixture(scope="module")
def shown(command, distilled, prototypes, image_data, checkpoint, tmp_path_factory):
    """The whole command on the tiny world, once: its answer and its folder."""
    folder = tmp_path_factory.mktemp("shown")
    answer = command("misc.show_distilled", distilled.folder, "--prototype_path", prototypes.folder, "--data_dir",
                     image_data, "--diffusion_checkpoints_path", checkpoint, "--batch_size", 5, "--images", 4,
                     "--output_dir", folder)
    assert (answer.code, answer.err) == (0, "")
    return answer, folder


@pytest.fixture
def random_set(here, image_data, tmp_path):
    assert here("distillation.gen_syn_image", "--dataset", "folder", "--data_dir", image_data, "--method", "random",
                "--ipc", 3, "--image_size", SIZE, "--save_init_image_path", tmp_path).code == 0
    return tmp_path / "folder_random_ipc3"


@pytest.fixture
def show(here, image_data, checkpoint, tmp_path):
    def call(folder, *flags, data=True):
        return here("misc.show_distilled", folder, "--output_dir", tmp_path / "shown", "--diffusion_checkpoints_path",
                    checkpoint, *(["--data_dir", image_data] if data else []), *flags)
    return call


@pytest.fixture
def notes(monkeypatch) -> dict[str, list[str]]:
    """The lines below the images of neighbours.png, by class."""
    found, draw_grid = {}, show_distilled.draw_grid

    def kept(path, names, rows, notes=None, *others, **options):
        found.update(notes or {})
        draw_grid(path, names, rows, notes, *others, **options)
    monkeypatch.setattr(show_distilled, "draw_grid", kept)
    return found


def test_the_grid_holds_the_first_images_of_ten_classes_in_order(shown, distilled):
    rows = rows_of(distilled.folder)
    images = [pixels(distilled.folder / entry["file_name"]) for entry in rows]
    found = [[recognise(panel, images) for panel in line] for line in panels(shown[1] / "classes.png")]
    assert found == [[label * IPC * REPEATS + place for place in range(4)] for label in SHOWN]
    assert "10 of 12 classes, 4 of 6 images each" in shown[0].out


def test_each_image_stands_beside_its_prototype_and_its_nearest_neighbours(shown, distilled, prototypes, image_data, vae):
    centroids = [each.centroids for each in read_prototypes(prototypes.folder)[1]]
    grid = panels(shown[1] / "neighbours.png")
    assert [len(line) for line in grid] == [2 * 4] * 10
    for label, line in zip(SHOWN, grid, strict=True):
        files = training_files(image_data, label)
        real, latents = [pixels(path) for path in files], encoded(vae, files)
        for entry, group in zip(heaviest(rows_of(distilled.folder), label), (line[:4], line[4:]), strict=True):
            made = pixels(distilled.folder / entry["file_name"])
            centroid = centroids[label][[entry["prototype"]]]
            with torch.no_grad():
                decoded = vae.decode(centroid / vae.config.scaling_factor).sample
            prototype = ((decoded / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0) * 255).numpy()
            assert recognise(group[0], [prototype, made]) == 0
            assert recognise(group[1], [prototype, made]) == 1
            by_latents = np.linalg.norm(latents - centroid.flatten().numpy(), axis=1).argmin()
            by_pixels = np.linalg.norm([grey(image) - grey(made) for image in real], axis=1).argmin()
            assert [recognise(panel, real) for panel in group[2:]] == [by_latents, by_pixels]


def test_distances_stand_below_the_nearest_training_images(show, notes, distilled, prototypes, image_data, vae):
    answer = show(distilled.folder, "--prototype_path", prototypes.folder, "--classes", "eel", "koi")
    assert answer.code == 0
    among_real = []
    for name in ("eel", "koi"):
        label, centroids = CLASSES.index(name), read_prototypes(prototypes.folder)[1][CLASSES.index(name)].centroids
        files = training_files(image_data, label)
        real, latents = np.stack([grey(pixels(path)) for path in files]), encoded(vae, files)
        among_real += (np.sqrt(((real[:, None] - real) ** 2).mean(2)) + np.diag([np.inf] * PER_CLASS)).min(1).tolist()
        expected = []
        for entry in heaviest(rows_of(distilled.folder), label):
            made, centroid = grey(pixels(distilled.folder / entry["file_name"])), centroids[entry["prototype"]].flatten()
            expected += [np.linalg.norm(latents - centroid.numpy(), axis=1).min(), np.sqrt(((real - made) ** 2).mean(1)).min()]
        found = [float(text) for text in notes[name] if text]
        assert found == pytest.approx(expected, abs=0.006) and found[1::2] == pytest.approx(expected[1::2], abs=0.0006)
    assert f"training images to one another: median {np.median(among_real):.3f}" in answer.out


def test_another_set_is_shown_below(show, distilled, random_set, tmp_path):
    answer = show(distilled.folder, "--beside", random_set, "--classes", "ant", "koi", "eel", data=False)
    assert answer.code == 0 and "D4M images above Random real images" in answer.out, answer.err
    lines = panels(tmp_path / "shown" / "beside.png")
    for folder, line in zip((distilled.folder, random_set), lines, strict=True):
        rows = rows_of(folder)
        found = [recognise(panel, [pixels(folder / entry["file_name"]) for entry in rows]) for panel in line]
        firsts = [next(place for place, entry in enumerate(rows) if entry["label"] == label)
                  for label in sorted(map(CLASSES.index, ("ant", "koi", "eel")))]
        assert found == firsts


def test_one_class_is_shown_by_its_images(show, distilled, random_set, tmp_path):
    assert show(distilled.folder, "--beside", random_set, "--classes", "koi", data=False).code == 0
    lines = panels(tmp_path / "shown" / "beside.png")
    for folder, line in zip((distilled.folder, random_set), lines, strict=True):
        rows = rows_of(folder)
        own = [place for place, entry in enumerate(rows) if entry["label"] == CLASSES.index("koi")]
        assert len(own) > 1
        assert [recognise(panel, [pixels(folder / entry["file_name"]) for entry in rows]) for panel in line] == own


@pytest.mark.parametrize(("changed", "named"), [
    ({"guidance": "mode"}, "D4M images above Mode-guided images"),
    ({"strength": 0.9}, "D4M images, strength 0.5 above D4M images, strength 0.9")])
def test_a_row_is_named_by_what_differs(show, distilled, copied, changed, named):
    other = copied("distilled")
    edit(other, lambda manifest: manifest["config"].update(changed))
    answer = show(distilled.folder, "--beside", other, "--classes", "ant", data=False)
    assert answer.code == 0 and named in answer.out, answer.err


def test_sets_of_one_name_have_a_row_each(show, random_set, tmp_path):
    others = [shutil.copytree(random_set, tmp_path / name / random_set.name) for name in ("a", "b")]
    answer = show(random_set, "--beside", *others, "--classes", "ant", data=False)
    assert answer.code == 0 and all(str(other) in answer.out for other in others), answer.err
    assert len(panels(tmp_path / "shown" / "beside.png")) == 3


def test_copies_are_exposed(show, notes, random_set, tmp_path):
    assert show(random_set, "--classes", "koi", "eel").code == 0
    assert notes == {name: ("", "0.000", "", "", "0.000") for name in ("eel", "koi")}
    for line in panels(tmp_path / "shown" / "neighbours.png"):
        assert len(line) == 2 * 2 and all(np.abs(line[place] - line[place + 1]).mean() < 1 for place in (0, 2))


def test_unreadable_training_images_are_left_out(show, random_set, image_data, tmp_path):
    data, flags = Path(shutil.copytree(image_data, tmp_path / "data")), ("--classes", "koi", "--data_dir", tmp_path / "data")
    broken, *whole = training_files(data, CLASSES.index("koi"))
    broken.write_bytes(b"no image")
    assert refused(show(random_set, *flags, data=False), broken)
    assert show(random_set, *flags, "--on_bad_image", "skip", data=False).code == 0
    (line,) = panels(tmp_path / "shown" / "neighbours.png")
    assert len(line) == 2 * 2
    for panel in line[1::2]:
        recognise(panel, [pixels(path) for path in whole])


def test_copies_of_wide_images_have_no_distance(here, show, notes, tmp_path):
    for number in range(6):
        folder = tmp_path / "wide" / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (6, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((96, 48), Image.BICUBIC).save(folder / f"{number}.png")
    data = ("--dataset", "folder", "--data_dir", tmp_path / "wide")
    assert here("distillation.gen_syn_image", *data, "--method", "random", "--ipc", 2, "--image_size", SIZE,
                "--save_init_image_path", tmp_path / "sets").code == 0
    assert show(tmp_path / "sets" / "folder_random_ipc2", *data, data=False).code == 0
    assert list(notes.values()) == [("", "0.000", "", "", "0.000")] * 2


def test_the_map_is_the_latents_principal_components(show, random_set, image_data, vae, tmp_path):
    """One class: its marks in the picture lie as numpy's own components of the class's latents say, up to scale and sign."""
    from matplotlib.colors import to_rgb

    from misc.report.pictures import TEN_COLOURS
    assert show(random_set, "--classes", "gnu").code == 0
    label = CLASSES.index("gnu")
    latents = encoded(vae, training_files(image_data, label))
    centre, axes = latents.mean(0), np.linalg.svd(latents - latents.mean(0), full_matrices=False)[2][:2]
    files = [random_set / entry["file_name"] for entry in rows_of(random_set) if entry["label"] == label]
    expected = (encoded(vae, files) - centre) @ axes.T

    picture = np.asarray(Image.open(tmp_path / "shown" / "latents.png").convert("RGB"), dtype=int)
    colour = np.round(255 * np.array(to_rgb(TEN_COLOURS[0])))
    found = ndimage.find_objects(ndimage.label((np.abs(picture - colour) < 3).all(2))[0])
    marks = [[(right.start + right.stop) / 2, -(down.start + down.stop) / 2] for down, right in found
             if down.stop - down.start > 15 and right.stop - right.start > 15]
    marks = np.array(sorted(marks)[:-1])    # the last one is the legend's
    assert len(marks) == 3
    misfits = []
    for signs in ([1, 1], [1, -1], [-1, 1], [-1, -1]):
        points = expected * signs
        points = points[points[:, 0].argsort()] - points.mean(0)
        shape = marks - marks.mean(0)
        misfits.append(np.abs(shape - points * (shape * points).sum() / (points ** 2).sum()).max())
    assert min(misfits) < 3 < sorted(misfits)[1]


def test_what_is_not_given_is_left_out_and_a_line_says_so(show, distilled, prototypes, tmp_path):
    answer = show(distilled.folder, "--prototype_path", prototypes.folder, "--classes", "ant", data=False)
    assert (answer.code, answer.err) == (0, "")
    assert [path.name for path in (tmp_path / "shown").iterdir()] == ["classes.png"]
    assert [line for line in answer.out.splitlines() if "--data_dir" in line and "neighbours.png and latents.png" in line]
    answer = show(distilled.folder, "--classes", "ant", "sea_lion")
    assert answer.code == 0
    assert [line for line in answer.out.splitlines() if "--prototype_path" in line and line.startswith("left out")]
    assert [len(line) for line in panels(tmp_path / "shown" / "neighbours.png")] == [2 * 2] * 2
    assert (tmp_path / "shown" / "latents.png").exists()


def test_folders_of_the_original_are_shown(show, distilled, tmp_path):
    for entry in rows_of(distilled.folder):
        (tmp_path / "original" / str(entry["label"])).mkdir(parents=True, exist_ok=True)
        image = Image.open(distilled.folder / entry["file_name"])
        image.save(tmp_path / "original" / str(entry["label"]) / f"image{entry['repeat']}{entry['prototype']}.png")
    assert show(tmp_path / "original", "--dataset", "folder", "--classes", "2", "10").code == 0
    images = [pixels(distilled.folder / entry["file_name"]) for entry in rows_of(distilled.folder)]
    found = [[recognise(panel, images) for panel in line] for line in panels(tmp_path / "shown" / "classes.png")]
    assert found == [[label * IPC * REPEATS + place for place in range(IPC * REPEATS)] for label in (2, 10)]


def test_odd_names_and_unequal_classes(show, tmp_path):
    names = ["$x_$", "a name that would push all pictures out of the page", "\\frac"]
    rows = [row(label, name, place, 0, 0, 0.5) for label, name in enumerate(names) for place in range(4 - label)]
    for entry in rows:
        write_image(tmp_path / "set", entry["file_name"], Image.new("RGB", (SIZE, SIZE), (entry["label"],) * 3))
    finish_distilled(tmp_path / "set", [{"name": name, "prompt": name} for name in names], {}, rows)
    answer = show(tmp_path / "set", "--images", 3, data=False)
    assert (answer.code, answer.err) == (0, "")
    assert "at most 3 of 2 to 4 images each" in answer.out
    assert [len(line) for line in panels(tmp_path / "shown" / "classes.png")] == [3, 3, 2]
    assert Image.open(tmp_path / "shown" / "classes.png").width < 1200


def test_bad_input(show, distilled, prototypes, random_set, tmp_path):
    classes, found, _ = read_prototypes(prototypes.folder)
    (tmp_path / "other.json").write_text(json.dumps({name: each.centroids.tolist() for name, each in
                                                     zip(CLASSES, found, strict=True)}))
    given = ["--prototype_path", prototypes.folder]
    assert refused(show(distilled.folder, "--prototype_path", tmp_path / "other.json"), "other.json", "expected", "found")
    assert refused(show(random_set, *given), "none", "found")
    assert not (tmp_path / "shown").exists()
    larger = new_checkpoint(tmp_path / "other", levels=2)
    for flags, words in (
            (["--classes", "ant", "unicorn"], ["--classes", "unicorn"]), (["--dataset", "digits"], ["12", "digits"]),
            (["--classes", *CLASSES[:11]], ["--classes", "at most 10", "found 11"]), (["--images", 0], ["--images"]),
            ([*given, "--diffusion_checkpoints_path", larger], ["(4, 16, 16)", "(4, 8, 8)"])):
        assert refused(show(distilled.folder, *flags), *words)
    assert refused(show(tmp_path), "distilled")
