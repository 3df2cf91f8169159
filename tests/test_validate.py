"""Stage 4: students from soft and hard labels, and what they refuse."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, SIZE, edit
from PIL import Image
from safetensors.torch import load_file
from torchvision import models
from torchvision.transforms import functional as TF

from distillation.datasets import load_split
from matching.image_set import distilled_images, real_images
from matching.soft_labels import SoftLabels
from scripts.networks import load_model, repeat_statistics, seeded
from scripts.parallel import Team
from validate.protocols import line, preset


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.fixture
def hard(image_data, distilled):
    """Flags of the shortest student with hard labels."""
    return ["--labels", "hard", "--train-dir", distilled.folder, "--dataset", "folder", "--data_dir", image_data,
            "--input-size", SIZE, "--model", "convnet_d2_w8", "--batch-size", 36, "--epochs", 1]


@pytest.fixture
def soft(image_data, distilled, soft_labels):
    """Flags of the shortest student with soft labels."""
    return ["--train-dir", distilled.folder, "--fkd-path", soft_labels.folder, "--dataset", "folder", "--data_dir", image_data,
            "--arch", "convnet_d2_w8", "--batch-size", 36, "--epochs", 1]


@pytest.mark.parametrize(("kind", "counts"), [("teacher", (168, 36, 9)), ("student", (72, 36, 4))])
def test_the_stored_accuracy_is_that_of_torchvisions_network_and_transforms(request, image_data, kind, counts):
    folder = request.getfixturevalue(kind).folder
    network = models.resnet18(num_classes=12)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    images = real_images(load_split("folder", image_data, "test"), SIZE)
    with torch.inference_mode():
        answers = network.eval()(TF.normalize(images.images / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    metrics = read(folder, "result.json")["metrics"]
    assert metrics["test_accuracy"] == pytest.approx(float((answers.argmax(1) == images.labels).float().mean()))
    assert tuple(metrics[name] for name in ("train_images", "test_images", "steps")) == counts


def test_a_student_of_soft_labels_says_how_it_was_made(student):
    manifest, result = read(student.folder, "manifest.json"), read(student.folder, "result.json")
    assert manifest["kind"] == result["kind"] == "student"
    assert [entry["name"] for entry in manifest["classes"]] == CLASSES
    assert manifest["config"] == result["config"]
    config = manifest["config"]
    assert (config["labels"], config["arch"], config["input_size"], config["mix_type"]) == ("soft", "resnet18", SIZE, "cutmix")
    assert set(manifest["files"]) == {"model.safetensors"}
    assert {"code", "packages", "hardware", "seconds"} <= set(result) and result["seconds"]["train"] > 0
    assert {"torch", "torchvision", "diffusers"} <= set(result["packages"])
    assert all(line.startswith("student:") for line in student.err.splitlines())  # progress, on a slow machine


def test_a_student_of_hard_labels_runs_by_its_command(command, image_data, tmp_path, hard):
    answer = command("validate.train_FKD", *hard, "--mix-type", "cutmix", "--sgd", "-lr", 0.1, "--cluster-weights",
                     "--gradient-accumulation-steps", 2, "--output-dir", tmp_path / "student")
    assert answer.code == 0 and all(line.startswith("student:") for line in answer.err.splitlines())
    assert "test accuracy" in answer.out
    config = read(tmp_path / "student", "manifest.json")["config"]
    assert (config["labels"], config["soft_labels"], config["mix_type"]) == ("hard", None, "cutmix")
    network, _ = load_model(tmp_path / "student", "student")
    assert network[-1].out_features == 12


def test_a_student_learns_from_real_images(here, image_data, tmp_path):
    """12 classes, each with its own colour, in a few steps: far above chance, so labels and images match."""
    assert here("validate.train_FKD", "--labels", "hard", "--dataset", "folder", "--data_dir", image_data, "--input-size", SIZE,
                "--batch-size", 24, "--epochs", 4, "--flip", 0, "--min-scale-crops", 0.5, "--output-dir",
                tmp_path / "student").code == 0
    assert read(tmp_path / "student", "result.json")["metrics"]["test_accuracy"] > 4 / 12


@pytest.fixture
def one_each(image_data, tmp_path):
    """Flags of a ResNet on three classes of one image."""
    for part in ("train", "test"):
        for name in CLASSES[:3]:
            (tmp_path / "one" / part / name).mkdir(parents=True)
            shutil.copy(image_data / part / name / "00.png", tmp_path / "one" / part / name)
    return ["--dataset", "folder", "--data_dir", tmp_path / "one", "--input-size", SIZE, "--epochs", 1, "--output-dir",
            tmp_path / "out"]


def test_no_part_of_a_batch_has_one_row(here, one_each):
    """Two parts of three images were two and one, which BatchNorm cannot normalise."""
    answer = here("validate.train_FKD", "--labels", "hard", "--protocol", "d4m", *one_each)
    assert answer.code == 0, answer.err
    rows = torch.arange(7)
    assert [list(map(len, Team().rows(rows, parts, 2))) for parts in (1, 3, 4, 9)] == [[7], [3, 2, 2], [3, 2, 2], [3, 2, 2]]
    assert list(map(len, Team().rows(rows, 9, 1))) == [1] * 7


@pytest.mark.parametrize("command", [["matching.train_teacher"], ["validate.train_FKD", "--labels", "hard"]])
def test_a_batch_of_one_row_under_batch_norm_is_refused_and_the_corrected_command_runs(here, one_each, tmp_path, command):
    answer = here(*command, *one_each, "--batch-size", 2)
    assert answer.code == 2 and not (tmp_path / "out").exists()
    assert answer.err == ("error: --batch-size: expected at least 2 images in every batch, 2 for BatchNorm, found 1 (3 images "
                          "in batches of at most 2)\n")
    assert here(*command, *one_each, "--batch-size", 3).code == 0
    other = [*one_each[:-1], tmp_path / "convnet"]
    assert here(*command, *other, "--batch-size", 1, "--arch", "convnet_d1_w4").code == 0


def test_val_dir_names_other_test_images(here, image_data, tmp_path, hard):
    shutil.copytree(image_data / "train", tmp_path / "val")
    assert here("validate.train_FKD", *hard, "--val-dir", tmp_path / "val", "--output-dir", tmp_path / "student").code == 0
    assert read(tmp_path / "student", "result.json")["metrics"]["test_images"] == 168
    image = sorted((tmp_path / "val").rglob("*.png"))[0]
    Image.new("RGB", (SIZE, SIZE)).save(image)
    answer = here("validate.train_FKD", *hard, "--val-dir", tmp_path / "val", "--output-dir", tmp_path / "student")
    assert answer.code == 2 and "begun with test_bytes=" in answer.err


def test_other_weights_of_the_same_images_are_another_student(here, copied, tmp_path, hard):
    """The weights are a distilled set's, and nothing else of a student names them."""
    images = copied("distilled")
    words = ["validate.train_FKD", *hard, "--train-dir", images, "--cluster-weights", "--output-dir", tmp_path / "student"]
    assert here(*words).code == 0
    edit(images, lambda manifest: manifest["rows"][0].update(weight=0.9))
    answer = here(*words)
    assert answer.code == 2 and "begun with weights=" in answer.err


def test_a_student_that_asks_the_teacher_learns_what_stored_labels_teach(here, tmp_path, soft, teacher):
    """Same draws, same teacher: what is left is the rounding of float16 and of batches put together in another way."""
    asking = [*soft[:2], *soft[4:], "--mode", "on-the-fly", "--teacher", teacher.folder, "--input-size", SIZE, "--mix-type",
              "cutmix", "--fkd_seed", 42]
    lost = []
    for name, flags in (("stored", soft), ("asked", asking), ("other", [*asking, "--fkd_seed", 43])):
        answer = here("validate.train_FKD", *flags, "--adamw-lr", 1e-6, "--output-dir", tmp_path / name)
        assert answer.code == 0, answer.err
        lost.append(read(tmp_path / name, "result.json")["metrics"]["last_loss"])
    assert lost[1] == pytest.approx(lost[0], rel=2e-3) and abs(lost[2] - lost[0]) > 2e-3 * lost[0]


def test_how_labels_are_read_does_not_change_the_student_and_its_seed_does(here, tmp_path, soft, soft_labels, distilled):
    """Another number of threads, files at another place and written in another order, and the flags of the stored views."""
    labels, images = tmp_path / "labels", tmp_path / distilled.folder.name
    for source, copy in ((soft_labels.folder, labels), (distilled.folder, images)):
        for path in sorted((path for path in source.rglob("*") if path.is_file()), reverse=True):
            (copy / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(source))
    assert here("validate.train_FKD", *soft, "-j", 4, "--output-dir", tmp_path / "a").code == 0
    assert here("validate.train_FKD", *soft, "--train-dir", images, "--fkd-path", labels, "-j", 1, "--save-seconds", 0,
                "--mix-type", "cutmix", "--fkd_seed", 42, "--input-size", SIZE, "--output-dir", tmp_path / "b").code == 0
    assert here("validate.train_FKD", *soft, "--seed", 1, "--output-dir", tmp_path / "c").code == 0
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert one == same != other


@pytest.mark.parametrize(("protocol", "flags", "expected"), [
    ("d4m", ["--epochs", 2], {"epochs": 2, "batch_size": 1024, "gradient_accumulation_steps": 2, "lr_schedule": "cosine",
                              "adamw_lr": 1e-3, "adamw_weight_decay": 0.01, "mix_type": "cutmix", "min_scale_crops": 0.08}),
    ("rded", ["--epochs", 1, "--adamw-lr", 0.002], {
        "epochs": 1, "batch_size": 50, "gradient_accumulation_steps": 1, "lr_schedule": "half-cosine", "adamw_lr": 0.002})])
def test_a_protocol_fills_what_is_not_given_and_says_so(here, image_data, distilled, tmp_path, protocol, flags, expected):
    answer = here("validate.train_FKD", "--protocol", protocol, "--labels", "hard", "--train-dir", distilled.folder,
                  "--dataset", "folder", "--data_dir", image_data, "--input-size", SIZE, *flags, "--output-dir",
                  tmp_path / "student")
    assert answer.code == 0, answer.err
    config = read(tmp_path / "student", "manifest.json")["config"]
    assert {name: config[name] for name in expected} == expected and config["mode"] == "hard"
    said = next(line for line in answer.out.splitlines() if line.startswith(f"protocol {protocol} sets"))
    taken, given, absent = said.split("; ")
    assert f"batch_size {expected['batch_size']}" in taken and "epochs" not in taken and "temperature 20" in taken
    assert f"epochs {expected['epochs']} (protocol: 300)" in given and "mode hard (protocol: " in given
    assert absent.startswith("not in this code: ") and ("shuffled patches" in absent) == (protocol == "rded")


def test_a_protocol_with_sgd_does_not_claim_its_adamw():
    taken, given, _ = line("d4m", preset("d4m", "digits", 10, 100, "resnet18", 32), {"sgd": True}).split("; ")
    assert "adamw" not in taken and "SGD (protocol: adamw_lr 0.001)" in given


@pytest.mark.parametrize(("dataset", "classes", "size", "batch_sizes"), [  # at 1, 10 and 50 images a class
    ("cifar10", 10, 32, (10, 50, 100)), ("cifar100", 100, 32, (20, 100, 200)), ("tiny_imagenet", 200, 64, (100, 100, 100)),
    ("folder", 10, 224, (10, 50, 100)), ("folder", 100, 224, (20, 100, 200)), ("imagenet", 1000, 224, (20, 100, 200))])
def test_rded_by_data_set_and_images_per_class(dataset, classes, size, batch_sizes):
    made = [preset("rded", dataset, classes, ipc * classes, "resnet18", size) for ipc in (1, 10, 50)]
    assert tuple(values["batch_size"] for values in made) == batch_sizes
    for values in made:
        assert (values["min_scale_crops"], values["max_scale_crops"]) == ((0.5, 1) if size == 224 else (1, 1))
        assert (values["test_size"], values["mix_per"], values["bn_updates"]) == ({32: 32, 64: 72, 224: 256}[size], "batch", 2)


@pytest.mark.parametrize(("student", "rate"), [
    ("mobilenet_v2", 2.5e-3), ("efficientnet_b0", 2e-3), ("vgg11", 5e-4), ("alexnet", 1e-4), ("vit_b_16", 1e-4),
    ("swin_v2_t", 1e-4), ("resnet18", 1e-3), ("resnet101", 1e-3), ("convnet_d3_w128", 1e-3)])
def test_the_rate_of_rded_follows_the_student(student, rate):
    assert preset("rded", "imagenet", 1000, 10_000, student, 224)["adamw_lr"] == rate


def test_statistics_repeated_are_those_of_a_second_forward():
    once, twice = (seeded("resnet18", 4, "imagenet", 0).train() for _ in range(2))
    repeat_statistics(once, 2)
    views = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        once(views), twice(views), twice(views)
    for (name, ours), theirs in zip(once.named_buffers(), twice.buffers(), strict=True):
        assert "tracked" in name or torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7), name


def test_stored_and_asked_labels_agree_on_mixup_and_on_one_mix_a_batch(here, tmp_path, soft, teacher, distilled):
    """Two of four epochs are stored and used twice: batches stay together. Another batch size would split them: refused."""
    mix = ["--input-size", SIZE, "--mix-type", "mixup", "--mix-per", "batch", "--batch-size", 25]
    assert here("matching.generate_soft_label", "--data", distilled.folder, "--teacher", teacher.folder, "--epochs", 4,
                "--keep-epochs", 0.5, *mix, "--fkd-path", tmp_path / "labels").code == 0
    store = SoftLabels(tmp_path / "labels", distilled_images(distilled.folder))
    orders = [store.epoch(epoch, "cpu")[0] for epoch in (1, 3)]
    assert not torch.equal(orders[0].order, orders[1].order)
    for drawn in orders:
        for rows in drawn.order.long().tensor_split(3):
            assert drawn.partner[rows].sort().values.tolist() == rows.sort().values.tolist()
            assert len(drawn.ratio[rows].unique()) == 1
    assert read(tmp_path / "labels", "manifest.json")["config"]["mix_per"] == "batch"
    flags, lost = [*soft[:2], *soft[4:-4], "--epochs", 1, "--adamw-lr", 1e-6], []
    for name, more in (("stored", ["--fkd-path", tmp_path / "labels"]),
                       ("asked", ["--mode", "on-the-fly", "--teacher", teacher.folder, *mix])):
        assert here("validate.train_FKD", *flags, *more, "--output-dir", tmp_path / name).code == 0
        lost.append(read(tmp_path / name, "result.json")["metrics"]["last_loss"])
        config = read(tmp_path / name, "result.json")["config"]
        assert [config.get(key) for key in ("batch_size", "mix_per", "mix_alpha")] == [25, "batch", {"asked": 0.8}.get(name)]
    assert lost[1] == pytest.approx(lost[0], rel=2e-3)
    answer = here("validate.train_FKD", *flags, "--fkd-path", tmp_path / "labels", "--batch-size", 36, "--output-dir", tmp_path)
    assert answer.code == 2 and "--batch-size: expected 25, as " in answer.err


def test_a_protocol_says_where_labels_come_from(here, soft, tmp_path):
    answer = here("validate.train_FKD", *soft, "--protocol", "rded", "--output-dir", tmp_path / "student")
    assert answer.code == 2 and "--fkd-path" in answer.err and "on-the-fly" in answer.err
    assert here("validate.train_FKD", *soft, "--protocol", "rded", "--mode", "fkd_load", "--output-dir",
                tmp_path / "student").code == 0
    assert read(tmp_path / "student", "manifest.json")["config"]["lr_schedule"] == "half-cosine"


def test_small_labels_train_a_student(here, soft, distilled, teacher, tmp_path):
    """A fifth of the epochs and two logits of twelve: a tenth of the bytes; more epochs than are stored can be trained."""
    flags = ["--data", distilled.folder, "--teacher", teacher.folder, "--epochs", 10, "--input-size", SIZE, "--use-fp16"]
    for name, kept in (("whole", []), ("small", ["--keep-topk", 2, "--keep-epochs", 0.2])):
        assert here("matching.generate_soft_label", *flags, *kept, "--fkd-path", tmp_path / name).code == 0
    whole, small = (read(tmp_path / name, "manifest.json")["kept"] for name in ("whole", "small"))
    assert (small["stored_epochs"], small["epochs"], small["stored_logits"], small["classes"]) == (2, 10, 2, 12)
    assert small["bytes"] == sum(path.stat().st_size for path in (tmp_path / "small").glob("*.safetensors"))
    assert small["bytes"] < 0.2 * whole["bytes"]
    assert here("validate.train_FKD", *soft[:2], *soft[4:], "--fkd-path", tmp_path / "small", "--epochs", 5, "--output-dir",
                tmp_path / "student").code == 0
    assert read(tmp_path / "student", "result.json")["metrics"]["steps"] == 10
    assert read(tmp_path / "student", "manifest.json")["config"]["temperature"] == 20     # exact for the labels kept
    answer = here("validate.train_FKD", *soft[:2], *soft[4:], "--fkd-path", tmp_path / "small", "-T", 4, "--output-dir",
                  tmp_path / "other")
    assert answer.code == 2 and "--temperature: expected 20.0, as" in answer.err


def test_metrics_are_lines_and_the_average_is_kept_in_bfloat16(here, hard, tmp_path):
    flags = [*hard[:-2], "--epochs", 3, "--bf16"]
    for name, more in (("last", []), ("average", ["--ema", 0.9])):
        assert here("validate.train_FKD", *flags, *more, "--output-dir", tmp_path / name).code == 0
    lines = [json.loads(line) for line in (tmp_path / "last" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 2), (2, 4), (3, 6)]
    assert all(line["lr"] > 0 and line["images_per_second"] > 0 for line in lines)
    last, average = (load_file(tmp_path / name / "model.safetensors") for name in ("last", "average"))
    assert last["0.weight"].dtype == torch.float32 and last.keys() == average.keys()
    assert not torch.equal(last["0.weight"], average["0.weight"])


@pytest.mark.parametrize(("flags", "name"), [(["--tensorboard"], "tensorboard"), (["--wandb-project", "x"], "wandb")])
def test_what_is_asked_to_be_logged_elsewhere_needs_its_package(here, hard, tmp_path, flags, name):
    answer = here("validate.train_FKD", *hard, *flags, "--output-dir", tmp_path / "student")
    if importlib.util.find_spec(name):
        assert name != "tensorboard" or answer.code == 0 and next(tmp_path.rglob("events.*"))
    else:
        assert answer.code == 2 and answer.err.startswith(f"error: {name}: expected to be installed")
        assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(("flag", "value", "stored"), [
    ("--mix-type", "mixup", "cutmix"), ("--input-size", 64, SIZE), ("--min-scale-crops", 0.5, 0.08), ("--fkd_seed", 7, 42),
    ("--epochs", 7, "at most 6")])
def test_what_contradicts_the_stored_views_is_refused(here, tmp_path, soft, flag, value, stored):
    answer = here("validate.train_FKD", *soft, flag, value, "--output-dir", tmp_path / "student")
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert str(value) in answer.err and str(stored) in answer.err and flag.strip("-")[:3] in answer.err
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(("flags", "said"), [
    (["--labels", "hard", "--mode", "on-the-fly"], "--mode"), (["--teacher", "x"], "--teacher"),
    (["--cos", "--lr-schedule", "linear"], "--cos"), (["--mode", "on-the-fly"], "--fkd-path")])
def test_flags_that_contradict_each_other_are_refused(here, soft, tmp_path, flags, said):
    answer = here("validate.train_FKD", *soft, *flags, "--output-dir", tmp_path / "student")
    assert answer.code == 2 and answer.err.startswith(f"error: {said}") and answer.err.count("\n") == 1
