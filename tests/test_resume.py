"""Kills, full and read-only disks, SIGTERM and a second job: finished work stays, and the same command completes it.

`python -m tests.fault_campaign` does this to every stage many times, in one and two processes.
"""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager

import pytest
from conftest import artefact, start
from test_bad_input import refused

from misc.report.results import read_run
from scripts.cli import ROOT
from scripts.files import atomic_path

STAGES = ["prototypes", "distilled", "teacher", "soft_labels", "student", "sre2l", "mtt"]
HOLD = "import sys, time; from pathlib import Path; from scripts.artefact import lock; lock(Path(sys.argv[1])); print(); " \
       "sys.stdout.flush(); time.sleep(60)"


def manifest_of(folder):
    """The manifest without the commit, which may change while the tests run."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("code")
    return manifest


def same_artefact(stage, root) -> bool:
    """The only artefact below `root` has the files of the undisturbed run, and no others."""
    folder = artefact(root)
    assert manifest_of(folder) == manifest_of(stage.folder)
    assert [name for name in manifest_of(stage.folder)["files"]
            if (folder / name).read_bytes() != (stage.folder / name).read_bytes()] == []
    there, wanted = ({str(path.relative_to(one)) for path in one.rglob("*")} for one in (folder, stage.folder))
    assert there == wanted
    return True


def failed(answer, *words) -> bool:
    """One line on stderr with each of `words`, and exit code 3."""
    lines = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert answer.code == 3 and len(lines) == 1 and "Traceback" not in answer.err, answer.err
    assert [word for word in map(str, (*words, "run the same command again")) if word not in lines[0]] == [], answer.err
    return True


@contextmanager
def disk(folder):
    """A disk at `folder`; yields a function that changes its options, or None where mounting is not permitted."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True).returncode:
        warnings.warn("mount is not permitted here, so full and read-only disks are not tested", stacklevel=3)
        yield None
        return
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_meets_a_full_and_a_read_only_disk_and_then_ends_as_if_nothing_happened(request, here, tmp_path, name):
    stage = request.getfixturevalue(name)
    files = list(manifest_of(stage.folder)["files"])
    there = [file for file in files if (stage.killed / file).exists()]
    assert not (stage.killed / "manifest.json").exists() and len(there) < len(files)
    assert there or (stage.killed / "state.pt").exists()

    with disk(tmp_path / "disk") as remount:
        root = shutil.copytree(stage.killed_root, tmp_path / "disk" / "out")
        words = (stage.module, *stage.flags, stage.output_flag, root)
        if remount:
            used = os.statvfs(root)
            remount(f"size={(used.f_blocks - used.f_bfree) * used.f_frsize + 20_000}")
            assert failed(here(*words), artefact(root), "No space left on device")
            remount("ro")
            assert failed(here(*words), root, "Read-only file system")
            remount("rw,size=1g")
        assert here(*words).code == 0
        assert same_artefact(stage, root)
        answer = here(*words)
        assert answer.code == 0 and "complete, nothing to do" in answer.out and answer.err == ""


def test_a_finished_unit_is_not_made_again(here, prototypes, tmp_path):
    folder = tmp_path / prototypes.folder.name
    shutil.copytree(prototypes.folder, folder)
    (folder / "manifest.json").unlink()
    kept, *lost = sorted(folder.glob("*.safetensors"))
    for path in lost:
        path.unlink()
    before = kept.stat().st_mtime_ns
    answer = here(prototypes.module, *prototypes.flags, prototypes.output_flag, tmp_path)
    assert answer.code == 0 and "1 of 12 classes are there already" in answer.out
    assert kept.stat().st_mtime_ns == before and same_artefact(prototypes, tmp_path)


@pytest.mark.parametrize(("name", "more", "sign"), [("teacher", ["--save-seconds", 1000], "metrics.jsonl"),
                                                    ("distilled", [], "*.png")])
def test_sigterm_ends_with_0_and_the_same_command_continues(request, here, tmp_path, name, more, sign):
    stage = request.getfixturevalue(name)
    words = (stage.module, *stage.flags, *more, stage.output_flag, tmp_path)
    job = start(*words)
    while not any(tmp_path.rglob(sign)) and job.poll() is None:
        time.sleep(0.002)
    asked = time.monotonic()
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate()
    assert job.returncode == 0 and time.monotonic() - asked < 30 and "Traceback" not in err
    assert out.splitlines()[-1] == "stopped by SIGTERM; run the same command again to continue"
    assert not [path for path in tmp_path.rglob("*") if path.name in ("manifest.json", ".lock") or path.suffix == ".partial"]
    answer = here(*words)
    assert answer.code == 0 and (name != "teacher" or "continuing at step" in answer.out)
    assert same_artefact(stage, tmp_path)
    one_go, resumed = (json.loads((folder / "result.json").read_text()) for folder in (stage.folder, artefact(tmp_path)))
    assert "resumed" not in one_go and resumed.get("resumed", False) == (name == "distilled")    # the teacher's seconds add up
    assert (read_run("of two processes", resumed).seconds == {}) == (name == "distilled")


def test_a_second_job_is_refused_until_the_first_is_dead(here, prototypes, tmp_path):
    words = (prototypes.module, *prototypes.flags, prototypes.output_flag, tmp_path)
    folder = tmp_path / prototypes.folder.name
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "\n"
        assert refused(here(*words), folder, f"process {holder.pid} on {socket.gethostname()} since 20")
        assert [path.name for path in folder.iterdir()] == [".lock"]
    finally:
        holder.kill()
        holder.communicate()
    assert here(*words).code == 0 and same_artefact(prototypes, tmp_path)


def test_a_file_that_the_system_cuts_short_ends_training_with_one_line(here, teacher, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        answer = here(teacher.module, *teacher.flags, teacher.output_flag, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed(answer, f"{tmp_path / 'out' / 'state.pt'}: File too large")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_a_file_that_vanishes_while_it_is_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "unit")), atomic_path(tmp_path / "unit") as partial:
        partial.write_text("content")
        partial.unlink()
    with pytest.raises(ValueError, match="its own"), atomic_path(tmp_path / "unit") as partial:
        raise ValueError("its own")
    assert not list(tmp_path.iterdir())
