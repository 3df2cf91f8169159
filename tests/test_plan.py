"""The plan on paper: its settings are the scripts', counts and bytes those of real artefacts, sums those of the rates."""

import json
import math
import re

import pytest
import torch
from torch import nn

from misc.counting import LiveBytes, counted, unit
from misc.plan import planned
from misc.planned_stages import Data, Part, data_of, work_of
from misc.stage_commands import Command, parsed
from misc.unit_rates import Bench, computed
from scripts.cli import ROOT
from tests.conftest import CLASSES, EPOCHS, IPC, PER_CLASS, REPEATS, SIZE, TEST_PER_CLASS

TINY = Data("folder", len(CLASSES), len(CLASSES) * PER_CLASS, len(CLASSES) * TEST_PER_CLASS, PER_CLASS, SIZE)


def work_of_stage(stage, ipc):
    flags = [*stage.flags, stage.output_flag, "anywhere"]
    return work_of(Command("", stage.module, parsed(stage.module, *flags), False), TINY, ipc)


def counts(work) -> dict:
    return {part.what.kind: part.count for part in work.parts if part.of == "seconds"}


@pytest.fixture(scope="module")
def quickstart():
    return planned("digits")


@pytest.fixture(scope="module")
def rates(quickstart, tmp_path_factory):
    """A file with a made-up rate for every unit of the quickstart."""
    works = [work_of(one, data_of("digits"), 10) for one in quickstart]
    names = dict.fromkeys(str(part.what) for work in works for part in work.parts)
    path = tmp_path_factory.mktemp("rates") / "rates.json"
    known = {name: {"seconds": 2.0 if name.startswith("start") else 0.01, "end_seconds": 0.5, "set_up_seconds": 0.25,
                    "device_bytes": 1000, "host_bytes": 10 ** 9} for name in names}
    path.write_text(json.dumps({"kind": "rates", "clock": "wall", "device": "cpu", "tflops": None,
                                "hardware": "none", "rates": known}))
    return path


def test_the_settings_are_what_the_scripts_say(quickstart):
    text = (ROOT / "scripts" / "quickstart.sh").read_text()
    stages = re.findall(r"^stage ([\w-]+) ", text, re.MULTILINE)
    assert list(dict.fromkeys(one.stage for one in quickstart)) == [name for name in stages if name != "report"]
    epochs = {one.args.epochs for one in quickstart if one.module == "validate.train_FKD"}
    assert epochs == {int(re.search(rf"^ +{name}=(\d+) ", text, re.MULTILINE)[1]) for name in ("EPOCHS", "REAL_EPOCHS")}
    assert sum(one.aside for one in quickstart) == text.count(" &\n") + text.count(" & hard=") + text.count(" & first=") + 2
    images, labels = (next(one.args for one in planned("imagenet") if one.module == module)
                      for module in ("distillation.gen_syn_image", "matching.generate_soft_label"))
    assert (images.strength, images.num_inference_steps, images.batch_size) == (0.7, 50, 16)
    assert f"--epochs {labels.epochs} " in (ROOT / "matching" / "matching.sh").read_text()


def test_variables_reach_the_scripts(monkeypatch):
    monkeypatch.setenv("QUICK", "1")
    assert {one.args.epochs for one in planned("digits") if one.stage == "teacher"} == {1}
    monkeypatch.setenv("IPC", "50")
    assert {one.args.ipc for one in planned("imagenet") if hasattr(one.args, "ipc")} == {50}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert {one.threads for one in planned("digits")} == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {one.threads for one in planned("digits")} == {"3"}


def test_counts_and_bytes_are_those_of_real_artefacts(prototypes, distilled, soft_labels, teacher, student):
    work = work_of_stage(prototypes, IPC)
    files = list(prototypes.folder.glob("*.safetensors"))
    assert counts(work) == {"start": 1, "encode": len(CLASSES) * PER_CLASS, "cluster": len(files)}
    assert work.disk_bytes == sum(file.stat().st_size for file in files)

    work = work_of_stage(distilled, IPC * REPEATS)
    made = len(list(distilled.folder.rglob("*.png")))
    assert counts(work) == {"start": 1, "denoise": 2 * made, "decode": made}   # half of 4 steps

    work = work_of_stage(soft_labels, IPC * REPEATS)
    kept = json.loads((soft_labels.folder / "manifest.json").read_text())["kept"]
    assert counts(work)["forward"] == kept["views"] == EPOCHS * made
    assert abs(work.disk_bytes - kept["bytes"]) <= 16 * EPOCHS   # a header's numbers may be longer

    for stage, images in ((teacher, TINY.train), (student, made)):
        work = work_of_stage(stage, IPC * REPEATS)
        assert counts(work)["train"] == images * parsed(stage.module, *stage.flags).epochs
        assert counts(work)["forward"] == TINY.test
        weights = (stage.folder / "model.safetensors").stat().st_size
        assert 0 <= weights - work.disk_bytes < 20_000   # beside the weights, a header


def test_steps_and_tests_of_the_continual_stage(quickstart):
    work = [work_of(one, data_of("digits"), 10) for one in quickstart if one.stage == "continual"]
    steps = {dict(part.what.settings)["method"]: part.count for one in work for part in one.parts
             if part.what.kind == "learner" and part.of == "seconds"}
    all_streams = 5 * (24 + 8 + 8)
    assert steps == {"er": all_streams, "finetune": all_streams, "agem": all_streams, "joint": all_streams,
                     "task_arithmetic": all_streams + 40}
    tests = sum(part.count for one in work for part in one.parts if part.what.kind == "forward")
    assert tests == 445 * 3 * (3 * (5 + 1) + (1 + 1) + (5 + 2))   # after each task and untrained; the common start too


def test_operations_are_the_published_ones():
    network = {"arch": "resnet18", "stem": "imagenet", "size": 224, "classes": 1000, "batch": 4}
    forward = counted(unit("forward", **network))
    assert forward.flops == pytest.approx(2 * 1.814e9, rel=0.01)   # torchvision: 1.814 billion multiply-adds
    training = counted(unit("train", **network))
    assert 2.9 < training.flops / forward.flops <= 3   # the images themselves need no gradient
    weights, statistics, widest = 4 * 11_689_512, 4 * 2 * 4800 + 8 * 20, 4 * 4 * 64 * 112 ** 2
    assert forward.device_bytes == weights + statistics + 2 * widest   # the first layer's and its normalised outputs
    assert training.device_bytes > 4 * weights + 3 * widest            # gradients and two moments, what backward needs
    assert computed(unit("forward", **network), 20)["seconds"] == pytest.approx(forward.flops / 20e12)
    assert computed(unit("read", size=32), 20) is None


def test_living_bytes_are_followed():
    first, second = nn.Linear(100, 300, bias=False, device="meta"), nn.Linear(300, 50, bias=False, device="meta")
    views = torch.empty(10, 100, device="meta")
    with torch.inference_mode(), LiveBytes(first, second) as live:
        hidden = first(views)
        answers = second(hidden)
        both = 4 * 10 * (300 + 50)
        assert live.now == live.peak == 4 * (100 * 300 + 300 * 50) + both
        del hidden
        assert live.now == live.peak - 4 * 10 * 300
        second(torch.empty(1, 300, device="meta"))
    assert live.peak - live.now + answers.nbytes < both + answers.nbytes


def test_units_that_are_not_cut_decide_how_work_divides():
    assert [Part(unit("cluster"), 10).longest(n) for n in (1, 3, 10, 20)] == [10, 4, 1, 1]
    assert [Part(unit("forward"), 60, 20).longest(n) for n in (1, 2, 3, 8)] == [60, 40, 20, 20]
    assert Part(unit("encode"), 130, 20).longest(1) == 130


def test_a_few_units_are_measured_with_the_project_itself(checkpoint, tmp_path):
    bench = Bench(torch.device("cpu"), "processor", tmp_path, "digits")
    found = {one.kind: bench.measure(one) for one in (
        unit("start", module="distillation.gen_prototype"), unit("read", size=32),
        unit("encode", checkpoint=str(checkpoint), size=32, batch=8),
        unit("cluster", checkpoint=str(checkpoint), size=32, images=30, ipc=3, km_expand=1, kmeans="full"),
        unit("denoise", checkpoint=str(checkpoint), batch=8),
        unit("decode", checkpoint=str(checkpoint), batch=8, image_size=32),
        unit("train", arch="convnet_d3_w128", stem="imagenet", size=32, classes=10, batch=16, chunks=1, bf16=False),
        unit("forward", arch="convnet_d3_w128", stem="imagenet", size=32, classes=10, batch=16))}
    assert found.pop("start")["host_bytes"] > 10 ** 8
    assert all(0 < one["seconds"] < 5 and math.isfinite(one["seconds"]) for one in found.values())
    assert found["train"]["seconds"] > found["forward"]["seconds"]
    assert len(list(tmp_path.rglob("*.png"))) == 8
    assert found["encode"]["flops"] > 0 and "flops" not in found["read"]


def seconds_by_hand(stage: str) -> float:
    """Of the quickstart, with the made-up rates."""
    return {"prototypes": 2.25 + 0.01 * (1352 + 10), "images": 2.25 + 0.01 * (100 * 6 + 100), "decoded": 2.25 + 0.01 * 100,
            "random": 2 + 0.01 * 100, "teacher": 2 + 0.01 * (1797 + 4 * 1352 + 445),
            # labels and their student one after the other, the student with hard labels beside them
            "distilled": 4 + 0.01 * (100 + 30 * 100 + 545 + 30 * 100 + 445)}[stage]


def test_the_plan_stands_beside_a_measured_run(here, rates, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    answer = here("misc.plan", "--rates", rates, "--output", tmp_path / "plan.json")
    assert answer.code == 0, answer.err
    stages = {one["stage"]: one for one in json.loads((tmp_path / "plan.json").read_text())["stages"]}
    for name in ("prototypes", "images", "decoded", "random", "teacher", "distilled"):
        assert stages[name]["seconds"] == pytest.approx(seconds_by_hand(name)), name
    assert "600 guided steps; 100 images decoded" in answer.out
    assert stages["images"]["host_bytes"] > 10 ** 9 and stages["images"]["device_bytes"] is None
    run = tmp_path / "result.json"
    for factor, code in ((1, 0), (1.4, 0), (1 / 1.4, 0), (1.6, 1), (1 / 1.6, 1)):
        measured = {name: one["seconds"] * (factor if name == "teacher" else 1) for name, one in stages.items()}
        run.write_text(json.dumps({"seconds": measured}))
        assert here("misc.plan", "--rates", rates, "--against", run).code == code


def test_bad_input_is_answered_with_one_line(here, rates, tmp_path):
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"kind": "plan"}))
    (tmp_path / "result.json").write_text(json.dumps({"seconds": {"images": 3}}))
    for flags, said in (
            (["--ipc", 0], "--ipc: expected a value in [1, "), (["--ipc", 5000], "--ipc: expected a value in [1, 138]"),
            (["--strength", 2], "--strength: expected"), (["--gpus", -1], "--gpus: expected"),
            (["--dataset", "imagenet", "--against", "x.json"], "--against: expected --dataset digits"),
            (["--rates", wrong], "expected a file of misc.plan --save-rates"),
            (["--rates", tmp_path / "none.json"], "none.json"),
            (["--rates", rates, "--gpus", 8], "expected rates of a GPU for --gpus 8, found cpu"),
            (["--rates", rates, "--model", "resnet50"], "expected a rate of train arch=resnet50"),
            (["--rates", rates, "--against", tmp_path / "result.json"], "expected seconds of the stage prototypes")):
        answer = here("misc.plan", *flags)
        assert answer.code == 2 and said in answer.err and answer.err.count("\n") == 1, (flags, answer.err)


def test_every_data_set_has_its_stages():
    for name, stages in {"imagenet": ["prototypes", "images", "soft labels", "student"],
                         "tiny_imagenet": ["prototypes", "images", "teacher", "soft labels", "student"]}.items():
        assert [one.stage for one in planned(name)] == stages
