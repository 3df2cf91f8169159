"""Stage 4: students from soft and hard labels, and what they refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, SIZE
from safetensors.torch import load_file
from torchvision import models
from torchvision.transforms import functional as TF

from distillation.architectures import load_model
from distillation.datasets import load_split
from matching.image_set import real_images


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def accuracy_by_torchvision(folder: Path, image_data: Path) -> float:
    network = models.resnet18(num_classes=12)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    images = real_images(load_split("folder", image_data, "test"), SIZE)
    with torch.inference_mode():
        answers = network.eval()(TF.normalize(images.images / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return float((answers.argmax(1) == images.labels).float().mean())


@pytest.fixture
def hard(image_data, distilled):
    """Flags of the shortest student with hard labels."""
    return ["--labels", "hard", "--train-dir", distilled.folder, "--dataset", "folder", "--data_dir", image_data,
            "--input-size", SIZE, "--batch-size", 36, "--epochs", 1]


@pytest.fixture
def soft(image_data, distilled, soft_labels):
    """Flags of the shortest student with soft labels."""
    return ["--train-dir", distilled.folder, "--fkd-path", soft_labels.folder, "--dataset", "folder", "--data_dir", image_data,
            "--batch-size", 36, "--epochs", 1]


def test_a_student_of_soft_labels_says_how_it_was_made(student, image_data, distilled):
    manifest, result = read(student.folder, "manifest.json"), read(student.folder, "result.json")
    assert manifest["kind"] == result["kind"] == "student"
    assert [entry["name"] for entry in manifest["classes"]] == CLASSES
    assert manifest["config"] == result["config"]
    config = manifest["config"]
    assert (config["labels"], config["arch"], config["input_size"], config["mix_type"]) == ("soft", "resnet18", SIZE, "cutmix")
    assert set(manifest["files"]) == {"model.safetensors"}
    metrics = result["metrics"]
    assert (metrics["train_images"], metrics["test_images"], metrics["steps"]) == (72, 36, 4)
    assert metrics["test_accuracy"] == pytest.approx(accuracy_by_torchvision(student.folder, image_data))
    assert {"code", "packages", "hardware", "seconds"} <= set(result) and result["seconds"]["train"] > 0
    assert {"torch", "torchvision", "diffusers"} <= set(result["packages"])
    assert student.err == ""


def test_a_student_of_hard_labels_runs_by_its_command(command, image_data, tmp_path, hard):
    answer = command("validate.train_FKD", *hard, "--mix-type", "cutmix", "--sgd", "-lr", 0.1, "--cluster-weights",
                     "--gradient-accumulation-steps", 2, "--output-dir", tmp_path / "student")
    assert (answer.code, answer.err) == (0, "")
    assert "test accuracy" in answer.out
    config = read(tmp_path / "student", "manifest.json")["config"]
    assert (config["labels"], config["soft_labels"], config["mix_type"]) == ("hard", None, "cutmix")
    network, _ = load_model(tmp_path / "student", "student")
    assert network.fc.out_features == 12


def test_a_student_learns_from_real_images(here, image_data, tmp_path):
    """12 classes, each a colour of its own, in a handful of steps: far above chance, so labels and images belong together."""
    assert here("validate.train_FKD", "--labels", "hard", "--dataset", "folder", "--data_dir", image_data, "--input-size", SIZE,
                "--batch-size", 24, "--epochs", 4, "--flip", 0, "--min-scale-crops", 0.5, "--output-dir",
                tmp_path / "student").code == 0
    assert read(tmp_path / "student", "result.json")["metrics"]["test_accuracy"] > 4 / 12


def test_val_dir_names_other_test_images(here, image_data, tmp_path, hard):
    shutil.copytree(image_data / "train", tmp_path / "val")
    assert here("validate.train_FKD", *hard, "--val-dir", tmp_path / "val", "--output-dir", tmp_path / "student").code == 0
    assert read(tmp_path / "student", "result.json")["metrics"]["test_images"] == 168


def test_seeds_decide_the_student(here, tmp_path, soft):
    made = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert here("validate.train_FKD", *soft, "--seed", seed, "--output-dir", tmp_path / name).code == 0
        made.append((tmp_path / name / "model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(("flag", "value", "stored"), [
    ("--mix-type", "mixup", "cutmix"), ("--input-size", 64, SIZE), ("--min-scale-crops", 0.5, 0.08), ("--fkd_seed", 7, 42)])
def test_what_contradicts_the_stored_views_is_refused(here, tmp_path, soft, flag, value, stored):
    answer = here("validate.train_FKD", *soft, flag, value, "--output-dir", tmp_path / "student")
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert str(value) in answer.err and str(stored) in answer.err and flag.strip("-")[:3] in answer.err
    assert not (tmp_path / "student").exists()


def test_what_agrees_with_the_stored_views_is_taken(here, tmp_path, soft):
    assert here("validate.train_FKD", *soft, "--mix-type", "cutmix", "--fkd_seed", 42, "--input-size", SIZE, "--output-dir",
                tmp_path / "student").code == 0


def test_more_epochs_than_stored_are_refused(here, tmp_path, soft):
    answer = here("validate.train_FKD", *soft, "--epochs", 7, "--output-dir", tmp_path / "student")
    assert answer.code == 2 and "at most 6" in answer.err and "found 7" in answer.err


@pytest.mark.parametrize(("module", "flags"), [
    ("validate.train_FKD", ["--wandb-api-key", "x", "--labels", "hard"]),
    ("validate.train_FKD", ["--wandb-project", "x", "--labels", "hard"]),
    ("validate.train_FKD", ["--start-epoch", 3, "--labels", "hard"]),
    ("matching.generate_soft_label", ["--world-size", 4]),
    ("matching.generate_soft_label", ["--multiprocessing-distributed"]),
    ("matching.generate_soft_label", ["--gpu", 0])])
def test_retired_flags_are_answered_with_one_line(command, module, flags):
    answer = command(module, *flags)
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith(f"error: {flags[0]}: not used here; ") and answer.err.count("\n") == 1
