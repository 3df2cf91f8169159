"""The point a killed run goes on from: one file beside the result, gone when the result is there."""

import time
from pathlib import Path

from scripts.artefact import read_torch, write_state
from scripts.cli import stop_asked, stop_if_asked


class ResumePoint:
    """A state on disk, written anew at most every `save_seconds`.

    With all that is random drawn as a function of (seed, task, step), the state is the networks, the memory, the metrics and
    the seconds so far; a run that goes on from it ends in the same accuracies and the same memory, bit for bit.
    """

    def __init__(self, path: Path, save_seconds: float, device):
        self.path, self.save_seconds, self.device = path, save_seconds, device
        self.saved = time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether the last state is older than it should be, or SIGTERM asks for one."""
        return stop_asked() or time.perf_counter() - self.saved >= self.save_seconds

    def write(self, state: dict) -> None:
        """Replace the state, and stop where SIGTERM came; a kill while writing leaves the one before."""
        write_state(self.path, state)
        self.saved = time.perf_counter()
        stop_if_asked()

    def read(self) -> dict | None:
        """The state, on the device; None where there is none."""
        if not self.path.exists():
            return None
        return read_torch(self.path, "a resume point", self.device)

    def remove(self) -> None:
        """The run is complete."""
        self.path.unlink(missing_ok=True)
