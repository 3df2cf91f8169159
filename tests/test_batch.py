"""misc.studies.batch: blocks of commands side by side, by the `python` of PATH."""

import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import python

from scripts.cli import ROOT

RANDOM = "distillation.gen_syn_image --dataset digits --method random --ipc {ipc} --seed {seed} --save_init_image_path {root}"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(python().parent), os.environ["PATH"]]))


def test_blocks_run_and_a_failing_one_stops_alone(command, tmp_path):
    commands = tmp_path / "commands.txt"
    commands.write_text("\n".join([
        "# a comment", RANDOM.format(ipc=1, seed=0, root=f"'{tmp_path}/with space'"),
        RANDOM.format(ipc=2, seed=0, root=tmp_path / "a"), "", "",
        RANDOM.format(ipc=9999, seed=0, root=tmp_path / "b"), RANDOM.format(ipc=1, seed=0, root=tmp_path / "never"), "",
        "distillation.gen_syn_image --no_such_flag", "", RANDOM.format(ipc=1, seed=1, root=tmp_path / "c")]))
    answer = command("misc.studies.batch", commands, "--jobs", 2)
    assert answer.code == 2 and answer.err.splitlines()[-1].endswith("2 of 4 blocks failed: [2, 3]")
    assert "found 9999" in answer.err and "--no_such_flag" in answer.err
    made = sorted(path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("manifest.json"))
    assert made == ["a/digits_random_ipc2", "c/digits_random_ipc1", "with space/digits_random_ipc1"]
    one, other = (next((tmp_path / name).rglob("00003_3/*.png")).read_bytes() for name in ("with space", "c"))
    assert one != other     # each had its own flags


@pytest.mark.parametrize("text", [None, "\n# nothing\n"])
def test_no_commands_are_refused(here, tmp_path, text):
    if text is not None:
        (tmp_path / "commands.txt").write_text(text)
    answer = here("misc.studies.batch", tmp_path / "commands.txt")
    assert answer.code == 2 and "commands, found no" in answer.err and answer.err.count("\n") == 1


def test_sigterm_stops_every_command_and_starts_no_other(tmp_path):
    teacher, commands = tmp_path / "teacher", tmp_path / "commands.txt"
    commands.write_text("matching.train_teacher --dataset digits --arch convnet_d2_w8 --input-size 16 --epochs 9999 "
                        f"--save-seconds 0 --output-dir {teacher}\n" + RANDOM.format(ipc=1, seed=0, root=tmp_path / "never"))
    words = [sys.executable, "-m", "misc.studies.batch", commands]
    batch = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (teacher / "state.pt").exists():
        assert batch.poll() is None
        time.sleep(0.05)
    others = psutil.Process(batch.pid).children(recursive=True)
    batch.terminate()
    said, _ = batch.communicate(timeout=60)
    assert batch.returncode == 143 and said.count("stopped by SIGTERM") == 2   # the command and the batch
    assert others and not any(one.is_running() for one in others) and not (teacher / ".lock").exists()
    assert not (tmp_path / "never").exists() and not (teacher / "manifest.json").exists()
