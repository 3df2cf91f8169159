"""What a shell script would run: its commands with every setting, found by running it with a `python` that only says so."""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.cli import ROOT, InputError

# a shell gives what it starts with `&` nothing to read, which tells such commands from the others
SAY = """import json, os, sys
alone = os.path.samestat(os.fstat(0), os.stat(os.devnull))
said = {"command": sys.argv[1:], "aside": alone, "threads": os.environ.get("OMP_NUM_THREADS")}
sys.stdout.write(json.dumps(said) + "\\n")
"""
HEADING = re.compile(r"== ([\w-]+): ")


@dataclass(frozen=True)
class Command:
    """`python -m module` with the settings `args`, as a script starts it in its stage; `aside` of what the script does next.

    `threads` is OMP_NUM_THREADS as the script sets it, or passes it on; None: as many as there are cores.
    """

    stage: str
    module: str
    args: argparse.Namespace
    aside: bool
    threads: str | None = None


def commands_of(script: str, stage: str = "") -> list[Command]:
    """The commands of entry points with settings of their own that `script` starts, in order, by its headings' stages.

    Variables of the environment reach the script as usual. Nothing is run or written. Raises InputError where the script fails.
    """
    with TemporaryDirectory(prefix="plan-") as folder:
        python = Path(folder) / "python"
        python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -ISc '{SAY}' \"$@\"\n")
        python.chmod(0o755)
        done = subprocess.run(["sh", str(ROOT / script)], capture_output=True, text=True, input="", env={
            **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "RUN": f"{folder}/run", "LAUNCH": "python"})
    if done.returncode:
        raise InputError(f"{script}: expected exit code 0, found {done.returncode}: {' '.join(done.stderr.split())[-300:]}")
    found = []
    for line in done.stdout.splitlines():
        if heading := HEADING.match(line):
            stage = heading[1]
        elif line.startswith("{"):
            said = json.loads(line)
            if said["command"][:1] == ["-m"] and stage != "report":
                found.append(Command(stage, said["command"][1], parsed(*said["command"][1:]), said["aside"], said["threads"]))
    return found


def parsed(module: str, *flags: str) -> argparse.Namespace:
    """What an entry point makes of its flags."""
    before, sys.argv = sys.argv, [module, *flags]
    try:
        return importlib.import_module(module).parse_args()
    finally:
        sys.argv = before
