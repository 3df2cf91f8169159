"""What every training here shares: the resumable loop, rate curves, optimisers and averaged weights."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from scripts.cli import InputError, Progress, Stopped
from scripts.files import read_torch, write_state
from scripts.parallel import Team

POSTFIX_SECONDS = 10  # between readings of the loss for the progress line; each waits for the device


class Loop:
    """The optimiser steps of one training run, continued from `state_path` if it exists.

        loop = Loop(network, optimizer, steps, rate_at, state_path, name="student", images_per_step=50)
        for step in loop:
            ...
            loop.backward(loss)  # once for each micro-batch; the losses of a step are summed
            loop.step()

    `rate_at(step)` is the factor of the optimiser's learning rates. Everything random in a step must be a function of `step`:
    a continued run then ends in the same weights. The state is written every `save_seconds`, and when SIGTERM ends the run.
    `average` follows the weights. With a `team` each process computes its own rows of a batch, `losses` are means over all
    processes, and rank 0 alone writes and shows progress. Raises InputError when a loss is not finite.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, rate_at: Callable[[int], float],
                 state_path: Path, *, name: str, images_per_step: int, save_seconds: float = 20,
                 average: AveragedModel | None = None, team: Team | None = None):
        self.module, self.optimizer, self.steps, self.rate_at = module, optimizer, steps, rate_at
        self.state_path, self.name, self.images_per_step = Path(state_path), name, images_per_step
        self.save_seconds, self.average, self.team = save_seconds, average, team or Team()
        self.losses: list = []
        self.seconds_before, self.started, self.ended = 0.0, 0.0, None

    @property
    def seconds(self) -> float:
        """Seconds spent in steps so far, over all runs."""
        return self.seconds_before + (self.ended or time.perf_counter()) - self.started

    def __iter__(self) -> Iterator[int]:
        base_rates = [group["lr"] for group in self.optimizer.param_groups]
        first = self._load()
        self.team.wait()  # before rank 0 may write what the others read
        self.started = self.saved = self.shown = time.perf_counter()
        with Progress(total=self.steps * self.images_per_step, initial=first * self.images_per_step, desc=self.name,
                      unit="img", unit_scale=True) as self.bar:
            for step in range(first, self.steps):
                for group, rate in zip(self.optimizer.param_groups, base_rates, strict=True):
                    group["lr"] = rate * self.rate_at(step)
                self.module.train()
                self.optimizer.zero_grad(set_to_none=True)
                self.parts: list[Tensor] = []
                yield step
                self._save_if_due(step + 1)
        self.check()
        self.ended = time.perf_counter()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch."""
        loss.backward()
        self.parts.append(loss.detach())

    def step(self) -> None:
        """Take the optimiser step of the gradients so far."""
        self.losses.append(self.team.mean(sum(self.parts)))
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.module)
        if (now := time.perf_counter()) - self.shown >= POSTFIX_SECONDS:
            self.check()
            self.bar.set_postfix(loss=f"{self.losses[-1]:.4f}", refresh=False)
            self.shown = now
        self.bar.update(self.images_per_step)

    def _save_if_due(self, done: int) -> None:
        stops = self.team.stops()
        if done < self.steps and (stops or time.perf_counter() - self.saved >= self.save_seconds):
            self.check()
            if self.team.main:
                write_state(self.state_path, {
                    "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(), "losses": self.losses,
                    "step": done, "seconds": self.seconds,
                    "average": self.average.state_dict() if self.average is not None else None})
            self.saved = time.perf_counter()
            if stops:
                raise Stopped

    def _load(self) -> int:
        if not self.state_path.exists():
            return 0
        state = read_torch(self.state_path, "a resume point", next(self.module.parameters()).device)
        self.module.load_state_dict(state["module"])
        load_optimizer(self.optimizer, state["optimizer"], self.state_path)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.losses, self.seconds_before = state["losses"], state["seconds"]
        if state["step"] and self.team.main:
            print(f"{self.state_path}: continuing at step {state['step']}")
        return state["step"]

    def check(self) -> None:
        """Read the losses from the device. Raises InputError for one that is not finite."""
        self.losses = [float(loss) for loss in self.losses]
        broken = next((step for step, value in enumerate(self.losses) if not math.isfinite(value)), None)
        if broken is not None:
            raise InputError(f"{self.name}: expected a finite loss, found {self.losses[broken]} at step {broken}; "
                             + ("lower the learning rate" if broken else "the weights it began with are damaged"))


# rate curves: (steps or epochs done, of how many) -> factor of the learning rate

def cosine(done: float, total: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * (done / total)))


def warm_cosine(done: float, total: float, warm_up: float = 0.1) -> float:
    """Linear up during the first tenth, then `cosine`."""
    share = done / total
    return (share + 0.02) / (warm_up + 0.02) if share < warm_up else cosine((share - warm_up) / (1 - warm_up), 1)


def triangle(done: float, total: float, rise: float = 0.25, start: float = 0.04) -> float:
    """Linear from 0.04 to 1 during the first quarter, then linear to 0 (Smith & Topin 2017)."""
    share = done / total
    return start + (1 - start) * share / rise if share < rise else (1 - share) / (1 - rise)


def one_cycle(done: int, total: int, warm_up: float = 0.2) -> float:
    """Linear up during the first fifth of the steps, then half a cosine that ends at 0 after the last."""
    rise = max(1, round(warm_up * total))
    return (done + 1) / rise if done < rise else 0.5 * (1 + math.cos(math.pi * (done - rise + 1) / (total - rise + 1)))


def short_warm_up(done: int, total: int, warm_up_steps: int = 50) -> float:
    """`cosine`, multiplied by a linear rise over the first 50 steps."""
    return min(1, (done + 1) / warm_up_steps) * 0.5 * (1 + math.cos(math.pi * done / total))


CURVES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda done, total: 1.0, "linear": lambda done, total: 1 - done / total, "cosine": cosine,
    "half-cosine": lambda done, total: cosine(done, 2 * total),  # from 1 to 0.5 (RDED, arXiv 2312.03526, released code)
    "warm-cosine": warm_cosine, "triangle": triangle, "one-cycle": one_cycle, "short-warm-up": short_warm_up}


# optimisers

def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices and kernels whose name has "weight", as in FKD, SRe2L, D4M and RDED.

    None for biases, normalisation, class tokens, position embeddings and tables of relative positions.
    """
    groups: tuple[list, list] = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups["weight" not in name or parameter.ndim <= 1].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, where) -> None:
    """Continue from an optimiser's `state`. Raises InputError naming `where` if it has other parameter groups."""
    try:
        optimizer.load_state_dict(state)
    except ValueError:
        raise InputError(f"{where}: expected the parameter groups of this version, found others (it decays other weights); "
                         "choose another folder") from None


def new_optimizer(name: str, parameters, rate: float, *, momentum: float = 0.0, nesterov: bool = False,
                  fused: bool = True) -> torch.optim.Optimizer:
    """AdamW or SGD over parameters or parameter groups. Fused: AdamW on ResNet-18 takes 9 ms a step on a CPU instead of 57."""
    kernel = fused or None  # None: torch chooses another one; False would exclude its fast one on accelerators
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=kernel)
    return torch.optim.SGD(parameters, lr=rate, momentum=momentum, nesterov=nesterov, fused=kernel)


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights; early on it follows faster, so that no start-up weights remain.

    BatchNorm's running statistics are averaged too, since those of the last weights do not fit the average.
    """
    def follow(averages, currents, updates):
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, max(1 - decay, 9 / (10 + int(updates))))
        else:
            torch._foreach_copy_(averages, currents)  # counters
    return AveragedModel(module, multi_avg_fn=follow, use_buffers=True)


# precision

def half_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """bfloat16 where that is safe (torch's autocast), if `wanted` and the device has units for it; else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bfloat16(device.type))


@cache
def has_bfloat16(device_type: str) -> bool:
    """Whether the device has bfloat16 units; where it has none, one line says what is done instead."""
    if device_type == "cpu":
        found = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # without units a convolution takes some 45 times as long
    else:
        found = device_type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if not found:
        print(f"this {device_type} has no bfloat16 units: computing in float32", file=sys.stderr, flush=True)
    return found
