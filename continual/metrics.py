"""What a run is measured by: accuracy, forgetting and transfer; seconds, floating-point operations and memory."""

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from scripts.networks import build_empty

# accuracy of one test

def masked_accuracy(logits: Tensor, labels: Tensor, classes) -> float:
    """Accuracy in [0, 1] of logits [N, K] among `classes`."""
    return (predictions(logits, classes) == labels).float().mean().item()


def predictions(logits: Tensor, classes) -> Tensor:
    """The class of the largest logit among `classes`, int64 [N], of logits [N, K]."""
    allowed = torch.tensor(sorted(classes), device=logits.device)
    return allowed[logits[:, allowed].argmax(1)]


def confusion_matrix(logits: Tensor, labels: Tensor, classes) -> Tensor:
    """Counts int64 [K, K] on the CPU of predictions among `classes`: row = true class, column = predicted class."""
    count = logits.shape[1]
    return torch.bincount(labels * count + predictions(logits, classes), minlength=count * count).view(count, count).cpu()


def per_class_accuracy(confusion: Tensor) -> list[float | None]:
    """The accuracy of each true class, [K]; None for a class without test images."""
    return [right / total if total else None
            for right, total in zip(confusion.diagonal().tolist(), confusion.sum(1).tolist(), strict=True)]


# the accuracy matrix R [T, T]: R[t, j] in [0, 1] is the accuracy on the test images of task j after training on tasks 0..t

def average_accuracy(matrix: np.ndarray) -> float:
    """ACC (Lopez-Paz and Ranzato 2017, eq. 2): the mean of R's last row."""
    return float(np.mean(matrix[-1]))


def average_incremental_accuracy(matrix: np.ndarray) -> float:
    """The mean over t of the mean of R[t, :t+1] (Rebuffi et al. 2017, with tasks of equal weight)."""
    return float(np.mean([row[:task + 1].mean() for task, row in enumerate(matrix)]))


def backward_transfer(matrix: np.ndarray) -> float | None:
    """BWT (Lopez-Paz and Ranzato 2017, eq. 3): the mean over j < T-1 of R[T-1, j] - R[j, j]; None for one task."""
    if len(matrix) == 1:
        return None
    return float(np.mean(matrix[-1, :-1] - np.diag(matrix)[:-1]))


def forgetting(matrix: np.ndarray) -> float | None:
    """Forgetting (Chaudhry et al. 2018, eq. 3): the mean over j < T-1 of (max over t < T-1 of R[t, j]) - R[T-1, j]."""
    if len(matrix) == 1:
        return None
    return float(np.mean(matrix[:-1, :-1].max(0) - matrix[-1, :-1]))


def forward_transfer(matrix: np.ndarray, baseline: list[float]) -> float | None:
    """Forward transfer (Lopez-Paz and Ranzato 2017, eq. 4): the mean over j > 0 of R[j-1, j] - b[j]; None for one task.

    `baseline` b [T] is the accuracy of an untrained network with other initial weights than R's.
    """
    if len(matrix) == 1:
        return None
    return float(np.mean(np.diag(matrix, 1) - np.array(baseline[1:])))


def summarise(rows: list[list[float] | None]) -> dict:
    """R and its metrics. Joint training has the last row only, and so ACC only."""
    whole = all(row is not None for row in rows)
    matrix = np.array(rows if whole else rows[-1:], dtype=float)
    metrics = {"average_incremental": average_incremental_accuracy, "bwt": backward_transfer, "forgetting": forgetting}
    return {"matrix": rows, "acc": average_accuracy(matrix),
            **{name: metric(matrix) if whole else None for name, metric in metrics.items()}}


# seconds

class Timers:
    """Seconds by name. `span` is wall-clock time with the device synchronised at both edges; `phase` is a part of a span.

    On a GPU a phase is a pair of events, read when its span ends, so that the host never waits within a span.
    """

    def __init__(self, device):
        self.device = torch.device(device)
        self.spans: dict[str, float] = defaultdict(float)
        self.phases: dict[str, float] = defaultdict(float)
        self.pending: list[tuple] = []

    @contextlib.contextmanager
    def span(self, name: str):
        """Add the wall-clock seconds of the block."""
        self._synchronise()
        started = time.perf_counter()
        yield
        self._synchronise()
        self.spans[name] += time.perf_counter() - started
        for phase, first, last in self.pending:
            self.phases[phase] += first.elapsed_time(last) / 1000
        self.pending.clear()

    @contextlib.contextmanager
    def phase(self, name: str):
        """Add the device's seconds of the block."""
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self.pending.append((name, first, last))
        else:
            started = time.perf_counter()
            yield
            self.phases[name] += time.perf_counter() - started

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self) -> dict[str, float]:
        """All seconds, rounded to 0.1 ms."""
        return {name: round(value, 4) for name, value in (*self.phases.items(), *self.spans.items())}

    def state(self) -> dict:
        """The seconds so far, outside any span."""
        return {"spans": dict(self.spans), "phases": dict(self.phases)}

    def load(self, state: dict) -> None:
        self.spans.update(state["spans"])
        self.phases.update(state["phases"])


# floating-point operations

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
          teacher: tuple[str, str] | None) -> int:
    """Floating-point operations of `passes`: (kind, images) -> count. `teacher`: its (arch, stem)."""
    networks = {"training": (arch, stem), "forward": (arch, stem), "teacher": teacher}
    return sum(count * flops_of_pass(networks[kind][0], classes, networks[kind][1], size, kind, images)
               for (kind, images), count in passes.items())


# memory

def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: on an accelerator since `reset_peak_memory`, on a CPU since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024      # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
