"""Every stage in one, two and three processes: the same bytes, and in training the same sums in another order.

Processes are forked from one that has loaded the libraries, with the environment that a launcher sets.
"""

import itertools
import json
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import artefact
from fault_campaign import in_fork, launched
from test_resume import manifest_of
from tiny_continual import RECIPE, tiny, write_data

from continual.experiment import Run
from scripts.files import read_tensors
from scripts.parallel import divide, my_share

# differences of two orders of the same float32 sums after a dozen steps of SGD (measured: 2.4e-7); and magnified by instance
# norm in areas cut out of flat images (measured: 2.0e-4). Wrong weights of the processes' rows make a difference of 1e-2
CLOSE, CLOSE_ON_FLAT = 2e-6, 1e-3


class Job:
    """A command in `count` processes; `log` gets what they print."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "continual.experiment", "distillation.datasets",
                                    "matching.training", "scripts.pipeline_stable_diffusion_latents2img", "sklearn.cluster"])

    def __init__(self, count, log, *words):
        self.log, words = log, [str(word) for word in words]
        self.processes = [self.context.Process(target=in_fork, args=(words, rank, log)) for rank in launched(count)]
        for process in self.processes:
            process.start()

    def codes(self):
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def said(self):
        return self.log.read_text()

    def finish(self):
        assert set(self.codes()) == {0}, self.said()
        return self

    def wait_for(self, path):
        """Until there is a file `path`."""
        while not path.exists() and any(process.is_alive() for process in self.processes):
            time.sleep(0.002)
        assert path.exists(), self.said()
        return self

    def signal(self, number, *places):
        for place in places:
            os.kill(self.processes[place].pid, number)
        return self


def differences(one, other) -> float:
    """The largest difference of two models' weights."""
    first, second = (read_tensors(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def losses_of(folder) -> dict:
    """Mean loss by epoch, step and rate."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(line["epoch"], line["step"], line["lr"]): line["loss"] for line in lines}


# who does what

@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_division_of_costs_is_near_the_optimum(processes):
    """Compared with all divisions, by the proven bound (Graham 1969)."""
    generator = torch.Generator().manual_seed(processes)
    for count in range(7):
        costs = torch.randint(1, 30, (count,), generator=generator).tolist()
        shares = divide(costs, processes)
        assert sorted(itertools.chain(*shares)) == list(range(count)) and all(share == sorted(share) for share in shares)
        ways = itertools.product(range(processes), repeat=count)
        best = min(max(sum(cost for cost, who in zip(costs, way, strict=True) if who == each) for each in range(processes))
                   for way in ways)
        assert max(sum(costs[place] for place in share) for share in shares) <= best * (4 / 3 - 1 / (3 * processes)) + 1e-9


def test_costs_are_divided_in_turn_where_equal_and_evenly_where_the_large_ones_come_first():
    assert divide([1] * 7, 3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert divide([5, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5]]
    sizes = list(range(14, 2, -1))
    shares = [my_share(list(range(12)), SimpleNamespace(num_processes=3, process_index=place), sizes) for place in range(3)]
    assert [sum(sizes[label] for label in share) for share in shares] == [34, 34, 34]


def test_continual_runs_are_divided_by_their_length(tmp_path):
    def cost(method, steps):
        return Run(method, "real", "real", 0, 2, "seeded", "resnet18", "imagenet", 32, steps, 8, RECIPE, None).cost
    assert [cost(method, steps=10) for method in ("joint", "er", "derpp")] == [80, 160, 240]

    words = tiny(write_data(tmp_path), tmp_path / "runs", "--method", "finetune", "er", "--stream", "real", "distilled",
                 "--tasks", 2)
    job = Job(3, tmp_path / "log", "continual.train_continual", *words).finish()
    assert job.said().count("4 runs in") == 1
    names = [f"{method}-{stream}-seed0" for method in ("finetune", "er") for stream in ("real", "distilled")]
    assert all((tmp_path / "runs" / name / "manifest.json").exists() for name in names)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()) == sorted(names)


# stages 1 to 3: the same bytes

@pytest.mark.parametrize(("name", "said", "processes"), [("prototypes", "36 prototypes", 3), ("distilled", "72 images", 2),
                                                         ("soft_labels", "6 of 6 epochs", 3)])
def test_processes_write_what_one_writes(request, tmp_path, name, said, processes):
    """With the same number of threads each (conftest.py), which changes how torch's convolutions round."""
    one = request.getfixturevalue(name)
    job = Job(processes, tmp_path / "log", one.module, *one.flags, one.output_flag, tmp_path).finish()
    assert manifest_of(artefact(tmp_path)) == manifest_of(one.folder)
    assert job.said().count(said) == 1


# teacher and student: the same sums

@pytest.fixture(scope="module")
def teacher_words(image_data):
    """168 images in 3 batches, which three processes cannot share evenly."""
    return ["matching.train_teacher", "--dataset", "folder", "--data_dir", image_data, "--arch", "convnet_d2_w8", "--epochs", 4,
            "--batch-size", 64, "--optimizer", "sgd", "--ema", 0.9, "--cutout", 8, "--mix-type", "cutmix"]


@pytest.fixture(scope="module")
def alone(teacher_words, tmp_path_factory):
    """The teacher of one process."""
    folder = tmp_path_factory.mktemp("alone")
    Job(1, folder / "log", *teacher_words, "--output-dir", folder / "teacher").finish()
    return folder / "teacher"


def test_a_teacher_killed_in_three_processes_and_continued_in_two_is_that_of_one(teacher_words, alone, tmp_path):
    words = [*teacher_words, "--save-seconds", 0, "--output-dir", tmp_path / "teacher"]
    job = Job(3, tmp_path / "killed", *words).wait_for(tmp_path / "teacher" / "state.pt").signal(signal.SIGKILL, 0, 1, 2)
    assert job.codes() == [-signal.SIGKILL] * 3 and not (tmp_path / "teacher" / "manifest.json").exists()

    again = Job(2, tmp_path / "log", *words).finish()
    assert again.said().count("continuing at step") == again.said().count("test accuracy") == 1
    assert differences(tmp_path / "teacher", alone) < CLOSE_ON_FLAT
    assert losses_of(tmp_path / "teacher") == pytest.approx(losses_of(alone), abs=CLOSE_ON_FLAT)
    assert manifest_of(tmp_path / "teacher")["config"] == manifest_of(alone)["config"]


@pytest.mark.parametrize(("processes", "labels"), [(3, "stored"), (2, "on the fly")])
def test_a_student_of_several_processes_is_that_of_one(request, image_data, distilled, alone, tmp_path, processes, labels):
    """Weighted, in 5 batches of 14 or 15; stored labels with batches in 2 parts of 7 or 8. No number of rows can be divided."""
    stored = ["--fkd-path", request.getfixturevalue("soft_labels").folder] if labels == "stored" else []
    source = [*stored, "--gradient-accumulation-steps", 2, "--data-path", "pil"] if stored else \
        ["--mode", "on-the-fly", "--teacher", alone, "--input-size", 32, "--mix-type", "mixup"]
    words = ["validate.train_FKD", "--train-dir", distilled.folder, "--dataset", "folder", "--data_dir", image_data, "--model",
             "convnet_d2_w8", "--epochs", 3, "--batch-size", 15, "--sgd", "-lr", 0.1, "--cluster-weights", *source]
    for name, count in (("one", 1), ("several", processes)):
        Job(count, tmp_path / f"{name}.log", *words, "--output-dir", tmp_path / name).finish()
    assert differences(tmp_path / "one", tmp_path / "several") < CLOSE
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(tmp_path / "several"), rel=1e-5)


def test_a_teacher_with_batch_norm_is_as_good(image_data, tmp_path):
    """Without GPUs each process normalises its own rows, so only the accuracy is about the same."""
    words = ["matching.train_teacher", "--dataset", "folder", "--data_dir", image_data, "--arch", "resnet18", "--epochs", 6,
             "--batch-size", 32, "--flip", 0]
    for count in (1, 2):
        job = Job(count, tmp_path / f"{count}.log", *words, "--output-dir", tmp_path / str(count)).finish()
        assert job.said().count("each normalises its own rows") == (count > 1)
    one, two = (manifest_of(tmp_path / str(count))["test_accuracy"] for count in (1, 2))
    assert min(one, two) > 0.9 and abs(one - two) < 0.1  # measured: 35 of 36 test images in two processes


# ends

def test_a_batch_too_small_for_the_processes_is_refused(teacher_words, tmp_path):
    job = Job(3, tmp_path / "log", *teacher_words, "--batch-size", 5, "--output-dir", tmp_path / "teacher")
    assert job.codes() == [2, 2, 2] and not (tmp_path / "teacher").exists()
    assert set(job.said().splitlines()) == {"error: --batch-size: expected at least 6 images in every batch, 2 for each of 3 "
                                            "processes, found 4 (168 images in batches of at most 5)"}


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGTERM, [0, 0]), (signal.SIGKILL, [3, -signal.SIGKILL])])
def test_what_ends_one_process_ends_all(teacher_words, tmp_path, number, codes):
    state = tmp_path / "teacher" / "state.pt"
    job = Job(2, tmp_path / "log", *teacher_words, "--epochs", 2000, "--save-seconds", 0, "--output-dir", tmp_path / "teacher")
    assert job.wait_for(state).signal(number, 1).codes() == codes
    said = [line for line in job.said().splitlines() if line.startswith(("error", "stopped", "Traceback"))]
    assert said == (["stopped by SIGTERM; run the same command again to continue"] if number == signal.SIGTERM else [
        "error: another process of this job ended early; finished work stays, run the same command again"])
    kept = torch.load(state, weights_only=True)
    assert 0 < kept["step"] == len(kept["losses"]) < 6000
