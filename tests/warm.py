"""A Python that has loaded the libraries: the tests' commands fork from it, which saves each of them several seconds.

`warm_python(folder)` writes an executable `python`. It hands `-m module flags` of this repository, with the working directory,
the environment and the standard streams, to a server, and ends as the command does. SIGTERM is passed on; where it is killed,
the command is killed too. Everything else is run by the real Python.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

PACKAGES = ("distillation", "matching", "validate", "continual", "misc")
SCRIPT = '#!/bin/sh\nexec "{python}" -IS "{here}" "{python}" "{socket}" "$@"\n'


def warm_python(folder: Path) -> Path:
    """Start the server, which ends with this process; returns the executable."""
    path, python = folder / "socket", folder / "python"
    subprocess.Popen([sys.executable, "-m", "tests.warm", path], stdin=subprocess.PIPE, cwd=Path(__file__).parent.parent,
                     env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not path.exists():
        time.sleep(0.01)
    python.write_text(SCRIPT.format(python=sys.executable, here=__file__, socket=path))
    python.chmod(0o755)
    return python


def serve(path: str) -> None:
    """Fork a keeper, and that one the command, for each connection, until stdin is closed."""
    from misc.studies.batch import LOADED  # not for the client, which has to be light
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a command would copy the memory of all that is loaded
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    while sys.stdin not in (ready := select.select([server, sys.stdin], [], [])[0]):
        if server in ready:
            client, _ = server.accept()
            if os.fork() == 0:
                return keep(client)
            client.close()


def keep(client: socket.socket) -> None:
    """Run a command in a fork, and send its exit code; a client that is gone takes the command with it."""
    from misc.studies.batch import fork
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, *_ = socket.recv_fds(client, 4, 3)
    words, folder, environment = json.loads(client.makefile("rb").read(int.from_bytes(size, "big")))
    command = fork(partial(run, words, folder, environment), streams)
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    client.sendall(command.to_bytes(4, "big"))
    while not (ended := os.waitpid(command, os.WNOHANG))[0]:
        if select.select([client], [], [], 0.005)[0]:  # nothing is sent: the client is gone
            os.kill(command, signal.SIGKILL)
    client.sendall(os.waitstatus_to_exitcode(ended[1]).to_bytes(4, "big", signed=True))
    os._exit(0)


def run(words: list[str], folder: str, environment: dict, streams: list[int]) -> None:
    """The command itself."""
    for own, given in enumerate(streams):
        os.dup2(given, own)
        os.close(given)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv, sys.path[:1] = words, [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def ask(python: str, path: str, words: list[str]) -> None:
    """The client: ends as the command does."""
    if words[:1] != ["-m"] or words[1].partition(".")[0] not in PACKAGES or os.environ.get("OMP_NUM_THREADS") != "1":
        os.execv(python, [python, *words])
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    content = json.dumps([words[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(content).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(content)
    command = int.from_bytes(server.recv(4), "big")
    signal.signal(signal.SIGTERM, lambda *_: os.kill(command, signal.SIGTERM))
    code = int.from_bytes(server.recv(4), "big", signed=True)
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    serve(sys.argv[1]) if len(sys.argv) == 2 else ask(sys.argv[1], sys.argv[2], sys.argv[3:])
