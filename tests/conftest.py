"""One tiny world for all tests: a random Stable Diffusion checkpoint, images of 12 classes, and stages 1-4 run on them.

Each stage runs by its real command line, twice side by side: once to its end, and once killed half-way (for test_resume.py).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many small processes; tests and commands must use the same number
os.environ.setdefault("ACCELERATE_USE_CPU", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from a hub

import atexit
import fcntl
import importlib
import json
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.cli import ROOT, run

SLOWEST = ("test_quickstart", "test_study", "test_processes", "test_shell", "test_slurm", "test_bad_input", "test_resume")
CLASSES = ["ant", "bear", "cat", "dog", "eel", "fox", "gnu", "hen", "ibex", "jay", "koi", "sea_lion"]  # 12: "10" < "2" as text
PER_CLASS, TEST_PER_CLASS, SIZE, IPC, REPEATS, EPOCHS = 14, 3, 32, 3, 2, 6


@dataclass(frozen=True)
class Answer:
    """What a command said: exit code and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Stage:
    """A command that ran to its end in `folder` and was killed half-way in `killed`."""

    module: str
    flags: list[str]
    output_flag: str
    folder: Path
    killed: Path
    killed_root: Path  # what `output_flag` was given for the killed run
    err: str           # stderr of the run that was left alone


@cache
def python() -> Path:
    """The Python of the tests, with the libraries loaded."""
    folder = tempfile.mkdtemp(prefix="python-")
    atexit.register(shutil.rmtree, folder)
    subprocess.run([sys.executable, "-m", "misc.studies.warm", folder, str(os.getpid())], cwd=ROOT, check=True)
    return Path(folder, "python")


def start(module: str, *flags, **environment) -> subprocess.Popen:
    return subprocess.Popen([python(), "-m", module, *map(str, flags)], cwd=ROOT, text=True,
                            env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def shell(script, *words, cwd=ROOT, **environment) -> subprocess.CompletedProcess:
    """Run a shell script, with the Python of the tests as the active one."""
    own = [] if "PATH" in environment else [python().parent]
    path = os.pathsep.join(map(str, [*own, Path(sys.executable).parent, os.environ["PATH"]]))
    env = {**os.environ, "PATH": path, **{name: str(value) for name, value in environment.items()}}
    return subprocess.run(["sh", script, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=900)


def kill_when(process: subprocess.Popen, root: Path, pattern: str, seconds: float = 600) -> None:
    """SIGKILL `process` as soon as a file `pattern` lies below `root`."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until and not any(root.rglob(pattern)):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"{root}: no {pattern} within {seconds:.0f} s, or over before it was seen"


def free_port() -> int:
    """An unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that two processes end at about the same time."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


def artefact(root: Path) -> Path:
    return next(root.rglob("config.json")).parent


def run_stage(root: Path, module: str, flags: list, output_flag: str, unit: str) -> Stage:
    """Run a stage in root/whole; run it in root/killed too, and kill that one at its first file `unit`."""
    flags = [str(flag) for flag in flags]
    whole, killed = (start(module, *flags, output_flag, root / name) for name in ("whole", "killed"))
    kill_when(killed, root / "killed", unit)
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    return Stage(module, flags, output_flag, artefact(root / "whole"), artefact(root / "killed"), root / "killed", err)


@pytest.fixture(scope="session")
def command():
    """Run `python -m module flags...` from the repository root; returns an Answer."""
    def call(module, *flags):
        process = start(module, *flags)
        out, err = process.communicate()
        return Answer(process.returncode, out, err)
    return call


@pytest.fixture
def here(monkeypatch, capsys):
    """The same, in this process: parse_args, main and exit code of the entry point, without a start of Python."""
    def call(module, *flags):
        entry = importlib.import_module(module)
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [module, *map(str, flags)])
        capsys.readouterr()
        try:
            run(entry.parse_args, entry.main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        return Answer(code, *capsys.readouterr())
    return call


def new_checkpoint(folder: Path, text_width: int = 16, prediction_type: str = "epsilon", levels: int = 3) -> Path:
    """A Stable Diffusion checkpoint with random weights: 32 pixels, latents of 4 channels and 8x8 (with 3 levels)."""
    import torch
    from diffusers import StableDiffusionPipeline

    from distillation import ldm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionPipeline(
            vae=ldm.new_vae(SIZE, [8] * levels), unet=ldm.new_unet((4, *2 * [SIZE // 2 ** (levels - 1)]), [16, 16], text_width),
            text_encoder=ldm.new_text_encoder(text_width), tokenizer=ldm.byte_level_tokenizer(folder / "tokenizer"),
            scheduler=ldm.new_scheduler(prediction_type), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """`made_once(name, make, *args)`: the result of make(folder, *args), made by one of the test processes for all of them."""
    base = tmp_path_factory.getbasetemp()
    world = (base if worker_id == "master" else base.parent) / "world"
    world.mkdir(exist_ok=True)

    def call(name, make, *args):
        with open(world / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (known := world / f"{name}.pickle").exists():
                known.write_bytes(pickle.dumps(make(world / name, *args)))
            return pickle.loads(known.read_bytes())
    return call


@pytest.fixture(scope="session")
def checkpoint(made_once) -> Path:
    return made_once("checkpoint", new_checkpoint)


@pytest.fixture(scope="session")
def image_data(made_once) -> Path:
    return made_once("images", write_world)


@pytest.fixture(scope="session")
def data(made_once) -> Path:
    """What tests of the continual stage train on."""
    from tiny_continual import write_data
    return made_once("continual", write_data)


def write_world(root: Path) -> Path:
    """Write train/<class>/ and test/<class>/ of 12 classes: each a colour of its own under coarse noise."""
    for label, name in enumerate(CLASSES):
        colour = np.random.default_rng(label).uniform(40, 215, 3)
        for part, count in (("train", PER_CLASS), ("test", TEST_PER_CLASS)):
            (root / part / name).mkdir(parents=True)
            for place in range(count):
                rng = np.random.default_rng([label, place, len(part)])
                coarse = np.clip(colour + rng.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(coarse).resize((SIZE, SIZE), Image.BICUBIC).save(root / part / name / f"{place:02d}.png")
    return root


@pytest.fixture(scope="session")
def digits():
    """The first 64 test images of digits, with labels 0 to 9 in turn."""
    import torch

    from distillation.datasets import load_split
    from matching.image_set import image_set
    split = load_split("digits", "", "test")
    return image_set("digits", split.classes, torch.stack([
        torch.from_numpy(np.array(split.read(place))).permute(2, 0, 1) for place in range(64)]), torch.arange(64) % 10)


@pytest.fixture
def own_image_data(image_data, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(image_data, tmp_path / "images"))


@pytest.fixture
def copied(request, tmp_path):
    """A copy of a stage's folder, to spoil."""
    def call(stage: str) -> Path:
        ignore = shutil.ignore_patterns("state.pt")
        return Path(shutil.copytree(request.getfixturevalue(stage).folder, tmp_path / f"copied-{stage}", ignore=ignore))
    return call


def pixels(path: Path) -> np.ndarray:
    """int [H, W, 3] of an image file."""
    return np.array(Image.open(path)).astype(int)


def manifest_in(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def rows_of(folder: Path) -> list[dict]:
    """What the manifest of a distilled set says of each image."""
    return manifest_in(folder)["rows"]


def edit(folder: Path, change) -> None:
    """Let `change` alter the manifest."""
    manifest = manifest_in(folder)
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def prototypes(made_once, checkpoint, image_data) -> Stage:
    flags = ["--dataset", "folder", "--data_dir", image_data, "--ipc", IPC, "--batch_size", 5, "--num_workers", 2,
             "--diffusion_checkpoints_path", checkpoint]
    return made_once("prototypes", run_stage, "distillation.gen_prototype", flags, "--save_prototype_path", "*.safetensors")


@pytest.fixture(scope="session")
def distilled(made_once, checkpoint, image_data, prototypes) -> Stage:
    flags = ["--dataset", "folder", "--prototype_path", prototypes.folder, "--ipc", IPC * REPEATS, "-s", 0.5, "-g", 3,
             "--num_inference_steps", 4, "--batch_size", 5, "--diffusion_checkpoints_path", checkpoint]
    return made_once("distilled", run_stage, "distillation.gen_syn_image", flags, "--save_init_image_path", "*.png")


@pytest.fixture(scope="session")
def teacher(made_once, image_data) -> Stage:
    flags = ["--dataset", "folder", "--data_dir", image_data, "--arch", "resnet18", "--input-size", SIZE, "--epochs", 3,
             "--batch-size", 64, "--mix-type", "cutmix", "--save-seconds", 0]
    return made_once("teacher", run_stage, "matching.train_teacher", flags, "--output-dir", "state.pt")


@pytest.fixture(scope="session")
def soft_labels(made_once, distilled, teacher) -> Stage:
    flags = ["--data", distilled.folder, "--teacher", teacher.folder, "--epochs", EPOCHS, "--input-size", SIZE,
             "--batch-size", 64, "--mix-type", "cutmix", "--use-fp16"]
    return made_once("soft_labels", run_stage, "matching.generate_soft_label", flags, "--fkd-path", "*.safetensors")


@pytest.fixture(scope="session")
def student(made_once, image_data, distilled, soft_labels) -> Stage:
    flags = ["--train-dir", distilled.folder, "--fkd-path", soft_labels.folder, "--dataset", "folder", "--data_dir",
             image_data, "--model", "resnet18", "--epochs", 2, "--batch-size", 36, "--cos", "-T", 20, "--save-seconds", 0]
    return made_once("student", run_stage, "validate.train_FKD", flags, "--output-dir", "state.pt")


@pytest.fixture(scope="session")
def sre2l(made_once, teacher) -> Stage:
    flags = ["--teacher", teacher.folder, "--ipc", 2, "--steps", 6, "--batch_size", 12,
             "--save_seconds", 0]
    return made_once("sre2l", run_stage, "distillation.sre2l", flags, "--save_init_image_path", "state-12.pt")


@pytest.fixture(scope="session")
def mtt(made_once, image_data, tmp_path_factory) -> Stage:
    flags = ["--dataset", "folder", "--data_dir", image_data, "--arch", "convnet_d2_w8", "--ipc", 2, "--experts", 2,
             "--expert_epochs", 3, "--last_start", 1, "--expert_batch", 32, "--iterations", 6, "--student_steps", 3,
             "--student_batch", 10, "--images_lr", 10, "--save_seconds", 0]
    return made_once("mtt", with_experts, flags)


def with_experts(root: Path, flags: list) -> Stage:
    """The experts, then the images of mtt."""
    flags = [*map(str, flags), "--experts_path", str(root / "experts")]
    first = start("distillation.mtt", *flags, "--save_init_image_path", root / "first")
    _, err = first.communicate()
    assert first.returncode == 0, err
    return run_stage(root, "distillation.mtt", flags, "--save_init_image_path", "state.pt")
