"""What a run costs beside seconds: floating-point operations and memory."""

import resource
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from continual.training import Teacher
from scripts.networks import build_empty


def backward_flops(gradient, images, kernel, bias, stride, padding, dilation, transposed, output_padding, groups, wanted,
                   **_) -> int:
    """Operations of a convolution's backward, from shapes: those of its forward for each gradient of images and kernel.

    PyTorch's own formula ignores groups in the kernel's gradient: of EfficientNet-B0's training it counts 13 times too many.
    """
    return conv_flop_count(images, kernel, gradient, transposed) * sum(wanted[:2])


def counted(work: Callable[[], object]) -> int:
    """The floating-point operations of `work` in convolutions and matrix products, as PyTorch counts them."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward_flops}) as counter:
        work()
    return counter.get_total_flops()


@lru_cache
def flops_of_pass(arch: str, classes: int, stem: str, size: int, kind: str, images: int) -> int:
    """Floating-point operations of one pass of `images` views: forward and, for `kind` "training", backward.

    PyTorch counts those of convolutions and matrix products (a multiply-add is two) on meta tensors, outside the timed work.
    """
    training = kind == "training"
    network, views = build_empty(arch, classes, stem, size), torch.empty(images, 3, size, size, device="meta")

    def one_pass() -> None:
        loss = network.train(training)(views).sum()
        if training:
            loss.backward()
    with torch.set_grad_enabled(training):
        return counted(one_pass)


def flops(passes: Mapping[tuple[str, int], int], arch: str, classes: int, stem: str, size: int,
          teacher: Teacher | None) -> int:
    """Floating-point operations of `passes`: (kind, images) -> count. Only passes of a network count."""
    networks = {"training": (arch, stem), "forward": (arch, stem)}
    if teacher:
        networks["teacher"] = teacher.arch, teacher.stem
    return sum(count * flops_of_pass(networks[kind][0], classes, networks[kind][1], size, kind, images)
               for (kind, images), count in passes.items())


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: on an accelerator since `reset_peak_memory`, on a CPU since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024      # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Restart the accelerator's peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
