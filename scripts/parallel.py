"""Several processes, one output folder: who does which unit.

Processes of one job (`accelerate launch`) deal the units out; jobs that know nothing of each other (`--share`) claim them.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from scripts import locks
from scripts.artefact import begin, take_folder
from scripts.cli import InputError, at_work, stop_if_asked
from scripts.files import disk_errors

POLL_SECONDS = 0.5
PATIENCE = timedelta(days=1)  # of a process that waits for one with more work; torch's own is 10 minutes on GPUs
READY, COMPLETE, REFUSED, FAILED = range(4)


def new_accelerator(**settings):
    """accelerate's Accelerator, whose processes wait for each other however long the work of one takes."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)], **settings)


def dealt(costs: Sequence[float], processes: int) -> list[list[int]]:
    """The places of `costs` dealt to processes, each one's in ascending order.

    The dearest first, always to the process with least to do (Graham 1969): the largest share is at most 4/3 - 1/(3 processes)
    times what the best of all ways to deal would give. Equal costs are dealt in turn.
    """
    loads, shares = [0.0] * processes, [[] for _ in range(processes)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        least = loads.index(min(loads))
        loads[least] += costs[place]
        shares[least].append(place)
    return [sorted(share) for share in shares]


def my_share(units: list, accelerator, costs: Sequence[float] | None = None) -> list:
    """The units of this process, in their order; `costs` says what each takes relative to the others (default: the same)."""
    shares = dealt(costs or [1] * len(units), accelerator.num_processes)
    return [units[place] for place in shares[accelerator.process_index]]


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
            _told(accelerator, [REFUSED if isinstance(error, InputError) else FAILED])
            raise
        _told(accelerator, [outcome])
    else:
        outcome, = _told(accelerator, [READY])
        if outcome in (REFUSED, FAILED):
            sys.exit(outcome)  # the codes of scripts.cli; the main process prints the line
        at_work()
    return outcome == COMPLETE


def _told(accelerator, said: list[int]) -> list[int]:
    """What the main process says, on every process; the others' `said` has the same length."""
    import torch
    from accelerate.utils import broadcast
    with peers():
        return broadcast(torch.tensor(said, device=accelerator.device)).tolist()


def to_do(units: list, done: Callable, accelerator, folder: Path, share: bool = False,
          costs: Sequence[float] | None = None) -> Iterator[list]:
    """The units to make that are not `done(unit)`: this process's, in one list; or with `share` one at a time as it claims it.

    `costs` as in `my_share`; with `share` the dearest come first. A claim ends when the next unit is asked for, so a unit must
    be on disk by then. What other jobs are at is waited for, and made here if they die.
    """
    costs = costs or [1] * len(units)
    if not share:
        left = undone(units, done, accelerator)
        yield my_share([units[place] for place in left], accelerator, [costs[place] for place in left])
        return
    left = sorted(range(len(units)), key=lambda place: -costs[place])
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


def undone(units: list, done: Callable, accelerator) -> list[int]:
    """The places of units to make, as the main process finds them before any is made: a process may be slow to look."""
    found = [int(done(unit)) for unit in units] if accelerator.is_main_process else [0] * len(units)
    if accelerator.num_processes > 1:
        found = _told(accelerator, found)
    return [place for place, made in enumerate(found) if not made]


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
