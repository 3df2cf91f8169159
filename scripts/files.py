"""Files on disk: written whole or not at all, read with a limit and without running code in them.

Readers raise InputError for what they did not expect; a failing disk is an OSError.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shlex
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.cli import InputError

LARGEST_BYTES = 2 ** 28  # of a JSON or text file; the manifest of 200,000 images takes 80 MB
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
DIVERGED = "the weights are damaged, or their training diverged (lower its learning rate)"
BESIDE_WEIGHTS = re.compile("(argparse|numpy|pathlib|omegaconf|yacs|easydict|timm|torch|torchvision)[.]")
STRIP = ('import torch; keep = lambda d: {{k: v if isinstance(v, torch.Tensor) else keep(v) for k, v in '
         'getattr(d, "state_dict", lambda: d)().items() if isinstance(v, (torch.Tensor, torch.nn.Module, dict))}}; '
         'torch.save(keep(torch.load({source}, "cpu", weights_only=False)), {target})')


@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a temporary name beside `path`, renamed to `path` once all is on the disk; a failing disk is an OSError."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # a network disk may report only now that it is full
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path):
    """Turn any error with a disk as its cause into an OSError that names `path`."""
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
    """The system's error number behind a library's error, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors has it only in its text
            return int(number[1])
        error = error.__cause__ or error.__context__
    return None


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content) -> None:
    """Write readable JSON atomically; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_bytes(path: Path, expected: str, largest_bytes: int = LARGEST_BYTES) -> bytes:
    """Read a regular file of at most `largest_bytes`. Raises InputError naming what was `expected`."""
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
    """Read JSON of at most `largest_bytes`. Raises InputError for anything else, NaN and Infinity included."""
    return parse_json(path, read_bytes(path, "a JSON file", largest_bytes))


def parse_json(where, content: bytes):
    """The content of a JSON text. Raises InputError naming `where`, as `read_json` does."""
    def refuse(name: str):
        raise ValueError(f"the number {name}")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise InputError(f"{where}: expected JSON, found too many brackets within brackets") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, an integer of more than 4,300 digits
        raise InputError(f"{where}: expected JSON, found {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """An error's message on one line, or its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def write_tensors(path: Path, tensors: dict, remedy: str = DIVERGED) -> None:
    """Write named tensors as safetensors, atomically. Raises InputError as `check_finite` does."""
    from safetensors.torch import save_file
    check_finite(tensors, path, remedy)
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def write_state(path: Path, state: dict) -> None:
    """Write what torch.load reads with weights_only, atomically. Raises InputError as `check_finite` does."""
    import torch
    check_finite(state, path, DIVERGED)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # with a path torch hides why writing failed
        torch.save(state, file)


def read_tensors(path: Path) -> dict:
    """Read a safetensors file. Raises InputError when it is missing or damaged."""
    from safetensors.torch import load_file
    return read_file(path, load_file, "a safetensors file", one_line)


def read_torch(path: Path, expected: str, device="cpu"):
    """Read what torch.save wrote, without running code in it. Raises InputError naming what was `expected`."""
    import torch

    def problem(error: Exception) -> str:
        calls = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not calls:
            return "another or a damaged file"
        found = f"a pickle that asks for {calls[1]}, which was not run; "
        if not BESIDE_WEIGHTS.match(calls[1]):
            return found + "where the file was made, save the state dict alone"
        target = path.with_name(f"{path.stem}-weights.pt")
        code = STRIP.format(source=json.dumps(str(path)), target=json.dumps(str(target)))
        return f"{found}to keep the tensors alone of a file you trust (this runs its code): python -c {shlex.quote(code)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, about files that it then refuses
        return read_file(path, partial(torch.load, weights_only=True, map_location=device),
                         f"{expected} saved by torch.save", problem)


def read_file(path: Path, read: Callable, expected: str, problem: Callable[[Exception], str]):
    """`read(path)`. Raises InputError with `problem(error)` for a wrong file; a failing disk and too little memory are none."""
    if not os.path.isfile(path):    # unlike Path's, also False for a name that is too long
        raise InputError(f"{path}: expected {expected}, found {'no file' if os.path.lexists(path) else 'nothing'}")
    try:
        return read(path)
    except Exception as error:  # the type depends on where the file is damaged
        machine = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)  # EINVAL: a seek before the start
        if machine or type(error).__name__ in ("MemoryError", "OutOfMemoryError"):  # the second is torch's
            raise
        raise InputError(f"{path}: expected {expected}, found {problem(error)}") from None


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    mark = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2 ** 18):
            mark.update(block)
    return mark.hexdigest()


# tensors

KINDS = {"float": ("float16", "bfloat16", "float32", "float64"), "bool": ("bool",),
         "integer": ("uint8", "int8", "int16", "int32", "int64")}
KINDS["number"] = KINDS["float"] + KINDS["integer"]


@dataclass(frozen=True)
class Expected:
    """A tensor of `kind` (of KINDS) and `shape` (None: any length there) with finite values in [low, high]."""

    kind: str
    shape: tuple[int | None, ...]
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False


def tensor_problems(found: dict, expected: dict[str, Expected]) -> list[str]:
    """Problems of the tensors `found`: missing, unknown, of another type or shape, or with a value out of range."""
    problems = [f"{name}: expected no tensor of this name, found one" for name in found.keys() - expected.keys()]
    for name, wanted in expected.items():
        if name in found:
            problems += (f"{name}: {problem}" for problem in one_problem(found[name], wanted))
        elif not wanted.optional:
            problems.append(f"{name}: expected a tensor, found none")
    return problems


def one_problem(value, wanted: Expected) -> Iterator[str]:
    """The first problem of a tensor, if any."""
    shape, kind = tuple(value.shape), str(value.dtype).removeprefix("torch.")
    if kind not in KINDS[wanted.kind]:
        yield f"expected {wanted.kind} values, found {kind}"
    elif len(shape) != len(wanted.shape) or any(want not in (None, had) for want, had in zip(wanted.shape, shape, strict=True)):
        yield f"expected the shape {list(wanted.shape)}, found {list(shape)}".replace("None", "any")
    elif value.numel() and kind != "bool":
        low, high = (limit.item() for limit in value.aminmax())  # NaN wherever there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            yield f"expected finite values, found {low if not math.isfinite(low) else high}"
        elif low < wanted.low or high > wanted.high:
            yield f"expected values in [{wanted.low}, {wanted.high}], found [{low}, {high}]"


def check_finite(content: dict, where, remedy: str) -> None:
    """Raise InputError for NaN or infinity in a tensor of `content`, dictionaries and lists within it included."""
    for name, tensor in floats_of(content):
        if not (finite := tensor.isfinite()).all():
            raise InputError(f"{where}: {name}: expected finite values, found {tensor[~finite][0].item()}; {remedy}")


def floats_of(content, name: str = "") -> Iterator[tuple]:
    """The floating tensors of nested dictionaries and lists, each with a name such as optimizer.state.0.exp_avg."""
    if isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from floats_of(value, f"{name}.{key}" if name else str(key))
    elif hasattr(content, "is_floating_point") and content.is_floating_point() and not content.is_meta:
        yield name, content


def likely_cause(dtype) -> str:
    """Why a checkpoint's network that computes in `dtype` yields NaN or infinity, and what to do."""
    return "float16 overflows above 65504, use --dtype bfloat16 or float32" if str(dtype) == "torch.float16" else DIVERGED
