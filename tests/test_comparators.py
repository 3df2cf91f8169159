"""The comparators of D4M, SRe2L and MTT: their losses worked by hand, their commands, and that other stages take their sets."""

import json

import numpy as np
import pytest
import torch
from conftest import rows_of
from test_bad_input import refused
from torch import nn

from distillation.mtt import trajectory_loss
from distillation.sre2l import hook_statistics
from matching.image_set import distilled_images
from misc.report.results import read_results
from misc.report.tables import streams


def test_the_loss_of_batchnorm_is_the_distance_to_its_statistics():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2)).eval()
    network[0].running_mean, network[0].running_var = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    found = hook_statistics(network, "two layers")
    images = torch.tensor([[[[0.0, 2.0]], [[1.0, 1.0]]], [[[4.0, 6.0]], [[5.0, 5.0]]]])     # [2, 2, 1, 2]
    outputs = network(images)
    first = np.hypot(3 - 1, 3 - 2) + np.hypot(5 - 3, 4 - 4)        # means 3 and 3, variances 5 and 4
    flat = images.numpy().transpose(1, 0, 2, 3).reshape(2, 4)
    hidden = np.maximum((flat - [[1], [2]]) / np.sqrt([[3 + 1e-5], [4 + 1e-5]]), 0)
    second = np.linalg.norm(hidden.mean(1)) + np.linalg.norm(hidden.var(1) - 1)
    assert torch.stack(found).tolist() == pytest.approx([first, second], rel=1e-5) and outputs.shape == images.shape


def test_sre2l_writes_a_distilled_set_that_soft_labels_take(here, teacher, sre2l, tmp_path):
    rows, config = rows_of(sre2l.folder), json.loads((sre2l.folder / "manifest.json").read_text())["config"]
    assert len(rows) == 24 and config["method"] == "sre2l" and sre2l.folder.name == "folder_sre2l_ipc2"
    images = distilled_images(sre2l.folder)
    assert images.labels.bincount().tolist() == [2] * 12 and images.images.float().std() > 20
    answer = here("matching.generate_soft_label", "--data", sre2l.folder, "--teacher", teacher.folder, "--epochs", 1,
                  "--input-size", 32, "--batch-size", 12, "--fkd-path", tmp_path / "labels")
    assert answer.code == 0, answer.err
    card = (sre2l.folder / "README.md").read_text()
    assert "BatchNorm" in card and "2306.13092" in card


def test_sre2l_lowers_both_losses(here, teacher, tmp_path):
    answer = here("distillation.sre2l", "--teacher", teacher.folder, "--ipc", 1, "--steps", 40,
                  "--min-scale-crops", 1, "--flip", 0, "--save_init_image_path", tmp_path)
    assert answer.code == 0, answer.err
    found = json.loads(next(tmp_path.glob("*/result.json")).read_text())["metrics"]
    assert found["last_cross_entropy"] < found["first_cross_entropy"] / 2
    assert found["last_batch_norm"] < found["first_batch_norm"]


def test_streams_of_a_comparator_have_a_row(here, image_data, sre2l, tmp_path):
    answer = here("continual.train_continual", "--dataset", "folder", "--data_dir", image_data, "--size", 32, "--method", "er",
                  "--stream", "distilled", "--distilled", sre2l.folder, "--tasks", 3, "--steps", 1, "--buffer-size", 12,
                  "--output-dir", tmp_path / "seed0" / "streams" / "sre2l-ipc1")
    assert answer.code == 0, answer.err
    section, = streams(read_results(tmp_path))
    (row,) = section.rows
    acc = json.loads(next(tmp_path.rglob("result.json")).read_text())["class_il"]["acc"]
    assert row == ("ER", "SRe2L images (from noise, by a teacher)", f"{100 * acc:.1f}", "not run", "not run", "not run", "1")
    assert "tasks 3" in section.says


def test_what_sre2l_cannot_use_is_refused(here, teacher, tmp_path):
    for flags, words in ((("--steps", 0), "--steps"), ((), "--teacher or --weights"),
                         (("--teacher", teacher.folder, "-a", "resnet50"), "--arch needs --weights (got resnet50)"),
                         (("--teacher", tmp_path / "none"), "expected a finished folder of kind teacher")):
        answer = here("distillation.sre2l", "--save_init_image_path", tmp_path / "out", *flags)
        assert refused(answer, words) and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="expected a teacher with BatchNorm"):
        hook_statistics(nn.Conv2d(3, 3, 1), "plain")


def test_a_step_of_trajectory_matching_worked_by_hand():
    images, labels, rate = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True), torch.tensor([0, 1]), torch.tensor(0.5)
    start, target = {"weight": torch.tensor([[0.1, 0.2], [0.3, -0.4]])}, {"weight": torch.tensor([[0.5, 0.0], [0.0, 0.5]])}
    linear = nn.Linear(2, 2, bias=False)
    loss = trajectory_loss(linear, {"weight": start["weight"].clone()}, target, [(images, labels)], rate)

    def by_hand(images: np.ndarray) -> float:
        w, goal = start["weight"].numpy().astype(float), target["weight"].numpy()
        exponentials = np.exp(images @ w.T)
        errors = exponentials / exponentials.sum(1, keepdims=True) - np.eye(2)[labels]
        moved = w - 0.5 * errors.T @ images / 2         # the gradient of the mean cross-entropy
        return ((moved - goal) ** 2).sum() / ((w - goal) ** 2).sum()
    flat = images.detach().numpy().astype(float)
    assert loss.item() == pytest.approx(by_hand(flat), rel=1e-5)
    loss.backward()
    for place in np.ndindex(2, 2):      # the gradient through the student's step, by central differences
        shift = np.zeros((2, 2))
        shift[place] = 1e-5
        assert images.grad[place].item() == pytest.approx((by_hand(flat + shift) - by_hand(flat - shift)) / 2e-5, abs=1e-4)
    two = [(images.detach(), labels)] * 2
    assert trajectory_loss(linear, {"weight": target["weight"] + 1e-3}, target, [], rate).item() == 1
    assert trajectory_loss(linear, {"weight": start["weight"].clone()}, target, two, rate * 0).item() == pytest.approx(1)


def test_mtt_brings_the_student_nearer_to_the_expert(here, image_data, mtt, tmp_path):
    flags = [flag for flag in mtt.flags if flag != "--save_seconds"][:-3]
    answer = here("distillation.mtt", *flags, "--iterations", 60, "--images_lr", 300, "--experts_path",
                  mtt.folder.parents[1] / "experts", "--save_init_image_path", tmp_path)
    assert answer.code == 0, answer.err
    metrics = json.loads((tmp_path / "folder_mtt_ipc2" / "result.json").read_text())["metrics"]
    assert metrics["last_loss"] < metrics["first_loss"] and metrics["last_loss"] < 1
    assert {row["seed"] for row in rows_of(mtt.folder)} == {0}     # of the random images that it starts from
    assert len(rows_of(mtt.folder)) == 24 and "trajectory matching" in (mtt.folder / "README.md").read_text()
    assert here("misc.verify", mtt.folder, mtt.folder.parents[1] / "experts").code == 0


def test_what_mtt_cannot_use_is_refused(here, tmp_path):
    for flags, words in ((("--last_start", 19), "--last_start plus --expert_epochs_ahead"),
                         (("--arch", "resnet18"), "BatchNorm"), (("--arch", "swin_t"), "floating-point numbers only")):
        answer = here("distillation.mtt", "--experts_path", tmp_path / "e", "--save_init_image_path", tmp_path / "out", *flags)
        assert refused(answer, words) and not list(tmp_path.iterdir())
