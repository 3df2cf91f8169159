"""The ground: flags in both spellings, progress in a log, one process per folder, the training loop, rate curves."""

import errno
import io
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from scripts import artefact, cli, files
from scripts.cli import DIGITS_LDM, ROOT, InputError, Parser, Progress, Stopped, run
from scripts.training import CURVES, Loop, averaged, new_optimizer, parameter_groups


def test_long_flags_take_dashes_and_underscores():
    parser = Parser("a command")
    parser.add_argument("--data_dir")
    parser.add_argument("-lr", "--learning-rate", type=float)
    parser.add_argument("--ipc", type=int)
    for words in (["--data-dir", "a_b", "--learning_rate=0.5"], ["--data_dir", "a_b", "--learning-rate", "0.5"]):
        args = parser.parse_args([*words, "--ipc", "3"])
        assert (args.data_dir, args.learning_rate, args.ipc) == ("a_b", 0.5, 3)
    assert parser.format_help().count("--data") == 1 + parser.format_usage().count("--data")


def test_a_log_gets_a_line_every_so_often_and_none_for_short_work(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(cli, "LOG_SECONDS", 0.05)
    with Progress(total=4, desc="encode", unit="img") as bar:
        for _ in range(4):
            time.sleep(0.03)
            bar.update()
    lines = [line for line in log.getvalue().splitlines() if line]
    assert 1 <= len(lines) <= 4 and all(line.startswith("encode: ") and "img" in line for line in lines), lines
    monkeypatch.setattr(cli, "LOG_SECONDS", 30)
    log.truncate(0)
    with Progress(total=1, desc="short") as bar:
        bar.update()
    assert log.getvalue().strip("\0\n") == ""


HOLD = ("import sys, time; from pathlib import Path; from scripts.artefact import begin\n"
        "print(begin(Path(sys.argv[1]), 'prototypes', {'ipc': 1}), flush=True); time.sleep(60)")


def test_a_fork_killed_while_it_draws_a_bar_stops_no_other():
    """Forks of one Python share tqdm's own lock, which a killed one never gives back."""
    fork = multiprocessing.get_context("fork")
    Progress(total=1).close()
    killed = fork.Process(target=lambda: (Progress.get_lock().acquire(), os.kill(os.getpid(), signal.SIGKILL)))
    other = fork.Process(target=lambda: Progress(total=1).close(), daemon=True)
    for process in (killed, other):
        process.start()
        process.join(20)
    assert (killed.exitcode, other.exitcode) == (-signal.SIGKILL, 0)


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "False\n"
        with pytest.raises(InputError, match=f"no other process works in, found process {holder.pid} on "):
            artefact.begin(folder, "prototypes", {"ipc": 1})
        with pytest.raises(InputError, match="no other process works in"):
            artefact.begin(folder, "prototypes", {"ipc": 2})
    finally:
        holder.kill()
        holder.wait()
    assert (folder / ".lock").exists()
    assert artefact.begin(folder, "prototypes", {"ipc": 1}) is False
    artefact.finish(folder, "prototypes", [{"name": "a", "prompt": "a"}], {"ipc": 1}, [])
    assert not (folder / ".lock").exists() and artefact.begin(folder, "prototypes", {"ipc": 1}) is True


def test_a_configuration_binds_only_once_there_is_output(tmp_path):
    def begin(ipc: int):
        try:
            return artefact.begin(tmp_path, "prototypes", {"ipc": ipc})
        finally:
            artefact.unlock(tmp_path)
    (tmp_path / "00000_ant").mkdir()
    for ipc in (1, 2):
        assert begin(ipc) is False and files.read_json(tmp_path / "config.json")["config"] == {"ipc": ipc}
    (tmp_path / "00000_ant" / "image.png").write_bytes(b"")
    with pytest.raises(InputError, match="begun with ipc=2, now asked for 1"):
        begin(1)
    assert begin(2) is False


def test_the_configuration_of_a_process_that_was_waited_for_is_checked(tmp_path, monkeypatch):
    def other_process_ends(seconds):
        files.write_json(tmp_path / "config.json", {"kind": "start", "config": {"steps": 1}})
        (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(artefact, "lock", lambda folder: "process 1")
    monkeypatch.setattr(artefact.time, "sleep", other_process_ends)
    with pytest.raises(InputError, match="begun with steps=1, now asked for 2"):
        artefact.begin(tmp_path, "start", {"steps": 2}, wait=True)


REPEATED = """
import signal, sys
from scripts import cli

def again(frame, event, _):     # one more SIGTERM in every function that the handler calls
    callers = []
    while frame := frame.f_back:
        callers.append(frame.f_code.co_name)
    if event == "call" and "_on_signal" in callers:
        signal.raise_signal(signal.SIGTERM)

def main(args):
    cli.working()
    sys.setprofile(again)
    signal.raise_signal(signal.SIGTERM)
    sys.setprofile(None)
    signal.raise_signal(signal.SIGTERM)
    cli.stop_if_asked()

cli.at_end.append(lambda: signal.raise_signal(signal.SIGTERM))
cli.run(lambda: None, main)
"""


def test_several_sigterms_stop_a_command_as_one_does():
    """A scheduler sends it to every process, and launchers and batches pass theirs on."""
    job = subprocess.run([sys.executable, "-c", REPEATED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (job.returncode, job.stdout, job.stderr) == (0, "stopped by SIGTERM; run the same command again to continue\n", "")
    reader, writer = os.pipe()
    os.close(reader)    # as of `| tee`, which the signal has ended
    job = subprocess.run([sys.executable, "-c", REPEATED], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (job.returncode, job.stderr) == (0, b"")


def train(folder, steps, rate=0.1, stop_after=None, average=True):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    follower = averaged(network, 0.9) if average else None
    optimizer = new_optimizer("adamw", parameter_groups(network, 0.01), rate)
    loop = Loop(network, optimizer, steps, lambda step: CURVES["cosine"](step, steps), folder / "state.pt", name="test",
                images_per_step=2, save_seconds=0, average=follower)
    for step in loop:
        batch = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
        for part in batch.split(2):
            loop.backward(network(part).square().sum() / len(batch))
        loop.step()
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
    return network, follower, loop


def test_a_stopped_loop_continues_to_the_same_weights_losses_and_averages(tmp_path, capsys):
    whole = train(tmp_path / "a", 7)
    assert len(whole[2].losses) == 7

    def stopped():
        return train(tmp_path / "b", 7, stop_after=3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: cli.working(), lambda _: stopped())
    signal.signal(signal.SIGTERM, before)   # a stopped process ignores it
    assert end.value.code == 0 and "stopped by SIGTERM" in capsys.readouterr().out
    made = []
    cli.run(lambda: None, lambda _: made.append(train(tmp_path / "b", 7)))
    continued = made[0]
    assert "continuing at step 4" in capsys.readouterr().out
    assert continued[2].losses == whole[2].losses and continued[2].losses[-1] < continued[2].losses[0]
    for one, other in zip(whole[:2], continued[:2], strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_resume_point_with_other_groups_of_weight_decay_is_refused(tmp_path):
    """As those of vision transformers that were begun when class tokens were decayed."""
    train(tmp_path, 3)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    decayed, spared = state["optimizer"]["param_groups"]
    decayed["params"].append(spared["params"].pop(0))
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(InputError, match=f"{tmp_path / 'state.pt'}: expected the parameter groups of this version"):
        train(tmp_path, 3)


def test_a_loss_that_is_not_finite_ends_in_one_line(tmp_path):
    with pytest.raises(InputError, match="test: expected a finite loss, found (nan|inf) at step"):
        train(tmp_path, 5, rate=1e30)


@pytest.mark.parametrize(("error", "words"), [
    (torch.OutOfMemoryError("CUDA out of memory"), "too little memory on the device, choose smaller batches: CUDA out of"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "README.md/set"), "README.md/set: Not a directory\n")])
def test_errors_of_a_request_are_one_line_and_no_failing_disk(capsys, error, words):
    def main(_):
        raise error
    with pytest.raises(SystemExit) as stopped:
        run(lambda: None, main)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith(f"error: {words}")


def test_stopped_is_no_error_that_a_handler_swallows():
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize(("name", "values"), [
    ("constant", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("cosine", [1, 0.5, 0]), ("half-cosine", [1, 0.85355339, 0.5]),
    ("warm-cosine", [1 / 6, 0.58682409, 0]), ("triangle", [0.04, 2 / 3, 0]),
    ("one-cycle", [1 / 20, (1 + math.cos(math.pi * 31 / 81)) / 2, (1 + math.cos(math.pi * 80 / 81)) / 2]),
    ("short-warm-up", [0.02, 0.5, 0])])
def test_rate_curves_at_start_middle_and_end(name, values):
    total, ends = 100, {"one-cycle": 99}
    found = [CURVES[name](done, total) for done in (0, 50, ends.get(name, 100))]
    assert found == pytest.approx(values, abs=1e-7)


def test_a_finished_command_is_answered_without_its_libraries(own_image_data, tmp_path):
    def again() -> tuple[int, str, bool]:
        done = subprocess.run([sys.executable, "-X", "importtime", "-m", "distillation.gen_syn_image", "--method", "random",
                               "--dataset", "folder", "--data_dir", own_image_data, "--ipc", "2",
                               "--save_init_image_path", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout, bool(re.search(r"\| +torch\n", done.stderr))
    folder = tmp_path / "out" / "folder_random_ipc2"
    (own_image_data / "loop").symlink_to(own_image_data)
    (own_image_data / "broken").symlink_to(own_image_data / "nothing")
    assert again()[2]
    assert again() == (0, f"{folder}: complete, nothing to do\n", False)
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")     # another artefact in its place
    assert again()[::2] == (0, True)
    next((own_image_data / "train").rglob("*.png")).unlink()     # other images: the stored configuration refuses them
    assert again()[::2] == (2, True)


def test_a_checkpoint_of_ours_is_answered_too(tmp_path, monkeypatch):
    shutil.copytree(ROOT / DIGITS_LDM, tmp_path / "ldm")
    monkeypatch.setattr(cli, "ANSWERS", tmp_path / "answers")
    monkeypatch.setattr(cli, "finished", [tmp_path / "ldm"])
    cli._remember("question")
    assert cli._answered("question")
    (tmp_path / "ldm/unet/config.json").write_text("{}")
    assert not cli._answered("question")


def test_a_changed_file_of_a_checkpoint_is_another_input(tmp_path):
    checkpoint = tmp_path / "ldm"
    shutil.copytree(ROOT / DIGITS_LDM, checkpoint)
    before = cli._dates(str(checkpoint))
    assert cli._dates(str(checkpoint)) == before
    (checkpoint / "vae/config.json").write_text((checkpoint / "vae/config.json").read_text() + " ")
    assert cli._dates(str(checkpoint)) != before


def test_a_file_rewritten_among_many_is_another_input(tmp_path):
    for number in range(120):
        (tmp_path / f"{number}.png").write_text("a picture")
    before = cli._dates(str(tmp_path))
    assert cli._dates(str(tmp_path)) == before
    (tmp_path / "7.png").write_text("b picture")
    assert cli._dates(str(tmp_path)) != before
    (tmp_path / "manifest.json").write_text("{}")     # of whoever made the pictures
    before = cli._dates(str(tmp_path))
    (tmp_path / "8.png").unlink()
    assert cli._dates(str(tmp_path)) != before
