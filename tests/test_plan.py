"""The plan: settings are those of the scripts, counts and bytes those of real artefacts, operations the published ones."""

import json
import math

import pytest
from conftest import CLASSES, EPOCHS, IPC, PER_CLASS, REPEATS, SIZE, TEST_PER_CLASS

from misc.plan import bytes_of, computed, data_of, measured_units, plan, rates_of, read_settings, units_of
from scripts.cli import InputError

TINY = (len(CLASSES), len(CLASSES) * PER_CLASS, len(CLASSES) * TEST_PER_CLASS, SIZE)


@pytest.fixture
def tiny(checkpoint):
    """The settings of the stages of conftest.py, as a settings file would give them."""
    return {**read_settings("folder"), "CHECKPOINT": str(checkpoint), "IPC": str(IPC * REPEATS), "SIZE": "", "STRENGTH": "0.5",
            "STEPS": "4", "IMAGE_SIZE": "", "INPUT_SIZE": str(SIZE), "TEACHER_ARCH": "resnet18", "TEACHER_STEM": "imagenet",
            "TEACHER_EPOCHS": "3", "WEIGHTS": "", "MODEL": "resnet18", "STEM": "imagenet", "EPOCHS": str(EPOCHS),
            "KEEP_TOPK": "", "KEEP_EPOCHS": "1", "SCHEDULE": "steps", "TASK_STEPS": "5 2 2", "TASKS": "3", "SEEDS": "0 1",
            "METHODS": "er", "KMEANS": "full", "KM_EXPAND": "1"}


def result(stage) -> dict:
    return json.loads((stage.folder / "result.json").read_text())


def test_settings_come_from_the_scripts_and_the_environment(monkeypatch):
    for name in ("IPC", "STRENGTH"):
        monkeypatch.delenv(name, raising=False)
    settings = read_settings("imagenet")
    assert [settings[name] for name in ("IPC", "STRENGTH", "STEPS", "WEIGHTS")] == ["10", "0.7", "50", "IMAGENET1K_V1"]
    monkeypatch.setenv("IPC", "50")
    monkeypatch.setenv("STRENGTH", "0.3")
    units = units_of(read_settings("imagenet"), (1000, 1_281_167, 50_000, 224))
    assert units["prototypes"] == {"images encoded": 1_281_167, "classes clustered": 1000} and "teacher" not in units
    own = {**read_settings("digits"), "METHODS": "er", "STREAMS": "real"}
    assert units_of(own, TINY)["continual"] == {"er steps": 5 * 42}       # the first of 42 14 14
    both = own | {"STREAM_LABELS": "hard soft", "SAME_STEPS": "14", "METHODS": "er task_arithmetic"}
    assert units_of(both, TINY)["continual"] == {"er steps": 5 * 2 * (42 + 14), "task_arithmetic steps": 5 * 2 * (42 + 14) + 40}
    for name, value in (("METHODS", "er foo"), ("STREAMS", "real foo"), ("SCHEDULE", "foo")):
        with pytest.raises(InputError, match=f"{name}: expected some of .* found foo"):
            units_of(own | {name: value}, TINY)
    own |= {"SCHEDULE": "epochs", "TASK_EPOCHS": "2"}
    assert units_of(own, TINY)["continual"] == {"er steps": 5 * math.ceil(2 * TINY[1] / 5 / int(own["BATCH_SIZE"]))}
    assert units["images"] == {"guided steps": 50_000 * 15} and units["soft labels"] == {"views labelled": 15_000_000}


def test_stages_that_the_settings_leave_out(tiny):
    made = len(CLASSES) * IPC * REPEATS
    usual = units_of(tiny, TINY)
    assert "soft labels" in usual and "teacher" in usual and usual["student"] == {"student's views trained": made * EPOCHS}
    hard = units_of(tiny | {"LABELS": "hard"}, TINY)
    assert not {"soft labels", "teacher"} & hard.keys() and hard["student"] == usual["student"]
    assert "teacher" in units_of(tiny | {"LABELS": "hard", "STREAM_LABELS": "hard soft"}, TINY)
    asked = units_of(tiny | {"PROTOCOL": "rded"}, TINY)     # the teacher labels every batch
    assert "soft labels" not in asked and asked["student"] == usual["student"] | {"views labelled": made * EPOCHS}
    random, noise = (units_of(tiny | {"METHOD": method}, TINY) for method in ("random", "noise"))
    assert "prototypes" not in random and random["images"] == {"images of METHOD=random": made}     # a unit without a rate
    assert "prototypes" not in noise and noise["images"] == {"guided steps": made * 4}     # all steps, not a share of them
    for changed in ({"LABELS": "hard"}, {"PROTOCOL": "rded"}, {"METHOD": "random"}):
        assert plan(tiny | changed, TINY, {"guided steps": 1.0}, 1)


def test_images_held_out_are_those_of_the_test(monkeypatch):
    digits = data_of("digits", read_settings("digits"))
    monkeypatch.setenv("VALIDATION", "300")
    assert data_of("digits", read_settings("digits")) == (10, digits[1] - 300, 300, 32)
    assert data_of("fashion_mnist", read_settings("fashion_mnist")) == (10, 59_700, 300, 32)
    for wrong in ("many", "60000", "-1"):
        monkeypatch.setenv("VALIDATION", wrong)
        with pytest.raises(InputError, match=f"VALIDATION: expected .* found {wrong}"):
            data_of("fashion_mnist", read_settings("fashion_mnist"))


def test_counts_and_bytes_are_those_of_real_artefacts(tiny, prototypes, distilled, soft_labels, teacher, student):
    units, needed = units_of(tiny, TINY), bytes_of(tiny, TINY)
    for name, stage in (("prototypes", prototypes), ("images", distilled), ("soft labels", soft_labels), ("teacher", teacher)):
        assert {unit: count for unit, count, _ in measured_units(result(stage))} == units[name], name
    ((_, views, seconds),) = measured_units(result(student))
    assert views == 2 * units["student"]["student's views trained"] // EPOCHS and seconds > 0   # two epochs
    assert units["continual"] == {"er steps": 3 * 2 * (5 + 2 + 2)}
    kept = json.loads((soft_labels.folder / "manifest.json").read_text())["kept"]["bytes"]
    assert 0 <= kept - needed["soft labels"][0] < EPOCHS * 1200   # headers
    for name, stage in (("teacher", teacher), ("student", student)):
        assert 0 <= (stage.folder / "model.safetensors").stat().st_size - needed[name][0] < 20_000, name
    assert bytes_of(tiny | {"METHODS": "er finetune joint"}, TINY)["continual"] == needed["continual"]     # no buffer
    assert bytes_of(tiny | {"METHODS": "er agem"}, TINY)["continual"][0] == 2 * needed["continual"][0]
    files = sum(path.stat().st_size for path in prototypes.folder.glob("*.safetensors"))
    assert 0 < files - needed["prototypes"][0] / REPEATS < 1000 * len(CLASSES)   # headers


def test_operations_are_the_published_ones(tiny):
    rates = computed({**tiny, "INPUT_SIZE": "224"}, (1000, 12_000, 1000, 32), 20)
    assert 20e12 / rates["views labelled"] == pytest.approx(2 * 1.814e9, rel=0.01)   # torchvision: 1.814 billion multiply-adds
    assert 2.9 < rates["views labelled"] / rates["teacher's views trained"] <= 3     # images need no gradient
    larger = computed({**tiny, "SIZE": str(2 * SIZE)}, (1000, 12_000, 1000, 32), 20)
    for unit in ("images encoded", "guided steps"):
        assert larger[unit] < rates[unit] / 3.9, unit
    regnet = computed({**tiny, "MODEL": "regnet_x_400mf"}, TINY, 20)    # a network that computes its widths by tensors
    assert regnet["student's views trained"] > 0
    assert rates["er steps"] == pytest.approx(rates["finetune steps"] / 2) and rates["classes clustered"] > 0


def test_seconds_are_units_divided_by_rates(here, soft_labels, tmp_path, monkeypatch):
    monkeypatch.setenv("METHODS", "")
    rates = {"images encoded": 100, "classes clustered": 10, "guided steps": 50, "views labelled": 200.0}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    answer = here("misc.plan", "--rates", tmp_path / "rates.json", "--gpus", 2, "--json", tmp_path / "plan.json")
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "plan.json").read_text())
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert stages["prototypes"]["seconds"] == pytest.approx(1352 / 2 / 100 + 10 / 2 / 10)
    assert stages["images"]["seconds"] == pytest.approx(100 * 6 / 2 / 50) and "600 guided steps" in answer.out
    assert stages["student"]["seconds"] is None
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] or 0 for stage in found["stages"]))
    ((unit, count, spent),) = measured_units(result(soft_labels))
    assert [*measured_units(result(soft_labels) | {"processes": 2})] == [(unit, count, 2 * spent)]
    assert [*measured_units(result(soft_labels) | {"resumed": True})] == []
    assert rates_of(soft_labels.folder) == {unit: count / spent}
    assert here("misc.plan", "--from", soft_labels.folder).code == 0


def test_bad_input_is_one_line(here, tmp_path, monkeypatch):
    (tmp_path / "rates.json").write_text('{"guided steps": 0}')
    for flags, words in ((["--rates", tmp_path / "rates.json"], "error: --rates: expected"),
                         (["--gpus", 0, "--tflops", 1], "--gpus"), (["--tflops", 0], "--tflops"),
                         (["--rates", tmp_path / "none.json"], "none.json"),
                         (["--from", tmp_path], "expected a run with result.json")):
        answer = here("misc.plan", *flags)
        assert answer.code == 2 and words in answer.err and answer.err.count("\n") == 1, (flags, answer.err)
    for name, value, words in (("TASKS", "0", "TASKS: expected a value in [1, inf], found 0"),
                               ("IPC", "ten", "IPC: expected a number, found ten"), ("IPC", "-3", "IPC: expected a value"),
                               ("STRENGTH", "2", "STRENGTH: expected a value in [0, 1]"),
                               ("METHOD", "foo", "METHOD: expected d4m, prototype"), ("LABELS", "foo", "LABELS: expected soft"),
                               ("CHECKPOINT", str(tmp_path), f"CHECKPOINT {tmp_path}: expected a Stable Diffusion checkpoint")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            answer = here("misc.plan", "--tflops", 1)
        assert answer.code == 2 and answer.err.startswith(f"error: {words}") and answer.err.count("\n") == 1, answer.err
