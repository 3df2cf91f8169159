"""Views on the device and from files against torchvision's functions on Pillow images: the same draws, 200 real images."""

import argparse
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from distillation.datasets import image_folder, load_split
from distillation.images import fit_image
from matching import augmentation
from matching.augmentation import crop_resize, draw_crops, draw_epoch, mix_of
from matching.image_set import FileImages, ImageSet, distilled_images, image_set, real_images
from misc.measurements import photograph_patches
from scripts.cli import MIX, InputError
from scripts.networks import STD

CIFAR = os.environ.get("CIFAR10", "")  # a folder with train/<class>/*


def digits(side: int) -> torch.Tensor:
    split = load_split("digits", "", "test")
    return real_images(split.only(np.arange(200)), side).images


def cifar(side: int) -> torch.Tensor:
    split = image_folder("cifar10", Path(CIFAR) / "train")
    return real_images(split.only(np.linspace(0, len(split.labels) - 1, 200).astype(int)), side).images


def photographs(side: int) -> torch.Tensor:
    return photograph_patches(200, side).contiguous(memory_format=torch.channels_last)


SETS = [(digits, 32, 32), (digits, 32, 12), (digits, 32, 45), (photographs, 224, 224), (photographs, 224, 100),
        *[pytest.param(cifar, 32, size, marks=pytest.mark.skipif(not CIFAR, reason="needs CIFAR10")) for size in (32, 24)]]


@pytest.mark.parametrize("beyond", [0, 10_000], ids=["one by one", "at once"])  # at once: what an accelerator computes
@pytest.mark.parametrize(("load", "source", "size"), SETS)
def test_crops_are_torchvisions_on_pillow_images(monkeypatch, load, source, size, beyond):
    monkeypatch.setattr(augmentation, "LARGE", beyond)
    images, rng = load(source), np.random.default_rng(size)
    crop, flip = torch.from_numpy(draw_crops(200, (source, source), rng)), torch.from_numpy(rng.random(200) < 0.5)
    apart = []
    for rows in torch.arange(200).split(50):
        ours = crop_resize(images[rows], crop[rows], flip[rows], size) * 255
        for row, view in zip(rows.tolist(), ours, strict=True):
            theirs = TF.resized_crop(TF.to_pil_image(images[row]), *crop[row].tolist(), [size] * 2, InterpolationMode.BILINEAR)
            apart.append((view - TF.pil_to_tensor(TF.hflip(theirs) if flip[row] else theirs)).abs())
    tolerance = 1.5 if beyond else 1.01 if source <= size else 2.01  # 8 bits: equal or one apart; two where shares are rounded
    assert max(map(torch.max, apart)) <= tolerance and torch.stack(apart).mean() <= 0.5


@pytest.mark.parametrize("kind", ["none", "cutmix", "mixup"])
@pytest.mark.parametrize("size", [24, 48])
def test_files_give_the_views_of_the_decoded_set(kind, size):
    split = load_split("digits", "", "test").only(np.arange(60))
    decoded, files = (real_images(split, 32, data_path=path) for path in ("device", "pil"))
    assert isinstance(decoded, ImageSet) and isinstance(files, FileImages)
    assert (files.digest, len(files), files.source, files.classes) == (decoded.digest, 60, (32, 32), decoded.classes)
    assert torch.equal(files.labels, decoded.labels) and torch.equal(files.weights, decoded.weights)
    drawn = draw_epoch(60, files.source, size, np.random.default_rng(0), mix=kind)
    parts = drawn.order.long().split(25)
    both = list(zip(decoded.in_turn(drawn, parts, size), files.in_turn(drawn, parts, size), strict=True))
    assert [ours.shape for ours, _ in both] == [(len(part), 3, size, size) for part in parts]
    for (ours, theirs), part in zip(both, parts, strict=True):
        assert ((ours - theirs).abs() * torch.tensor(STD)[:, None, None]).max() * 255 <= 1.5
        assert torch.equal(theirs, files.views(drawn, part, size))


@pytest.mark.parametrize("kind", ["none", "cutmix", "mixup"])
@pytest.mark.parametrize("size", [32, 48])
def test_a_view_does_not_depend_on_its_batch(kind, size):
    images = image_set("digits", [], digits(32), torch.zeros(200))
    drawn = draw_epoch(200, images.source, size, np.random.default_rng(1), mix=kind)
    whole = images.views(drawn, torch.arange(200), size)
    for part in (torch.tensor([7]), torch.tensor([150, 3, 7]), torch.arange(100, 164)):
        assert torch.equal(images.views(drawn, part, size), whole[part])


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_a_batch_can_share_one_mix_with_all_partners_inside_it(kind):
    drawn = draw_epoch(10, (32, 32), 32, np.random.default_rng(3), mix=kind, mix_batch=4)
    ratios, batches = [], drawn.order.tensor_split(3)
    assert [len(rows) for rows in batches] == [4, 3, 3]
    for rows in batches:
        assert drawn.partner[rows].sort().values.tolist() == rows.sort().values.tolist()
        (top, left, bottom, right), = drawn.box[rows].unique(dim=0).tolist()
        ratios += drawn.ratio[rows].unique().tolist()
        if kind == "cutmix":
            assert ratios[-1] == pytest.approx(1 - (bottom - top) * (right - left) / 32 ** 2)
    assert len(set(ratios)) == 3


@pytest.mark.parametrize(("flags", "variance"), [
    ({"mix_type": "mixup"}, 1 / (4 * 2.6)), ({"mix_type": "mixup", "mixup": 2.0}, 1 / (4 * 5)), ({"mix_type": "cutmix"}, None)])
def test_mixup_draws_from_the_beta_distribution_of_the_originals(flags, variance):
    """Beta(a, a) has the variance 1 / (4 (2a + 1)); a = 0.8 unless given."""
    mix = mix_of(argparse.Namespace(**{**MIX, "batch_size": 1, **flags}))
    assert mix["alpha"] == {"cutmix": 1.0}.get(mix["mix"], flags.get("mixup", 0.8))
    if variance:
        ratio = draw_epoch(100_000, (1, 1), 1, np.random.default_rng(0), **mix).ratio
        assert float(ratio.var()) == pytest.approx(variance, rel=0.01)


@pytest.mark.parametrize(("size", "between"), [(64, 72), (32, 32), (224, 256), (128, 144)])
def test_the_test_view_of_rded_is_torchvisions(size, between):
    image = TF.to_pil_image(photographs(64)[0])
    theirs = TF.center_crop(TF.resize(image, between), size)
    ours = np.asarray(fit_image(image, size, "sevenths")).astype(int)
    assert np.abs(ours - np.asarray(theirs)).max() <= 2


@pytest.mark.parametrize(("images_in_memory", "kind"), [(1.9, FileImages), (2.1, ImageSet)])
def test_auto_takes_at_most_half_of_the_free_memory(monkeypatch, images_in_memory, kind):
    split = load_split("digits", "", "test").only(np.arange(40))
    free = namedtuple("Memory", "available")(images_in_memory * 40 * 3 * 32 * 32)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert isinstance(real_images(split, 32, data_path="auto"), kind)


def write_images(folder: Path, *sides: tuple[int, int]) -> Path:
    for label, (width, height) in enumerate(sides):
        (folder / str(label)).mkdir(parents=True)
        Image.new("RGB", (width, height), (label * 50, 10, 20)).save(folder / str(label) / "image.png")
    return folder


@pytest.mark.parametrize("data_path", ["device", "pil"])
def test_a_distilled_folder_either_way(tmp_path, data_path):
    images = distilled_images(write_images(tmp_path, (20, 20), (20, 20), (20, 20)), data_path=data_path)
    assert images.source == (20, 20) and images.labels.tolist() == [0, 1, 2] and images.device.type == "cpu"
    assert images.digest == distilled_images(tmp_path).digest


@pytest.mark.parametrize("data_path", ["device", "pil"])
@pytest.mark.parametrize("sides", [[(20, 20), (24, 24)], [(20, 24), (20, 24)]])
def test_a_distilled_folder_of_mixed_sizes_is_refused(tmp_path, data_path, sides):
    with pytest.raises(InputError, match="expected square images of one size, found .*24"):
        distilled_images(write_images(tmp_path, *sides), data_path=data_path)
