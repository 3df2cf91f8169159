"""Reading and writing files: what is written appears whole or not at all; what is read is as promised, or one line says what
it is instead.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import warnings
from pathlib import Path

from scripts.cli import InputError

LARGEST_BYTES = 2 ** 28  # of a JSON or text file; the manifest of 200,000 images takes 80 MB
DEEPEST = 32             # brackets within brackets in JSON; ours has 8 at most
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # of JSON, in linear time also where its end is missing
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a temporary name beside `path`; it takes the name `path` only if the block succeeds and the disk has it all.

    Raises OSError naming `path` when the disk does not take it, whatever the library that wrote made of it.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())  # a network disk may say only now that it is full; and no name without content
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path):
    """Turn what writing `path` fails with into an OSError that names it, where a disk is the cause."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = disk_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def disk_error(error: BaseException | None) -> int | None:
    """The system's error number behind what a library raised; None where there is none.

    safetensors only has it in its text, torch raises an error of its own while it handles the system's.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        said = re.search(r"\(os error (\d+)\)", str(error))
        if said:
            return int(said[1])
        error = error.__cause__ or error.__context__
    return None


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content) -> None:
    """Write readable JSON atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_bytes(path: Path, expected: str, largest_bytes: int = LARGEST_BYTES) -> bytes:
    """Read a regular file of at most `largest_bytes`; raises InputError naming what was `expected` for anything else."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a pipe would wait
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: expected {expected}, found something that is no file")
            if status.st_size > largest_bytes:
                raise InputError(f"{path}: expected {expected} of at most {largest_bytes} bytes, found {status.st_size}")
            return file.read()
    except IsADirectoryError:
        raise InputError(f"{path}: expected {expected}, found a folder") from None
    except OSError as error:
        if error.errno in ABSENT:
            raise InputError(f"{path}: expected {expected}, found nothing") from None
        raise


def read_json(path: Path, largest_bytes: int = LARGEST_BYTES):
    """Read JSON; raises InputError for what is none, for NaN and Infinity, and beyond `largest_bytes` or DEEPEST."""
    return parse_json(path, read_bytes(path, "a JSON file", largest_bytes))


def parse_json(where, content: bytes):
    """What a JSON text holds; raises InputError naming `where`, for the same as `read_json`."""
    if (depth := nesting(content)) > DEEPEST:
        raise InputError(f"{where}: expected JSON of at most {DEEPEST} brackets within brackets, found {depth}")

    def refuse(name: str):
        raise ValueError(f"the number {name}")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of more than 4,300 digits
        raise InputError(f"{where}: expected JSON, found {one_line(error)}") from None


def nesting(content: bytes) -> int:
    """How many brackets of a JSON text are open at once, at most; Python's own parser would run out of stack."""
    import numpy as np
    brackets = np.frombuffer(STRING.sub(b"", content).translate(None, NOT_BRACKETS), dtype=np.uint8)
    depth = deepest = 0
    for part in np.array_split(brackets, len(brackets) // 2 ** 20 + 1):
        levels = depth + np.cumsum(np.where(part & 4, -1, 1))  # in ASCII, what closes has this bit and what opens has not
        depth, deepest = levels[-1] if len(levels) else depth, max(deepest, levels.max(initial=0))
    return int(deepest)


def of_the_machine(error: Exception) -> bool:
    """Whether a reader failed at the disk or for want of memory, rather than at what a file holds."""
    if type(error).__name__ in ("MemoryError", "OutOfMemoryError"):  # torch's, of an accelerator, is a RuntimeError
        return True
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # EINVAL: a place before the file's beginning


def one_line(error: Exception) -> str:
    """An error's message, or its type where it has none, as the end of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_tensors(path: Path, tensors: dict) -> None:
    """Write named CPU tensors as safetensors, atomically."""
    from safetensors.torch import save_file
    with atomic_path(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)


def write_state(path: Path, state: dict) -> None:
    """Write the state of a training, to be read by torch.load with weights_only, atomically."""
    import torch
    with atomic_path(path) as partial, open(partial, "wb") as file:  # given a path, torch does not say why writing failed
        torch.save(state, file)


def read_tensors(path: Path) -> dict:
    """Read a safetensors file; raises InputError when it is missing or damaged."""
    from safetensors.torch import load_file
    if not Path(path).is_file():
        raise InputError(f"{path}: expected a safetensors file, found {'no file' if os.path.lexists(path) else 'nothing'}")
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, and what torch says of types and shapes it cannot have
        if of_the_machine(error):
            raise
        raise InputError(f"{path}: expected a safetensors file, found {one_line(error)}") from None


def read_torch(path: Path, expected: str, device="cpu"):
    """What torch.save wrote, without running anything in it; raises InputError naming what was `expected`."""
    import torch
    if not Path(path).is_file():
        raise InputError(f"{path}: expected {expected}, found {'a folder' if Path(path).is_dir() else 'nothing'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, about files that it refuses next
            return torch.load(path, weights_only=True, map_location=device)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        if of_the_machine(error):
            raise
        calls = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"a pickle that asks for {calls[1]}, which was not run" if calls else "another or a damaged file"
        raise InputError(f"{path}: expected {expected} saved by torch.save, found {found}") from None


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
