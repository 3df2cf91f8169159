"""The contract between stages: every artefact is a folder whose `manifest.json` is written last and atomically.

`config.json` is written first, so that a second run with another configuration is refused before it touches anything;
`manifest.json` appears when everything it names is in place. Between the two a lock keeps other jobs out (locks.py). Readers
refuse what does not fit: whatever a file holds, they end in InputError or in content that has the shape they promise, and
nothing outside the folder is opened.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath

from scripts import locks
from scripts.cli import ROOT, InputError, at_work, stop_if_asked
from scripts.files import ABSENT, digest, disk_errors, one_line, read_json, write_json

VERSION = 1
WAIT_SECONDS = 1
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
    """Versions of the packages that decide what is computed."""
    return {name: metadata.version(name) for name in PACKAGES}


def begin(folder: Path, kind: str, config: dict, wait: bool = False, together: bool = False) -> bool:
    """Claim `folder` for this configuration and this job. True when it is complete already, False when there is work to do.

    Raises InputError naming both values when the folder was begun with another configuration, and naming the holder when
    another job is at work in it; with `wait` it waits for that one instead. Jobs that say `together` share the folder.
    """
    folder = Path(folder)
    config = json.loads(json.dumps(config))
    check_configuration(folder, kind, config)
    while not (folder / "manifest.json").exists():
        stop_if_asked()
        with disk_errors(folder):
            holder = share_folder(folder) if together else take_folder(folder)
        if holder is None:
            check_configuration(folder, kind, config)  # another job may have begun, or finished, in between
            if (folder / "manifest.json").exists():
                release_folder(folder)
                return True
            if not (folder / "config.json").exists():
                write_json(folder / "config.json", {"kind": kind, "config": config})
            at_work()
            return False
        if not wait and not (together and holder.get("shared")):
            raise InputError(f"{folder}: expected a folder that no other job is at work in, found {locks.describe(holder)}")
        time.sleep(WAIT_SECONDS)
    return True


def check_configuration(folder: Path, kind: str, config: dict) -> None:
    """Raise InputError when `folder` was begun as another kind or with another configuration."""
    if not (folder / "config.json").exists():
        return
    found = read_json(folder / "config.json")
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise InputError(f"{folder / 'config.json'}: expected the kind and configuration of a run, found something else")
    if found.get("kind") != kind:
        raise InputError(f"{folder}: expected a folder of kind {kind}, found {found.get('kind')}")
    for key in sorted(config.keys() | found["config"].keys()):
        wanted, had = config.get(key), found["config"].get(key)
        if wanted != had:
            raise InputError(f"{folder}: begun with {key}={had!r}, now asked for {wanted!r}; choose another folder")


def take_folder(folder: Path, **more) -> dict | None:
    """Lock `folder` for this job alone; None if it is ours now, else who is at work in it. `more` is said in the lock."""
    holder = locks.take(folder / locks.LOCK, **more)
    if holder is None:
        others = (locks.holder_of(job) for job in (folder / locks.CLAIMS).glob("job-*"))
        holder = next((other for other in others if other), None)
        if holder is not None:
            locks.release(folder / locks.LOCK)
    return holder


def share_folder(folder: Path) -> dict | None:
    """Join the jobs that share `folder`; None if this one did, else who has it to itself."""
    own = locks.own_name()
    job = folder / locks.CLAIMS / f"job-{own['host']}-{own['pid']}"
    locks.take(job)
    holder = locks.holder_of(folder / locks.LOCK)
    if holder is not None:
        locks.release(job)
    return holder


def release_folder(folder: Path) -> None:
    """Let other jobs in."""
    locks.release(folder / locks.LOCK)
    shutil.rmtree(folder / locks.CLAIMS, ignore_errors=True)


def finish(folder: Path, kind: str, classes: list[dict], config: dict, files: list[str], **facts) -> None:
    """Write `manifest.json`: the folder is complete. `files` are paths below `folder`; `facts` are counts and rows."""
    folder = Path(folder)
    for leftover in folder.rglob("*.partial"):  # of a process that was killed while writing
        leftover.unlink(missing_ok=True)
    write_json(folder / "manifest.json", {
        "kind": kind, "version": VERSION, "classes": classes, "config": config, "code": code_version(),
        "packages": package_versions(), **facts, "files": {name: digest(folder / name) for name in files},
        "bytes": {name: (folder / name).stat().st_size for name in files},
    })
    release_folder(folder)


def hardware() -> str:
    """The accelerator's name, or the processor's and how many threads torch uses."""
    import torch
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return f"{names[0]}, {torch.get_num_threads()} threads"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def write_result(folder: Path, kind: str, config: dict, metrics: dict, seconds: dict) -> None:
    """Write `result.json`: what a run measured and on what; not part of the manifest, since time differs from run to run."""
    write_json(Path(folder) / "result.json", {
        "kind": kind, "metrics": metrics, "config": config, "seconds": {name: round(s, 3) for name, s in seconds.items()},
        "code": code_version(), "packages": package_versions(), "hardware": hardware(),
    })


def identity(artefact: Path) -> str:
    """What a folder's files hash to together, or a single file's hash: the link between a stage and its input."""
    artefact = Path(artefact)
    if artefact.is_file():
        return digest(artefact)
    files = read_json(artefact / "manifest.json")["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path, kind: str) -> dict:
    """Read a folder's manifest and check it without opening its files.

    Raises InputError: missing, unfinished, another kind or version, not built as `finish` builds it, a file that is missing, of
    another size or outside the folder.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError(f"{folder}: expected a finished folder of kind {kind}, found {without_manifest(folder)}")
    manifest = read_json(path)
    if isinstance(manifest, dict) and manifest.get("kind") != kind:
        raise InputError(f"{path}: expected kind {kind}, found {manifest.get('kind')}")
    raise_first(f"{path}", manifest_problems(manifest))
    raise_first(f"{folder}", file_problems(folder, manifest), mark="/")
    return manifest


def without_manifest(folder: Path) -> str:
    """What a folder without `manifest.json` is."""
    return "an unfinished folder" if (folder / "config.json").exists() else \
        "a folder without manifest.json" if folder.is_dir() else "a file" if folder.is_file() else "nothing"


def raise_first(where: str, problems: list[str], mark: str = ": ") -> None:
    """Raise InputError for the first of `problems` ("what: expected ..., found ..."), if any, after `where` and a mark."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{where}{mark}{one_line(ValueError(problems[0]))}{more}")


def manifest_problems(manifest) -> list[str]:
    """What is wrong with a manifest's own shape: fields that every kind has, of the types that readers rely on."""
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
                 for label, entry in enumerate(manifest["classes"]) if not _is_class(entry)]
    problems += [f"file {name!r}: expected a path inside the folder" for name in manifest["files"] if not is_inner(name)]
    problems += [f"file {name}: expected a SHA-256 digest, found {digest!r}" for name, digest in manifest["files"].items()
                 if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest))]
    sizes = manifest.get("bytes", {})
    if not isinstance(sizes, dict) or any(type(size) is not int for size in sizes.values()):
        problems.append("expected bytes with a whole number for each file, found others")
    return problems + ([] if manifest["classes"] else ["expected at least one class, found none"])


def _is_class(entry) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "prompt"))


def is_inner(name) -> bool:
    """Whether `name` is a relative path in POSIX form that stays below where it starts, links aside."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and _can_be_named(name)


def _can_be_named(name: str) -> bool:
    try:
        return all(len(part) <= 255 for part in os.fsencode(name).split(b"/"))
    except UnicodeEncodeError:
        return False


def file_problems(folder: Path, manifest: dict) -> list[str]:
    """Files of a manifest that are missing, no regular file, of another size, or lead out of `folder` by a link.

    One question to the file system per file, a few per folder, and none about content.
    """
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
