"""What benchmarks share: variants timed in turn, how they compare, and what a computation or a command takes."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from scripts.artefact import hardware
from scripts.cli import ROOT

# A process's peak counts the memory its parent had when it was started, so a command is started from one that has next to none.
SMALL_PARENT = """
import os, subprocess, sys
command = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(command.pid, 0)
print(usage.ru_maxrss, usage.ru_utime + usage.ru_stime)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def interleaved(variants: dict[str, Callable[[], object]], repetitions: int, title: str,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds by `clock` of each of `variants`, run one after another, `repetitions` times over.

    A first round warms up and is not counted. In turn, because whatever else the machine does then meets all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with tqdm(total=(repetitions + 1) * len(variants), desc=title, unit="run", disable=None) as bar:
        for repetition in range(repetitions + 1):
            for name, work in variants.items():
                spent = seconds_of(work, clock)
                if repetition:
                    seconds[name].append(spent)
                bar.update()
    return seconds


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that `work` takes until its device is done with it too."""
    synchronise()
    began = clock()
    work()
    synchronise()
    return clock() - began


def synchronise() -> None:
    """Wait for the accelerator, where there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def compared(seconds: dict[str, list[float]], images: dict[str, int]) -> dict:
    """Seconds, images per second and how many times faster `ours` is than `stock`, per image."""
    each = {name: [one / images[name] for one in spent] for name, spent in seconds.items()}
    return {"seconds": {name: rounded(spent) for name, spent in seconds.items()},
            "images_per_second": {name: 1 / statistics.median(one) for name, one in each.items()},
            "times_faster": times_faster(each["ours"], each["stock"])}


def rounded(seconds: list[float]) -> list[float]:
    """Seconds for a result file."""
    return [round(each, 4) for each in seconds]


def times_faster(ours: list[float], other: list[float]) -> float:
    """How many times less than `other` `ours` takes: the median over repetitions of each pair's ratio."""
    return statistics.median(b / a for a, b in zip(ours, other, strict=True))


def peak_device_bytes(work: Callable[[], object]) -> int | None:
    """The most memory of the accelerator that was taken at once during `work`; None where it is not counted."""
    if not torch.cuda.is_available():
        work()
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated()


def peak_memory_bytes(command: list[str]) -> int:
    """The most memory (resident set) that a command run from the repository's root took; raises when it fails."""
    return costs_of_command(command)[0]


def costs_of_command(command: list[str]) -> tuple[int, float]:
    """`peak_memory_bytes` of a command, and its seconds of processor time."""
    done = subprocess.run([sys.executable, "-c", SMALL_PARENT, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: expected exit code 0, found {done.returncode}: {done.stderr[-2000:]}")
    peak, processor_seconds = done.stdout.split()
    return int(peak) * (1 if sys.platform == "darwin" else 1024), float(processor_seconds)


def flops_of(work: Callable[[], object]) -> int:
    """Floating-point operations of `work`'s matrix products, convolutions and attention; multiply and add are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_product_flops(device, dtype: torch.dtype, side: int, products: int = 20) -> float:
    """Floating-point operations per second that this device reaches in products of square matrices; the median of five."""
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply():
        for _ in range(products):
            first @ second
    multiply()
    return products * 2 * side ** 3 / statistics.median(seconds_of(multiply) for _ in range(5))


def conditions() -> dict:
    """The machine, how many threads it may use, and how busy it is."""
    return {"hardware": hardware(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"), "load": round(os.getloadavg()[0], 2)}
