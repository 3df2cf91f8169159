"""misc.verify finds what is wrong with an artefact, and all of it; stages refuse the same under --strict."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SIZE
from PIL import Image
from safetensors.torch import load_file, save_file

from scripts.artefact import digest
from scripts.cli import ROOT


@pytest.fixture
def copied(request, tmp_path):
    """A copy of a stage's folder, to spoil."""
    def call(stage: str) -> Path:
        ignore = shutil.ignore_patterns("state.pt")
        return Path(shutil.copytree(request.getfixturevalue(stage).folder, tmp_path / stage, ignore=ignore))
    return call


def edit(folder: Path, change) -> None:
    """Let `change` alter the manifest by hand."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(folder: Path, name: str, change) -> None:
    """Let `change` alter the tensors of a file, with a manifest that agrees with the file."""
    tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)

    def agree(manifest):
        manifest["files"][name], manifest["bytes"][name] = digest(folder / name), (folder / name).stat().st_size
    edit(folder, agree)


def lines(answer) -> list[str]:
    """What was said of single things, without the summaries."""
    return [line for line in answer.out.splitlines() if " MB: " not in line]


def test_sound_artefacts_of_every_stage_by_command(command, prototypes, distilled, teacher, soft_labels, student):
    folders = [each.folder for each in (prototypes, distilled, teacher, soft_labels, student)]
    answer = command("misc.verify", *folders, ROOT / "distillation" / "checkpoints" / "digits-ldm")
    assert (answer.code, lines(answer)) == (0, []), answer
    assert [line.split(": ")[1].split(",")[0] for line in answer.out.splitlines()] == \
        ["prototypes", "distilled", "teacher", "soft_labels", "student", "ldm"]


def test_what_is_no_artefact(here, distilled, prototypes, tmp_path):
    answer = here("misc.verify", tmp_path, prototypes.folder)
    assert answer.code == 2 and f"{tmp_path}: expected an artefact" in answer.err and "as it should be" in answer.out
    copy = Path(shutil.copytree(prototypes.folder, tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    assert "an unfinished folder" in here("misc.verify", copy).err


def test_everything_that_is_wrong_is_named(here, copied):
    folder = copied("distilled")
    images = sorted(folder.glob("*/*.png"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-5])
    images[2].write_bytes(images[2].read_bytes()[:-1] + b"\0")
    Image.new("RGB", (SIZE, SIZE)).save(images[3].with_name("another.png"))
    (folder / "notes.txt").write_text("mine")
    answer = here("misc.verify", folder)
    said = lines(answer)
    assert answer.code == 1 and len(said) == 5, said
    expected = [(images[0], "nothing"), (images[1], "bytes"), (images[2], "digest"), ("another.png", "no image"),
                ("notes.txt", "a warning")]
    for line, words in zip(said, expected, strict=True):
        assert all(str(word) in line for word in words), line


def test_swapped_class_folders(here, copied):
    folder = copied("distilled")
    first, second = sorted(path for path in folder.iterdir() if path.is_dir())[:2]
    for old, new in zip(sorted(first.iterdir()), sorted(second.iterdir()), strict=True):
        content = old.read_bytes()
        old.write_bytes(new.read_bytes())
        new.write_bytes(content)
    answer = here("misc.verify", folder)
    assert answer.code == 1 and len(lines(answer)) == 12 and all("expected" in line for line in lines(answer))


MANIFESTS = {
    "label": ("distilled", lambda m: m["rows"][3].update(label=99), "row 3"),
    "weight": ("distilled", lambda m: m["rows"][3].update(weight=-1), "weight"),
    "class order": ("distilled", lambda m: m["classes"].reverse(), "expected a file in"),
    "lost row": ("distilled", lambda m: m["rows"].pop(), "expected 6 images of class sea_lion, found 5"),
    "weights": ("distilled", lambda m: m["rows"][3].update(weight=7), "sum to 1"),
    "metadata": ("distilled", lambda m: m["rows"][3].update(seed=7), "metadata.jsonl: expected line 4"),
    "outside": ("distilled", lambda m: m["files"].update({"../x.png": "0" * 64}), "inside the folder"),
    "ipc": ("prototypes", lambda m: m["config"].update(ipc=4), "shape [4, 4, 8, 8]"),
    "classes": ("prototypes", lambda m: m["classes"].reverse(), "expected a file of this class"),
    "images": ("prototypes", lambda m: m["counts"].update(images=3), "counts of 168 images, found 3"),
    "arch": ("teacher", lambda m: m["config"].update(arch="resnet34"), "weights of a resnet34"),
    "accuracy": ("teacher", lambda m: m.update(test_accuracy=3), "test_accuracy"),
    "classes of a model": ("student", lambda m: m["classes"].pop(), "of 11 classes"),
    "epochs": ("soft_labels", lambda m: m["kept"].update(epochs=7), "6 epochs, found 7"),
    "lost epoch": ("soft_labels", lambda m: m["files"].pop("epoch_0002.safetensors"), "without a gap"),
    "kind": ("soft_labels", lambda m: m.update(kind="student"), "arch"),
    "unknown kind": ("soft_labels", lambda m: m.update(kind="mine"), "expected kind"),
    "version": ("teacher", lambda m: m.update(version=2), "expected version 1, found 2"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_edited_by_hand(here, copied, case):
    stage, change, words = MANIFESTS[case]
    folder = copied(stage)
    edit(folder, change)
    answer = here("misc.verify", folder)
    assert answer.code == 1 and any(words in line for line in lines(answer)), answer


def spoil(name: str, value):
    return lambda tensors: tensors[name].view(-1).__setitem__(0, value)


TENSORS = {
    "latents": ("prototypes", spoil("centroids", torch.nan), "centroids: expected finite values, found nan"),
    "sizes": ("prototypes", spoil("sizes", -1), "sizes: expected values in [0"),
    "shape": ("prototypes", lambda t: t.update(centroids=t["centroids"][:2]), "centroids: expected the shape [3, 4, 8, 8]"),
    "extra": ("prototypes", lambda t: t.update(more=torch.zeros(1)), "more: expected no tensor"),
    "missing": ("prototypes", lambda t: t.pop("sizes"), "sizes: expected a tensor"),
    "weights": ("teacher", spoil("fc.weight", torch.inf), "fc.weight: expected finite values, found inf"),
    "variances": ("teacher", spoil("bn1.running_var", -1.0), "bn1.running_var"),
    "logits": ("soft_labels", spoil("logits", torch.nan), "logits: expected finite"),
    "rows": ("soft_labels", lambda t: t.update(logits=t["logits"][:5]), "logits: expected the shape [72, 12]"),
    "order": ("soft_labels", lambda t: t["order"].fill_(0), "order: expected each image once"),
    "partner": ("soft_labels", spoil("partner", 72), "partner: expected values in [0, 71]"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_a_manifest_agrees_with(here, copied, case):
    stage, change, words = TENSORS[case]
    folder = copied(stage)
    name = next(name for name in json.loads((folder / "manifest.json").read_text())["files"] if name.endswith("safetensors"))
    rewrite(folder, name, change)
    answer = here("misc.verify", folder)
    assert answer.code == 1 and any(f"{name}: {words}" in line for line in lines(answer)), answer


# --strict

def flip(path: Path) -> None:
    """Change one bit of the last number, which only a digest tells."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


@pytest.fixture
def stage(here, image_data, checkpoint, tmp_path):
    """Each stage that reads an artefact, with `folder` in place of one of kind `kind`."""
    def call(module: str, kind: str, folder: Path, *more):
        data = ["--dataset", "folder", "--data_dir", image_data]
        flags = {
            "distillation.gen_prototype": ["--diffusion_checkpoints_path", folder, "--save_prototype_path", tmp_path / "out"],
            "distillation.gen_syn_image": ["--prototype_path", folder, "--diffusion_checkpoints_path", checkpoint,
                                           "--save_init_image_path", tmp_path / "out"],
            "distillation.distill": ["--filter_teacher", folder, "--diffusion_checkpoints_path", checkpoint,
                                     "--save_init_image_path", tmp_path / "out"],
            "matching.generate_soft_label": ["--teacher" if kind == "teacher" else "--data", folder, "--input-size", SIZE,
                                             "--epochs", 1, "--fkd-path", tmp_path / "out"],
            "validate.train_FKD": ["--fkd-path", folder, "--output-dir", tmp_path / "out"],
            "continual.train_continual": ["--distilled", folder, "--output-dir", tmp_path / "out", "--dry-run"],
        }[module]
        return here(module, *data, *flags, "--strict", *more)
    return call


@pytest.mark.parametrize(("module", "kind", "pattern"), [
    ("distillation.gen_syn_image", "prototypes", "*.safetensors"), ("distillation.distill", "teacher", "*.safetensors"),
    ("matching.generate_soft_label", "distilled", "*/*.png"), ("matching.generate_soft_label", "teacher", "*.safetensors"),
    ("validate.train_FKD", "soft_labels", "*.safetensors"), ("continual.train_continual", "distilled", "*/*.png")])
def test_strict_refuses_what_only_a_digest_tells(stage, copied, tmp_path, module, kind, pattern):
    folder = copied(kind)
    path = max(folder.glob(pattern))
    flip(path)
    answer = stage(module, kind, folder)
    assert answer.code == 2 and answer.err.count("\n") == 1, answer.err
    assert str(folder) in answer.err and path.name in answer.err and "expected the digest" in answer.err
    assert not (tmp_path / "out").exists()


def test_strict_verifies_a_checkpoint_of_train_ldm(stage, tmp_path):
    copy = Path(shutil.copytree(ROOT / "distillation" / "checkpoints" / "digits-ldm", tmp_path / "ldm"))
    flip(copy / "vae" / "diffusion_pytorch_model.safetensors")
    answer = stage("distillation.gen_prototype", "ldm", copy)
    assert answer.code == 2 and "vae/diffusion_pytorch_model.safetensors: expected the digest" in answer.err


def test_strict_lets_sound_artefacts_pass(stage, distilled, teacher):
    assert stage("matching.generate_soft_label", "distilled", distilled.folder, "--teacher", teacher.folder).code == 0


def test_strict_refuses_what_has_no_digests(stage, distilled, tmp_path):
    path = tmp_path / "prototypes.json"
    path.write_text("{}")
    answer = stage("distillation.gen_syn_image", "prototypes", path)
    assert answer.code == 2 and "expected an artefact with manifest.json, found a file" in answer.err
