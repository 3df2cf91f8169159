"""misc.verify names everything that is wrong with an artefact."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SIZE, edit
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_continual import tiny, write_data, write_teacher

from scripts.cli import ROOT
from scripts.files import digest


def rewrite(folder: Path, name: str, change) -> None:
    """Let `change` alter the tensors of a file, and the manifest so that it agrees with the file."""
    tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    agree(folder, name)


def agree(folder: Path, name: str) -> None:
    """Let the manifest have the file's digest and size."""
    def change(manifest):
        manifest["files"][name], manifest.setdefault("bytes", {})[name] = digest(folder / name), (folder / name).stat().st_size
    edit(folder, change)


def problems(answer) -> list[str]:
    """The lines about single files, without the line per folder."""
    return [line for line in answer.out.splitlines() if not line.endswith((" wrong", " correct"))]


def test_correct_artefacts_of_every_stage(here, prototypes, distilled, teacher, soft_labels, student, tmp_path):
    data = write_data(tmp_path / "data")
    assert here("continual.train_continual", *tiny(data, tmp_path / "runs", "--method", "er", "task_arithmetic", "--tasks", 2,
                                                   "--stream", "real", "--start", "distilled")).code == 0
    folders = [each.folder for each in (prototypes, distilled, teacher, soft_labels, student)]
    folders += [ROOT / "distillation" / "checkpoints" / "digits-ldm", *sorted((tmp_path / "runs").iterdir())]
    answer = here("misc.verify", *folders)
    assert (answer.code, problems(answer)) == (0, []), answer
    assert [line.split(": ")[1].split(",")[0] for line in answer.out.splitlines()] == \
        ["prototypes", "distilled", "teacher", "soft_labels", "student", "ldm", "continual", "start", "continual"]
    run = folders[6]
    rewrite(run, "buffer.safetensors", lambda tensors: tensors["labels"].fill_(4))
    (run / "result.json").write_text((run / "result.json").read_text().replace('"acc": ', '"acc": 2'))
    agree(run, "result.json")
    out = here("misc.verify", run).out
    assert "labels: expected values in [0, 3], found [4, 4]" in out and "result.json: expected acc in [0, 1], found 2" in out


def test_other_folders_are_no_artefacts(here, prototypes, copied, tmp_path):
    answer = here("misc.verify", tmp_path, prototypes.folder)
    assert answer.code == 2 and f"{tmp_path}/manifest.json: expected a finished artefact" in answer.out
    assert f"{prototypes.folder}: prototypes, correct" in answer.out
    copy = copied("prototypes")
    (copy / "manifest.json").unlink()
    assert "an unfinished folder" in here("misc.verify", copy).out


def test_everything_that_is_wrong_is_named(here, copied):
    folder = copied("distilled")
    images = sorted(folder.glob("*/*.png"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-5])
    images[2].write_bytes(images[2].read_bytes()[:-1] + b"\0")
    Image.new("RGB", (SIZE, SIZE)).save(images[3].with_name("another.png"))
    (folder / "notes.txt").write_text("mine")
    answer = here("misc.verify", folder)
    assert answer.code == 2 and len(problems(answer)) == 5 and answer.out.endswith("distilled, 4 wrong\n"), answer
    for name, word in ((images[0], "nothing"), (images[1], "bytes"), (images[2], "digest"), ("another.png", "no image"),
                       ("notes.txt", "a warning")):
        assert any(str(name) in line and word in line for line in problems(answer)), (name, answer)


MANIFESTS = [
    ("distilled", lambda m: m["rows"][3].update(label=99), "row 3"),
    ("distilled", lambda m: m["rows"][3].update(weight=-1), "weight"),
    ("distilled", lambda m: m["classes"].reverse(), "expected a file in"),
    ("distilled", lambda m: m["rows"].pop(), "expected 6 images of class sea_lion, found 5"),
    ("distilled", lambda m: m["rows"][3].update(weight=7), "sum to 1"),
    ("distilled", lambda m: m["rows"][3].update(seed=7), "metadata.jsonl: expected line 4"),
    ("distilled", lambda m: m["files"].update({"../x.png": "0" * 64}), "inside the folder"),
    ("prototypes", lambda m: m["config"].update(ipc=4), "expected ipc 3, found 4"),
    ("prototypes", lambda m: m["classes"].reverse(), "expected a file for each class"),
    ("prototypes", lambda m: m["counts"].update(images=3), "counts of 168 images, found 3"),
    ("teacher", lambda m: m["config"].update(arch="resnet34"), "weights of a resnet34"),
    ("teacher", lambda m: m.update(test_accuracy=3), "test_accuracy"),
    ("teacher", lambda m: m.update(version=2), "expected version 1, found 2"),
    ("student", lambda m: m["classes"].pop(), "of 11 classes"),
    ("soft_labels", lambda m: m["kept"].update(epochs=7), "6 epochs, found 7"),
    ("soft_labels", lambda m: m["files"].pop("epoch_0002.safetensors"), "without a gap"),
    ("soft_labels", lambda m: m.update(kind="student"), "arch"),
    ("soft_labels", lambda m: m.update(kind="mine"), "expected kind")]


def finds(answer, words: str) -> bool:
    return answer.code == 2 and any(words in line for line in problems(answer))


@pytest.mark.parametrize(("stage", "change", "words"), MANIFESTS)
def test_an_edited_manifest(here, copied, stage, change, words):
    folder = copied(stage)
    edit(folder, change)
    assert finds(here("misc.verify", folder), words)


def first(name: str, value):
    """A change of a tensor's first number."""
    return lambda tensors: tensors[name].view(-1).__setitem__(0, value)


@pytest.mark.parametrize(("kind", "name", "tensor"), [
    ("ldm", "unet/diffusion_pytorch_model.safetensors", "conv_out.bias"), ("start", "model.safetensors", "9.bias")])
def test_weights_of_nan(here, tmp_path, kind, name, tensor):
    if kind == "ldm":
        folder = Path(shutil.copytree(ROOT / "distillation" / "checkpoints" / "digits-ldm", tmp_path / "ldm"))
    else:
        folder = write_teacher(tmp_path / "start")
        edit(folder, lambda manifest: manifest.update(kind="start"))
        (folder / "result.json").write_text("{}")
    rewrite(folder, name, first(tensor, torch.nan))
    answer = here("misc.verify", folder)
    assert answer.code == 2 and any(f"{name}: {tensor}: expected finite values, found nan" in line for line in problems(answer))


TENSORS = [
    ("prototypes", first("centroids", torch.nan), "centroids: expected finite values, found nan"),
    ("prototypes", first("sizes", -1), "sizes: expected values in [0"),
    ("prototypes", lambda t: t.update({name: t[name][:2] for name in ("centroids", "sizes", "nearest")}),
     "centroids: expected the shape [2, 4, 8, 8]"),
    ("prototypes", lambda t: t.update(more=torch.zeros(1)), "more: expected no tensor"),
    ("prototypes", lambda t: t.pop("sizes"), "sizes: expected a tensor"),
    ("teacher", first("fc.weight", torch.inf), "fc.weight: expected finite values, found inf"),
    ("teacher", first("bn1.running_var", -1.0), "bn1.running_var"),
    ("soft_labels", first("logits", torch.nan), "logits: expected finite"),
    ("soft_labels", lambda t: t.update(logits=t["logits"][:5]), "logits: expected the shape [72, 12]"),
    ("soft_labels", lambda t: t["order"].fill_(0), "order: expected each image once"),
    ("soft_labels", first("partner", 72), "partner: expected values in [0, 71]")]


@pytest.mark.parametrize(("stage", "change", "words"), TENSORS)
def test_wrong_tensors_whose_digest_is_right(here, copied, stage, change, words):
    folder = copied(stage)
    rewrite(folder, min(path.name for path in folder.glob("*.safetensors")), change)
    assert finds(here("misc.verify", folder), words)
