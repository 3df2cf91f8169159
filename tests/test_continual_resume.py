"""A continual run killed at any step ends, with the same command, in the same files."""

import multiprocessing
import os
import random
import signal
import time

from fault_campaign import contents, in_fork
from tiny_continual import tiny, write_data

from continual.train_continual import METHODS


def kill_after(process, state, saves: int) -> None:
    """SIGKILL once the resume point was written `saves` times."""
    seen = set()
    while process.is_alive() and len(seen) < saves:
        try:
            seen.add(state.stat().st_mtime_ns)
        except FileNotFoundError:
            time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and len(seen) == saves


def test_every_method_killed_at_a_random_step_ends_as_if_it_was_not(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelerate", "continual.experiment", "distillation.datasets"])
    data, whole, killed = write_data(tmp_path), tmp_path / "whole", tmp_path / "killed"
    words = ("--method", *METHODS, "--tasks", 2, "--steps", 3, "--start", "task1", "--experts", "sequential")

    def start(*more):
        words = ["continual.train_continual", *map(str, tiny(data, *more))]
        process = context.Process(target=in_fork, args=(words, {}, os.devnull))
        process.start()
        return process
    other = start(whole, *words)
    for method in METHODS:
        folder = killed / f"{method}-real-seed0"
        kill_after(start(killed, *words, "--save-seconds", 0), folder / "state.pt", random.Random(method).randint(1, 3))
        assert not (folder / "result.json").exists()
    for process in (other, start(killed, *words, "--save-seconds", 0)):
        process.join()
        assert process.exitcode == 0
    assert contents(killed) == contents(whole) and len(list(killed.glob("*/result.json"))) == len(METHODS)
