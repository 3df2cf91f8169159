"""Run the commands of a study: blocks in parallel, the commands of a block in order.

    python -m misc.studies.batch runs/study/commands.txt --jobs 2

Each line of the file is a module and its flags, `validate.train_FKD --train-dir ...`, for the `python` of PATH. Empty lines
separate blocks. A failing command ends its block. SIGTERM is passed on: each running command writes its state, and nothing more
is started. The exit code is then 143, not 0, so that the study ends too. The same file again runs what is left.
"""

import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.cli import InputError, Parser, Progress, run, stop_asked
from scripts.files import read_bytes


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("commands", help="file of commands")
    parser.add_argument("--jobs", default=2, type=int, least=1,
                        help="blocks that run in parallel, with OMP_NUM_THREADS threads each")
    return parser.parse_args()


def main(args):
    blocks, running = read_blocks(Path(args.commands)), set()
    with ThreadPoolExecutor(args.jobs) as pool:
        done = [pool.submit(run_block, block, running) for block in blocks]
        try:
            failed = [number for number, block in enumerate(Progress(done, desc="blocks", unit="block"), 1) if block.result()]
        except BaseException:   # SIGTERM, or the terminal's interrupt
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running.copy():
                process.terminate()
            raise
    if failed:
        raise InputError(f"{args.commands}: {len(failed)} of {len(blocks)} blocks failed: {failed}")


def read_blocks(path: Path) -> list[list[list[str]]]:
    """Blocks of commands, each a list of words; `#` starts a comment. Raises InputError when there are none."""
    parts = read_bytes(path, "a file of commands").decode().split("\n\n")
    blocks = [[words for line in part.splitlines() if (words := shlex.split(line, comments=True))] for part in parts]
    blocks = [block for block in blocks if block]
    if not blocks:
        raise InputError(f"{path}: expected commands, found none")
    return blocks


def run_block(block: list[list[str]], running: set) -> int:
    """Run commands in order until one fails; returns its exit code, else 0. `running` has the processes that run now."""
    for words in block:
        if stop_asked():
            break
        with subprocess.Popen(["python", "-m", *words]) as process:
            running.add(process)
            if stop_asked():    # while it was being started
                process.terminate()
        running.discard(process)
        if process.returncode:
            print(f"failed with exit code {process.returncode}: {shlex.join(words)}", file=sys.stderr, flush=True)
            return process.returncode
    return 0


if __name__ == "__main__":
    try:
        run(parse_args, main)
    finally:
        if stop_asked():
            sys.exit(128 + signal.SIGTERM)
