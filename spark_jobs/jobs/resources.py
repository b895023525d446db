"""What a piece of work cost this process: seconds and memory, for MLflow's system metrics and for its log."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


@dataclass(slots=True)
class Usage:
    """Filled when the work is done. `cpu_seconds` counts every thread of this process, not a JVM beside it;
    `peak_resident_megabytes` is the most that the process ever held, up to then."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_resident_megabytes: float = 0.0

    def metrics(self, work: str) -> dict[str, float]:
        """MLflow shows metrics under `system/` on a page of their own."""
        return {
            f"system/{work}_wall_seconds": self.wall_seconds,
            f"system/{work}_cpu_seconds": self.cpu_seconds,
            f"system/{work}_peak_resident_megabytes": self.peak_resident_megabytes,
        }


@contextmanager
def measured() -> Iterator[Usage]:
    """The usage of what happens inside."""
    usage = Usage()
    wall, cpu = time.monotonic(), time.process_time()
    try:
        yield usage
    finally:
        usage.wall_seconds = time.monotonic() - wall
        usage.cpu_seconds = time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        usage.peak_resident_megabytes = peak * _BYTES_PER_MAXRSS / 1e6


class Clock:
    """Prints what was just done, with the seconds it took."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: str) -> None:
        now = time.monotonic()
        print(f"{now - self._last:7.1f} s  {done}", flush=True)
        self._last = now
