"""Artefacts that commit 9ae800c wrote, in tests/data: today's readers read them, and the same commands continue them."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from distillation.distilled_set import read_distilled
from distillation.prototypes import read_prototypes
from matching.image_set import distilled_images
from matching.soft_labels import SoftLabels
from scripts.artefact import read_manifest
from scripts.cli import ROOT
from scripts.networks import load_model, predict

BEFORE = ROOT / "tests" / "data" / "before_the_move"
PROTOTYPES, DISTILLED = "prototypes/folder-ipc2-kmexpand1", "distilled/folder_ipc2_2_s0.5_g2.0_kmexpand1"
DATA = ["--dataset", "folder", "--data_dir", BEFORE / "images"]
COMMANDS = {  # by the folder given to the last flag; {} is the root of all artefacts
    "prototypes": ["distillation.gen_prototype", *DATA, "--ipc", 2, "--save_prototype_path"],
    "distilled": ["distillation.gen_syn_image", "--dataset", "folder", "--prototype_path", f"{{}}/{PROTOTYPES}", "-s", 0.5,
                  "-g", 2, "--num_inference_steps", 4, "--batch_size", 2, "--save_init_image_path"],
    "teacher": ["matching.train_teacher", *DATA, "--arch", "convnet_d1_w4", "--input-size", 32, "--epochs", 2, "--batch-size",
                6, "--output-dir"],
    "soft_labels": ["matching.generate_soft_label", "--data", f"{{}}/{DISTILLED}", "--teacher", "{}/teacher", "--epochs", 2,
                    "--input-size", 32, "--batch-size", 4, "--mix-type", "cutmix", "--use-fp16", "--fkd-path"],
    "student": ["validate.train_FKD", "--train-dir", f"{{}}/{DISTILLED}", "--fkd-path", "{}/soft_labels", *DATA, "--model",
                "convnet_d1_w4", "--epochs", 2, "--batch-size", 4, "--cos", "--output-dir"]}


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(BEFORE, tmp_path / "copy"))


@pytest.fixture
def again(here, copy):
    """The command that wrote an artefact, given once more."""
    def call(stage):
        module, *flags = COMMANDS[stage]
        answer = here(module, *(str(flag).replace("{}", str(copy)) for flag in flags), copy / stage)
        assert answer.code == 0, answer.err
        return answer.out
    return call


def test_every_reader_reads_them():
    classes, found, config = read_prototypes(BEFORE / PROTOTYPES)
    assert [entry["name"] for entry in classes] == ["ant", "bear"] and config["ipc"] == 2
    assert {tuple(each.centroids.shape) for each in found} == {(2, 4, 8, 8)}
    assert read_distilled(BEFORE / DISTILLED)[2].tolist() == [0, 0, 1, 1]
    images = distilled_images(str(BEFORE / DISTILLED))
    for kind in ("teacher", "student"):
        network, manifest = load_model(BEFORE / kind, kind)
        assert manifest["classes"] == classes and predict(network, images.images).shape == (4, 2)
    assert SoftLabels(BEFORE / "soft_labels", images).epoch(0, "cpu")[1] is not None


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_same_command_finds_them_complete(again, stage):
    assert "complete, nothing to do" in again(stage)


@pytest.mark.parametrize(("stage", "name", "lost"), [
    ("prototypes", PROTOTYPES, "00001_bear.safetensors"), ("distilled", DISTILLED, "00001_bear/00001-p001-r00.png")])
def test_the_same_command_continues_a_half_finished_folder(again, copy, stage, name, lost):
    """On the machine that wrote them to the same bytes; another processor rounds otherwise."""
    folder, before = copy / name, BEFORE / name
    for file in ("manifest.json", lost):
        (folder / file).unlink()
    again(stage)
    manifests = [json.loads((each / "manifest.json").read_text()) for each in (folder, before)]
    assert (manifests[0].pop("autoencoder", None) is not None) == (stage == "prototypes")      # added since
    for manifest in manifests:
        for key in ("code", "packages", "files", "bytes"):
            del manifest[key]
        if stage == "distilled":    # the number of images a prototype was in the flags alone
            del manifest["config"]["ipc"]
            manifest["config"].pop("repeats", None)
    assert manifests[0] == manifests[1]
    files = [path.relative_to(before) for path in before.rglob("*") if path.suffix in (".safetensors", ".png", ".jsonl")]
    assert [path for path in files if str(path) != lost and (folder / path).read_bytes() != (before / path).read_bytes()] == []
    if lost.endswith(".png"):
        one, other = (np.array(Image.open(each / lost)).astype(int) for each in (folder, before))
        assert np.abs(one - other).max() <= 2
    elif read_manifest(before, "prototypes")["packages"]["scikit-learn"] == version("scikit-learn"):  # batches differ
        one, other = (load_file(each / lost)["centroids"] for each in (folder, before))
        assert one.allclose(other, atol=1e-3)
