"""What a run costs beside seconds: floating-point operations, counted, and memory."""

import resource
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from continual.teaching import Teacher
from scripts.networks import build

BACKWARD = ("training",)  # passes that go back too


@lru_cache
def flops_of_pass(arch: str, classes: int, stem: str, size: int, what: str, images: int) -> int:
    """Floating-point operations of one pass of `images` views, forward and, for training, backward.

    PyTorch counts them as the network runs (convolutions and matrix products, a multiplication and an addition being two), on
    tensors without contents, so that counting takes no part in what is timed.
    """
    with torch.device("meta"):
        network, views = build(arch, classes, stem, size=size), torch.empty(images, 3, size, size)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(what in BACKWARD):
            loss = network.train(what in BACKWARD)(views).sum()
            if what in BACKWARD:
                loss.backward()
    return counter.get_total_flops()


def flops(passes: Mapping[tuple[str, int], int], arch: str, classes: int, stem: str, size: int,
          teacher: Teacher | None) -> int:
    """Floating-point operations of all `passes`: (what, images) -> how often.

    The optimiser, augmentation and Task Arithmetic's merging and head, which are no passes of a network, are not among them.
    """
    networks = {"training": (arch, stem), "forward": (arch, stem)}
    if teacher:
        networks["teacher"] = teacher.arch, teacher.stem
    return sum(often * flops_of_pass(networks[what][0], classes, networks[what][1], size, what, images)
               for (what, images), often in passes.items())


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use: on an accelerator since `forget_peak_memory`, on a CPU by the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak_memory(device: torch.device) -> None:
    """Measure the accelerator's peak from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def training_bytes(network: nn.Module, moments: int) -> int:
    """Bytes of weights and statistics, gradients, and `moments` optimiser values per weight."""
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return weights * (1 + moments) + sum(value.nbytes for value in network.state_dict().values())
