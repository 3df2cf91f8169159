"""Several processes that train one network: each takes its rows of every batch, and gradients are averaged over all.

N processes take the steps that one takes, with the same batches, draws and learning rates; sums are taken in another order.
Except that without accelerators torch has no BatchNorm over processes, so each normalises its own rows.
"""

import contextlib
import math

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from scripts.cli import InputError, stop_asked
from scripts.parallel import peers

LEAST_ROWS = 2  # of a part of a batch for a process: BatchNorm finds no variance in one


class Team:
    """The processes of `accelerator`; without one, or with one process, no more than this process and what it does alone."""

    def __init__(self, accelerator=None):
        self.accelerator = accelerator
        self.size, self.place = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
        self._asked: list[tuple[Tensor, torch.Event | None]] = []  # whether to stop, of the steps not looked at yet

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.place == 0

    def check_rows(self, images: int, batch_size: int, parts: int = 1) -> None:
        """Raise InputError where a process would get too few rows of a part of a batch."""
        smallest, least = images // math.ceil(images / batch_size), LEAST_ROWS * self.size * parts
        if self.size > 1 and smallest < least:
            raise InputError(f"--batch-size: expected at least {least} images in every batch, so that each of {self.size} "
                             f"processes gets {LEAST_ROWS} of every part, found {smallest}")

    def rows(self, part: Tensor) -> Tensor:
        """This process's share of the rows [B] of a part of a batch."""
        return part.tensor_split(self.size)[self.place]

    def joined(self, network: nn.Module) -> nn.Module:
        """What to call in place of `network`, so that its gradients become the mean of all processes'."""
        if self.size == 1:
            return network
        if next(network.parameters()).device.type != "cpu":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)  # inside the network, which keeps its parameters and their names
        elif self.main and any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
            print(f"BatchNorm of {self.size} processes without accelerators: each normalises its own rows")
        with peers():
            return DistributedDataParallel(network, forward_sync_buffers=False)  # alike already, or of its own rows

    def averaging(self, joined: nn.Module, now: bool):
        """Around the forward of a part: only the last part of a batch, `now`, sends gradients; they hold the sum by then."""
        return contextlib.nullcontext() if now or self.size == 1 else joined.no_sync()

    def wait(self) -> None:
        """For the others to come this far."""
        if self.size > 1:
            with peers():
                self.accelerator.wait_for_everyone()

    def mean(self, loss: Tensor) -> Tensor:
        """The mean of all processes' `loss` [] of this step; with it goes whether one of them is to stop."""
        if self.size == 1:
            return loss
        told = torch.stack([loss / self.size, torch.full_like(loss, stop_asked())])
        distributed.all_reduce(told)
        on_host = told[1].to("cpu", non_blocking=True)
        self._asked.append((on_host, None if told.device.type == "cpu" else torch.accelerator.current_stream().record_event()))
        return told[0]

    def stops(self) -> bool:
        """Whether to stop after this step: on all processes or none, once SIGTERM came to one.

        Of an accelerator that is asked about the step before, so that it has work while the answer is awaited.
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
