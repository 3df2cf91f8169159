"""One resumable training loop for every network here: autoencoder, diffusion model, teacher and student."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from scripts.cli import InputError, Stopped
from scripts.files import read_torch, write_state
from scripts.parallel import peers
from scripts.team import Team


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices and kernels, none for biases and normalisation (1-d parameters)."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights; early on it follows faster, so that no start-up weights remain.

    BatchNorm's running statistics are averaged with the weights, since those of the last weights do not fit the average.
    """
    def follow(averages, currents, updates):
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, currents, max(1 - decay, 9 / (10 + int(updates))))
        else:
            torch._foreach_copy_(averages, currents)  # counters
    return AveragedModel(module, multi_avg_fn=follow, use_buffers=True)


def optimise(module: nn.Module, parts_at: Callable[[int], Iterable[Tensor]], steps: int, optimizer: torch.optim.Optimizer,
             schedule: Callable[[int], float], state_path: Path, *, name: str, images_per_step: int,
             save_seconds: float = 20, average: AveragedModel | None = None,
             after: Callable[[int, list, float], None] | None = None, team: Team | None = None) -> dict:
    """Take `steps` optimiser steps, with the learning rate scaled by `schedule(step)`.

    `parts_at(step)` yields the loss in parts that sum to it, each freed before the next (gradient accumulation is more than
    one). Everything random in it must be a function of the step, so that a run continued from `state_path` (written every
    `save_seconds`, and when SIGTERM ends the run) ends in the same weights. `after(step, losses so far, seconds so far)` runs
    once a step is done. Returns {"losses": [steps], "seconds": time spent in steps over all runs}. Raises InputError when the
    loss stops being finite. In a `team` the parts are those of this process, the losses the mean of all, and the main process
    alone writes, shows the bar and calls `after`.
    """
    team = team or Team()
    base_rates = [group["lr"] for group in optimizer.param_groups]
    losses, done, seconds = _load(state_path, module, optimizer, average)
    if done and team.main:
        print(f"{state_path}: continuing at step {done}")
    team.wait()  # so that none reads what another writes
    started = saved = time.perf_counter()
    with peers(), tqdm(total=steps * images_per_step, initial=done * images_per_step, desc=name, unit="img", unit_scale=True,
                       disable=None if team.main else True, mininterval=0.5) as bar:
        for step in range(done, steps):
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * schedule(step)
            module.train()
            optimizer.zero_grad(set_to_none=True)
            losses.append(team.mean(sum(_backward(part) for part in parts_at(step))))
            optimizer.step()
            if average is not None:
                average.update_parameters(module)
            bar.update(images_per_step)
            if after is not None and team.main:
                after(step, losses, seconds + time.perf_counter() - started)
            now, stops = time.perf_counter(), team.stops()
            if (now - saved >= save_seconds or stops) and step + 1 < steps:
                losses = _finite(losses, name)
                bar.set_postfix(loss=f"{losses[-1]:.4f}")
                if team.main:
                    _save(state_path, module, optimizer, average, losses, step + 1, seconds + now - started)
                saved = time.perf_counter()
                if stops:
                    raise Stopped
    losses = _finite(losses, name)
    return {"losses": losses, "seconds": seconds + time.perf_counter() - started}


def _backward(part: Tensor) -> Tensor:
    part.backward()
    return part.detach()


def _finite(losses: list, name: str) -> list[float]:
    values = [float(loss) for loss in losses]
    broken = next((step for step, value in enumerate(values) if value != value or abs(value) == float("inf")), None)
    if broken is not None:
        raise InputError(f"{name}: expected a finite loss, found {values[broken]} at step {broken}; lower the learning rate")
    return values


def _save(path: Path, module, optimizer, average, losses, step, seconds) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses, "step": step,
             "seconds": seconds, "average": average.state_dict() if average is not None else None}
    write_state(path, state)


def _load(path: Path, module, optimizer, average) -> tuple[list, int, float]:
    if not Path(path).exists():
        return [], 0, 0.0
    device = next(module.parameters()).device
    state = read_torch(path, "a resume point", device)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    return state["losses"], state["step"], state["seconds"]
