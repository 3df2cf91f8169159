"""Stage 3a: CIFAR's augmentation against torchvision and against Cutout's definition, averaged weights, and the command."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import SIZE, run_stage
from safetensors.torch import load_file
from scipy.stats import chisquare
from test_bad_input import refused
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms import functional as TF

from distillation.datasets import load_split
from matching.augmentation import Views, crop_resize, cut_out, draw_cutout, draw_shifts, draw_views, normalise
from matching.image_set import pad_images, real_images
from matching.training import METRICS, Labels, Recipe, train
from scripts import training
from scripts.networks import load_model, predict, seeded
from scripts.randomness import seed_for
from scripts.training import averaged, half_precision, triangle

# views


def test_shifted_views_are_torchvisions_padding_and_cropping_to_the_bit(digits):
    padded = pad_images(digits, 4)
    drawn = draw_views(Views(SIZE, 0, shifts=True), padded, 3)
    ours = (crop_resize(padded.images, drawn.crop, drawn.flip, SIZE) * 255).round().to(torch.uint8)
    reference = TF.pad(digits.images, 4, padding_mode="reflect")
    for place, (top, left, height, width) in enumerate(drawn.crop.tolist()):
        theirs = TF.crop(reference[place], top, left, height, width)
        assert torch.equal(ours[place], TF.hflip(theirs) if drawn.flip[place] else theirs)
    assert 10 < int(drawn.flip.sum()) < 54 and padded.digest == digits.digest


def test_shifts_are_uniform_and_those_of_an_epoch_are_a_function_of_the_seed(digits):
    box = draw_shifts(81 * 100, (40, 40), 32, np.random.default_rng(0))
    assert (box[:, 2:] == 32).all()
    places = Counter(map(tuple, box[:, :2]))
    assert set(places) == {(top, left) for top in range(9) for left in range(9)}
    assert chisquare(list(places.values())).pvalue > 1e-3
    padded = pad_images(digits, 4)
    first, again, later, other = (draw_views(Views(SIZE, seed, shifts=True), padded, epoch).crop
                                  for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first, other)


def masked_pixels(size: int, pixels: int, row: int, column: int) -> np.ndarray:
    """The paper's definition pixel by pixel: masked is what lies in the square around the centre."""
    near = [np.arange(size) - centre + pixels // 2 for centre in (row, column)]
    return np.outer(*((distance >= 0) & (distance < pixels) for distance in near))


@pytest.mark.parametrize("pixels", [1, 5, 8, 40])
def test_cutout_boxes_are_those_of_centres_uniform_over_the_image(pixels):
    size, expected = 12, Counter()
    for row in range(size):
        for column in range(size):
            expected[masked_pixels(size, pixels, row, column).tobytes()] += 1
    drawn = draw_cutout(size * size * 60, size, pixels, np.random.default_rng(0))
    found = Counter()
    for (top, left, bottom, right), times in Counter(map(tuple, drawn.tolist())).items():
        mask = np.zeros((size, size), dtype=bool)
        mask[top:bottom, left:right] = True
        found[mask.tobytes()] += times
    assert set(found) == set(expected)
    if len(found) > 1:
        assert chisquare([found[mask] for mask in expected], [60 * times for times in expected.values()]).pvalue > 1e-3


def test_cutout_sets_the_box_to_the_mean_and_leaves_the_rest():
    seen, box = torch.randn(3, 3, 8, 8), torch.tensor([[1, 2, 4, 7], [0, 0, 8, 8], [3, 3, 3, 3]])
    cut, expected = cut_out(seen, box), seen.clone()
    expected[0, :, 1:4, 2:7] = 0
    expected[1] = 0
    assert torch.equal(cut, expected)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(3, 2, 2)
    assert torch.equal(normalise(mean[None]), torch.zeros(1, 3, 2, 2))


# training

def test_triangle_is_torchs_one_cycle_over_many_steps():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs, steps = [], 4000
    scheduler = OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=0.25, anneal_strategy="linear", div_factor=25,
                           final_div_factor=1e9, cycle_momentum=False)
    for _ in range(steps):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert np.allclose([triangle(step, steps) for step in range(steps)], theirs, atol=2e-3)


def test_the_average_has_averaged_batchnorm_statistics():
    network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)).train()
    average, states = averaged(network, 0.9), []
    for step in range(300):
        with torch.no_grad():
            network[0].bias.fill_(step % 7)
            network(torch.randn(8, 2, generator=torch.Generator().manual_seed(step)))
        average.update_parameters(network)
        states.append({name: value.double().clone() for name, value in network.state_dict().items()})
    for name, value in average.module.state_dict().items():
        if name == "1.num_batches_tracked":
            assert value == 300
            continue
        expected = states[0][name]
        for step, state in enumerate(states[1:], 1):
            share = max(0.1, 9 / (10 + step))
            expected = (1 - share) * expected + share * state[name]
        torch.testing.assert_close(value.double(), expected, atol=1e-4, rtol=1e-4)


def losses_of(digits, folder, network=None, **settings) -> tuple[nn.Module, list[float]]:
    network = network or seeded("convnet_d3_w16", 10, "imagenet", 0, SIZE)
    recipe = Recipe(**{"epochs": 2, "batch_size": 24, "views": Views(SIZE, 5), "lr_schedule": "triangle", **settings})
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    _, loop = train(network, digits, Labels(digits.weights), recipe, optimizer, folder, "test")
    return network, loop.losses


def test_dropout_is_a_function_of_the_seed(digits, tmp_path):
    def losses(name, seed):
        network = nn.Sequential(nn.Dropout(0.5), seeded("convnet_d3_w16", 10, "imagenet", 0, SIZE))
        return losses_of(digits, tmp_path / name, network, seed=seed)[1]
    assert losses("a", 1) == losses("b", 1) != losses("c", 2)


def test_bfloat16_is_close_and_leaves_weights_and_loss_in_float32(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "has_bfloat16", lambda device_type: True)  # slow where the processor has none
    (exact, losses), (network, rounded) = losses_of(digits, tmp_path / "a"), losses_of(digits, tmp_path / "b", bf16=True)
    assert rounded == pytest.approx(losses, rel=0.02) and rounded != losses
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert all(loss == float(np.float32(loss)) for loss in rounded)
    torch.testing.assert_close(list(network.parameters()), list(exact.parameters()), atol=0.02, rtol=0.1)


def test_without_bfloat16_units_it_computes_in_float32_and_says_so_once(capsys):
    training.has_bfloat16.cache_clear()
    cpu, ones, usable = torch.device("cpu"), torch.ones(4, 4), torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for _ in range(2):
        with half_precision(cpu, wanted=True):
            assert (ones @ ones).dtype == (torch.bfloat16 if usable else torch.float32)
    assert capsys.readouterr().err.count("computing in float32") == (0 if usable else 1)


def test_metrics_of_a_run_that_goes_back_are_written_again_not_twice(digits, tmp_path):
    for _ in range(2):  # no resume point was reached: the same command begins anew
        _, losses = losses_of(digits, tmp_path)
        lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
        assert [(line["epoch"], line["step"]) for line in lines] == [(1, 3), (2, 6)]
        assert [line["loss"] for line in lines] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])])
        assert [line["lr"] for line in lines] == pytest.approx([0.05 * triangle(2, 6), 0.05 * triangle(5, 6)])
        assert lines[0]["seconds"] < lines[1]["seconds"] and all(line["images_per_second"] > 0 for line in lines)


def test_the_network_sees_views_with_the_holes_of_seed_epoch_and_row(digits, tmp_path):
    network, seen, views = seeded("convnet_d3_w16", 10, "imagenet", 0, SIZE), [], Views(SIZE, 5, cutout=8)
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    losses_of(digits, tmp_path, network, views=views)
    rngs = [np.random.default_rng(seed_for(5, "cutout", epoch)) for epoch in (0, 1)]
    holes = [torch.from_numpy(draw_cutout(64, SIZE, 8, rng)) for rng in rngs]
    assert len(seen) == 6 and not torch.equal(*holes)
    for epoch in (0, 1):
        drawn = draw_views(views, digits, epoch)
        rows = drawn.order.long()
        expected = cut_out(digits.views(drawn, rows, SIZE), holes[epoch][rows])
        assert torch.equal(torch.cat(seen[3 * epoch:3 * epoch + 3]), expected)


# the command

@pytest.fixture(scope="module")
def recipe(tmp_path_factory, image_data):
    flags = ["--dataset", "folder", "--data_dir", image_data, "--arch", "shufflenet_v2_x0_5", "--input-size", SIZE,
             "--crop", "pad", "--cutout", 8, "--optimizer", "sgd", "--lr-schedule", "triangle", "--label-smoothing", 0.1,
             "--ema", 0.9, "--bf16", "--batch-size", 48, "--epochs", 4, "--save-seconds", 0]
    return run_stage(tmp_path_factory.mktemp("recipe"), "matching.train_teacher", flags, "--output-dir", "state.pt")


def test_the_whole_recipe_killed_and_continued_equals_one_go(here, recipe, image_data):
    answer = here(recipe.module, *recipe.flags, recipe.output_flag, recipe.killed_root)
    assert answer.code == 0 and "continuing at step" in answer.out, answer.err
    assert (recipe.killed / "model.safetensors").read_bytes() == (recipe.folder / "model.safetensors").read_bytes()
    whole, killed = ([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                     for folder in (recipe.folder, recipe.killed))
    assert [line["epoch"] for line in whole] == [line["epoch"] for line in killed] == [1, 2, 3, 4]
    assert [line["loss"] for line in whole] == [line["loss"] for line in killed]
    assert whole[3]["loss"] < whole[0]["loss"]
    assert {tensor.dtype for tensor in load_file(recipe.folder / "model.safetensors").values()} == {torch.float32, torch.int64}

    network, manifest = load_model(recipe.folder, "teacher")
    test = real_images(load_split("folder", image_data, "test"), SIZE)
    correct = (predict(network, test.images).argmax(1) == test.labels).float().mean()
    assert manifest["test_accuracy"] == pytest.approx(float(correct))
    config = manifest["config"]
    assert (config["learning_rate"], config["weight_decay"], config["schedule"]) == (0.1, 5e-4, "one-cycle")


@pytest.mark.parametrize(("flags", "words"), [
    (["--crop", "pad", "--pad", SIZE], ("--pad", SIZE)), (["--arch", "convnet_d6_w8"], ("convnet_d6_w8", 64, SIZE)),
    (["--ema", 1], ("--ema", 1)), (["--cutout", -1], ("--cutout", -1)),
    (["--stem", "cifar", "--arch", "mobilenet_v2"], ("mobilenet_v2",))])
def test_a_recipe_that_cannot_be_is_refused_before_its_folder_is_claimed(here, image_data, tmp_path, flags, words):
    assert refused(here("matching.train_teacher", "--dataset", "folder", "--data_dir", image_data, "--output-dir",
                        tmp_path / "out", *flags), *words)
    assert not (tmp_path / "out").exists()
