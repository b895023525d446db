"""The one form of every bench report: figures with their spread, and what they were measured on.

`{"name", "code_version", "machine", "figures": {FIGURE: {"unit", "min", "median", "max", "baseline", "ratio"}}}`
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import psutil

from feature_repo.contracts.errors import DataError


class Figure(TypedDict):
    """One figure over its samples. `baseline`: the median of what it is compared with; `ratio`: median / baseline."""

    unit: str
    min: float
    median: float
    max: float
    baseline: float | None
    ratio: float | None


class Report(TypedDict):
    """What a bench found. Further keys may stand beside these."""

    name: str
    code_version: str
    machine: dict[str, Any]
    figures: dict[str, Figure]


def figure(unit: str, samples: Sequence[float], *, baseline: Sequence[float] | None = None) -> Figure:
    """A figure of at least one sample. Raises DataError without any: a bench that measured nothing has no figure."""
    if not samples or (baseline is not None and not baseline):
        raise DataError(f"a figure in {unit} needs at least one sample")
    middle = statistics.median(samples)
    against = None if baseline is None else statistics.median(baseline)
    return Figure(
        unit=unit,
        min=_rounded(min(samples)),
        median=_rounded(middle),
        max=_rounded(max(samples)),
        baseline=None if against is None else _rounded(against),
        ratio=_rounded(middle / against) if against else None,
    )


def machine() -> dict[str, Any]:
    """The machine as far as it matters to a figure: processor, cores that may be used, memory, system, Python."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": usable,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def make_report(name: str, figures: Mapping[str, Figure], code_version: str, **more: Any) -> dict[str, Any]:
    """A `Report` with whatever else the bench wants to tell."""
    return {"name": name, "code_version": code_version, "machine": machine(), "figures": dict(figures), **more}


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write it as JSON, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
