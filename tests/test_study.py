"""The studies of CIFAR-10 and Fashion-MNIST in their smallest settings."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import shell
from test_datasets import write_idx

from misc.report.results import Results, Run
from misc.report.tables import parts, targets
from scripts.cli import DIGITS_LDM, ROOT

TINY = {"SCALE": "small", "NETWORK": "convnet_d2_w8", "TEACHER_ARCH": "convnet_d2_w8", "TEACHER_BATCH": "8",
        "KINDS": "convnet_d2_w8-soft convnet_d2_w8-hard", "IPCS": "1", "SEEDS": "0", "EPOCHS": "1", "TEACHER_EPOCHS": "1",
        "VAE_CHANNELS": "8 8 8", "UNET_CHANNELS": "16 16", "VAE_STEPS": "2", "UNET_STEPS": "2", "LDM_BATCH": "8", "STEPS": "4",
        "JUDGED": "20", "REAL_STEPS": "2", "SMALL_STEPS": "1", "CONTINUAL_IPC": "1", "START_STEPS": "1",
        "METHODS": "er", "TEST_PER_CLASS": "2", "ARMS": "distilled random s0.3 noise autoencoder",
        "PARTS": "models sets judge students continual"}


@pytest.fixture(scope="module")
def ten_classes(image_data, tmp_path_factory) -> Path:
    """Image folders of ten classes, which five tasks share."""
    data = tmp_path_factory.mktemp("study") / "data"
    for part in ("train", "test"):
        for folder in sorted((image_data / part).iterdir())[:10]:
            shutil.copytree(folder, data / part / folder.name)
    return data


def study(data: Path, run: Path, **changed: str):
    return shell("misc/studies/cifar10.sh", **{**TINY, "DATA": data, "STUDY": run, **changed})


def test_from_the_prior_to_the_tables(ten_classes, here, tmp_path):
    run, misc = tmp_path / "run", tmp_path / "misc"
    answer = study(ten_classes, run)
    assert answer.returncode == 0, answer.stderr[-2000:]
    students = {path.parent.name for path in run.glob("seed0/students/*/result.json")}
    assert students == {f"convnet_d2_w8-{labels}-{arm}-ipc1" for labels in ("soft", "hard") for arm in TINY["ARMS"].split()}
    streams = {path.parent.relative_to(run).as_posix() for path in run.glob("*/*/result.json") if "-seed0" in path.parent.name}
    assert {"continual/er-real-seed0", "continual/task_arithmetic-distilled-soft-seed0"} < streams
    assert len([name for name in streams if name.startswith("same-steps/")]) == 4   # three methods and a common start
    assert json.loads((run / "judge.json").read_text())["kind"] == "judge"
    # what the page says is made of these results
    (misc / "results").mkdir(parents=True)
    assert here("misc.report.__main__", "collect", run, misc / "results" / "cifar10_small.jsonl", "--command",
                "sh study.sh").code == 0
    names = ("parts-cifar10", "students-cifar10", "claim-cifar10", "targets-cifar10")
    (tmp_path / "README.md").write_text("")
    (misc / "page.md").write_text("\n\n".join(f"<!-- table: {name} -->" for name in names))
    assert here("misc.report.__main__", "tables", "--root", tmp_path).code == 0
    page = (misc / "page.md").read_text()
    assert re.search(r"^\| students \| 10 \| [\d.]+ \|$", page, re.MULTILINE) and "| diffusion model | 1 |" in page
    assert "| Trained on | convnet_d2_w8, hard, IPC 1 | convnet_d2_w8, soft, IPC 1 |" in page
    for name in ("D4M images", "D4M images, strength 0.3", "images from noise", "random real images, encoded and decoded"):
        assert re.search(rf"^\| {name} \| [\d.]+ \| [\d.]+ \| 1 \|$", page, re.MULTILINE), name
    assert len(re.findall(r"^\| (?:ER|Task Arithmetic) \| distilled.* \| 1 \| (?:holds|numbers only|not shown|no|–) \|$", page,
                          re.MULTILINE)) == 4
    assert len(re.findall(r" \| not run \| not shown \|$", page, re.MULTILINE)) == 6
    # again: nothing is left to do
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.suffix in (".safetensors", ".png")}
    assert study(ten_classes, run, PARTS="models sets students").returncode == 0
    assert kept and {path: path.read_bytes() for path in kept} == kept


def test_what_an_autoencoder_keeps(ten_classes, here, tmp_path):
    run, misc = tmp_path / "run", tmp_path / "misc"
    answer = study(ten_classes, run, PARTS="autoencoders", DESIGNS="6x16x16 3x8x8", DESIGN_STEPS="2", VALIDATION="20")
    assert answer.returncode == 0, answer.stderr[-2000:]
    (misc / "results").mkdir(parents=True)
    assert here("misc.report.__main__", "collect", run / "autoencoders", misc / "results" / "cifar10_autoencoders.jsonl",
                "--kind", "ldm", "student").code == 0
    (tmp_path / "README.md").write_text("<!-- table: autoencoders-cifar10 -->")
    assert here("misc.report.__main__", "tables", "--root", tmp_path).code == 0
    rows = re.findall(r"^\| (\w+) \| ([\d.–]+) \| ([\d.]+) \| 1 \|$", (tmp_path / "README.md").read_text(), re.MULTILINE)
    assert [name for name, *_ in rows] == ["3x8x8", "6x16x16", "real"] and [psnr == "–" for _, psnr, _ in rows] == [0, 0, 1]
    for name, psnr, accuracy in rows:
        students = run / "autoencoders/seed0" / name / "students"
        images = "random" if name == "real" else "autoencoder"
        student = json.loads((students / f"convnet_d2_w8-hard-{images}-ipc1" / "manifest.json").read_text())
        assert student["config"]["validation"] == 20 and accuracy == f"{100 * student['test_accuracy']:.1f}"
        if name != "real":
            ldm = json.loads((run / "autoencoders" / name / "manifest.json").read_text())
            assert ldm["config"]["latent_channels"] == int(name[0]) and psnr == f"{ldm['psnr']:.2f}"


def test_fewer_tests_keeps_names_and_links(tmp_path):
    for part, name in (("train", "a.png"), ("test", "it's one.png")):
        (tmp_path / "from" / part / "red fox").mkdir(parents=True)
        (tmp_path / "from" / part / "red fox" / name).write_text(part)
    (tmp_path / "from" / "test" / "red fox" / "link.png").symlink_to("it's one.png")
    (tmp_path / "few.sh").write_text(f"set -eu\ncd {ROOT}\n. misc/studies/common.sh\nfewer_tests $1 $2 2\n")
    done = shell(tmp_path / "few.sh", str(tmp_path / "from"), str(tmp_path / "to"), STUDY=str(tmp_path / "study"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "to" / "test" / "red fox").iterdir()) == ["it's one.png", "link.png"]


@pytest.mark.parametrize("changed", [{"SCALE": "medium"}, {"PARTS": "everything"}, {"PARTS": "sets", "ARMS": "strength"}])
def test_bad_settings_are_named(ten_classes, tmp_path, changed):
    answer = study(ten_classes, tmp_path, **changed)
    name, value = list(changed.items())[-1]
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1 and name in answer.stderr and value in answer.stderr


def test_a_target_is_met_only_by_a_whole_interval():
    def met(images, own, random, ipc):
        runs = [Run(f"seed{seed}/students/convnet_d3_w128-hard-{arm}-ipc{ipc}", "student", {"seed": seed},
                    {"test_accuracy": value}, {})
                for arm, values in ((images, own), ("random", random)) for seed, value in enumerate(values)]
        (section,) = targets(Results(runs))
        return {row[0]: row[-1] for row in section.rows}
    hard = "hard labels, ConvNet-W128"
    found = met("distilled", (0.70, 0.72), (0.60, 0.62), 10)
    assert found[f"D4M images, IPC 10, {hard}"] == "holds" and sorted(found.values())[1:] == ["not shown"] * 5
    assert met("distilled", (0.70, 0.72), (0.69, 0.69), 10)[f"D4M images, IPC 10, {hard}"] == "not shown"
    assert met("distilled", (0.60, 0.62), (0.70, 0.72), 50)[f"D4M images, IPC 50, {hard}"] == "no"
    kept = f"random real images, encoded and decoded, IPC 10, {hard}"
    assert met("autoencoder", (0.600, 0.601), (0.610, 0.611), 10)[kept] == "holds"      # one point is lost, two may be
    assert met("autoencoder", (0.600, 0.601), (0.630, 0.631), 10)[kept] == "no"


def test_minutes_count_an_encoding_that_several_ipcs_share_once():
    runs = [Run(f"seed{seed}/prototypes/folder-ipc{ipc}-kmexpand1", "prototypes", {}, {},
                {"wait": 10.0, "encode": 120.0 + seed, "cluster": 60.0 - seed}) for seed in (0, 1) for ipc in (10, 50)]
    runs.append(Run("seed2/prototypes/folder-ipc10-kmexpand1", "prototypes", {}, {}, {"encode": 120.0, "cluster": 60.0}))
    (section,) = parts(Results(runs))
    assert ("prototypes", "5", f"{(120 + 121 + 120 + 2 * 60 + 2 * 59 + 60) / 60:.1f}") in section.rows


def test_a_teacher_that_fails_ends_the_study(tmp_path):
    write_idx(tmp_path / "data", count=60)
    answer = shell("misc/studies/fashion_mnist.sh", DATA=tmp_path / "data", STUDY=tmp_path / "run", PARTS="teachers",
                   VALIDATION="20", NETWORKS="nonesuch")
    assert answer.returncode and "found nonesuch" in answer.stderr and not (tmp_path / "run" / "stages.jsonl").exists()


def test_fashion_mnist_is_chosen_on_validation_images_and_tested_once(here, tmp_path):
    write_idx(tmp_path / "data", count=60)
    tiny = {"DATA": tmp_path / "data", "STUDY": tmp_path / "run", "PRIOR": DIGITS_LDM, "VALIDATION": "20", "SEEDS": "0",
            "NETWORKS": "convnet_d2_w8_bn convnet_d1_w8", "KINDS": "convnet_d2_w8-hard convnet_d2_w8-soft",
            "TEACHER_EPOCHS": "1", "EPOCHS": "1", "STEPS": "4", "SRE2L_STEPS": "3", "MTT_STEPS": "2", "IPCS": "1",
            "STREAM_IPCS": "2", "METHODS": "er", "LEARNERS": "convnet_d2_w8",
            "MEMORIES": "10", "EPOCH_STEPS": "4", "REAL_PARTS": "2 1", "SMALL_PARTS": "2"}
    ways = ("distilled", "medoid", "prototype", "noise", "mode", "herding", "kcenter", "random", "autoencoder", "sre2l", "mtt")
    chosen = {"CHOOSE": "1", "STRENGTHS": "0.5 0.9", "ARMS": "distilled medoid random", "STREAM_LABELS": "soft",
              "STREAM_ARMS": "distilled decoded-medoid autoencoder member random", "REAL_PARTS": ""}
    for changed in (chosen, {"ARMS": " ".join(ways), "STREAM_LABELS": "hard soft", "REAL_LABELS": "hard soft"}):
        answer = shell("misc/studies/fashion_mnist.sh", **{**tiny, **changed})
        assert answer.returncode == 0, answer.stderr[-2000:]
    run, validation = tmp_path / "run", tmp_path / "run/choice"
    made = {folder: {path.parent.name for path in folder.glob("seed0/students/*/result.json")} for folder in (run, validation)}
    assert made[validation] == {f"convnet_d2_w8-{labels}-{arm}-ipc1" for labels in ("hard", "soft")
                                for arm in ("distilled-s0.5", "distilled-s0.9", "medoid-s0.3", "random")}
    assert made[run] == {f"convnet_d2_w8-{labels}-{arm}-ipc1" for labels in ("hard", "soft") for arm in ways}
    for folder, held_out in ((validation, 20), (run, None)):
        for path in (folder / "seed0/students").glob("*/manifest.json"):
            assert json.loads(path.read_text())["config"].get("validation") == held_out
    assert len(list(run.glob("teacher-*/manifest.json"))) == 2
    streams = {path.parent.relative_to(run / "continual/convnet_d2_w8-memory10").as_posix()
               for path in run.glob("continual/*/*/*/result.json")}
    assert streams == {f"{folder}{labels}-steps{steps}-seed0" for labels in ("", "-soft") for folder, steps in (
        ("real/er-real", 4), ("real/er-real", 2), ("ipc2/er-random", 2), ("ipc2/er-distilled", 2))}
    misc, arms = tmp_path / "misc", ("distilled-s0.5", "distilled-s0.9", "decoded-medoid", "autoencoder", "member-s0.3")
    assert {path.parent.parent.name for path in validation.glob("continual-crops1/*/*/*/result.json")} == {
        "ipc2", *(f"ipc2-{arm}" for arm in arms)}
    (misc / "results").mkdir(parents=True)
    assert here("misc.report.__main__", "collect", run, misc / "results/fashion_mnist.jsonl", "--only", "seed*",
                "teacher*", "continual").code == 0
    assert here("misc.report.__main__", "collect", validation, misc / "results/fashion_mnist_choice.jsonl").code == 0
    (tmp_path / "README.md").write_text("".join(f"<!-- table: {name} -->\n" for name in (
        "least-cost", "literature-fashion", "streams-fashion")))
    shutil.copy(ROOT / "misc/published.json", misc)
    assert here("misc.report.__main__", "tables", "--root", tmp_path).code == 0
    page = (tmp_path / "README.md").read_text()
    assert len(re.findall("Fashion-MNIST . ConvNet-W128 . (DC|DSA) ", page)) == 2 and page.count(" not run | not run ") == 4
    setting = "held-out images | convnet_d2_w8 | ER | 10 | soft | 1 | 2 | 10"
    assert all(f"| {setting} | {name} | " in page for name in (*arms, "random"))
    assert "| real |" in page and "| distilled, IPC 2, soft labels |" in page
    assert (misc / "fashion_mnist_costs.png").stat().st_size > 20_000
