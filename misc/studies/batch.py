"""Run many commands, each forked from one process that has loaded the libraries, which saves their start.

    python -m misc.studies.batch runs/study/commands.txt --jobs 2

Each line of the file is a module and its flags, `validate.train_FKD --train-dir ...`. Empty lines separate blocks. The lines of
a block run in order, blocks run in parallel. A failing command ends its block. SIGTERM is passed on: each running command
writes its state, and nothing more is started. The exit code is then 143, not 0, so that the study ends too. The same file again
runs what is left.
"""

import contextlib
import importlib
import os
import shlex
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from scripts.cli import InputError, Parser, Progress, Stopped, check_range, run, stop_asked
from scripts.files import read_bytes

LOADED = ("accelerate", "diffusers", "sklearn.cluster", "torch", "torchvision", "transformers",
          "scripts.pipeline_stable_diffusion_latents2img")
STOPPED = 128 + signal.SIGTERM


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("commands", help="file of commands")
    parser.add_argument("--jobs", default=2, type=int, help="blocks that run in parallel, with OMP_NUM_THREADS threads each")
    args = parser.parse_args()
    check_range("--jobs", args.jobs, 1)
    return args


def main(args):
    blocks = read_blocks(Path(args.commands))
    for name in LOADED:
        importlib.import_module(name)
    waiting, running, failed = list(enumerate(blocks, 1)), {}, []
    with Progress(total=len(blocks), desc="blocks", unit="block") as bar, stopped_together(running):
        while waiting or running:
            while waiting and len(running) < args.jobs:
                number, block = waiting.pop(0)
                running[fork(run_block, block)] = number
            process, status = os.wait()
            number = running.pop(process)
            if os.waitstatus_to_exitcode(status):
                failed.append(number)
            bar.update()
    if failed:
        raise InputError(f"{args.commands}: {len(failed)} of {len(blocks)} blocks failed: {sorted(failed)}")


def read_blocks(path: Path) -> list[list[list[str]]]:
    """Blocks of commands, each a list of words; `#` starts a comment. Raises InputError when there are none."""
    blocks: list[list[list[str]]] = [[]]
    for line in read_bytes(path, "a file of commands").decode().splitlines():
        words = shlex.split(line, comments=True)
        if words:
            blocks[-1].append(words)
        elif blocks[-1] and not line.strip():
            blocks.append([])
    blocks = [block for block in blocks if block]
    if not blocks:
        raise InputError(f"{path}: expected commands, found none")
    return blocks


def run_block(block: list[list[str]]) -> int:
    """Run commands in order, each in its own process; returns 1 after the first that fails, else 0."""
    for words in block:
        process = fork(partial(run_to_end, run_command), words)
        with stopped_together([process]):
            _, status = os.waitpid(process, 0)
        if code := os.waitstatus_to_exitcode(status):
            print(f"failed with exit code {code}: {shlex.join(words)}", file=sys.stderr, flush=True)
            return 1
    return 0


def run_command(words: list[str]) -> int:
    """Run one entry point in this process."""
    sys.argv = words
    entry = importlib.import_module(words[0])
    run(entry.parse_args, entry.main)
    return 0


def run_to_end(work, *args) -> int:
    """Call `work(*args)`, with the exit code STOPPED after SIGTERM. Returns 0."""
    try:
        work(*args)
    finally:
        if stop_asked():
            sys.exit(STOPPED)
    return 0


@contextlib.contextmanager
def stopped_together(processes):
    """Where SIGTERM ends the block, send it to these processes too and wait for their end."""
    try:
        yield
    except Stopped:
        for process in processes:
            os.kill(process, signal.SIGTERM)
        for process in processes:
            os.waitpid(process, 0)
        raise


def fork(work, what) -> int:
    """Fork a process that runs `work(what)` and exits with the code it returns; returns its process number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        code = work(what)
    except Stopped:
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()   # as at the end of Python: threads that write a file end first
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    run_to_end(run, parse_args, main)
