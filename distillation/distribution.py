"""Several processes, one output folder: who does which unit.

Processes of one job (`accelerate launch`) deal the units out; jobs that know nothing of each other (`--share`) claim them.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from distillation import locks
from distillation.entry import InputError, at_work, stop_if_asked
from distillation.manifest import begin, disk_errors, take_folder

POLL_SECONDS = 0.5
READY, COMPLETE, REFUSED, FAILED = range(4)


def my_share(units: list, accelerator) -> list:
    """The units of this process, dealt out in turn; each process writes only its own."""
    return units[accelerator.process_index::accelerator.num_processes]


def require_one_process(accelerator, command: str) -> None:
    """Raise InputError under `accelerate launch` with several processes, for commands that train on one device."""
    if accelerator.num_processes > 1:
        raise InputError(f"{command}: expected one process, found {accelerator.num_processes}; start it without a launcher")


def begin_together(folder: Path, kind: str, config: dict, accelerator, share: bool = False) -> bool:
    """`manifest.begin` for all processes of a job: the main one claims the folder, and says why when it cannot."""
    if accelerator.num_processes == 1:
        return begin(folder, kind, config, together=share)
    if accelerator.is_main_process:
        try:
            outcome = COMPLETE if begin(folder, kind, config, together=share) else READY
        except (InputError, OSError) as error:
            _tell(accelerator, REFUSED if isinstance(error, InputError) else FAILED)
            raise
        _tell(accelerator, outcome)
    else:
        outcome = _tell(accelerator, READY)
        if outcome in (REFUSED, FAILED):
            sys.exit(outcome)  # the codes of distillation.entry; the main process prints the line
        at_work()
    return outcome == COMPLETE


def _tell(accelerator, outcome: int) -> int:
    """What the main process says, on every process."""
    import torch
    from accelerate.utils import broadcast
    with peers():
        return int(broadcast(torch.tensor([outcome], device=accelerator.device)))


def to_do(units: list, done: Callable, accelerator, folder: Path, share: bool = False) -> Iterator[list]:
    """The units to make that are not `done(unit)`: this process's, in one list; or with `share` one at a time as it claims it.

    A claim ends when the next unit is asked for, so a unit must be on disk by then. What other jobs are at is waited for, and
    made here if they die.
    """
    if not share:
        yield [unit for unit in my_share(units, accelerator) if not done(unit)]
        return
    left = list(range(len(units)))
    while left:
        for place in left:
            claim = folder / locks.CLAIMS / f"unit-{place:06d}"
            if not done(units[place]) and _claimed(claim):
                try:
                    if not done(units[place]):
                        yield [units[place]]
                finally:
                    locks.release(claim)
            stop_if_asked()
        left = [place for place in left if not done(units[place])]
        if left:
            time.sleep(POLL_SECONDS)


def _claimed(claim: Path) -> bool:
    with disk_errors(claim):
        return locks.take(claim) is None


def all_done(folder: Path, accelerator, share: bool = False) -> bool:
    """Wait until every process is through; True on the one that is to write the manifest, which then has the folder alone."""
    if accelerator.num_processes > 1:
        with peers():
            accelerator.wait_for_everyone()
    if not share or not accelerator.is_main_process:
        return accelerator.is_main_process
    own = locks.own_name()
    locks.release(folder / locks.CLAIMS / f"job-{own['host']}-{own['pid']}")
    while not (folder / "manifest.json").exists():
        stop_if_asked()
        if take_folder(folder, shared=True) is None:
            break
        time.sleep(POLL_SECONDS)
    if not (folder / "manifest.json").exists():
        return True
    locks.release(folder / locks.LOCK)
    print(f"{folder}: complete, finished by another job")
    return False


@contextlib.contextmanager
def peers():
    """Turn what a collective operation fails with when another process of the job is gone into one line."""
    import torch
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        stop_if_asked()
        raise ConnectionError("another process of this job ended before its work was done; what is finished stays, the same "
                              "command continues") from error
