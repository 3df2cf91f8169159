"""The contract between stages: every artefact is a folder whose `manifest.json` is written last.

`config.json` is written first, so that a run with another configuration is refused once there is output. A lock keeps a second
job out until `manifest.json` appears. Readers raise InputError for what does not fit the contract, and open nothing outside the
folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import socket
import stat
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath

from scripts.cli import ROOT, InputError, at_end, finished, stop_if_asked, working
from scripts.files import ABSENT, digest, disk_errors, one_line, read_json, write_json

VERSION = 1
LOCK = ".lock"
ADDED = ("images_digest", "test_bytes", "weights", "ipc")  # of configurations: folders of earlier versions have none
WAIT_SECONDS = 1
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "numpy", "scikit-learn", "pillow")


@cache
def code_version() -> str:
    """The git commit of this checkout, with `+changes` when tracked files differ from it."""
    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def package_versions() -> dict[str, str]:
    """Versions of the packages that results depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def begin(folder: Path, kind: str, config: dict, wait: bool = False) -> bool:
    """Start or continue the artefact in `folder`; True when it is complete.

    Raises InputError when the folder has another configuration, or another process works in it; `wait` waits for that process.
    """
    folder, config = Path(folder), json.loads(json.dumps(config))
    check_configuration(folder, kind, config)
    while not (folder / "manifest.json").exists():
        stop_if_asked()
        with disk_errors(folder):
            holder = lock(folder)
        if holder is None:
            check_configuration(folder, kind, config)  # another process may have begun, or finished, in between
            if (folder / "manifest.json").exists():
                unlock(folder)
                break
            if (folder / "config.json").exists() and has_output(folder):
                _continued.add(folder.absolute())
            else:
                write_json(folder / "config.json", {"kind": kind, "config": config})
            working()
            return False
        if not wait:
            raise InputError(f"{folder}: expected a folder that no other process works in, found {holder}; wait for it to end")
        time.sleep(WAIT_SECONDS)
    check_configuration(folder, kind, config)  # of the process that was waited for
    finished.append(folder)
    return True


_continued: set[Path] = set()  # folders that an earlier process began
_locks: dict[Path, int] = {}  # the open lock files of this process


def lock(folder: Path) -> str | None:
    """Lock `folder` for this process; returns None, or a description of the process that has the lock.

    The system's lock on the file `.lock` ends with its process, so a killed job leaves nothing to clean up.
    """
    path = folder.absolute() / LOCK
    if path in _locks:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                holder = os.read(file, 1000).decode(errors="replace").strip()
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return holder or "another process"
                raise
            print(f"warning: {path.parent}: this disk has no file locks; start no second job in this folder")
        if path.exists() and os.path.samestat(os.fstat(file), os.stat(path)):
            break
        os.close(file)  # the last process removed the file in between
    os.truncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    _locks[path] = file
    return None


def unlock(folder: Path) -> None:
    """Let other processes work in `folder`, if this one has its lock."""
    path = folder.absolute() / LOCK
    if path in _locks:
        with contextlib.suppress(OSError):  # if the disk fails, the lock ends with the process
            path.unlink(missing_ok=True)
        os.close(_locks.pop(path))


at_end.append(lambda: [unlock(path.parent) for path in list(_locks)])


def has_output(folder: Path) -> bool:
    """Whether a run has written anything into `folder` but its configuration and lock."""
    return any(path.name not in ("config.json", LOCK) and path.suffix != ".partial" and path.is_file()
               for path in folder.rglob("*"))


def check_configuration(folder: Path, kind: str, config: dict) -> None:
    """Raise InputError when `folder` has another kind or configuration. One without output yet binds nobody."""
    record = next((path for name in ("config.json", "manifest.json") if (path := folder / name).exists()), None)
    if record is None or not has_output(folder):
        return
    found = read_json(record)
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise InputError(f"{record}: expected the kind and configuration of a run, found something else")
    if found.get("kind") != kind:
        raise InputError(f"{folder}: expected a folder of kind {kind}, found {found.get('kind')}")
    asked, begun = flat(config), flat(found["config"])
    for key in sorted(asked.keys() | begun.keys()):
        wanted, had = asked.get(key), begun.get(key)
        if wanted != had and not (key in ADDED and had is None):
            raise InputError(f"{folder}: begun with {key}={had!r}, now asked for {wanted!r}; choose another folder")


def flat(nested: dict, before: str = "") -> dict:
    """A dictionary without nesting: {"recipe.lr": 0.001}."""
    found = {}
    for key, one in nested.items():
        found |= flat(one, f"{before}{key}.") if isinstance(one, dict) else {f"{before}{key}": one}
    return found


def finish(folder: Path, kind: str, classes: list[dict], config: dict, files: list[str], **facts) -> None:
    """Complete a folder: write `manifest.json`. `files` are paths below `folder`; `facts` are counts and rows."""
    folder = Path(folder)
    for leftover in folder.rglob("*.partial"):  # of a process killed while writing
        leftover.unlink(missing_ok=True)
    write_json(folder / "manifest.json", {
        "kind": kind, "version": VERSION, "classes": classes, "config": config, "code": code_version(),
        "packages": package_versions(), **facts, "files": {name: digest(folder / name) for name in files},
        "bytes": {name: (folder / name).stat().st_size for name in files},
    })
    unlock(folder)
    finished.append(folder)


def hardware() -> str:
    """The accelerator's name, or the processor's with its widest vectors (AVX2, AVX512 ...), and the number of torch's threads.

    Virtual machines give unlike processors one name.
    """
    import torch
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names, threads = [], torch.get_num_threads()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name, vectors = [*names, platform.processor() or platform.machine()][0], torch.backends.cpu.get_cpu_capability()
    return f"{name} ({vectors}), {threads} thread{'s' if threads > 1 else ''}"


def write_result(folder: Path, kind: str, config: dict, metrics: dict, seconds: dict, added_up: bool = False) -> None:
    """Write `result.json`: what a run measured, and on what. It is not in the manifest, since times differ between runs.

    The field `resumed` says that `seconds` are this process's alone, and that an earlier one began the folder; `added_up`: they
    are those of all of these. `processes` is the number of those that divided the work.
    """
    how = {"resumed": True} if Path(folder).absolute() in _continued and not added_up else {}
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        how["processes"] = processes
    write_json(Path(folder) / "result.json", {
        "kind": kind, "metrics": metrics, "config": config, "seconds": {name: round(s, 3) for name, s in seconds.items()},
        **how, "code": code_version(), "packages": package_versions(), "hardware": hardware(),
    })


def identity(artefact: Path) -> str:
    """The hash of all files of a folder, or of one file: the link between a stage and its input."""
    artefact = Path(artefact)
    if artefact.is_file():
        return digest(artefact)
    manifest = read_json(artefact / "manifest.json")
    raise_first(f"{artefact / 'manifest.json'}", manifest_problems(manifest))
    return hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, kind: str) -> dict:
    """Read and check a folder's manifest, without opening the other files.

    Raises InputError for an unfinished folder, another kind or version, and files that are missing, outside or of another size.
    """
    folder, path = Path(folder), Path(folder) / "manifest.json"
    if not path.exists():
        raise InputError(f"{folder}: expected a finished folder of kind {kind}, found {without_manifest(folder)}")
    manifest = read_json(path)
    if isinstance(manifest, dict) and manifest.get("kind") != kind:
        raise InputError(f"{path}: expected kind {kind}, found {manifest.get('kind')}")
    raise_first(f"{path}", manifest_problems(manifest))
    raise_first(f"{folder}", file_problems(folder, manifest), mark="/")
    return manifest


def check_held_out(validation: int, *folders) -> None:
    """Raise InputError for an artefact that may have seen the images that `--validation` holds out for the test."""
    for path in [Path(folder) / "manifest.json" for folder in folders if folder and validation]:
        manifest = read_json(path) if path.is_file() else {"config": {}}
        raise_first(f"{path}", manifest_problems(manifest) if path.is_file() else [])
        if (made_with := manifest["config"].get("validation", 0)) != validation:
            raise InputError(f"--validation {validation}: expected {path.parent} made with it as well, found --validation "
                             f"{made_with}; it may have seen the images of the test")


def without_manifest(folder: Path) -> str:
    """A description of a folder without `manifest.json`."""
    return "an unfinished folder" if (folder / "config.json").exists() else \
        "a folder without manifest.json" if folder.is_dir() else "a file" if folder.is_file() else "nothing"


def raise_first(where: str, problems: list[str], mark: str = ": ") -> None:
    """Raise InputError for the first of `problems` ("what: expected ..., found ..."), if any."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{where}{mark}{one_line(ValueError(problems[0]))}{more}")


def manifest_problems(manifest) -> list[str]:
    """Problems of the fields that manifests of every kind have."""
    if not isinstance(manifest, dict):
        return [f"expected a manifest, found {type(manifest).__name__}"]
    if manifest.get("version") != VERSION:
        return [f"expected version {VERSION}, found {manifest.get('version')}"]
    problems = [f"expected {key} of type {kind.__name__}, found {type(manifest.get(key)).__name__}"
                for key, kind in (("classes", list), ("config", dict), ("files", dict))
                if not isinstance(manifest.get(key), kind)]
    if problems:
        return problems
    problems += [f"class {label}: expected a name and a prompt, found {entry!r}"
                 for label, entry in enumerate(manifest["classes"])
                 if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("name", "prompt"))]
    problems += [f"file {name!r}: expected a path inside the folder" for name in manifest["files"] if not is_inner(name)]
    problems += [f"file {name}: expected a SHA-256 digest, found {digest!r}" for name, digest in manifest["files"].items()
                 if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest))]
    sizes = manifest.get("bytes", {})
    if not isinstance(sizes, dict) or any(type(size) is not int for size in sizes.values()):
        problems.append("expected bytes with a whole number for each file, found others")
    return problems + ([] if manifest["classes"] else ["expected at least one class, found none"])


def is_inner(name) -> bool:
    """Whether `name` is a relative path in POSIX form that a disk can have below a folder, links aside."""
    if not isinstance(name, str) or "\0" in name or "\\" in name or name.startswith("/"):
        return False
    parts = PurePosixPath(name).parts
    try:
        return bool(parts) and ".." not in parts and all(len(part) <= 255 for part in os.fsencode(name).split(b"/"))
    except UnicodeEncodeError:
        return False


def file_problems(folder: Path, manifest: dict) -> list[str]:
    """Files of a manifest that are missing, not regular, of another size, or links out of `folder`; reads no content."""
    inside, sizes, problems = os.path.join(os.path.realpath(folder), ""), manifest.get("bytes", {}), []
    names = {name: PurePosixPath(name) for name in manifest["files"]}
    parents = {parent: os.path.realpath(folder / parent) for parent in {path.parent for path in names.values()}}
    for name, path in names.items():
        real, size = os.path.join(parents[path.parent], path.name), sizes.get(name)
        try:
            status = os.lstat(real)
            if stat.S_ISLNK(status.st_mode):
                real = os.path.realpath(real)
                status = os.stat(real)
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            status = None
        if not real.startswith(inside):
            problems.append(f"{name}: expected a file inside the folder, found a link to {real}")
        elif status is None or not stat.S_ISREG(status.st_mode):
            problems.append(f"{name}: expected a file, found {'nothing' if status is None else 'something else'}")
        elif size is not None and status.st_size != size:
            problems.append(f"{name}: expected {size} bytes, found {status.st_size}")
    return problems
