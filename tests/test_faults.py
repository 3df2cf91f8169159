"""Two jobs on one folder, SIGTERM, full and read-only disks: nothing finished is lost, and the same command goes on."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from conftest import artefact, start
from test_bad_input import refused
from test_resume import manifest_of

from scripts import locks
from scripts.artefact import atomic_path, begin, finish, read_tensors
from scripts.cli import ROOT

HOLD = "import sys, time; from distillation import locks; print(locks.take(sys.argv[1]), flush=True); time.sleep(60)"


@contextmanager
def held(lock):
    """Another process holds `lock` meanwhile, and is killed then."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "None\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


@contextmanager
def small_disk(folder, size):
    """A disk of `size` mounted at `folder`; yields what changes its options."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mount is not permitted here")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def failed(answer, *words) -> bool:
    """One line on stderr, exit code 3, and each of `words` in it."""
    lines = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert answer.code == 3 and len(lines) == 1 and "Traceback" not in answer.err, answer.err
    assert [word for word in map(str, (*words, "the same command continues")) if word not in lines[0]] == [], answer.err
    return True


def same_artefact(stage, root) -> bool:
    """The artefact below `root` is that of the stage, and nothing else lies in it."""
    folder = artefact(root)
    files = list(manifest_of(stage.folder)["files"])
    assert {name: (folder / name).read_bytes() == (stage.folder / name).read_bytes() for name in files} == \
        dict.fromkeys(files, True)
    assert manifest_of(folder) == manifest_of(stage.folder)
    there, wanted = ({str(path.relative_to(one)) for path in one.rglob("*")} for one in (folder, stage.folder))
    assert there == wanted
    return True


def test_a_second_job_says_who_is_at_work_and_a_dead_one_is_no_hindrance(here, prototypes, tmp_path):
    words = (prototypes.module, *prototypes.flags, prototypes.output_flag, tmp_path)
    folder = tmp_path / prototypes.folder.name
    with held(folder / ".lock") as holder:
        assert refused(here(*words), folder, f"process {holder.pid} on {socket.gethostname()} since 20")
        assert [path.name for path in folder.iterdir()] == [".lock"]
        assert refused(here(*words, "--share"), holder.pid)
    with held(folder / ".claims" / "job-other") as holder:
        assert refused(here(*words), holder.pid)
    assert here(*words).code == 0
    assert same_artefact(prototypes, tmp_path)
    with held(folder / ".lock"):  # a finished folder needs none
        assert "complete, nothing to do" in here(*words).out


def test_a_lock_of_another_machine_is_stale_once_nobody_touches_it(tmp_path):
    lock = tmp_path / "out" / ".lock"
    assert locks.take(lock) is None
    elsewhere = {**locks.own_name(), "host": "node7", "machine": "node7", "pid": 123}
    lock.write_text(json.dumps(elsewhere))
    with pytest.raises(ValueError, match="process 123 on node7 since"):
        begin(tmp_path / "out", "thing", {})
    assert locks.take(lock) == elsewhere
    old = time.time() - locks.STALE_SECONDS - 5
    os.utime(lock, (old, old))
    assert not begin(tmp_path / "out", "thing", {})
    assert locks.read_holder(lock)["pid"] == os.getpid()
    finish(tmp_path / "out", "thing", [], {}, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "manifest.json"]


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({**locks.own_name(), "started": "1"}))
    assert locks.take(lock) is None
    lock.write_text("")  # what a machine that lost power may leave
    assert locks.describe(locks.take(lock)) == "process ? on an unknown host since ?"


def test_of_many_who_take_a_stale_lock_one_gets_it(tmp_path):
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        lock, gate, answers, over = tmp_path / f"{turn}.lock", context.Barrier(6), context.Queue(), context.Event()
        lock.write_text(json.dumps({**locks.own_name(), "pid": 2 ** 22 + 1}))

        def contend(lock=lock, gate=gate, answers=answers, over=over):
            gate.wait()
            answers.put(locks.take(lock) is None)
            over.wait()  # the dead hold nothing
        rivals = [context.Process(target=contend) for _ in range(6)]
        for each in rivals:
            each.start()
        won = [answers.get(timeout=20) for _ in rivals]
        over.set()
        for each in rivals:
            each.join()
        assert sum(won) == 1
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["prototypes", "soft_labels"])
def test_two_jobs_that_share_a_folder_make_what_one_makes(request, tmp_path, name):
    one = request.getfixturevalue(name)
    jobs = [start(one.module, *one.flags, "--share", one.output_flag, tmp_path) for _ in range(2)]
    said = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert same_artefact(one, tmp_path)
    assert sum("complete" in each for each in said) == 1, said  # one wrote the manifest, the other saw it


def test_sharing_takes_over_what_a_dead_job_was_at_and_waits_for_what_a_live_one_is_at(here, distilled, tmp_path):
    folder = tmp_path / distilled.folder.name
    words = (distilled.module, *distilled.flags, "--share", distilled.output_flag, tmp_path)
    with held(folder / ".claims" / "unit-000002"):
        pass
    with held(folder / ".claims" / "unit-000001") as holder:
        job = start(*words)
        while len(list(folder.rglob("*.png"))) < 67 and job.poll() is None:  # 72 images in batches of 5
            time.sleep(0.05)
        time.sleep(0.7)
        assert job.poll() is None and len(list(folder.rglob("*.png"))) == 67
        holder.kill()
        holder.wait()
        assert job.communicate()[1].count("error") == 0 and job.returncode == 0
    assert same_artefact(distilled, tmp_path)


@pytest.mark.parametrize(("name", "more", "sign"), [("teacher", ["--save-seconds", 1000], "metrics.jsonl"),
                                                    ("distilled", [], "*.png")])
def test_sigterm_ends_with_0_and_the_same_command_goes_on(request, here, tmp_path, name, more, sign):
    stage = request.getfixturevalue(name)
    words = (stage.module, *stage.flags, *more, stage.output_flag, tmp_path)
    job = start(*words)
    while not any(tmp_path.rglob(sign)) and job.poll() is None:
        time.sleep(0.002)
    asked = time.monotonic()
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate()
    assert job.returncode == 0 and time.monotonic() - asked < 30 and "Traceback" not in err
    assert out.splitlines()[-1] == "stopped by SIGTERM; the same command continues"
    assert not list(tmp_path.rglob("manifest.json")) and not list(tmp_path.rglob(".lock"))
    assert not list(tmp_path.rglob("*.partial"))
    answer = here(*words)
    assert answer.code == 0 and (name != "teacher" or "continuing at step" in answer.out)
    assert same_artefact(stage, tmp_path)


def test_a_file_that_the_system_cuts_short_ends_training_with_one_line(here, teacher, tmp_path):
    words = (teacher.module, *teacher.flags, teacher.output_flag, tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        answer = here(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed(answer, f"{tmp_path / 'out' / 'state.pt'}: File too large")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json"]
    assert here(*words).code == 0
    assert same_artefact(teacher, tmp_path)


def test_a_full_disk_and_a_read_only_one(here, prototypes, tmp_path):
    words = (prototypes.module, *prototypes.flags, prototypes.output_flag, tmp_path / "disk")
    with small_disk(tmp_path / "disk", "size=40k") as remount:
        assert failed(here(*words), artefact(tmp_path / "disk"), "No space left on device")
        whole = list((tmp_path / "disk").rglob("*.safetensors"))
        assert whole and all(read_tensors(path) for path in whole)
        assert not list((tmp_path / "disk").rglob("*.partial"))
        remount("ro")
        assert failed(here(*words), tmp_path / "disk", "Read-only file system")
        remount("rw,size=10m")
        answer = here(*words)
        assert answer.code == 0 and f"{len(whole)} of 12 classes are there already" in answer.out
        assert same_artefact(prototypes, tmp_path / "disk")


def test_a_file_that_vanishes_while_it_is_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "unit")), atomic_path(tmp_path / "unit") as partial:
        partial.write_text("content")
        partial.unlink()
    with pytest.raises(ValueError, match="its own"), atomic_path(tmp_path / "unit") as partial:
        raise ValueError("its own")
    assert not list(tmp_path.iterdir())
