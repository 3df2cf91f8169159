"""A distilled set given to others: with its soft labels in one folder for a hub, as DD-Ranking reads it, to plain PyTorch."""

import errno
import json
import os
import re
from pathlib import Path

import datasets
import pytest
import torch
from conftest import CLASSES, SIZE, artefact, rows_of
from huggingface_hub import DatasetCard
from PIL import Image
from test_bad_input import contents, refused
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor

from distillation.distilled_set import finish_distilled, row, write_image
from matching.image_set import distilled_images
from matching.soft_labels import SoftLabels
from misc.verify import verify
from scripts.cli import ROOT
from scripts.networks import load_model

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def hub(command, distilled, soft_labels, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("export") / "hub"
    answer = command("misc.export", distilled.folder, "--to", "hub", "--soft-labels", soft_labels.folder, "--output", output)
    assert answer.code == 0, answer.err
    assert f"hf upload OWNER/NAME {output} --repo-type dataset" in answer.out
    return output


@pytest.fixture
def ten_classes(tmp_path) -> Path:
    """Two pictures per class of CIFAR-10's ten, in rows that are not sorted by class; grey levels tell them apart."""
    folder = tmp_path / "ten"
    rows = [row(label, TEN[label], place, 0, 0, 0.5) for place in range(2) for label in range(10)]
    for entry in rows:
        level = 20 * entry["label"] + 5 * entry["prototype"]
        write_image(folder, entry["file_name"], Image.new("RGB", (SIZE, SIZE), (level, 255 - level, 7)))
    finish_distilled(folder, [{"name": name, "prompt": name} for name in TEN], {"dataset": "folder"}, rows)
    return folder


def test_our_readers_and_datasets_read_the_hub_folder(hub, distilled, soft_labels, tmp_path):
    assert verify(hub)[1] == []
    images, own = distilled_images(hub / "images"), distilled_images(distilled.folder)
    assert images.digest == own.digest and torch.equal(images.weights, own.weights)
    drawn, answers = SoftLabels(hub / "soft_labels", images).epoch(1, "cpu")
    other_drawn, others = SoftLabels(soft_labels.folder, own).epoch(1, "cpu")
    assert torch.equal(drawn.crop, other_drawn.crop) and torch.equal(answers.logits, others.logits)
    datasets.disable_progress_bars()
    read = datasets.load_dataset(str(hub), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == CLASSES
    assert [(entry["label"], entry["weight"], entry["image"].convert("RGB").tobytes()) for entry in read] == [
        (entry["label"], entry["weight"], Image.open(distilled.folder / entry["file_name"]).convert("RGB").tobytes())
        for entry in rows_of(distilled.folder)]


def test_the_card_says_where_the_labels_are_and_its_lines_run(hub, monkeypatch):
    text = (hub / "README.md").read_text()
    assert DatasetCard.load(hub / "README.md").data.to_dict()["size_categories"] == ["n<1K"]
    assert "`soft_labels/` holds a teacher's logits" in text and "| `mix_type` | `\"cutmix\"` |" in text
    plain, _, ours = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    for lines in (plain, ours):
        exec(lines.replace("path/to/this/folder", str(hub)), names)
    assert len(names["drawn"].order) == len(names["images"]) and names["label"] == 0


def test_the_same_command_does_nothing_and_another_set_is_refused(here, hub, distilled, soft_labels, ten_classes):
    before = contents(hub)
    flags = ["--to", "hub", "--soft-labels", soft_labels.folder, "--output", hub]
    again = here("misc.export", distilled.folder, *flags)
    assert (again.code, again.out) == (0, f"{hub}: complete, nothing to do\n")
    assert refused(here("misc.export", ten_classes, *flags), soft_labels.folder, "soft labels of ten")
    assert refused(here("misc.export", ten_classes, "--to", "ddranking", "--benchmark", "CIFAR10", "--output", hub), hub,
                   "begun with benchmark=None", "'CIFAR10'")
    assert contents(hub) == before
    (hub / "manifest.json").unlink()    # as a kill leaves it
    next((hub / "images").rglob("*.png")).unlink()
    assert here("misc.export", distilled.folder, *flags).code == 0 and contents(hub).keys() == before.keys()


def test_without_hard_links_files_are_copied(here, ten_classes, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")
    monkeypatch.setattr(os, "link", refuse)
    flags = ["--to", "ddranking", "--benchmark", "CIFAR10", "--output", tmp_path / "out"]
    assert here("misc.export", ten_classes, *flags).code == 0
    copies = sorted((tmp_path / "out" / "images").rglob("*.png"))
    assert [(path.stat().st_nlink, path.read_bytes()) for path in copies] == [
        (1, path.read_bytes()) for path in sorted(ten_classes.rglob("*.png"))]


def test_ddranking_reads_folder_and_tensors_alike(here, ten_classes, tmp_path):
    """As its 0.2.0 does: ImageFolder with the given transform; tensors whose hard labels are each class `ipc` times in turn."""
    data = tmp_path / "data"
    for part in ("train", "test"):
        for label, name in enumerate(TEN):
            (data / part / name).mkdir(parents=True)
            Image.new("RGB", (SIZE, SIZE), (20 * label, 255 - 20 * label, 7)).save(data / part / name / "0.png")
    teacher = here("matching.train_teacher", "--dataset", "folder", "--data_dir", data, "--arch", "resnet18", "--input-size",
                   SIZE, "--epochs", 1, "--batch-size", 10, "--output-dir", tmp_path / "teacher")
    assert teacher.code == 0, teacher.err
    folder, output = artefact(tmp_path / "teacher"), tmp_path / "out"
    answer = here("misc.export", ten_classes, "--to", "ddranking", "--benchmark", "CIFAR10", "--teacher", folder,
                  "--output", output)
    assert answer.code == 0, answer.err
    page = (output / "README.md").read_text()
    mean, std = re.search(r"Normalize\((\(.*?\)), (\(.*?\))\)", page).groups()
    seen = ImageFolder(output / "images", Compose([ToTensor(), Normalize(json.loads(f"[{mean[1:-1]}]"),
                                                                         json.loads(f"[{std[1:-1]}]"))]))
    assert [path.name for path in sorted((output / "images").iterdir())] == [f"{i:05d}_{name}" for i, name in enumerate(TEN)]
    images = torch.load(output / "images.pt", weights_only=True)
    logits = torch.load(output / "soft_labels.pt", weights_only=True)
    assert seen.targets == [label for label in range(10) for _ in range(2)]
    torch.testing.assert_close(images, torch.stack([picture for picture, _ in seen]))
    network, _ = load_model(folder, "teacher")
    expected = Compose([ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    with torch.inference_mode():
        wanted = network.eval()(torch.stack([expected(Image.open(path)) for path, _ in seen.samples]))
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert "ipc=2, im_size=(32, 32)" in page
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([compile(lines, "README.md", "exec") for lines in programs]) == 2


def test_bad_input_is_one_line(here, distilled, soft_labels, teacher, ten_classes, tmp_path):
    ddranking, labels = ["--to", "ddranking"], ["--to", "hub", "--soft-labels"]
    cifar = [*ddranking, "--benchmark", "CIFAR10"]
    for folder, flags, words in (
            (tmp_path, [*labels, soft_labels.folder], [tmp_path, "distilled"]),
            (distilled.folder, ["--to", "hub"], ["--soft-labels", "hf upload OWNER/NAME"]),
            (distilled.folder, [*labels, tmp_path], [tmp_path, "soft_labels"]),
            (distilled.folder, [*ddranking, "--soft-labels", "x"], ["--soft-labels", "--to hub"]),
            (distilled.folder, ddranking, ["--benchmark", "CIFAR10", "folder"]),
            (distilled.folder, cifar, ["10 classes", "found 12"]),
            (ten_classes, [*cifar, "--teacher", teacher.folder], ["10", "12"])):
        assert refused(here("misc.export", folder, *flags, "--output", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert refused(here("misc.export", ten_classes, *cifar, "--output", tmp_path / "out"), "found other files")
    changed = next(ten_classes.rglob("*.png"))
    changed.write_bytes(bytes(changed.stat().st_size))
    assert refused(here("misc.export", ten_classes, *cifar, "--output", tmp_path / "new"),
                   "expected the file that the manifest lists")


@pytest.mark.parametrize(("names", "counts", "words"), [
    ([*TEN[1:], TEN[0]], [1] * 10, ["sorted order", "automobile at 0"]),
    (TEN, [2] * 9 + [1], ["as many images", "found 1 to 2"])])
def test_classes_out_of_order_or_of_different_size_are_refused(here, tmp_path, names, counts, words):
    rows = [row(label, names[label], place, 0, 0, 1.0) for label in range(10) for place in range(counts[label])]
    for entry in rows:
        write_image(tmp_path / "set", entry["file_name"], Image.new("RGB", (4, 4)))
    finish_distilled(tmp_path / "set", [{"name": one, "prompt": one} for one in names], {"dataset": "cifar10"}, rows)
    assert refused(here("misc.export", tmp_path / "set", "--to", "ddranking", "--output", tmp_path / "out"), *words)


def test_the_readmes_three_lines_read_a_set(distilled, tmp_path, monkeypatch):
    """The very lines, with a set where they say one is."""
    (lines,) = re.findall(r"```python\n(from torchvision import .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(lines.splitlines()) == 3
    place = tmp_path / re.search(r'ImageFolder\("(.*?)"', lines)[1]
    place.parent.mkdir(parents=True)
    place.symlink_to(distilled.folder)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(lines, names)
    wanted = sorted((ToTensor()(Image.open(distilled.folder / entry["file_name"]).convert("RGB")).numpy().tobytes(),
                     entry["label"]) for entry in rows_of(distilled.folder))
    assert sorted((picture.numpy().tobytes(), label) for picture, label in names["images"]) == wanted
    assert names["picture"].shape == (3, SIZE, SIZE)
