"""The judge: what it names, and precision and recall against a computation by hand."""

import json

import numpy as np
import pytest

from distillation.datasets import load_split
from matching.image_set import real_images
from misc.judge import network_judge, share_near


def test_an_image_is_near_within_the_others_third_neighbour():
    """On a line: 0, 1, 2, 3 reach 3, 2, 2, 3 to their third neighbours; 10 reaches 9."""
    others = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    points = np.array([[-3.0], [-3.1], [4.0], [6.0], [18.9], [19.1]])
    near = [any(abs(point - other) <= reach for other, reach in zip(others[:, 0], (3, 2, 2, 3, 9), strict=True))
            for point in points[:, 0]]
    assert near == [True, False, True, True, True, False]
    assert share_near(points, others) == pytest.approx(sum(near) / len(points))


def test_a_set_covers_itself_and_one_image_covers_little():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 4))
    assert share_near(real, real) == 1
    collapsed = real[:1] + 1e-3 * rng.normal(size=(200, 4))
    assert share_near(collapsed, real) == 1 and share_near(real, collapsed) < 0.05
    assert share_near(real + 100, real) == 0


@pytest.mark.parametrize("network", [False, True])
def test_the_command_judges_a_checkpoint_and_a_set(here, image_data, checkpoint, distilled, teacher, tmp_path, network):
    flags = ["--dataset", "folder", "--data_dir", image_data, "--diffusion_checkpoints_path", checkpoint, "--images", 24,
             "--batch_size", 12, "--num_inference_steps", 2, "--distilled", distilled.folder, "--output",
             tmp_path / "judge.json"]
    answer = here("misc.judge", *flags, *(["--teacher", teacher.folder] if network else []))
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "judge.json").read_text())
    assert ("resnet18" if network else "SVC") in found["judge"]["model"]
    assert found["judge"]["test_accuracy"] > 0.5      # a colour per class
    sets = {"pure noise", distilled.folder.name}
    if network:     # images of another resolution than the teacher's are resized for it
        train = real_images(load_split("folder", image_data, "train"), 32)
        judge, larger = network_judge(str(teacher.folder), train, "cpu"), train.images.repeat_interleave(2, 2)
        same = judge.names(larger.repeat_interleave(2, 3)) == judge.names(train.images)
        assert same.mean() > 0.9
    assert found["recognised"].keys() == sets and found["manifold"].keys() == sets | {"real training images"}
    assert found["manifold"]["real training images"]["recall"] > found["manifold"]["pure noise"]["recall"]
