"""Several processes of one job: work divided among them, and one network trained by all.

N processes write the bytes that one process writes. In training they take the steps that one takes, with the same batches,
draws and learning rates; sums are taken in another order. On CPUs torch has no BatchNorm over processes: each normalises its
own rows.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from scripts.artefact import begin
from scripts.cli import InputError, stop_asked, working

PATIENCE = timedelta(days=1)  # for a process with more work; torch's own limit is 10 minutes on GPUs
LEAST_ROWS = 2                # of a process in each micro-batch: BatchNorm has no variance over one
READY, COMPLETE, REFUSED, FAILED = range(4)


def new_accelerator(**settings):
    """accelerate's Accelerator, with a time limit that suits work of different length."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)], **settings)


def require_one_process(accelerator, command: str) -> None:
    """Raise InputError in a job of several processes, for commands that train on one device."""
    if accelerator.num_processes > 1:
        raise InputError(f"{command}: expected one process, found {accelerator.num_processes}; start it without a launcher")


# work divided among processes

def divide(costs: Sequence[float], processes: int) -> list[list[int]]:
    """The indices of `costs` for each process, in ascending order, with sums as equal as a greedy choice makes them.

    The most expensive first, each to the process with the least so far (Graham 1969): the largest sum is at most
    4/3 - 1/(3 processes) times the best possible.
    """
    loads, parts = [0.0] * processes, [[] for _ in range(processes)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        least = loads.index(min(loads))
        loads[least] += costs[index]
        parts[least].append(index)
    return [sorted(part) for part in parts]


def my_share(units: list, accelerator, costs: Sequence[float] | None = None) -> list:
    """The units of this process, in their order; `costs` are relative (default: equal)."""
    parts = divide(costs or [1] * len(units), accelerator.num_processes)
    return [units[index] for index in parts[accelerator.process_index]]


def my_unfinished(units: list, done: Callable, accelerator, costs: Sequence[float] | None = None) -> list:
    """This process's part of the units for which `done(unit)` is false; the main process asks, before any unit is made."""
    found = [int(done(unit)) for unit in units] if accelerator.is_main_process else [0] * len(units)
    if accelerator.num_processes > 1:
        found = _broadcast(accelerator, found)
    left = [index for index, made in enumerate(found) if not made]
    return my_share([units[index] for index in left], accelerator, costs and [costs[index] for index in left])


def begin_together(folder: Path, kind: str, config: dict, accelerator) -> bool:
    """`artefact.begin` for all processes of a job: the main one asks, and reports why it is refused or that all is done."""
    if accelerator.num_processes == 1:
        outcome = COMPLETE if begin(folder, kind, config) else READY
    elif accelerator.is_main_process:
        try:
            outcome = COMPLETE if begin(folder, kind, config) else READY
        except (InputError, OSError) as error:
            _broadcast(accelerator, [REFUSED if isinstance(error, InputError) else FAILED])
            raise
        _broadcast(accelerator, [outcome])
    else:
        outcome, = _broadcast(accelerator, [READY])
        if outcome in (REFUSED, FAILED):
            sys.exit(outcome)  # the exit codes of scripts.cli; the main process prints the line
        working()
    if outcome == COMPLETE:
        accelerator.print(f"{folder}: complete, nothing to do")
    return outcome == COMPLETE


def _broadcast(accelerator, values: list[int]) -> list[int]:
    """The main process's `values` on every process; the others give a list of the same length."""
    import torch
    from accelerate.utils import broadcast
    return broadcast(torch.tensor(values, device=accelerator.device)).tolist()


def all_done(accelerator) -> bool:
    """Wait for every process; True on the one that writes the manifest."""
    accelerator.wait_for_everyone()
    return accelerator.is_main_process


# one network trained by several processes

def batch_norms(network) -> list:
    """The layers that normalise by the statistics of a batch."""
    from torch import nn
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


class Team:
    """The processes that train one network; without an accelerator, or with one process, this process alone."""

    def __init__(self, accelerator=None):
        self.accelerator = accelerator
        self.size, self.rank = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
        self._asked: list[tuple] = []  # whether to stop, of the steps not looked at yet

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def check_rows(self, network, images: int, batch_size: int) -> None:
        """Raise InputError where a process gets too few rows of a batch (one process: only for networks with BatchNorm)."""
        smallest, least = images // math.ceil(images / batch_size), LEAST_ROWS * self.size
        if smallest < least and (self.size > 1 or batch_norms(network)):
            whose = "BatchNorm" if self.size == 1 else f"each of {self.size} processes"
            raise InputError(f"--batch-size: expected at least {least} images in every batch, {LEAST_ROWS} for {whose}, found "
                             f"{smallest} ({images} images in batches of at most {batch_size})")

    def rows(self, batch, parts: int, least: int) -> list:
        """This process's rows of each micro-batch of a batch [B]: `parts` of them, fewer if those had less than `least`."""
        parts = max(1, min(parts, len(batch) // (least * self.size)))
        return [part.tensor_split(self.size)[self.rank] for part in batch.tensor_split(parts)]

    def wrap(self, network):
        """Wrap `network` in DistributedDataParallel (with SyncBatchNorm on accelerators)."""
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel
        if self.size == 1:
            return network
        if next(network.parameters()).device.type != "cpu":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place: parameters and their names stay
        elif self.main and batch_norms(network):
            print(f"BatchNorm in {self.size} processes on CPUs: each normalises its own rows")
        wrapped = DistributedDataParallel(network)
        wrapped.broadcast_buffers = False  # no argument: its name differs between torch versions
        return wrapped

    def no_sync(self, wrapped, last: bool):
        """Skip gradient synchronisation for all but the `last` micro-batch of a batch."""
        return contextlib.nullcontext() if last or self.size == 1 else wrapped.no_sync()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()

    def mean(self, loss):
        """The mean of all processes' `loss` [] of this step. The same message carries whether one of them has to stop."""
        import torch
        if self.size == 1:
            return loss
        message = torch.stack([loss / self.size, torch.full_like(loss, stop_asked())])
        torch.distributed.all_reduce(message)
        on_host = message[1].to("cpu", non_blocking=True)
        copied = None if message.device.type == "cpu" else torch.accelerator.current_stream().record_event()
        self._asked.append((on_host, copied))
        return message[0]

    def stops(self) -> bool:
        """Whether all processes stop after this step, because SIGTERM came to one.

        On an accelerator the answer is that of the step before, so that the device never waits for the host.
        """
        if self.size == 1:
            return stop_asked()
        asked, copied = self._asked[0]
        if copied is not None:
            if len(self._asked) == 1:
                return False
            copied.synchronize()
        del self._asked[0]
        return bool(asked)
