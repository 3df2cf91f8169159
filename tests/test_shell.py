"""The shell scripts: what they would run for each data set, how stages find each other, and ImageNet's from end to end."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import shell
from packaging.requirements import Requirement
from PIL import Image

from distillation import gen_syn_image, prototypes
from scripts.check_requirements import met, requirements
from scripts.cli import ROOT

FOLDERS = ("scripts", "distillation", "matching", "validate", "continual", "misc")
SHELL = sorted(path for folder in FOLDERS
               for path in [*(ROOT / folder).rglob("*.sh"), *(ROOT / folder).rglob("*.sbatch")])
DATASETS = sorted(path.stem for path in (ROOT / "scripts" / "settings").glob("*.sh"))
CHAIN = ("distillation/gen_prototype", "distillation/gen_syn_image", "matching/train_teacher", "matching/matching",
         "validate/train_FKD")
MODULES = {"matching/matching": "matching.generate_soft_label"}
STUDENTS = 6    # of cross_architecture.sh
PHOTOGRAPHS = os.environ.get("PHOTOGRAPHS", "")     # some of ImageNet: train/<wnid>/* and val/<wnid>/*
PRINTS = "#!/bin/sh\n[ $# = 1 ] || printf '%s\\n' BEGIN \"$@\"\n"     # set-up's check of the requirements is the one argument


def distilled_name(images, ipc: int) -> str:
    """What gen_syn_image calls its folder."""
    return gen_syn_image.folder_name(images, images.ipc, {"ipc": ipc})


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Parsed flags of the Python commands that a script would start."""
    python = executable(tmp_path / "bin" / "python", PRINTS)

    def commands(script: str, *words: str, cwd: Path = ROOT, **env: str) -> list:
        done = shell(ROOT / f"{script}.sh", *words, cwd=cwd, PATH=f"{python.parent}:{os.environ['PATH']}", **env)
        assert (done.returncode, done.stderr) == (0, "")
        found = []
        for part in done.stdout.split("BEGIN\n")[1:]:
            dash_m, module, *flags = part.splitlines()
            assert (dash_m, module) == ("-m", MODULES.get(script, module))
            monkeypatch.setattr(sys, "argv", [module, *flags])
            found.append(importlib.import_module(module).parse_args())
        return found
    return commands


# the files

def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    command = [shellcheck, "-s", "sh", "-x", "--extended-analysis=false", *SHELL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert SHELL and done.stdout + done.stderr == ""


@pytest.mark.parametrize(("environment", "asked"), [
    ({}, "requirements.txt"),
    ({"REQUIREMENTS": "requirements-test.txt", "CONSTRAINTS": "oldest"}, "requirements-test.txt constraints-oldest.txt")])
def test_set_up_takes_the_python_that_has_what_is_asked_for(tmp_path, environment, asked):
    python = executable(tmp_path / "python", '#!/bin/sh\necho "$@"\n')
    environment = {"CONSTRAINTS": "", **environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = shell("scripts/set_up.sh", **environment)
    assert done.stdout == f"scripts/check_requirements.py {asked}\nset-up: using {python}\n"


def test_set_up_refuses_constraints_that_do_not_exist():
    done = shell("scripts/set_up.sh", CONSTRAINTS="older")
    assert (done.returncode, done.stderr) == (2, "CONSTRAINTS: expected oldest or nothing, found older\n")


def test_the_oldest_versions_are_the_lower_bounds():
    ranges = map(Requirement, requirements(ROOT / "requirements-test.txt"))
    lowest = [f"{each.name}=={bound.version}" for each in ranges for bound in each.specifier if bound.operator == ">="]
    assert lowest == list(requirements(ROOT / "constraints-oldest.txt")) and len(lowest) == 20


def test_check_requirements_says_what_this_python_lacks():
    assert met("numpy>=2") and not met("numpy<2") and not met("no-such-package")


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scripts_are_posix_and_strict_and_call_modules_that_exist(path):
    text = path.read_text()
    lines = text.splitlines()
    sourced = path.parent.name == "settings" or any(f". {path.relative_to(ROOT)}" in other.read_text() for other in SHELL)
    assert sourced or lines[0] == "#!/bin/sh" and ("set -eu" in lines or len(lines) == 2)
    assert not lines[-1].endswith("\\") and max(map(len, lines)) <= 128
    done = subprocess.run([shutil.which("dash") or "sh", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for module in re.findall(rf"(?:python|\$LAUNCH) -m ((?:{'|'.join(FOLDERS)})\.[\w.]+)", text):
        found = ROOT / module.replace(".", "/")
        assert found.with_suffix(".py").exists() or (found / "__main__.py").exists(), module


# what they would run

@pytest.mark.parametrize("changed", [{}, {"IPC": "7", "STRENGTH": ".25", "GUIDANCE": "7.5", "KM_EXPAND": "2", "SEED": "3",
                                          "KMEANS": "minibatch"}],
                         ids=["default", "changed"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_stage_reads_what_the_one_before_writes(asked, dataset, changed):
    centroids, images, teacher, labels, student = (asked(stage, DATASET=dataset, **changed)[0] for stage in CHAIN)
    assert {one.dataset for one in (centroids, images, teacher, labels, student)} == {dataset}
    assert len({one.data_dir for one in (centroids, images, teacher, labels, student)}) == 1
    assert centroids.diffusion_checkpoints_path == images.diffusion_checkpoints_path
    ipc, = centroids.ipc
    named = prototypes.folder_name(dataset, ipc, centroids.km_expand)
    assert images.prototype_path == f"{centroids.save_prototype_path}/{named}"
    made = f"{images.save_init_image_path}/{distilled_name(images, ipc)}"
    assert made == labels.data == student.train_dir and labels.epochs == student.epochs
    assert labels.fkd_path == student.fkd_path and f"ipc{images.ipc}-" in student.output_dir
    assert labels.teacher == (None if dataset == "imagenet" else teacher.output_dir) and labels.weights == "IMAGENET1K_V1"
    if changed:
        assert (images.ipc, images.strength, images.guidance_scale, images.seed) == (7, 0.25, 7.5, 3)
        other = "" if teacher.arch == "resnet18" else f"-{teacher.arch}"
        assert labels.fkd_path.endswith(f"distilled_s0.25_g7.5_kmexpand2-ipc7{other}") and student.output_dir.endswith("-seed3")
    elif dataset not in ("digits", "fashion_mnist"):       # the paper's
        assert (images.strength, images.guidance_scale, images.num_inference_steps, centroids.size) == (0.7, 8, 50, 512)
        assert images.image_size == {"cifar10": 32, "cifar100": 32, "tiny_imagenet": 64, "folder": 224}.get(dataset)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_other_stages_have_commands_too(asked, dataset):
    (streams,), (ldm,), (recovered,), (matched,) = (asked(stage, "--seed", "5", DATASET=dataset, COMPARISON="") for stage in (
        "continual/continual", "distillation/train_ldm", "distillation/sre2l", "distillation/mtt"))
    assert matched.seed == 5 and matched.save_init_image_path == recovered.save_init_image_path
    (images,) = asked("distillation/gen_syn_image", DATASET=dataset)
    assert streams.distilled == f"{images.save_init_image_path}/{distilled_name(images, images.ipc)}"
    assert streams.seed == [5] and ldm.seed == 5
    assert streams.output_dir == f"{images.save_init_image_path.removesuffix('distilled')}continual-ipc{images.ipc}"
    (student,) = asked("validate/train_FKD", DATASET=dataset, METHOD="sre2l", LABELS="hard", IPC="3")
    assert student.train_dir == f"{recovered.save_init_image_path}/{dataset}_sre2l_ipc3"
    (teacher,) = asked("matching/train_teacher", DATASET=dataset)
    assert (recovered.teacher, recovered.weights) in ((teacher.output_dir, None), (None, "IMAGENET1K_V1"))
    assert (ldm.init is None) == (dataset in ("digits", "fashion_mnist", "cifar10"))
    crossed = asked("validate/cross_architecture", DATASET=dataset, SEED="4")
    assert len({one.output_dir for one in crossed}) == STUDENTS
    assert {(one.seed, one.protocol) for one in crossed} == {(4, "d4m")}
    assert {one.stem for one in crossed if not one.model.startswith("resnet")} == {"imagenet"}
    assert [one.stem for one in crossed[:2]] == 2 * ["cifar" if dataset == "tiny_imagenet" else "imagenet"]


def test_a_strength_of_many_digits_has_the_folder_that_python_names(asked):
    (images,) = asked("distillation/gen_syn_image", STRENGTH="0.12345678")
    (labels,) = asked("matching/matching", STRENGTH="0.12345678")
    assert labels.data == f"{images.save_init_image_path}/{distilled_name(images, images.ipc)}" and "0.12345678" in labels.data


def test_variables_choose_baselines_labels_and_teachers(asked):
    (images,) = asked("distillation/gen_syn_image", METHOD="random", IPC="3")
    (student,) = asked("validate/train_FKD", METHOD="random", IPC="3", LABELS="hard")
    assert student.train_dir == f"{images.save_init_image_path}/digits_random_ipc3"
    assert (student.labels, student.cluster_weights, student.input_size, student.cos) == ("hard", True, 32, True)
    stages = (*CHAIN, "distillation/train_ldm", "continual/continual")
    assert {asked(stage, VALIDATION="30")[0].validation for stage in stages} == {30}
    for ending in ("medoid", "medoid-lof", "member-lof", "random"):
        kind = f"_{ending.replace('-', '_')}"
        prototypes = f"runs/digits/prototypes/digits-ipc3-kmexpand1-{ending}/"      # as a shell completes it
        found = {method: asked("validate/train_FKD", METHOD=method, IPC="3", PROTOTYPES=prototypes)[0]
                 for method in ("d4m", "prototype")}
        assert found["d4m"].train_dir == f"runs/digits/distilled/digits_ipc3_3_s0.3_g2.0_kmexpand1{kind}"
        assert found["prototype"].train_dir == f"runs/digits/distilled/digits_prototype_ipc3{kind}"
        assert all(kind in one.fkd_path and kind in one.output_dir for one in found.values())
    (student,) = asked("validate/train_FKD", DISTILLED="")
    assert student.train_dir is None and student.fkd_path == "runs/digits/soft-labels/real"
    (student,) = asked("validate/train_FKD", DATASET="imagenet", PROTOCOL="rded")
    assert (student.teacher_arch, student.weights, student.fkd_path) == ("resnet18", "IMAGENET1K_V1", None)
    for given, batch in (({}, None), ({"BATCH": "30"}, 30)):   # without one, that of the protocol, not of the data set
        assert asked("validate/train_FKD", DATASET="cifar10", PROTOCOL="rded", **given)[0].batch_size == batch
    (student,) = asked("validate/train_FKD", DATASET="imagenet", PROTOCOL="rded", TEACHER="/made/here")
    assert student.teacher == "/made/here"
    (teacher,), (labels,) = (asked(stage, TEACHER_ARCH="resnet50") for stage in CHAIN[2:4])
    assert (teacher.arch, teacher.output_dir, labels.teacher) == ("resnet50", *2 * ("runs/digits/teacher-resnet50",))


def test_several_images_of_a_prototype_are_found_by_the_later_stages(asked):
    given = {"IPC": "6", "PROTOTYPES": "runs/digits/prototypes/digits-ipc3-kmexpand1"}
    (images,), (labels,), (student,) = (asked(stage, **given) for stage in (CHAIN[1], CHAIN[3], CHAIN[4]))
    made = gen_syn_image.folder_name(images, images.ipc, {"ipc": 3})
    assert labels.data == student.train_dir == f"{images.save_init_image_path}/{made}"
    assert labels.fkd_path == "runs/digits/soft-labels/distilled_of3-ipc6" != asked(CHAIN[3], IPC="6")[0].fkd_path


def test_a_switch_of_0_is_off(asked):
    for value in ("0", "1"):
        (student,) = asked(CHAIN[4], LABELS="hard", CLUSTER_WEIGHTS=value, BF16=value)
        assert (student.cluster_weights, student.bf16) == 2 * (value == "1",)


def test_the_temperature_reaches_labels_and_students(asked):
    for stage, more in ((CHAIN[3], {}), (CHAIN[4], {}), (CHAIN[4], {"PROTOCOL": "rded"})):
        (found,) = asked(stage, DATASET="cifar10", TEMPERATURE="4", **more)
        assert found.temperature == 4


def test_streams_of_soft_labels_and_the_same_steps_have_the_same_teacher(asked):
    usual, same = asked("continual/continual", STREAM_LABELS="soft", SAME_STEPS="14", TEACHER="/t", COMPARISON="")
    assert (usual.labels, usual.teacher) == (same.labels, same.teacher) == ("soft", "/t") and same.steps == [14]
    found = asked("continual/continual", STREAM_LABELS="hard soft", SAME_STEPS="14", COMPARISON="")
    assert [one.labels for one in found] == ["hard", "hard", "soft", "soft"]


def test_a_single_stream_has_its_own_length(asked):
    for stream, steps in (("real", [42]), ("distilled", [14]), ("real random distilled", [42, 14, 14])):
        (found,) = asked("continual/continual", STREAMS=stream)
        assert found.steps == steps and found.stream == stream.split()


def test_a_relative_path_means_the_folder_where_the_user_stands(asked, tmp_path):
    (tmp_path / "own-ldm").mkdir()
    given = {"DATA": "images", "RUN": "run", "CHECKPOINT": "own-ldm"}
    (found,) = asked("distillation/gen_prototype", cwd=tmp_path, DATASET="folder", **given)
    assert found.data_dir == f"{tmp_path}/images" and found.save_prototype_path == f"{tmp_path}/run/prototypes"
    assert found.diffusion_checkpoints_path == f"{tmp_path}/own-ldm"
    (found,) = asked("distillation/gen_prototype", cwd=tmp_path, DATASET="folder", CHECKPOINT="name/on-the-hub", DATA="/data")
    assert (found.diffusion_checkpoints_path, found.data_dir) == ("name/on-the-hub", "/data")
    (found,) = asked("matching/train_teacher", cwd=tmp_path, VAL_LABELS="labels.csv")
    assert found.val_labels == f"{tmp_path}/labels.csv"
    (found,) = asked("distillation/gen_prototype", DATASET="folder", **given)
    assert found.data_dir == "images"


@pytest.mark.parametrize("stage", [*CHAIN, "continual/continual", "distillation/mtt", "distillation/train_ldm"])
def test_prompts_reach_every_stage(asked, stage):
    """Class folders that no wnid names are refused without them (`own_prompts`)."""
    (found,) = asked(stage, DATASET="tiny_imagenet", PROMPTS="/lines.txt", VALIDATION="100", COMPARISON="")
    assert (found.label_file_path, found.validation) == ("/lines.txt", 100)


def test_a_checkpoint_to_fit_has_the_flags_of_fitting(asked):
    for dataset in DATASETS:
        (found,) = asked("distillation/train_ldm", DATASET=dataset, INIT="/checkpoint", LORA_RANK="4")
        assert (found.init, found.lora_rank, found.gradient_checkpointing) == ("/checkpoint", 4, True)


def test_the_original_names_are_imagenet(asked):
    for stage in CHAIN[:2]:
        (found,) = asked(f"{stage}_imgnt", "--seed", "4", IPC="50")
        assert (found.dataset, found.seed) == ("imagenet", 4) and found.ipc in ([50], 50)     # prototypes take several


def test_an_unknown_data_set_is_refused_in_one_line():
    done = shell("distillation/gen_prototype.sh", DATASET="mnist")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "digits" in done.stderr and "mnist" in done.stderr


def test_python3_is_enough_and_the_environment_of_set_up_is_found(tmp_path):
    for name in ("scripts/settings.sh", "scripts/settings", "distillation/gen_prototype.sh"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "bin"
    executable(tools / "python3", PRINTS.replace("BEGIN", "python3"))
    for name in ("sh", "dirname", "basename", "awk"):
        (tools / name).symlink_to(shutil.which(name))
    assert shell("distillation/gen_prototype.sh", cwd=tmp_path, PATH=str(tools)).stdout.startswith("python3\n-m\n")
    executable(tmp_path / ".venv" / "bin" / "python", PRINTS.replace("BEGIN", ".venv"))
    assert shell("distillation/gen_prototype.sh", cwd=tmp_path, PATH=str(tools)).stdout.startswith(".venv\n-m\n")
    executable(tools / "python", PRINTS.replace("BEGIN", "active"))
    assert shell("distillation/gen_prototype.sh", cwd=tmp_path, PATH=str(tools)).stdout.startswith("active\n-m\n")


# from end to end

START = """set -eu
export DATASET=imagenet WEIGHTS= SIZE=32 STRENGTH=0.3 GUIDANCE=2 STEPS=4 IPC=2 INPUT_SIZE=32 EPOCHS=2 BATCH=4 TEACHER_EPOCHS=1
export TEACHER_BATCH=4 BF16= TEACHER_RECIPE="--optimizer adamw" CHECKPOINT=../distillation/checkpoints/digits-ldm
cd distillation
"""
STAGES = "sh gen_prototype_imgnt.sh\nsh gen_syn_image_imgnt.sh --seed 3\ncd ../matching\nsh train_teacher.sh\nsh matching.sh\n"
STUDENT = 'cd ../validate\nLAUNCH="accelerate launch" sh train_FKD.sh\n'


def test_imagenet_from_end_to_end_with_values_given_once(here, tmp_path):
    """The commands of the scripts run in this process, the student's by the script and a launcher."""
    rng = np.random.default_rng(0)
    for wnid in ("n01440764", "n01443537"):
        for part, count in (("train", 4), ("val", 2)):
            (tmp_path / "data" / part / wnid).mkdir(parents=True)
            for place in range(count):
                image = Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8))
                image.save(tmp_path / "data" / part / wnid / f"{wnid}_{place}.JPEG")
    folders = {name: os.path.relpath(tmp_path / name.lower(), ROOT / "distillation") for name in ("DATA", "RUN")}
    python = executable(tmp_path / "bin" / "python", PRINTS)
    done = shell(executable(tmp_path / "stages.sh", START + STAGES), PATH=f"{python.parent}:{os.environ['PATH']}", **folders)
    commands = [part.splitlines()[1:] for part in done.stdout.split("BEGIN\n")[1:]]
    assert (done.returncode, len(commands)) == (0, 4), done.stderr
    for words in commands:
        answer = here(*words)
        assert answer.code == 0, answer.err
    done = shell(executable(tmp_path / "student.sh", START + STUDENT), ACCELERATE_USE_CPU="1", **folders)
    assert done.returncode == 0, done.stderr[-2000:]
    run_folder = tmp_path / "run"
    distilled = json.loads((run_folder / "distilled" / "imagenet_ipc2_2_s0.3_g2.0_kmexpand1" / "manifest.json").read_text())
    assert (distilled["config"]["seed"], len(distilled["rows"])) == (3, 4)      # "$@" reaches Python
    assert [one["prompt"] for one in distilled["classes"]] == ["tench", "goldfish"]
    labels = json.loads((run_folder / "soft-labels" / "distilled_s0.3_g2.0_kmexpand1-ipc2" / "manifest.json").read_text())
    assert labels["config"]["images"] == "imagenet_ipc2_2_s0.3_g2.0_kmexpand1"
    student = run_folder / "students" / "distilled_s0.3_g2.0_kmexpand1-ipc2-resnet18-d4m-soft-seed0" / "result.json"
    found = json.loads(student.read_text())
    assert (found["config"]["dataset"], found["config"]["protocol"], found["metrics"]["train_images"]) == ("imagenet", "d4m", 4)


@pytest.mark.skipif(not PHOTOGRAPHS, reason="PHOTOGRAPHS names no folder with train/<wnid> and val/<wnid>")
def test_photographs_from_prototypes_to_continual_learning(checkpoint, tmp_path):
    """The scripts on a few real photographs of four classes at 64 pixels, with a diffusion model of random weights."""
    for wnid in sorted(path.name for path in Path(PHOTOGRAPHS, "train").iterdir())[:4]:
        for part, count in (("train", 6), ("val", 2)):
            (tmp_path / "data" / part / wnid).mkdir(parents=True)
            for path in sorted(Path(PHOTOGRAPHS, part, wnid).iterdir())[:count]:
                (tmp_path / "data" / part / wnid / path.name).symlink_to(path.resolve())
    settings = {"DATASET": "imagenet", "DATA": tmp_path / "data", "RUN": tmp_path / "run", "CHECKPOINT": checkpoint, "IPC": 2,
                "SIZE": 64, "STEPS": 4, "INPUT_SIZE": 64, "WEIGHTS": "", "TEACHER_EPOCHS": 1, "TEACHER_BATCH": 4,
                "TEACHER_RECIPE": "--optimizer adamw", "EPOCHS": 2, "BATCH": 4, "BF16": "", "TASKS": 2, "TASK_EPOCHS": 1,
                "BATCH_SIZE": 4, "REPLAY_BATCH_SIZE": 4}
    sets = [("distillation/gen_syn_image", {"METHOD": method}) for method in ("d4m", "random", "herding", "kcenter")]
    for script, more in [("distillation/gen_prototype", {}), *sets, *[(stage, {}) for stage in CHAIN[2:]],
                         ("continual/continual", {"METHODS": "er", "STREAMS": "real random distilled"})]:
        done = shell(ROOT / f"{script}.sh", **settings, **more)
        assert done.returncode == 0, f"{script}: {done.stderr[-2000:]}"
    (student,) = (tmp_path / "run").glob("students/*/result.json")
    metrics = json.loads(student.read_text())["metrics"]
    assert (metrics["train_images"], metrics["test_images"]) == (8, 8)
    assert len([*(tmp_path / "run").rglob("er-*/result.json")]) == 3
