"""A continual run killed at any step ends, with the same command, in the same accuracies and the same memory."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
from tiny_continual import tiny, write_data

from continual import train_continual
from scripts.artefact import read_tensors
from scripts.cli import run

MEASURED = ("seconds", "images_per_second", "peak_memory_bytes")  # what differs from run to run


def command(words) -> None:
    """What a process of its own does: the real command line, its output kept out of the way."""
    sys.argv = ["train_continual", *words]
    with open(os.devnull, "w") as sys.stdout, open(os.devnull, "w") as sys.stderr:
        run(train_continual.parse_args, train_continual.main)


@pytest.fixture(scope="module")
def processes():
    """Processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "continual.experiment", "distillation.datasets"])
    return context


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("continual"))


def started(processes, words):
    process = processes.Process(target=command, args=([str(word) for word in words],))
    process.start()
    return process


def kill_after(process, state, saves: int) -> None:
    """SIGKILL once the resume point was written `saves` times."""
    seen = set()
    while process.is_alive() and len(seen) < saves:
        if state.exists():
            try:
                seen.add(state.stat().st_mtime_ns)
            except FileNotFoundError:
                continue
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(seen) == saves


def result_of(folder) -> dict:
    found = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in found.items() if key not in MEASURED}


def test_every_method_killed_at_a_random_step_ends_as_if_it_was_not(data, tmp_path, processes):
    words = ("--method", *train_continual.METHODS, "--tasks", 2, "--steps", 3, "--start", "task1",
             "--experts", "sequential")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    other = started(processes, tiny(data, whole, *words))
    again = tiny(data, killed, *words, "--save-seconds", 0)
    names = [f"{method}-real-seed0" for method in train_continual.METHODS]
    for name in names:
        kill_after(started(processes, again), killed / name / "state.pt", random.Random(name).randint(1, 3))
        assert not (killed / name / "result.json").exists()
    last = started(processes, again)
    for process in (other, last):
        process.join()
        assert process.exitcode == 0
    for name in names:
        assert result_of(whole / name) == result_of(killed / name), name
        assert not (killed / name / "state.pt").exists() and not list(killed.rglob("*.partial"))
        if not name.startswith(("finetune", "joint")):
            one, two = (read_tensors(root / name / "buffer.safetensors") for root in (whole, killed))
            assert all(one[part].equal(two[part]) for part in ("images", "labels")) and len(one["labels"]), name
