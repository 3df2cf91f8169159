"""A distilled set read by the readers that people use: torchvision's ImageFolder and the `datasets` library, offline."""

from pathlib import Path

import datasets
import pytest
import yaml
from conftest import CLASSES, manifest_in, rows_of
from huggingface_hub import DatasetCard
from PIL import Image
from torchvision.datasets import ImageFolder

from distillation.card import card, made_how, quoted, size_category
from distillation.distilled_set import finish_distilled, read_distilled, row, write_image
from scripts.cli import ROOT

ODD = ["10", "9", "a: b", 'quo"te', "été", "test", "null", "- x #y", "back\\slash", "line\u2028end", "\x7f", "🦊", "a/b", "~",
       "Zebra"]


@pytest.fixture
def hub_dataset(tmp_path, monkeypatch):
    """`datasets.load_dataset`, without a network and without traces outside the test's folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets.disable_progress_bars()
    return lambda *where, **flags: datasets.load_dataset(*where, **flags, split="train", cache_dir=str(tmp_path / "cache"))


def test_what_the_images_were_made_from_is_named():
    how = {prototype: made_how({"method": "prototype", "source": {"prototype": prototype}})
           for prototype in ("centroid", "medoid", "member", "random")}
    assert [name for name, _ in how.values()] == ["Decoded prototypes"] * 3 + ["Encoded and decoded images"]
    assert ["k-means centroid of its class's latents" in text for _, text in how.values()] == [True, False, False, False]
    assert "nearest to a k-means centroid" in how["medoid"][1] and "of a k-means cluster" in how["member"][1]
    assert "random real image" in how["random"][1]
    assert made_how({"method": "d4m", "source": "elsewhere"})[0] == "D4M images"


def grey_set(folder: Path, names: list[str], config: dict) -> Path:
    """Two images per class whose grey level is their label."""
    classes = [{"name": name, "prompt": name} for name in names]
    rows = [row(label, name, place, 0, 2 ** 32 - 1, 0.5) for label, name in enumerate(names) for place in range(2)]
    for entry in rows:
        write_image(folder, entry["file_name"], Image.new("RGB", (4, 4), (entry["label"],) * 3))
    finish_distilled(folder, classes, config, rows)
    return folder


def contents(images) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), label) for image, label in images)


def grey_is_label(images) -> bool:
    return all(image.getpixel((0, 0)) == (label,) * 3 for image, label in images)


@pytest.mark.parametrize("how", ["folder", "imagefolder"])
def test_both_readers_give_every_image_the_manifests_label(distilled, hub_dataset, how):
    """12 classes: sorted as text without zeros in front, labels 2 to 11 would be permuted."""
    rows = rows_of(distilled.folder)
    wanted = contents((Image.open(distilled.folder / entry["file_name"]), entry["label"]) for entry in rows)
    assert all(entry["file_name"].startswith(f"{entry['label']:05d}_{CLASSES[entry['label']]}/") for entry in rows)
    assert contents(ImageFolder(distilled.folder)) == wanted
    read = hub_dataset(str(distilled.folder)) if how == "folder" else \
        hub_dataset("imagefolder", data_dir=str(distilled.folder))
    assert contents((entry["image"].convert("RGB"), entry["label"]) for entry in read) == wanted
    others = ("label", "prototype", "repeat", "seed", "weight")
    assert [[entry[name] for name in others] for entry in read.remove_columns("image")] == \
        [[entry[name] for name in others] for entry in rows]
    assert how == "imagefolder" or read.features["label"].names == CLASSES


@pytest.mark.parametrize("names", [ODD, ["crane", "maillot", "crane"]])
def test_odd_class_names_keep_their_labels(hub_dataset, tmp_path, names):
    """The general reader takes names with a split's word in them, such as `test`, for a split: the README says so."""
    folder = grey_set(tmp_path / "set", names, {"method": "random", "dataset": "folder"})
    read = hub_dataset(str(folder))
    assert read.features["label"].names == (["0 crane", "1 maillot", "2 crane"] if "crane" in names else ODD)
    general = [name for name in names if name != "test"]
    other = hub_dataset("imagefolder", data_dir=str(grey_set(tmp_path / "other", general, {})))
    for images, count in ((read, len(names)), (other, len(general))):
        assert len(images) == 2 * count and grey_is_label((entry["image"], entry["label"]) for entry in images)
    assert grey_is_label(ImageFolder(folder))
    assert read_distilled(folder)[2].tolist() == [label for label in range(len(names)) for _ in range(2)]


@pytest.mark.parametrize("text", [*ODD, "", "new\nline\ttab", "\x85\xa0\ufeff\u2029", "---\n"])
def test_any_text_survives_yaml(text):
    assert yaml.safe_load(f"- {quoted(text)}") == [text]


def test_the_front_matter_says_what_a_hub_asks(distilled):
    found = DatasetCard.load(distilled.folder / "README.md").data.to_dict()
    assert (found["task_categories"], found["size_categories"]) == (["image-classification"], ["n<1K"])
    assert found["license"] == "other" and "dataset-distillation" in found["tags"]
    assert found["pretty_name"] == "D4M images of an image folder: 72 images, 12 classes"
    assert [size_category(count) for count in (999, 1000, 10_000, 100_000, 1_000_000)] == [
        "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "n>1M"]


def test_the_card_tells_the_configuration_and_no_path_of_the_machine(distilled, checkpoint, prototypes):
    text, manifest = (distilled.folder / "README.md").read_text(), manifest_in(distilled.folder)
    assert "README.md" in manifest["files"] and card(manifest["classes"], manifest["config"], manifest["rows"]) == text
    assert "| `strength` | `0.5` |" in text and "| `negative_prompt` | `\"cartoon, anime, painting\"` |" in text
    assert f"| `source.prototypes` | `\"{manifest['config']['source']['prototypes']}\"` |" in text
    assert not [path for path in (distilled.folder, checkpoint, prototypes.folder, ROOT) if str(path.parent) in text]
