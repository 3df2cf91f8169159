"""Timers of training phases. On a GPU they wait for the device at the edges of a task only."""

import contextlib
import time
from collections import defaultdict

import torch


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
        """Continue from `state`."""
        self.spans.update(state["spans"])
        self.phases.update(state["phases"])
