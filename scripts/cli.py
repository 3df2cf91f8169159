"""How every command starts and ends.

Entry points parse their arguments before anything heavy is imported, so that `--help` answers at once; what needs torch is
imported inside `main`. Bad input, and a folder that another job is at work in, end with one line on stderr and exit code 2, a
failing disk with one line and 3. SIGTERM, as schedulers send it, ends a command with one line and 0 once its state is written.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from scripts import locks

ROOT = Path(__file__).resolve().parent.parent
DIGITS_LDM = "distillation/checkpoints/digits-ldm"
DATASETS = ("digits", "cifar10", "cifar100", "tiny_imagenet", "imagenet", "folder")


class InputError(ValueError):
    """What the user gave does not fit: the message says what, where, expected and found, on one line."""


class Stopped(BaseException):
    """SIGTERM asked this process to stop, and what was to be written is."""


GRACE_SECONDS = 15  # for the unit at hand, of the 30 that schedulers leave between SIGTERM and SIGKILL
_asked, _at_work = threading.Event(), threading.Event()


def run(parse_args, main) -> None:
    """Run an entry point; the only place that turns errors and SIGTERM into exit codes."""
    before = _listen()
    try:
        main(parse_args())
    except Stopped:
        if os.environ.get("RANK", "0") == "0":  # one of the processes of a launcher speaks for all
            print("stopped by SIGTERM; the same command continues", flush=True)
        sys.exit(0)
    except InputError as error:
        sys.exit(_say(error, 2))
    except OSError as error:
        sys.exit(_say(failed(error), 3))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the same command resumes", 130))
    finally:
        _silence(before)
        locks.release_all()


def _say(error, code: int) -> int:
    print(f"error: {printable(str(error))}", file=sys.stderr)
    return code


def failed(error: OSError) -> str:
    """What the system could not do and where, on one line."""
    if error.errno is None:
        return str(error)
    where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{where + ': ' if where else ''}{error.strerror}; what is finished stays, the same command continues"


def stop_asked() -> bool:
    """Whether SIGTERM came: training writes its state then and calls `stop_if_asked`."""
    return _asked.is_set()


def stop_if_asked() -> None:
    """Between two units of work: raise Stopped if SIGTERM came."""
    if _asked.is_set():
        raise Stopped


def at_work() -> None:
    """From here on this command asks between units whether to stop, so SIGTERM need not interrupt it."""
    _at_work.set()


def _listen():
    """Begin to answer SIGTERM; returns what answered before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    _asked.clear()
    _at_work.clear()
    return {number: signal.signal(number, _on_signal) for number in (signal.SIGTERM, signal.SIGALRM)}


def _silence(before) -> None:
    if before is not None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _on_signal(number, _frame) -> None:
    """At SIGTERM stop at once, or where there is work in hand at its next unit; if that takes too long, let go of the unit."""
    _asked.set()
    if number == signal.SIGTERM and _at_work.is_set():
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
    else:
        raise Stopped


def printable(text: str) -> str:
    """`text` on one line, without what moves a terminal's cursor: names in files of others can hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def add_dataset_flags(parser) -> None:
    """The flags by which every stage names real images and the prompts of their classes; `dataset_flags` reads them."""
    parser.add_argument("--dataset", default="digits", choices=DATASETS,
                        help="data set; `folder` is any folder with train/<class>/* and val/<class>/* or test/<class>/*")
    parser.add_argument("--data_dir", "--data-dir", default="data", help="where the data set lies (digits needs none)")
    parser.add_argument("--label_file_path", "--label-file-path", default=None,
                        help="one prompt per line, in class order (default: the data set's own names)")
    parser.add_argument("--prompt_template", "--prompt-template", default=None,
                        help="text with {} where the prompt goes, such as 'a photo of a {}' (default: the prompt alone)")
    parser.add_argument("--on_bad_image", "--on-bad-image", default="error", choices=("error", "skip"),
                        help="a file that cannot be read as an image ends the run, or is left out")


def add_strict_flag(parser) -> None:
    """The flag by which a stage verifies what it reads of earlier stages in full; see `verification.strictly`."""
    parser.add_argument("--strict", action="store_true",
                        help="first verify every artefact given, as misc.verify does: digests and content of all files")


def add_checkpoint_flags(parser) -> None:
    """The flags by which a Stable Diffusion checkpoint is named."""
    parser.add_argument("--diffusion_checkpoints_path", default=DIGITS_LDM,
                        help="Stable Diffusion checkpoint: folder or hub name")
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a hub checkpoint (default: its main branch)")


def dataset_flags(args) -> dict:
    """What `add_dataset_flags` was given, as the arguments of `load_split`."""
    return {"name": args.dataset, "data_dir": args.data_dir, "label_file": args.label_file_path,
            "prompt_template": args.prompt_template, "on_bad_image": args.on_bad_image}


def add_share_flag(parser) -> None:
    """The flag of stages whose units do not depend on each other."""
    parser.add_argument("--share", action="store_true",
                        help="share the work with other jobs, started apart with the same command and --share")


def check_range(flag: str, value, low, high=float("inf")) -> None:
    """Refuse a number outside [low, high], naming the flag."""
    if not low <= value <= high:
        raise InputError(f"{flag}: expected a value in [{low}, {high}], found {value}")


def check_views(args) -> None:
    """Refuse crops and flips that cannot be drawn; values left open (None) pass."""
    for flag, low, high in (("min_scale_crops", 1e-4, 1), ("max_scale_crops", 1e-4, 1), ("flip", 0, 1)):
        if getattr(args, flag) is not None:
            check_range(f"--{flag.replace('_', '-')}", getattr(args, flag), low, high)
    if None not in (args.min_scale_crops, args.max_scale_crops):
        check_range("--max-scale-crops", args.max_scale_crops, args.min_scale_crops, 1)


def answer_retired(parser, args, retired: dict[str, str]) -> None:
    """Answer flags of the original that made no sense with one line; `retired` maps a flag's name to what to do instead."""
    for name, instead in retired.items():
        if getattr(args, name) != parser.get_default(name):
            raise InputError(f"--{name.replace('_', '-')}: not used here; {instead}")
