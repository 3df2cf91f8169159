"""How every command starts and ends: flags, progress, errors, exit codes, SIGTERM.

An entry point parses its arguments before it imports anything heavy, so that `--help` answers at once. Exit codes: 0 done, or
stopped by SIGTERM with its state written; 2 bad input; 3 a failing disk, or another process of the job that ended early; 130
interrupted.
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
DIGITS_LDM = "distillation/checkpoints/digits-ldm"
MIX = {"mix_type": "none", "mix_per": "image", "mixup": 0.8, "cutmix": 1.0}  # alphas of FKD, SRe2L, D4M and RDED, released code
DATASETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "folder")
GRACE_SECONDS = 15  # for the unit of work at SIGTERM; schedulers leave 30 seconds before SIGKILL
ANSWERS = ROOT / "runs" / ".finished"  # the folders of each finished command
LOG_SECONDS = 30    # between progress lines in a log file


class InputError(ValueError):
    """Bad input. The message says on one line what is wrong, where, and what to do."""


class Stopped(BaseException):
    """SIGTERM asked this process to stop, and its state is written."""


# flags

class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose long flags may be written with dashes and with underscores; `--help` lists one spelling.

    `add_argument` also takes `least` and `most`: a number outside raises InputError, which names the flag.
    """

    def __init__(self, description: str | None = None, **settings):
        self._spelling: dict[str, str] = {}
        self._ranges: list[tuple] = []
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def add_argument(self, *names, least: float | None = None, most: float = float("inf"), **settings):
        self._spelling.update({name.replace("_", "-"): name for name in names if name.startswith("--")})
        action = super().add_argument(*names, **settings)
        if least is not None:
            self._ranges.append((max(names, key=len), action.dest, least, most))
        return action

    def parse_known_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args([self._spelled(word) for word in words], namespace)
        for flag, name, least, most in self._ranges:
            value = getattr(found, name)
            for one in value if isinstance(value, list) else [value]:
                if one is not None:
                    check_range(flag, one, least, most)
        return found, unknown

    def _spelled(self, word: str) -> str:
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        return self._spelling.get(name.replace("_", "-"), name) + equals + value

    def add_dataset_flags(self) -> None:
        """Add the flags that name real images and the prompts of their classes; `dataset_flags` reads them."""
        self.add_argument("--dataset", default="digits", choices=DATASETS,
                          help="data set; `folder` is any folder with train/<class>/* and val/<class>/* or test/<class>/*")
        self.add_argument("--data_dir", default="data", help="folder of the data set (digits needs none)")
        self.add_argument("--label_file_path", default=None,
                          help="file with one prompt per line, in class order (default: the data set's own names)")
        self.add_argument("--prompt_template", default=None,
                          help="text with {} for the prompt, such as 'a photo of a {}' (default: the prompt alone)")
        self.add_argument("--val_labels", default=None, metavar="FILE",
                          help="classes of test images that lie in one folder: LOC_val_solution.csv, "
                               "ILSVRC2012_validation_ground_truth.txt (meta.mat beside it), or lines of file, class")
        self.add_argument("--on_bad_image", default="error", choices=("error", "skip"),
                          help="stop at a file that cannot be read as an image, or leave it out")
        self.add_argument("--validation", default=0, type=int, metavar="N",
                          help="hold out N training images, the same in every command, and test on these, not on the test "
                               "images")

    def add_checkpoint_flags(self) -> None:
        self.add_argument("--diffusion_checkpoints_path", default=DIGITS_LDM,
                          help="Stable Diffusion checkpoint: folder or hub name")
        self.add_argument("--revision", default=None,
                          help="branch, tag or commit of a hub checkpoint (default: its main branch)")
        self.add_argument("--dtype", default=None, choices=("float32", "float16", "bfloat16"),
                          help="default: float16 on an accelerator, float32 on the CPU; the autoencoder in float32 where its "
                               "config.json has force_upcast")

    def add_mix_flags(self, defaults: dict = MIX) -> None:
        """Add the flags of CutMix and MixUp; what `defaults` does not name is None unless given."""
        self.add_argument("--mix-type", default=defaults.get("mix_type"), choices=("cutmix", "mixup", "none"))
        self.add_argument("--mix-per", default=defaults.get("mix_per"), choices=("image", "batch"),
                          help="draw ratio and box for each image, or once for a batch with all partners inside it, as FKD and "
                               "RDED do (default: image)")
        for name in ("mixup", "cutmix"):
            self.add_argument(f"--{name}", default=defaults.get(name), type=float,
                              help=f"{name}: the ratio is drawn from Beta(a, a) of this a (default: {MIX[name]})")


def dataset_flags(args) -> dict:
    """The values of `Parser.add_dataset_flags` as the arguments of `load_split`."""
    return {"name": args.dataset, "data_dir": args.data_dir, "label_file": args.label_file_path,
            "prompt_template": args.prompt_template, "on_bad_image": args.on_bad_image, "validation": args.validation,
            "val_labels": args.val_labels}


def validation_of(held_out: int) -> dict:
    """`--validation` in a stored configuration: no key at 0, so that configurations from before this flag stay equal."""
    return {"validation": held_out} if held_out else {}


def check_range(flag: str, value, low, high=float("inf")) -> None:
    """Raise InputError for a number outside [low, high], naming the flag."""
    if not (low <= value <= high and abs(value) < float("inf")):
        raise InputError(f"{flag}: expected a value in [{low}, {high}], found {value}")


def check_views(args) -> None:
    """Raise InputError for crops, flips and ratios that cannot be drawn; None passes."""
    for flag, low, high in (("min_scale_crops", 1e-4, 1), ("max_scale_crops", 1e-4, 1), ("flip", 0, 1),
                            ("mixup", 1e-3, 1000), ("cutmix", 1e-3, 1000)):
        if getattr(args, flag) is not None:
            check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), low, high)
    if None not in (args.min_scale_crops, args.max_scale_crops):
        check_range("--max-scale-crops", args.max_scale_crops, args.min_scale_crops, 1)


def check_optimizer(args) -> None:
    """Raise InputError for a learning rate, weight decay or momentum that no optimiser takes; None passes."""
    for flag in ("lr", "learning_rate", "adamw_lr", "weight_decay", "adamw_weight_decay", "momentum"):
        if getattr(args, flag, None) is not None:
            check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), 0, 0.999999 if flag == "momentum" else float("inf"))


# progress

def _own_lock() -> None:
    """Give this process its own lock for bars: forks share tqdm's, and one killed while it holds it would stop all others."""
    tqdm.set_lock(threading.RLock())


_own_lock()
os.register_at_fork(after_in_child=_own_lock)


class Progress(tqdm):
    """A bar on a terminal; elsewhere a line in the log every 30 seconds, none for shorter work. Only rank 0 shows it."""

    def __init__(self, *args, **settings):
        self.to_log = not sys.stderr.isatty()
        often = {"mininterval": LOG_SECONDS, "delay": LOG_SECONDS, "miniters": 1} if self.to_log else {"mininterval": 0.5}
        super().__init__(*args, disable=not _speaks(), **{**settings, **often})

    def display(self, msg=None, pos=None):
        if self.to_log and msg == "":
            return True
        if self.to_log:
            print(msg or str(self), end="" if pos == 0 else "\n", file=sys.stderr, flush=True)    # close() ends its line itself
            return True
        return super().display(msg, pos)

    def clear(self, *args, **settings):
        if not self.to_log:
            super().clear(*args, **settings)


# start and end

_state = {"asked": False, "working": False}   # no threading.Event: its lock stops a handler that interrupts itself for ever
at_end: list = []    # functions that every command calls at its end, such as the release of locks
finished: list = []  # the folders that this command found or made complete


def run(parse_args, main, output: str = "") -> None:
    """Run an entry point: the only place that turns errors and SIGTERM into exit codes.

    `output` is the flag of the folder written. The same command on the same inputs is then answered without its libraries.
    """
    before = _listen()
    try:
        args = parse_args()
        alone = os.environ.get("WORLD_SIZE", "1") == "1"    # else the others' folders are not known here
        question = _question(args, main, output) if output and alone else ""
        if question and _answered(question):
            return
        finished.clear()
        main(args)
        if question and finished:
            _remember(question)
    except Stopped:
        sys.exit(_stopped())
    except InputError as error:
        sys.exit(_report(error, 2))
    except OSError as error:
        wrong_name = error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST)    # not the disk
        sys.exit(_report(f"{error.filename}: {error.strerror}", 2) if wrong_name else _report(failed(error), 3))
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            sys.exit(_report(f"too little memory on the device, choose smaller batches: {error}"[:500], 2))
        if not _of_another_process(error):
            raise
        sys.exit(_stopped() if stop_asked() else
                 _report("another process of this job ended early; finished work stays, run the same command again", 3))
    except KeyboardInterrupt:
        sys.exit(_report("interrupted; run the same command again to continue", 130))
    finally:
        _restore(before)
        for clean_up in at_end:
            clean_up()


def _stopped() -> int:
    if _speaks():
        try:
            print("stopped by SIGTERM; run the same command again to continue", flush=True)
        except BrokenPipeError:     # of `| tee`, which got the signal too; Python would try again at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _speaks() -> bool:
    """Whether this process prints for all processes of a launcher."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """Print one line on stderr, once for all processes of a launcher."""
    if _speaks():
        print(printable(text), file=sys.stderr)


def _report(error, code: int) -> int:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    return code


def _of_another_process(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process is gone."""
    return "gloo" in str(error) or any(kind.__name__ == "DistError" for kind in type(error).__mro__)


def failed(error: OSError) -> str:
    """The system's error and where it happened, on one line."""
    if error.errno is None:
        return str(error)
    where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{where + ': ' if where else ''}{error.strerror}; finished work stays, run the same command again to continue"


def printable(text: str) -> str:
    """`text` on one line, without characters that move a terminal's cursor; names in foreign files can hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def stop_asked() -> bool:
    """Whether SIGTERM came. Training then writes its state and raises Stopped."""
    return _state["asked"]


def stop_if_asked() -> None:
    """Raise Stopped if SIGTERM came; called between two units of work."""
    if stop_asked():
        raise Stopped


def working() -> None:
    """From here on the command calls `stop_if_asked` between units, so SIGTERM does not interrupt a unit."""
    _state["working"] = True


def _listen():
    """Begin to answer SIGTERM; returns the handlers from before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    _state.update(asked=False, working=False)
    return {number: signal.signal(number, _on_signal) for number in (signal.SIGTERM, signal.SIGALRM)}


def _restore(before) -> None:
    """Put the handlers from before back; a process that SIGTERM has stopped ignores it for the rest of its life."""
    if before is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if number == signal.SIGTERM and stop_asked() else handler)


def _on_signal(number, _frame) -> None:
    """Stop at once, or after the unit of work, or when the unit takes longer than the grace period.

    A SIGTERM after the first changes nothing: schedulers send it to all processes, and a parent passes on its own.
    """
    if number == signal.SIGTERM and _state["asked"]:
        return
    _state["asked"] = True
    if number == signal.SIGTERM and _state["working"]:
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
    else:
        raise Stopped


# a finished command

def _question(args, main, output: str) -> str:
    """A hash of command, flags, input files and our code; empty where an input is no file here, such as a hub's checkpoint."""
    values = [value for each in vars(args).values() for value in (each if isinstance(each, list) else [each])]
    names = [value for value in values if isinstance(value, str) and value != getattr(args, output)]
    if any("/" in name and not os.path.exists(name) for name in names):
        return ""
    try:
        inputs = {name: _dates(name) for name in {*names} if os.path.exists(name)}
        code = [_date(path) for path in sorted([*ROOT.glob("*/*.py"), *ROOT.glob("distillation/label-prompt/*")])]
    except OSError:     # the command itself says what is wrong with a file that it needs
        return ""
    asked = [os.path.realpath(main.__code__.co_filename), os.getcwd(), vars(args), inputs, code]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def _dates(path: str) -> list:
    """Name, size and date of a file, or of the manifest of a finished folder.

    Of any other folder, and of a checkpoint, whose files the command hashes: the same of each subfolder, with number, total
    size and newest date of its files.
    """
    manifest, seen = os.path.join(path, "manifest.json"), set()
    ours = os.path.isfile(manifest) and os.path.isfile(os.path.join(path, "config.json"))   # others' data may have the first
    ours = ours and not os.path.isfile(os.path.join(path, "model_index.json"))
    if ours or not os.path.isdir(path):
        return [_date(manifest if ours else path)]
    dates = []
    for folder, folders, _ in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in seen:    # a link to a folder above
            folders.clear()
            continue
        seen.add(os.path.realpath(folder))
        folders.sort()
        files = [entry.stat() for entry in os.scandir(folder) if entry.is_file()]
        newest = max((one.st_mtime_ns for one in files), default=0)
        dates.append((*_date(folder), len(files), sum(one.st_size for one in files), newest))
    return dates


def _date(path) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.path.basename(path), status.st_size, status.st_mtime_ns


def _answered(question: str) -> bool:
    """Whether this command was answered before and all it made is there."""
    try:
        made = json.loads((ANSWERS / question).read_text(encoding="utf-8"))
        complete = all(_dates(folder) == list(map(tuple, dates)) for folder, dates in made.items())
    except (OSError, ValueError):
        return False
    for folder in made if complete else ():
        print(f"{folder}: complete, nothing to do")
    return complete


def _remember(question: str) -> None:
    """Write the answer of this command; where that fails, it is asked again next time."""
    with contextlib.suppress(OSError):
        ANSWERS.mkdir(parents=True, exist_ok=True)
        made = {str(folder): _dates(str(folder)) for folder in finished}
        (ANSWERS / question).write_text(json.dumps(made), encoding="utf-8")
