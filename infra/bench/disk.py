"""What a promise of durability is worth on this disk: how long an fsync takes, and whether one means anything."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

_WRITES = 200
_BLOCK = b"x" * 4096
HONEST_MS = 0.1
"""No disk that keeps what it was told answers sooner; then a cache in between says yes."""
_IN_MEMORY = frozenset({"tmpfs", "ramfs"})


def filesystem_of(folder: Path) -> str:
    """The type of the file system that holds `folder`; "unknown" where /proc/mounts does not say."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "unknown"
    here = folder.resolve()
    found = [(len(point), kind) for point, kind in mounts if here.is_relative_to(point)]
    return max(found)[1] if found else "unknown"


def fsync_median_ms(folder: Path) -> float:
    """Median time of an appended block and its fsync, in milliseconds."""
    path = folder / "fsync.probe"
    times = []
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        for _ in range(_WRITES):
            began = time.perf_counter()
            os.write(handle, _BLOCK)
            os.fsync(handle)
            times.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(handle)
        path.unlink()
    return statistics.median(times)


def judge_disk(folder: Path) -> dict[str, Any]:
    """`fsync_median_ms`, `filesystem`, and `void`: why figures of durable writes mean nothing here (None: they do)."""
    folder.mkdir(parents=True, exist_ok=True)
    kind, median = filesystem_of(folder), fsync_median_ms(folder)
    void = None
    if kind in _IN_MEMORY:
        void = f"{folder} lies in memory ({kind}): nothing is durable there"
    elif median < HONEST_MS:
        void = f"an fsync takes {median:.3f} ms, less than {HONEST_MS} ms: this disk does not wait for itself"
    return {"fsync_median_ms": round(median, 4), "filesystem": kind, "void": void}
