"""Run many commands without paying for the start of each: they are forked from one process that has loaded the libraries.

    python -m misc.studies.batch runs/study/commands.txt --jobs 2

A line of the file is a module and its flags, `validate.train_FKD --train-dir ...`. Lines of a block run one after another;
blocks, parted by empty lines, run side by side. A block stops at its first failing command; the others go on. Every command
resumes by itself, so running the same file again does what is left.
"""

import importlib
import os
import shlex
import socket
import sys
from pathlib import Path

from scripts.cli import InputError, Parser, check_range, run

LOADED = ("accelerate", "diffusers", "sklearn.cluster", "torch", "torchvision", "transformers",
          "scripts.pipeline_stable_diffusion_latents2img")


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("commands", help="file of commands")
    parser.add_argument("--jobs", default=2, type=int, help="blocks that run at once; give each OMP_NUM_THREADS of its own")
    args = parser.parse_args()
    check_range("--jobs", args.jobs, 1)
    return args


def main(args):
    from tqdm import tqdm
    blocks = read_blocks(Path(args.commands))
    for name in LOADED:
        importlib.import_module(name)
    waiting, running, failed = list(enumerate(blocks, 1)), {}, []
    with tqdm(total=len(blocks), desc="blocks", unit="block", disable=None) as bar:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                number, block = waiting.pop(0)
                running[fork(run_block, block)] = number
            process, status = os.wait()
            if os.waitstatus_to_exitcode(status):
                failed.append(running[process])
            del running[process]
            bar.update()
    if failed:
        raise InputError(f"{args.commands}: expected {len(blocks)} blocks to run, {len(failed)} failed: {sorted(failed)}")


def read_blocks(path: Path) -> list[list[list[str]]]:
    """Blocks of commands, each a list of words; `#` begins a comment. Raises InputError when there are none."""
    if not path.is_file():
        raise InputError(f"{path}: expected a file of commands, found none")
    blocks: list[list[list[str]]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
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
    """Run commands one after another, each in a process of its own; the exit code of the first that fails, or 0."""
    for words in block:
        _, status = os.waitpid(fork(run_command, words), 0)
        code = os.waitstatus_to_exitcode(status)
        if code:
            print(f"failed with exit code {code}: {shlex.join(words)}", file=sys.stderr, flush=True)
            return 1
    return 0


def run_command(words: list[str]) -> int:
    """Run one entry point here, as `python -m` would."""
    sys.argv = words
    entry = importlib.import_module(words[0])
    run(entry.parse_args, entry.main)
    return 0


def free_port() -> int:
    """A port of this machine that nothing listens on, where the processes of a job can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork(work, what) -> int:
    """The process number of a fork that runs `work(what)` and exits with the code it returns."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        code = work(what)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


if __name__ == "__main__":
    run(parse_args, main)
