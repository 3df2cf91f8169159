"""Real images: classes and prompts against torchvision's own lists, and folders as messy as people have them."""

import gzip
import hashlib
import json
import os
import pickle
import random
import shutil
import threading
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES
from PIL import Image, ImageSequence, features
from scipy.io import savemat
from test_bad_input import refused
from test_untrusted import with_header
from torchvision import transforms
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageFolder, Imagenette
from torchvision.models import ResNet18_Weights

from distillation.datasets import (
    Split,
    decode,
    decode_all,
    decode_readable,
    image_folder,
    load_split,
    load_splits,
    matched,
    part_of_training,
)
from distillation.distilled_set import check_class_names
from distillation.images import BadImage, fit_image, open_image
from distillation.prompts import PROMPTS, by_wnid, exchanged, file_prompts
from matching.augmentation import Views, draw_views
from matching.image_set import real_images
from scripts.artefact import finish
from scripts.cli import InputError

CATEGORIES = ResNet18_Weights.DEFAULT.meta["categories"]
# CIFAR-100's super-classes: with ours they have the fingerprint that torchvision asks for (see `meta_file`)
COARSE = """aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices household_furniture
    insects large_carnivores large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores
    medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2"""


def wnids_of(name: str) -> list[str]:
    return (PROMPTS / f"{name}_wnids.txt").read_text().split()


def marked(number: int) -> Image.Image:
    """An 8x8 image whose colour says which it is."""
    return Image.new("RGB", (8, 8), (number % 256, number // 256, 77))


def mark_of(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


def marks_of(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] + 256 * images[:, 1, 0, 0].int()).tolist()


def write_marked(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    marked(number).save(path, "PNG")  # whatever its ending


def pairs(split) -> list[tuple[str, str]]:
    return [(entry["name"], entry["prompt"]) for entry in split.classes]


# every class of every data set: index, folder, prompt, torchvision's name
def test_digits_table():
    train, test = (load_split("digits", "nowhere", part) for part in ("train", "test"))
    pictures = []
    for split, count in ((train, 1352), (test, 445)):
        assert [f"{name} - {prompt}" for name, prompt in pairs(split)] == MNIST.classes
        assert set(split.labels.tolist()) == set(range(10)) and len(split.labels) == count
        pictures.append({split.read(row).tobytes() for row in range(count)})
    assert not pictures[0] & pictures[1] and (train.read(0).size, train.read(0).mode) == ((32, 32), "RGB")


def meta_file(items: dict[str, list[str] | int]) -> bytes:
    """CIFAR's file of class names, byte for byte: a pickle of Python 2, protocol 2, every string and list memorised."""
    memo = iter(range(1, 256))

    def put() -> bytes:
        return b"q" + bytes([next(memo)])

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode() + put()
    out = b"\x80\x02}" + put() + b"("
    for key, value in items.items():
        out += text(key)
        out += b"M" + value.to_bytes(2, "little") if isinstance(value, int) else \
            b"]" + put() + b"(" + b"".join(map(text, value)) + b"e"
    return out + b"u."


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("source", "key"), [(CIFAR10, "labels"), (CIFAR100, "fine_labels")])
def test_cifar_table(tmp_path, monkeypatch, source, key, part):
    """Folders of one image per class. Only the fingerprints of the image files are replaced, not that of the names."""
    names = (PROMPTS / f"{source.__name__.lower()}.txt").read_text().replace(" ", "_").split()
    meta = meta_file({"num_cases_per_batch": 10000, "label_names": names, "num_vis": 3072} if source is CIFAR10 else
                     {"fine_label_names": names, "coarse_label_names": COARSE.split()})
    assert hashlib.md5(meta).hexdigest() == source.meta["md5"]
    folder = tmp_path / source.base_folder
    folder.mkdir()
    (folder / source.meta["filename"]).write_bytes(meta)
    for listed in ("train_list", "test_list"):
        files, sums = [name for name, _ in getattr(source, listed)], []
        for place, file in enumerate(files):
            labels = list(range(len(names)))[place::len(files)]
            data = np.stack([np.array(marked(label).resize((32, 32))).transpose(2, 0, 1).ravel() for label in labels])
            (folder / file).write_bytes(pickle.dumps({"data": data, key: labels}, protocol=2))
            sums.append([file, hashlib.md5((folder / file).read_bytes()).hexdigest()])
        monkeypatch.setattr(source, listed, sums)
    ours, theirs = load_split(source.__name__.lower(), tmp_path, part), source(tmp_path, train=part == "train")
    assert pairs(ours) == [(entry, entry.replace("_", " ")) for entry in theirs.classes]
    assert ours.labels.tolist() == theirs.targets
    for row, label in enumerate(ours.labels):
        assert mark_of(ours.read(row)) == label and np.array_equal(np.array(ours.read(row)), np.array(theirs[row][0]))


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_cifar_that_cannot_be_downloaded(here, monkeypatch, tmp_path, source):
    name = source.__name__.lower()
    monkeypatch.setattr(source, "url", "http://127.0.0.1:9/none.tar.gz")  # nobody listens
    data = tmp_path / "data"
    answer = here("matching.train_teacher", "--dataset", name, "--data_dir", data, "--output-dir", tmp_path / "out")
    assert refused(answer, data, name, "found none and could not download") and not (tmp_path / "out").exists()
    (data / source.base_folder).mkdir(parents=True)  # a damaged copy
    with pytest.raises(InputError, match="found files that are damaged or incomplete and could not download"):
        load_split(name, data, "train")


@pytest.mark.parametrize(("name", "count", "digest"), [
    # timm's imagenet_synsets.txt and tensorflow-datasets' imagenet2012/labels.txt have the same
    ("imagenet", 1000, "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15"),
    # of the archive's wnids.txt, as two projects have copied it
    ("tiny_imagenet", 200, "342d6acf18911d62da4c981221f833718a3ef8299e55512239e09c64e49a344c")])
def test_wnid_lists_are_the_published_ones(name, count, digest):
    """The digest is of the sorted wnids, a line each."""
    wnids = wnids_of(name)
    assert len(set(wnids)) == count and wnids == sorted(wnids) and set(wnids) <= set(wnids_of("imagenet"))
    assert hashlib.sha256((PROMPTS / f"{name}_wnids.txt").read_bytes()).hexdigest() == digest


def test_imagenet_table(tmp_path):
    for label, wnid in enumerate(wnids_of("imagenet")):
        write_marked(tmp_path / "train" / wnid / f"{wnid}_1.JPEG", label)
    (tmp_path / "val").symlink_to("train")
    theirs = ImageFolder(tmp_path / "train")
    for split in (load_split("imagenet", tmp_path, part) for part in ("train", "test")):
        assert pairs(split) == list(zip(theirs.classes, CATEGORIES, strict=True))
        assert split.labels.tolist() == theirs.targets == [mark_of(split.read(row)) for row in range(1000)]
        assert pairs(split)[134] == ("n02012849", "crane bird") and pairs(split)[517] == ("n03126707", "crane")
        assert [split.classes[label]["prompt"] for label in (638, 639)] == ["maillot", "maillot tank suit"]


def test_a_subset_of_imagenet_is_prompted_by_wnid(tmp_path):
    """ImageNette's ten folders, in torchvision's own class for them."""
    for label, wnid in enumerate(Imagenette._WNID_TO_CLASS):
        write_marked(tmp_path / "imagenette2" / "train" / wnid / "a.JPEG", label)
    theirs, ours = Imagenette(tmp_path, "train"), load_split("imagenet", tmp_path / "imagenette2", "train")
    assert pairs(ours) == [(wnid, names[0]) for wnid, names in zip(theirs.wnids, theirs.classes, strict=True)]
    with pytest.raises(InputError, match="expected 10 prompts.*found 1000"):
        load_split("imagenet", tmp_path / "imagenette2", "train", PROMPTS / "imagenet_classes.txt")


def test_an_unknown_wnid_needs_a_label_file(here, tmp_path):
    for label, folder in enumerate(["n01440764", "n99999999"]):
        write_marked(tmp_path / "train" / folder / "a.JPEG", label)
    for name in ("imagenet", "tiny_imagenet"):
        answer = here("matching.train_teacher", "--dataset", name, "--data_dir", tmp_path, "--output-dir", tmp_path / "out")
        assert refused(answer, tmp_path / "train", "wnids", "--label_file_path")
    (tmp_path / "prompts.txt").write_text("tench\nnew thing\n")
    split = load_split("imagenet", tmp_path, "train", tmp_path / "prompts.txt")
    assert pairs(split) == [("n01440764", "tench"), ("n99999999", "new thing")]


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory) -> Path:
    """As it is distributed: wnids.txt in no order, the validation images in one folder, two of each class."""
    root, wnids = tmp_path_factory.mktemp("tiny"), wnids_of("tiny_imagenet")
    mixed = random.Random(0).sample([(wnid, place) for wnid in wnids for place in range(2)], 400)
    (root / "wnids.txt").write_text("\n".join(random.Random(1).sample(wnids, 200)))
    for label, wnid in enumerate(wnids):
        write_marked(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", label)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
    for number, (wnid, _) in enumerate(mixed):
        write_marked(root / "val" / "images" / f"val_{number}.JPEG", wnids.index(wnid))
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{number}.JPEG\t{wnid}\t0\t0\t7\t7\n" for number, (wnid, _) in enumerate(mixed)))
    (root / "test" / "images").mkdir(parents=True)
    return root


def test_tiny_imagenet_table(tiny_imagenet):
    train, test = (load_split("tiny_imagenet", tiny_imagenet, part) for part in ("train", "test"))
    assert train.native_size_pixels == test.native_size_pixels == 64
    theirs = ImageFolder(tiny_imagenet / "train")
    name_of = dict(zip(wnids_of("imagenet"), CATEGORIES, strict=True))
    assert pairs(train) == pairs(test) == [(wnid, name_of[wnid]) for wnid in theirs.classes]
    assert train.labels.tolist() == theirs.targets == [mark_of(train.read(row)) for row in range(200)]
    assert test.labels.tolist() == sorted([*range(200)] * 2) == [mark_of(test.read(row)) for row in range(400)]


def test_rearranged_tiny_imagenet_is_the_same(tiny_imagenet, tmp_path):
    """val/<wnid>/*.JPEG, as most scripts move the files; the list of wnids may have stayed."""
    for line in (tiny_imagenet / "val" / "val_annotations.txt").read_text().splitlines():
        file, wnid = line.split("\t")[:2]
        (tmp_path / "val" / wnid).mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_imagenet / "val" / "images" / file, tmp_path / "val" / wnid)
    shutil.copy(tiny_imagenet / "val" / "val_annotations.txt", tmp_path / "val")
    moved, official = (load_split("tiny_imagenet", root, "test") for root in (tmp_path, tiny_imagenet))
    assert moved.classes == official.classes
    assert real_images(moved, 8).digest == real_images(official, 8).digest


@pytest.mark.parametrize(("text", "found"), [("val_0.JPEG n01443537\n", "line 1"), ("", "found none"), *[
    (f"{name}\tn01443537\t0\t0\t1\t1\n", f"line 1.*{name}") for name in ("../../secret.png", "/etc/passwd", "sub/a.png")]])
def test_damaged_annotations_of_tiny_imagenet(tmp_path, text, found):
    """Also such as name files elsewhere."""
    (tmp_path / "val" / "images").mkdir(parents=True)
    (tmp_path / "val" / "val_annotations.txt").write_text(text)
    with pytest.raises(InputError, match=f"val_annotations.txt: expected .*{found}"):
        load_split("tiny_imagenet", tmp_path, "test")


def test_a_list_of_classes_may_have_blanks_and_says_what_it_leaves_out(tmp_path, capsys):
    for label, name in enumerate(["red fox", "owl"]):
        write_marked(tmp_path / "train" / name / "a.png", label)
    for number in range(3):
        write_marked(tmp_path / "val" / f"p {number}.png", number)
    (tmp_path / "list.csv").write_text("p 0.png,red fox\np 2.png,owl\n")
    train, test = load_splits(name="folder", data_dir=tmp_path, val_labels=tmp_path / "list.csv")
    assert [entry["name"] for entry in test.classes] == ["owl", "red fox"] and test.labels.tolist() == [0, 1]
    assert [mark_of(test.read(row)) for row in range(2)] == [2, 0]
    assert "1 of 3 images" in capsys.readouterr().err


def test_folder_table(tmp_path):
    for label, name in enumerate(["10", "2", "Zebra", "ant", "sea_lion"]):
        for part in ("train", "val"):
            write_marked(tmp_path / part / name / "a.png", label)
    for part, folder in (("train", "train"), ("test", "val")):
        split, theirs = load_split("folder", tmp_path, part), ImageFolder(tmp_path / folder)
        assert pairs(split) == [(name, name.replace("_", " ")) for name in theirs.classes]
        assert split.labels.tolist() == theirs.targets == [mark_of(split.read(row)) for row in range(5)]


def test_test_images_of_one_folder_are_those_of_a_folder_per_class(here, tmp_path):
    """By Kaggle's csv, by a list, and by ILSVRC's numbers, which are not in the order of the wnids."""
    flat, kit, number_of = tmp_path / "val", tmp_path / "kit", {"n01440764": 3, "n01443537": 1, "n01484850": 2}
    classes = ["n01484850", "n01440764", "n01443537", "n01440764"]
    for place, wnid in enumerate(classes):
        write_marked(flat / f"ILSVRC2012_val_0000000{place}.JPEG", place)
        write_marked(tmp_path / "sorted" / "val" / wnid / f"ILSVRC2012_val_0000000{place}.JPEG", place)
        write_marked(tmp_path / "train" / wnid / f"{place}.JPEG", place)
    kit.mkdir()
    rows = [f"ILSVRC2012_val_0000000{place}" for place in range(4)]
    (kit / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(
        f"{row},{wnid} 85 1 499 272 \n" for row, wnid in zip(reversed(rows), reversed(classes), strict=True)))
    (kit / "list.txt").write_text("".join(f"{row}.JPEG {wnid}\n\n" for row, wnid in zip(rows, classes, strict=True)))
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number_of[wnid]}\n" for wnid in classes))
    savemat(kit / "meta.mat", {"synsets": np.array(
        [(number, wnid) for wnid, number in number_of.items()], [("ILSVRC2012_ID", object), ("WNID", object)])})
    expected = real_images(load_split("imagenet", tmp_path / "sorted", "test"), 8)
    for path in kit.glob("*.[ct]*"):
        split = load_split("imagenet", tmp_path, "test", val_labels=path)
        assert real_images(split, 8).digest == expected.digest and split.root == flat, path
    words = ("--dataset", "imagenet", "--data_dir", tmp_path, "--epochs", 1, "--batch-size", 4, "--arch", "convnet_d1_w4",
             "--input-size", 8, "--output-dir", tmp_path / "teacher")
    assert refused(here("matching.train_teacher", *words), flat, "images alone; name their classes by --val_labels")
    assert here("matching.train_teacher", *words, "--val_labels", kit / "list.txt").code == 0
    (kit / "meta.mat").write_bytes(b"none")
    (kit / "list.txt").write_text(f"{rows[0]} n01484850\nlost.JPEG n01484850\n")
    for name, found in (("list.txt", "line 2, found 'lost.JPEG"), ("ILSVRC2012_validation_ground_truth.txt", "meta.mat")):
        with pytest.raises(InputError, match=found):
            load_split("imagenet", tmp_path, "test", val_labels=kit / name)
    (kit / "list.txt").write_text("".join(f"{row}.JPEG {wnid}\n" for row, wnid in zip((*rows, rows[0]), (*classes, classes[1]),
                                                                                      strict=True)))
    with pytest.raises(InputError, match="expected one line per image, found 1 lines of images that have one already"):
        load_split("imagenet", tmp_path, "test", val_labels=kit / "list.txt")
    write_marked(flat / "more" / f"{rows[0]}.JPEG", 9)
    with pytest.raises(InputError, match="expected another name for each image, found 1 names again"):
        load_split("imagenet", tmp_path, "test", val_labels=kit / "list.txt")
    (flat / "more" / f"{rows[0]}.JPEG").unlink()
    (flat / f"{rows[0]}.JPEG").unlink()
    with pytest.raises(InputError, match="expected 3 lines, one per image, found 4"):
        load_split("imagenet", tmp_path, "test", val_labels=kit / "ILSVRC2012_validation_ground_truth.txt")


# training and test classes

@pytest.fixture
def three_and_five(tmp_path) -> Path:
    """train/ with three classes, val/ with these and two more, exact/val with the three alone."""
    for label, name in enumerate(["ant", "bear", "cat", "dog", "eel"]):
        for part in ("train", "val", "exact/val") if label % 2 == 1 or name == "cat" else ("val",):
            write_marked(tmp_path / part / name / "a.png", label)
            write_marked(tmp_path / part / name / "b.png", 10 + label)
    (tmp_path / "exact" / "train").symlink_to(tmp_path / "train")
    return tmp_path


def test_a_test_split_is_matched_to_the_training_classes_by_name(here, three_and_five, tmp_path):
    """Before, `bear` was tested as `ant`, `cat` as `bear`, without a word."""
    def trained(data: Path):
        answer = here("matching.train_teacher", "--dataset", "folder", "--data_dir", data, "--arch", "convnet_d1_w4",
                      "--input-size", 8, "--epochs", 1, "--batch-size", 6, "--workers", 0, "--output-dir", data / "teacher")
        assert answer.code == 0, answer.err
        return json.loads((data / "teacher" / "manifest.json").read_text())["config"]["test"], answer.err
    (cut, said), (exact, silent) = (trained(data) for data in (tmp_path, tmp_path / "exact"))
    assert cut == exact and "2 of 5 classes are not among the training classes" in said and "left out" not in silent
    (tmp_path / "prompts.txt").write_text("a bear\na cat\na dog\n")
    train, test = load_splits(name="folder", data_dir=tmp_path, label_file=tmp_path / "prompts.txt")
    assert train.classes == test.classes and [mark_of(test.read(row)) for row in range(6)] == [1, 11, 2, 12, 3, 13]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("module", ["matching.train_teacher", "continual.train_continual", "misc.judge"])
def test_test_classes_that_are_missing_or_others_are_refused(here, three_and_five, tmp_path, module):
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cow")
    flags = ["--output", tmp_path / "out"] if module == "misc.judge" else ["--output-dir", tmp_path / "out"]
    assert refused(here(module, "--dataset", "folder", "--data_dir", tmp_path, *flags), tmp_path / "val", "expected the 3",
                   "found 5 classes, 1 missing: cat")


def test_numbered_classes_are_matched_too():
    """Sorted as text, 10 stands before 2; the original's folders are in numeric order."""
    numbers = [{"name": str(label), "numbered": True} for label in range(11)]
    text = [{"name": name} for name in sorted(map(str, range(11)))]
    split = Split("val", text, np.arange(11), lambda row: marked(row))
    assert matched(split, numbers).labels.tolist() == [0, 1, 10, *range(2, 10)]
    named = replace(split, classes=[{"name": f"class {label}"} for label in range(11)])
    assert matched(named, numbers) is named
    check_class_names("set", numbers, "teacher", named.classes)
    with pytest.raises(InputError, match="1 missing"):      # names in common: no places
        matched(replace(split, classes=[*text[:-1], {"name": "11"}]), numbers)
    with pytest.raises(InputError, match="11 classes of teacher"):
        check_class_names("set", numbers, "teacher", text)


def test_classes_named_by_numbers_do_not_fit_others():
    """The classes of digits are named 0 to 9; a set of the original code has numbers because it has no names."""
    digits, garments = load_split("digits", "", "test"), [{"name": f"garment {label}"} for label in range(10)]
    with pytest.raises(InputError, match="10 missing"):
        matched(replace(digits, classes=garments), digits.classes)
    with pytest.raises(InputError, match="10 classes of the stream"):
        check_class_names("digits_ipc10", digits.classes, "the stream", garments)


# prompts
def test_a_template_wraps_the_prompts_and_leaves_the_names(here, image_data, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"thing {label}\n" for label in range(12)), encoding="utf-8-sig")
    plain, wrapped, both = (load_split("folder", image_data, "train", file, template) for file, template in (
        (None, None), (None, "a photo of a {}"), (tmp_path / "prompts.txt", "{}, {really}")))
    assert wrapped.classes[-1] == {"name": "sea_lion", "prompt": "a photo of a sea lion"}
    assert pairs(both) == [(name, f"thing {label}, {{really}}") for label, name in enumerate(CLASSES)]
    assert plain.identity() != wrapped.identity() and plain.labels.tolist() == wrapped.labels.tolist()
    assert refused(here("matching.train_teacher", "--prompt_template", "a photo", "--output-dir", tmp_path / "out"),
                   "--prompt_template", "{}", "'a photo'")


def test_the_names_in_another_order_are_refused(image_data, tmp_path):
    """So was the original's file for CIFAR-100, sorted by super-class: 99 of 100 prompts spoke of another class."""
    names = [name.replace("_", " ") for name in CLASSES]
    swapped, shifted = [*names[6:], *names[:6]], [f"a photo of a {name}" for name in [*names[1:], "wolf"]]
    for content, found in (("\n".join(swapped).encode(), "line 1 'ant', found 'gnu'"),
                           ("\n".join(shifted).encode(), "line 2 'bear', found 'a photo of a cat'; 10 of 12"),
                           ("café\n".encode("latin-1") * 12, "UTF-8")):
        (tmp_path / "prompts.txt").write_bytes(content)
        with pytest.raises(InputError, match=found):
            load_split("folder", image_data, "train", tmp_path / "prompts.txt")


def test_the_order_of_super_classes_is_refused_and_richer_prompts_are_not():
    """CIFAR-100 sorted by super-class (here: by second letter) with one name changed was accepted: it is no permutation."""
    names = (PROMPTS / "cifar100.txt").read_text().splitlines()
    other = sorted(names, key=lambda name: name[1])
    other[other.index("apple")] = "an apple tree"
    assert len(exchanged(other, names)) >= 95 and exchanged(names, names) == []
    for template in ("a photo of a {}", "{}, with a dog and an apple", "{}"):
        assert exchanged([template.format(name.replace("_", " ").title()) for name in names], names) == []
    assert exchanged(["a dog-like cat", "a cat-like dog", "crane"], ["cat", "dog", "crane bird"]) == []
    assert exchanged(["seven", "boeing 747", "0"], ["0", "747", "1"]) == []
    assert exchanged(["maillot tank suit", "maillot"], ["maillot", "maillot tank suit"]) == [0, 1]
    names = list(by_wnid("imagenet").values())
    assert exchanged(CATEGORIES, names) == exchanged([f"a photo of a {name}" for name in names], names) == []


@pytest.mark.parametrize(("dataset", "names"), [("digits", list("0123456789")), ("fashion_mnist", FashionMNIST.classes)])
def test_shipped_prompts_in_another_order_are_refused_where_they_are_no_names(tmp_path, dataset, names):
    lines = file_prompts(PROMPTS / f"{dataset}.txt", dataset, names)
    (tmp_path / "prompts.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(InputError, match=f"names of {dataset} in class order, line 1 .*; 2 of 10 lines"):
        file_prompts(tmp_path / "prompts.txt", dataset, names)


# messy images, 1: formats

GREY = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)  # [6, 8, 3], different in every corner
ALPHA = np.linspace(0, 255, 48).round().astype(np.uint8).reshape(6, 8)
ON_WHITE = (COLOUR * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None]).round()


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def palette() -> Image.Image:
    """48 indices, each a colour of its own."""
    image = Image.frombytes("P", (8, 6), bytes(range(48)))
    image.putpalette(COLOUR.ravel().tolist())
    return image


TURNED = COLOUR.transpose(1, 0, 2)
STORED = (COLOUR, COLOUR[:, ::-1], COLOUR[::-1, ::-1], COLOUR[::-1],   # by EXIF 2.3's orientation, from 1: COLOUR in the file
          TURNED, TURNED[::-1], TURNED[::-1, ::-1], TURNED[:, ::-1])


def patch_tiff(path: Path, tag: int, value: int) -> None:
    """Overwrite a 16-bit value in a little-endian TIFF's directory."""
    content = bytearray(path.read_bytes())
    place = content.index(tag.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00")
    content[place + 8:place + 10] = value.to_bytes(2, "little")
    path.write_bytes(content)


def write_formats(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    """Files of all kinds; by name the pixels expected [H, W, 3] and how far they may be off."""
    folder.mkdir(parents=True)
    expected = {}

    def write(name, image, pixels, off=0, orientation=None, **how):
        image, tags = Image.fromarray(image) if isinstance(image, np.ndarray) else image, Image.Exif()
        tags[0x0112] = orientation
        image.save(folder / name, **how, **({"exif": tags} if orientation else {}))
        expected[name] = (np.asarray(pixels), off)
    write("grey.png", GREY, grey3(GREY))
    write("one-bit.png", Image.fromarray(GREY).point(lambda value: 255 * (value > 99), "1"), grey3(255 * (GREY > 99)))
    write("palette.png", palette(), COLOUR)
    clear = COLOUR.copy()
    clear[0, 5] = 255
    write("palette-one-clear.png", palette(), clear, transparency=5)
    write("palette-alpha.png", palette(), ON_WHITE, 1, transparency=ALPHA.tobytes())
    write("first-frame.gif", palette(), clear, transparency=5, save_all=True, append_images=[Image.new("P", (8, 6), 1)])
    write("rgba.png", np.dstack([COLOUR, ALPHA]), ON_WHITE, 1)
    write("rgba.webp", np.dstack([COLOUR, ALPHA]), ON_WHITE, 1, lossless=True, exact=True)
    write("grey-alpha.png", Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]),
          grey3((GREY * (ALPHA / 255) + 255 - ALPHA).round()), 1)
    key = COLOUR.copy()
    key[2, 3] = 255
    write("colour-key.png", COLOUR, key, transparency=tuple(COLOUR[2, 3].tolist()))
    ink, black = COLOUR.astype(int) // 2 + 60, GREY.astype(int) // 2
    cmyk = Image.merge("CMYK", [Image.fromarray(part.astype(np.uint8)) for part in (*np.moveaxis(ink, 2, 0), black)])
    mixed = ((255 - ink) * (255 - black[..., None]) / 255).round()
    write("cmyk.tif", cmyk, mixed, 1)
    write("cmyk-adobe.jpg", cmyk, mixed, 12, quality=100, subsampling=0)
    assert b"Adobe" in (folder / "cmyk-adobe.jpg").read_bytes()
    wide = (np.arange(48).reshape(6, 8) * 1394).astype(np.uint16)  # up to 65,518
    scaled = grey3((wide / 257).round())
    write("sixteen.png", wide, scaled)
    write("sixteen.tif", wide, scaled)
    write("sixteen-inverted.tif", wide, 255 - scaled)
    patch_tiff(folder / "sixteen-inverted.tif", 262, 0)
    write("big-endian.tif", Image.frombytes("I;16B", (8, 6), wide.astype(">u2").tobytes()), scaled)
    (folder / "sixteen.pgm").write_bytes(b"P5 8 6 65535\n" + wide.astype(">u2").tobytes())
    expected["sixteen.pgm"] = (scaled, 0)
    twelve = np.tile([0x808, 0x080], (6, 4))              # the bits 1000 0000 1000 0000 ..., 12 at a time
    write("twelve.tif", np.full((6, 8), 0x8080, np.uint16), grey3(twelve * 255 / 4095), 1)
    patch_tiff(folder / "twelve.tif", 258, 12)
    for orientation, stored in enumerate(STORED, 1):
        write(f"turned-{orientation}.png", stored, COLOUR, orientation=orientation)
    write("turned.jpg", np.kron(STORED[5], np.ones((8, 8, 1), np.uint8)), np.kron(COLOUR, np.ones((8, 8, 1))), 12, 6,
          quality=100, subsampling=0)
    write("turned.tif", STORED[7], COLOUR, orientation=8)
    odd = Image.Exif()
    odd[0x0112], odd[0x0128] = 6, 2
    order = "little" if b"II*" in odd.tobytes() else "big"
    unit, as_text = (b"".join(value.to_bytes(2, order) for value in (0x0128, kind)) for kind in (3, 2))   # 2: ASCII
    block = odd.tobytes().replace(unit, as_text)    # a unit that is a text, which cannot be written again
    write("odd.png", STORED[5], COLOUR, exif=block)
    write("moving.png", COLOUR, COLOUR, save_all=True, append_images=[Image.new("RGB", (8, 6))])
    return expected


def test_every_format_becomes_upright_rgb(tmp_path):
    expected = write_formats(tmp_path / "train" / "all")
    assert sum(1 for _ in ImageSequence.Iterator(Image.open(tmp_path / "train" / "all" / "moving.png"))) == 2
    split = load_split("folder", tmp_path, "train")
    assert {path.name for path in split.paths} == set(expected)
    for row, path in enumerate(split.paths):
        image, (pixels, off) = split.read(row), expected[path.name]
        assert image.mode == "RGB", path.name
        assert np.abs(np.array(image).astype(float) - pixels).max() <= off, path.name
    images, rows = decode_readable(load_split("folder", tmp_path, "train", on_bad_image="skip"), range(len(expected)), 8)
    assert len(rows) == len(expected) and torch.equal(images, decode(split, rows, 8))


# messy images, 2: damaged files


def write_damaged(folder: Path) -> dict[str, str]:
    """Two good files and every kind of bad one; by name a word of the reason given."""
    for name in ("good-1.png", "z-good-2.png"):
        write_marked(folder / name, 300)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.gif", "cut.bmp", "cut.tif"):
        noise.save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-800])
    for name, content in (("empty.png", b""), ("text.jpg", b"<html>404 Not Found</html>"),
                          ("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")):
        (folder / name).write_bytes(content)
    (folder / "bomb.png").write_bytes(with_header((folder / "good-1.png").read_bytes(), 30000, 30000, b"\x08\x02\0\0\0"))
    (folder / "broken-link.jpg").symlink_to("nowhere.jpg")
    (folder / "own-link.jpg").symlink_to("own-link.jpg")
    Image.fromarray(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)).save(folder / "float.tif")
    Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(folder / "32-bit.tif")
    return {"32-bit.tif": "mode I", "bomb.png": "limit", "broken-link.jpg": "link", "cut.bmp": "truncated",
            "cut.gif": "truncated", "cut.jpg": "truncated", "cut.png": "runcated", "cut.tif": "", "cut.webp": "",
            "empty.png": "0 bytes", "float.tif": "mode F", "own-link.jpg": "link", "postscript.jpg": "none of PNG",
            "text.jpg": "none of PNG"}


def test_damaged_files_end_the_run_or_are_left_out(tmp_path):
    bad = write_damaged(tmp_path / "train" / "some")
    for label in range(2):
        write_marked(tmp_path / "train" / "whole" / f"{label}.png", label)
    strict, lenient = (load_split("folder", tmp_path, "train", on_bad_image=setting) for setting in ("error", "skip"))
    everything = range(len(strict.labels))
    assert len(everything) == len(bad) + 4
    for read in (decode_readable, decode):
        with pytest.raises(BadImage, match="32-bit.tif: expected an image, found .*mode I"):
            read(strict, everything, 8)
    with pytest.raises(BadImage):
        decode(lenient, everything, 8)
    images, rows = decode_readable(lenient, everything, 8)
    assert [lenient.paths[row].name for row in rows] == ["good-1.png", "z-good-2.png", "0.png", "1.png"]
    assert images.shape == (4, 3, 8, 8) and marks_of(images) == [300, 300, 0, 1]
    described = lenient.describe_bad(sorted(set(everything) - set(rows.tolist())))
    assert [entry["file"] for entry in described] == [f"some/{name}" for name in sorted(bad)]
    for entry in described:
        assert bad[entry["file"].removeprefix("some/")] in entry["reason"] and "\n" not in entry["reason"] != ""
    assert json.loads(json.dumps(described)) == described and lenient.describe_bad(rows) == []
    again, left = decode_all(lenient, 8)
    assert torch.equal(again, images) and left.labels.tolist() == [0, 0, 1, 1]
    assert [mark_of(left.read(row)) for row in range(4)] == [300, 300, 0, 1] and left.paths[3].name == "1.png"


def test_files_left_out_are_counted_and_zero_workers_read_in_this_thread(tmp_path, capsys):
    for place, name in enumerate(["a.jfif", "b.JFIF", "c.png"]):
        write_marked(tmp_path / "ant" / name, place)
    for name in ("notes.txt", "d.heic", "e.heic"):
        (tmp_path / "ant" / name).write_text("")
    split = image_folder("folder", tmp_path)
    assert capsys.readouterr().err == (f"{tmp_path}: 3 files are left out, which are no images by their endings (.heic .txt)\n")
    threads = threading.active_count()
    assert marks_of(decode(split, range(3), 8, workers=0)) == [0, 1, 2] and threading.active_count() == threads
    read = real_images(split, 8, 0, data_path="pil")
    drawn, rows = draw_views(Views(8, seed=0), read, epoch=0), torch.arange(3)
    assert torch.equal(read.views(drawn, rows, 8), real_images(split, 8).views(drawn, rows, 8))


@pytest.mark.skipif("avif" not in features.get_supported(), reason="Pillow without AVIF")
def test_avif(tmp_path):
    (tmp_path / "ant").mkdir()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "ant" / "a.avif")
    pixels = decode(image_folder("folder", tmp_path), [0], 8)[0].float().mean((1, 2))
    assert (pixels - torch.tensor([200.0, 100, 50])).abs().max() < 5


@pytest.mark.parametrize(("module", "flags"), [("matching.train_teacher", ["--epochs", 1]), ("distillation.train_ldm", [
    "--size", 8, "--vae_channels", 8, 8, "--unet_channels", 16, 16, "--text_width", 16, "--vae_steps", 1, "--unet_steps", 1])])
def test_damaged_files_by_command(here, own_image_data, tmp_path, module, flags):
    cat = own_image_data / "train" / "cat"
    words = (module, "--dataset", "folder", "--data_dir", own_image_data, "--batch_size", 64, *flags, "--output_dir")
    write_damaged(cat)
    assert refused(here(*words, tmp_path / "out"), cat / "32-bit.tif", "mode I")
    answer = here(*words, tmp_path / "out", "--on_bad_image", "skip")
    assert answer.code == 0 and "14 of 184 images cannot be read" in answer.err and "32-bit.tif" in answer.err
    if module == "matching.train_teacher":
        assert json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]["train_images"] == 170
    shutil.rmtree(cat)
    cat.mkdir()
    (cat / "0.png").write_bytes(b"")
    assert refused(here(*words, tmp_path / "other", "--on_bad_image", "skip"), cat.parent, "class cat", "none among 1")


# messy images, 3: names and links

NAMES = ["a b", "Ärger", "caf\u00e9", "cafe\u0301 noir", "naïve", "ζώο", "кот", "猫", "🐈 cat", "10", "9", "Zebra", "sea_lion"]


def write_names(root: Path) -> None:
    for label, name in enumerate(NAMES):
        for place, file in enumerate(["b.png", "deep/er/a.PNG", "deep-er/a.png", "é ü.jpeg", "z 🐈.webp"]):
            write_marked(root / name / file, 16 * label + place)


def add_clutter(root: Path) -> None:
    """What systems and people leave behind; none of it is an image of the data set."""
    for file in (".DS_Store", ".hidden/a.png", "9/.DS_Store", "9/._b.png", "9/.cache/a.png", "9/Thumbs.db", "9/notes.txt",
                 "9/b.png.bak", "loose.png"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_bytes(b"\x00\x05\x16\x07")
    for link, target in (("10/up", root), ("10/itself", "."), ("10/deep/er/round", root / "10" / "deep"),  # loops
                         ("9/above", root.parent.parent)):
        (root / link).symlink_to(target)


def test_names_and_links(tmp_path):
    root, elsewhere = tmp_path / "data" / "train", tmp_path / "elsewhere"
    write_names(root)
    write_marked(elsewhere / "linked.png", 999)
    (root / "9" / "c.png").symlink_to(elsewhere / "linked.png")
    (root / "ähnlich").symlink_to(elsewhere)              # a class folder that is a link
    (root / "10" / "more").symlink_to(elsewhere)          # and one inside a class
    theirs = ImageFolder(root)
    assert len(theirs.samples) == 5 * len(NAMES) + 3
    add_clutter(root)
    root.with_name("val").symlink_to("train")
    for part, setting in (("train", "error"), ("train", "skip"), ("test", "error")):
        split = load_split("folder", tmp_path / "data", part, on_bad_image=setting)
        assert pairs(split) == [(name, unicodedata.normalize("NFC", name.replace("_", " "))) for name in theirs.classes]
        assert [(str(path).replace("/val/", "/train/"), label) for path, label in
                zip(split.paths, split.labels.tolist(), strict=True)] == theirs.samples
        images, rows = decode_readable(split, range(len(theirs)), 8)
        assert rows.tolist() == list(range(len(theirs)))
        assert marks_of(images) == [mark_of(open_image(path)) for path, _ in theirs.samples]


@pytest.mark.parametrize(("make", "words"), [
    (lambda root: (root / "empty").mkdir(), ("empty", "empty class")),
    (lambda root: (root / "hidden" / ".x").mkdir(parents=True), ("hidden", "empty class")),
    (lambda root: (root / "loop").symlink_to(root), ("loop", "empty class")),
    (lambda root: (root / "away").symlink_to("nowhere"), ("away", "broken link")),
    (lambda root: os.mkdir(os.fsencode(root) + b"/caf\xe9"), ("UTF-8", "caf"))])
def test_class_folders_that_are_none(here, tmp_path, make, words):
    write_names(tmp_path / "train")
    make(tmp_path / "train")
    for setting in ("error", "skip"):  # the list of classes is never a matter of taste
        answer = here("matching.train_teacher", "--dataset", "folder", "--data_dir", tmp_path, "--on_bad_image", setting,
                      "--output-dir", tmp_path / "out")
        assert refused(answer, tmp_path / "train", *words)


def test_the_same_name_composed_and_decomposed_is_the_same_class():
    check_class_names("train", [{"name": "caf\u00e9"}], "test", [{"name": "cafe\u0301"}])
    with pytest.raises(InputError):
        check_class_names("train", [{"name": "caf\u00e9"}], "test", [{"name": "cafe"}])


def test_a_file_name_that_is_no_utf8_can_be_described(tmp_path):
    write_marked(tmp_path / "a" / "good.png", 1)
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/caf\xe9.png")).write_bytes(b"")
    split = replace(image_folder("folder", tmp_path), on_bad_image="skip")
    images, rows = decode_readable(split, range(2), 8)
    assert rows.tolist() == [1] and split.describe_bad([0])[0]["file"].encode() == b"a/caf\\xe9.png"


# fitting
@pytest.mark.parametrize("shape", [(96, 48), (48, 96), (96, 96)])
@pytest.mark.parametrize(("fit", "shorter", "size"), [("crop", 24, 24), ("centre", 32, 28)])
def test_cropping_is_torchvisions(shape, fit, shorter, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = transforms.Compose([transforms.Resize(shorter), transforms.CenterCrop(size)])(Image.fromarray(pixels))
    ours = fit_image(Image.fromarray(pixels), size, fit)
    assert np.abs(np.array(ours).astype(int) - np.array(theirs)).max() <= 1


@pytest.mark.parametrize(("fit", "height", "width"), [
    ("squash", 80 * 56 / 120, 80 * 56 / 240), ("crop", 80 * 56 / 120, 80 * 56 / 120), ("centre", 80 * 64 / 120, 80 * 64 / 120)])
def test_fits_keep_or_squash_the_aspect(fit, height, width):
    disc = np.hypot(*np.mgrid[-59.5:60, -119.5:120] / 40) < 1  # a circle of 80 pixels in 240 x 120
    inside = np.array(fit_image(Image.fromarray(np.uint8(disc) * 255).convert("RGB"), 56, fit))[..., 0] > 127
    assert (inside.any(axis=1).sum(), inside.any(axis=0).sum()) == pytest.approx((height, width), abs=1.5)


@pytest.mark.parametrize("fit", ["squash", "crop", "centre"])
@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (1, 1), (3, 2)])
def test_extreme_shapes(fit, size):
    assert np.array(fit_image(Image.new("RGB", size, (9, 8, 7)), 64, fit)).reshape(-1, 3).tolist() == [[9, 8, 7]] * 64 * 64
    assert fit_image(marked(5), 8, fit).tobytes() == marked(5).tobytes()


# Fashion-MNIST

def write_idx(folder, ending: str = "", count: int = 20) -> None:
    """The four idx files of a small Fashion-MNIST: image i of class i % 10 is grey i."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        images, labels = np.arange(count, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2), np.arange(count) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            (folder / f"{part}-{name}-ubyte{ending}").write_bytes(gzip.compress(content) if ending else content)


@pytest.mark.parametrize(("below", "ending"), [("", ""), ("", ".gz"), ("FashionMNIST/raw", "")])
def test_fashion_mnist_is_read_from_its_files(tmp_path, below, ending):
    write_idx(tmp_path / below, ending)
    for part in ("train", "test"):
        split = load_split("fashion_mnist", tmp_path, part)
        assert [entry["name"] for entry in split.classes] == FashionMNIST.classes
        assert [entry["prompt"] for entry in split.classes][:2] == ["T-shirt", "trousers"]
        pixels = np.asarray(split.read(13))
        assert split.labels[13] == 3 and pixels.shape == (32, 32, 3)
        assert (pixels[2:30, 2:30] == 13).all() and pixels.sum() == 13 * 28 * 28 * 3     # padded by black


@pytest.mark.parametrize("change", ["cut", "header", "other", "labels"])
def test_damaged_fashion_mnist_is_refused(tmp_path, change):
    write_idx(tmp_path, ".gz")
    path = tmp_path / f"train-{'labels-idx1' if change == 'labels' else 'images-idx3'}-ubyte.gz"
    one_label = bytes([0, 0, 8, 1, 0, 0, 0, 1, 7])
    path.write_bytes({"cut": path.read_bytes()[:-9], "other": b"other", "header": gzip.compress(one_label[:7]),
                      "labels": gzip.compress(one_label)}[change])
    with pytest.raises(InputError, match=str(tmp_path)):
        load_split("fashion_mnist", tmp_path, "train")


def test_some_classes_in_another_order_keep_their_prompts(capsys):
    split = load_split("digits", "", "test", classes=[{"name": "7"}, {"name": "0"}])
    assert [(entry["name"], entry["prompt"]) for entry in split.classes] == [("7", "seven"), ("0", "zero")]
    assert set(split.labels.tolist()) == {0, 1} and "8 of 10 classes" in capsys.readouterr().err


# held-out training images

def test_validation_images_and_the_rest_are_the_training_images():
    whole = load_split("digits", "", "train")
    rest, held = (load_split("digits", "", part, validation=100) for part in ("train", "test"))
    pixels = [[bytes(split.read(row).tobytes()) for row in range(len(split.labels))] for split in (whole, rest, held)]
    assert len(pixels[2]) == 100 and sorted(pixels[0]) == sorted(pixels[1] + pixels[2])
    shares = 100 * np.bincount(whole.labels) / len(whole.labels)
    assert np.abs(np.bincount(held.labels) - shares).max() < 1
    again, other = (load_split("digits", "", "test", validation=count) for count in (100, 101))
    assert held.identity() == again.identity() != other.identity()
    assert load_split("digits", "", "train", validation=0).identity() == whole.identity()


def test_validation_images_are_drawn_at_random_and_named(image_data):
    rest, held = (load_split("folder", image_data, part, validation=24) for part in ("train", "test"))
    assert np.bincount(held.labels).tolist() == [2] * 12 and rest.root == held.root == image_data / "train"
    assert len({*rest.paths} | {*held.paths}) == 12 * 14 and len({path.name for path in held.paths}) > 6
    assert sorted(rest.paths) == rest.paths and [path.parent.name for path in held.paths] == [
        held.classes[label]["name"] for label in held.labels]


@pytest.mark.parametrize("count, by_class", [(8, [6, 2]), (2, [1, 1]), (1, None), (40, None), (41, None), (-1, None)])
def test_classes_of_other_sizes_are_divided_in_proportion(count, by_class):
    split = Split("a", [{"name": "many"}, {"name": "few"}], np.repeat([0, 1], [30, 10]), None)
    if by_class:
        parts = (part_of_training(split, part, count).labels for part in ("test", "train"))
        assert [np.bincount(labels).tolist() for labels in parts] == [by_class, [30 - by_class[0], 10 - by_class[1]]]
    else:
        with pytest.raises(InputError, match=f"--validation: expected some but not all .* found {count} of 40"):
            part_of_training(split, "train", count)


def test_every_stage_stores_and_asks_for_validation(here, image_data, checkpoint, tmp_path):
    seen = tmp_path / "from-all-images"
    finish(seen, "distilled", [{"name": "a", "prompt": "a"}], {"dataset": "folder"}, [])
    data = ("--dataset", "folder", "--data_dir", image_data, "--validation", 24)

    def config(pattern):
        return json.loads(next(tmp_path.glob(pattern)).read_text())["config"]
    how = ("--diffusion_checkpoints_path", checkpoint, "--batch_size", 5)
    assert here("distillation.gen_prototype", *data, "--ipc", 2, *how, "--save_prototype_path", tmp_path / "p").code == 0
    (prototypes,) = (tmp_path / "p").iterdir()
    synthesis = ("distillation.gen_syn_image", *data, "-s", 1, "--num_inference_steps", 2, *how, "--save_init_image_path",
                 tmp_path / "d", "--prototype_path")
    assert refused(here(*synthesis, seen), seen, "found --validation 0")
    assert refused(here(*synthesis, prototypes, "--filter_teacher", seen), seen, "found --validation 0")
    assert here(*synthesis, prototypes).code == 0
    (images,) = (tmp_path / "d").iterdir()
    student = ("validate.train_FKD", *data, "--labels", "hard", "--model", "convnet_d1_w4", "--input-size", 32, "--epochs", 1,
               "--batch-size", 12, "--output-dir", tmp_path / "s")
    assert refused(here(*student, "--train-dir", seen), seen, "found --validation 0")
    assert refused(here(*student, "--train-dir", images, "--val-dir", image_data / "test"), "--validation", "--val-dir")
    assert not (tmp_path / "s").exists()
    assert here(*student, "--train-dir", images).code == 0
    assert {config(f"{part}/manifest.json")["validation"] for part in ("p/*", "d/*", "s")} == {24}
    assert config("s/manifest.json")["test"] == load_split("folder", image_data, "test", validation=24).identity()
