"""A Python that has loaded the libraries: commands fork from it, which saves each of them a start of several seconds (Linux).

    python -m misc.studies.warm FOLDER $$; PATH=FOLDER:$PATH

writes an executable FOLDER/python and starts a server that ends with the process $$. The executable hands `-m module flags` of
this repository, with working directory, environment and standard streams, to the server, and ends as the command does. SIGTERM
and SIGINT are passed on; where it is killed, the command is killed too. The real Python runs everything else.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
from functools import partial
from pathlib import Path

PACKAGES = ("distillation", "matching", "validate", "continual", "misc")
LOADED = ("accelerate", "diffusers", "sklearn.cluster", "torch", "torchvision", "transformers",
          "scripts.pipeline_stable_diffusion_latents2img")
THREADS = os.environ.get("OMP_NUM_THREADS", "")  # read by libraries as they are loaded
SCRIPT = '#!/bin/sh\nexec "{python}" -IS "{here}" --ask "{python}" "{socket}" "{threads}" "$@"\n'


def start(folder: str, owner: int) -> None:
    """Write the executable, and leave the server behind."""
    path = Path(tempfile.mkdtemp(prefix="warm-")) / "socket"
    Path(folder).mkdir(parents=True, exist_ok=True)
    python = Path(folder, "python")
    python.write_text(SCRIPT.format(python=sys.executable, here=Path(__file__).resolve(), socket=path, threads=THREADS))
    python.chmod(0o755)
    if os.fork() == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        serve(path, owner)
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def serve(path: Path, owner: int) -> None:
    """Fork a keeper, and that one the command, for each connection, while the process `owner` lives.

    There is a socket only once the libraries are loaded. Until then commands start by themselves, so that those with nothing to
    do need not wait.
    """
    import gc
    import importlib
    for name in LOADED:
        if not Path(f"/proc/{owner}").exists():
            return
        importlib.import_module(name)
    gc.freeze()  # a collection in a command would copy the memory of all that is loaded
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{path}-")
    server.listen(64)
    os.rename(f"{path}-", path)  # it listens from the moment it is there
    while Path(f"/proc/{owner}").exists():
        if select.select([server], [], [], 1)[0]:
            client, _ = server.accept()
            fork(keep, client)
            client.close()


def keep(client: socket.socket) -> None:
    """Run a command in a fork, and send its exit code; a client that is gone takes the command with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, *_ = socket.recv_fds(client, 4, 3)
    words, folder, environment = json.loads(client.makefile("rb").read(int.from_bytes(size, "big")))
    command = fork(partial(work, words, folder, environment), streams)
    for stream in streams:
        os.close(stream)
    client.sendall(command.to_bytes(4, "big"))
    over = os.pidfd_open(command)
    if over not in select.select([client, over], [], [])[0]:  # a client sends nothing: it is gone
        os.kill(command, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        client.sendall(code.to_bytes(4, "big", signed=True))


def work(words: list[str], folder: str, environment: dict, streams: list[int]) -> None:
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


def fork(work, what) -> int:
    """Fork a process that runs `work(what)` and exits as Python would; returns its process number."""
    import threading
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 0
    try:
        work(what)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()   # as at the end of Python: threads that write a file end first
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ask(python: str, path: str, threads: str, *words: str) -> None:
    """The client: ends as the command does."""
    server = socket.socket(socket.AF_UNIX)
    ours = words[:1] == ("-m",) and words[1].partition(".")[0] in PACKAGES
    if not ours or os.environ.get("OMP_NUM_THREADS", "") != threads or server.connect_ex(path):
        os.execv(python, [python, *words])
    content = json.dumps([words[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(content).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(content)
    command = int.from_bytes(server.recv(4), "big")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(command, number))
    code = int.from_bytes(server.recv(4) or b"\1", "big", signed=True)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    ask(*sys.argv[2:]) if sys.argv[1] == "--ask" else start(sys.argv[1], int(sys.argv[2]))
