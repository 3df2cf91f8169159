"""Who works in a folder: lock files, which say host, process and since when.

A holder touches its locks every BEAT_SECONDS. A lock is stale when its process on this machine is gone, or when another
machine has not touched it for STALE_SECONDS; then the next one takes it over. `.lock` is held by the job that has the folder to
itself. Jobs that share a folder (`--share`) each hold a `.claims/job-*`, and `.claims/unit-*` for what they are at.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from functools import cache
from pathlib import Path

BEAT_SECONDS, STALE_SECONDS = 20, 180
LOCK, CLAIMS = ".lock", ".claims"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

_held: set[Path] = set()
_beating: set[int] = set()  # the process whose thread beats; a fork has no thread yet


def take(lock: Path, **more) -> dict | None:
    """Take `lock`, also from a holder that is gone. None if it is held by this process now, else who holds it.

    `more` is said in it.
    """
    lock = Path(lock).absolute()
    lock.parent.mkdir(parents=True, exist_ok=True)
    offer = lock.with_name(f"{lock.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        offer.write_text(json.dumps({**own_name(), **more}), encoding="utf-8")
        while not _create(lock, offer):
            holder = read_holder(lock)
            if holder is not None and same(holder, own_name()):
                break
            if holder is not None and not stale(lock, holder, offer.stat().st_mtime):
                return holder
            if holder is not None:
                _bury(lock, holder)
    finally:
        with contextlib.suppress(OSError):
            offer.unlink(missing_ok=True)
    _held.add(lock)
    _beat()
    return None


def release(lock: Path) -> None:
    """Give `lock` back if this process holds it."""
    lock = Path(lock).absolute()
    _held.discard(lock)
    holder = read_holder(lock)
    if holder is not None and same(holder, own_name()):
        with contextlib.suppress(OSError):  # gone already, or a disk that fails now: it goes stale by itself
            lock.unlink(missing_ok=True)
    if lock.parent.name == CLAIMS:
        with contextlib.suppress(OSError):  # others' claims are in it
            lock.parent.rmdir()


def release_all() -> None:
    """Give back whatever this process holds."""
    for lock in list(_held):
        release(lock)


def holder_of(lock: Path) -> dict | None:
    """Who holds `lock` and is alive; None for nobody, or this process."""
    holder = read_holder(lock)
    if holder is None or same(holder, own_name()):
        return None
    return None if stale(lock, holder, time.time()) else holder


def describe(holder: dict) -> str:
    """A holder in words."""
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')} since {holder.get('since', '?')}"


@cache
def _machine() -> str:
    """Where process numbers mean the same: this boot of this machine, and this namespace of processes."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def own_name() -> dict:
    """This process, as its locks name it."""
    return _name(os.getpid())


@cache
def _name(pid: int) -> dict:
    return {"host": socket.gethostname(), "pid": pid, "since": time.strftime("%Y-%m-%d %H:%M:%S"), "machine": _machine(),
            "started": started(pid)}


def started(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks ("" where it does not say); None for one that is gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def same(one: dict, other: dict) -> bool:
    """Whether two names are of one process."""
    return all(one.get(part) == other.get(part) for part in ("machine", "pid", "started"))


def stale(lock: Path, holder: dict, now: float) -> bool:
    """Whether the holder is gone; `now` is the time of the lock's file system in seconds, whose clock may differ from ours."""
    if holder.get("machine") == _machine():
        return started(holder["pid"]) != holder["started"]
    try:
        return now - Path(lock).stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True


def read_holder(lock: Path) -> dict | None:
    """What a lock says; None where there is none, and nothing where it cannot be understood."""
    try:
        found = json.loads(Path(lock).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"machine", "pid", "started"} <= found.keys() else {}


def _create(lock: Path, offer: Path) -> bool:
    """Give `offer` the name `lock` unless there is one: the lock appears with all it says, or not at all."""
    try:
        os.link(offer, lock)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            with open(lock, "x", encoding="utf-8") as file:
                file.write(offer.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
    return True


def _bury(lock: Path, holder: dict) -> None:
    """Remove a stale lock; put back what was not `holder`'s, since another may have taken the lock over meanwhile."""
    grave = lock.with_name(f"{lock.name}.{socket.gethostname()}-{os.getpid()}.stale.partial")
    try:
        os.rename(lock, grave)
    except FileNotFoundError:
        return
    if read_holder(grave) != holder:
        with contextlib.suppress(FileExistsError):
            os.link(grave, lock)
    grave.unlink()


def _beat() -> None:
    """See to it that a thread of this process touches its locks."""
    if os.getpid() in _beating:
        return
    _beating.clear()
    _beating.add(os.getpid())

    def beat():
        while True:
            time.sleep(BEAT_SECONDS)
            for lock in list(_held):
                with contextlib.suppress(OSError):
                    if same(read_holder(lock) or {}, own_name()):
                        os.utime(lock)
    threading.Thread(target=beat, daemon=True, name="locks").start()
