"""`nightjar bench night`: the first night of a large simulated shop, through Airflow's scheduler, by size of the shop.

Each size has an installation of its own: bronze is filled, silver and gold are empty, and one run of the night derives
all history, trains, scores everybody and publishes. What is timed is that DAG run, from its start to its end; neither
simulating nor importing counts. The largest size is the one that the bars are about; the smaller ones tell how work
grows: the slope of log(work) over log(events), work being the seconds that the run's tasks took.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, NightjarError
from infra.bench.report import figure, make_report
from infra.importing.shop import import_shop
from infra.local.night import TASKS, Night, run_nightly
from infra.local.processes import belongs_to
from infra.local.stack import down, up
from infra.local.variables import stack_variables
from infra.simulator.config import ShopConfig
from infra.simulator.shop import simulate_shop

EVENTS_PER_USER = 100
ITEMS = 20_000
LEAST_ITEMS = 200
EVENTS_PER_ITEM = 20
"""A small shop has no 20,000 items."""
SHOP_DAYS = 90
MOST_SECONDS, MOST_GB = 480.0, 8.0
"""The bars at 10 M events, as the baseline of the figures."""
LOOK_SECONDS = 1.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """The night of one size. `peak_bytes`: the most memory (`memory_of`) that all processes of the installation held at
    once, Airflow, MLflow and both Redis among them."""

    event_count: int
    night: Night
    peak_bytes: int

    @property
    def seconds(self) -> float:
        return float(self.night["seconds"] or 0.0)

    @property
    def work_seconds(self) -> float:
        return sum(task["seconds"] or 0.0 for task in self.night["tasks"])


def scale_shop(event_count: int) -> ShopConfig:
    """The shop of a size: 100 events a user, up to 20,000 items."""
    return ShopConfig(
        event_count=event_count,
        user_count=max(10, event_count // EVENTS_PER_USER),
        item_count=max(LEAST_ITEMS, min(ITEMS, event_count // EVENTS_PER_ITEM)),
        days=SHOP_DAYS,
    )


def bench_night(home: Path, variables: Mapping[str, str], *, event_counts: Sequence[int], say: Say) -> dict[str, Any]:
    """Run it in folders under `home` (made anew, removed size by size) and return the report.

    Figures: `night_seconds` and `peak_gb` of the largest size (baselines: the bars for 10 M events), `<task>_seconds`
    of it, and `work_slope` where there are two sizes or more. Further keys: nights, a row for each size.
    Raises DataError on a size that no shop can have, NightjarError when a night fails.
    """
    sizes = sorted(set(event_counts))
    if not sizes:
        raise DataError("a bench of nights has at least one size", field="events")
    shops = [scale_shop(size) for size in sizes]  # all of them are checked before the first one runs
    shutil.rmtree(home, ignore_errors=True)
    nights = [_measure(home / str(shop.event_count), variables, shop, say) for shop in shops]
    code_version = Environment.from_mapping({**variables, names.HOME: str(home)}).code_version
    return report_of(nights, code_version)


def report_of(nights: Sequence[Measured], code_version: str) -> dict[str, Any]:
    """The report over nights of rising sizes."""
    largest = nights[-1]
    figures = {
        "night_seconds": figure("s", [largest.seconds], baseline=[MOST_SECONDS]),
        "peak_gb": figure("GB", [largest.peak_bytes / 1e9], baseline=[MOST_GB]),
    }
    for task in largest.night["tasks"]:
        if task["task_id"] in TASKS and task["seconds"] is not None:
            figures[f"{task['task_id']}_seconds"] = figure("s", [task["seconds"]])
    if len(nights) > 1:
        slope = log_slope([night.event_count for night in nights], [night.work_seconds for night in nights])
        figures["work_slope"] = figure("log s / log events", [slope], baseline=[1.05])
    rows = [
        {
            "events": night.event_count,
            "night_seconds": round(night.seconds, 1),
            "work_seconds": round(night.work_seconds, 1),
            "peak_gb": round(night.peak_bytes / 1e9, 3),
            "tasks": {task["task_id"]: task["seconds"] for task in night.night["tasks"]},
        }
        for night in nights
    ]
    return make_report("bench night", figures, code_version, nights=rows)


def log_slope(events: Sequence[int], seconds: Sequence[float]) -> float:
    """By least squares, of log(seconds) over log(events): 1 where twice the events take twice as long."""
    x, y = [math.log(value) for value in events], [math.log(value) for value in seconds]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle_x) ** 2 for a in x)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread


class MemoryWatch:
    """The most memory that the processes of an installation held together, looked at once a second, from beside."""

    def __init__(self, home: Path) -> None:
        self._home = str(home)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_bytes = 0

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, memory_of(self._home))
            if self._ended.wait(LOOK_SECONDS):
                return

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def memory_of(home: str) -> int:
    """Bytes of all processes of the installation in `home`; those that end meanwhile count 0.

    Pages that processes share are divided among them where the system can tell (Linux): a Java that starts a program
    is for a moment two processes with the same gigabytes.
    """
    total = 0
    for process in psutil.process_iter():
        if belongs_to(process, home, None):
            with contextlib.suppress(psutil.Error):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
    return total


def _measure(home: Path, variables: Mapping[str, str], shop: ShopConfig, say: Say) -> Measured:
    here = {**variables, names.HOME: str(home)}
    home.mkdir(parents=True)
    say(f"simulating {shop.event_count:,} events, {shop.user_count:,} users, {shop.item_count:,} items")
    simulate_shop(shop, home / "shop")
    try:
        up(here)
        say("importing")
        import_shop(home / "shop", Environment.from_mapping(stack_variables(here)))
        shutil.rmtree(home / "shop")
        say("the night")
        with MemoryWatch(home) as memory:
            night = run_nightly(shop.end_day.isoformat(), variables=here)
    finally:
        down(here)
    if night["state"] != "success":
        raise NightjarError(f"{night['failed_task']} of the night failed: " + "; ".join(night["errors"]))
    found = Measured(shop.event_count, night, memory.peak_bytes)
    say(f"{shop.event_count:,} events: {found.seconds:.0f} s, {memory.peak_bytes / 1e9:.1f} GB")
    shutil.rmtree(home)
    return found
