"""`nightjar bench backfill`: a stretch of nightly runs over real history, through Airflow's own backfill.

The file is imported into a home of the bench's own; then the nights of the last `days` days run oldest first, as a
data engineer would backfill them. Afterwards one of them, chosen by the seed, runs again, and the hashes of its tables
before and after are compared.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.run import REFINE_FILE
from infra.bench.report import figure, make_report
from infra.demo.stage import day_after_last_import
from infra.importing.online_retail import import_online_retail
from infra.local.night import TASKS, Night, backfill_nights
from infra.local.stack import down, up
from infra.local.variables import REPOSITORY, stack_variables
from spark_jobs.io.light_delta import days_by_row_count
from spark_jobs.io.run_store import read_report

GROWING = ("gold.user_features", "gold.item_features", "gold.candidates", "gold.evaluations")
"""Tables with one partition an as_of: each night adds one."""

Say = Callable[[str], None]


def backfill_month(
    home: Path, variables: Mapping[str, str], *, data: Path, days: int, until: date | None, seed: int, say: Say
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    `until` is the last as_of; default: the day after the last event of `data`, an Online Retail file. `days` >= 2.
    Figures: `first_night_seconds` (derives all history), `night_seconds` of the others with, as baseline, the first
    fifth of them (so `ratio` tells whether nights grow), `last_nights_seconds` of the last fifth, and one
    `<task>_seconds` for each task. Further keys: states, rows and days by table, rerun (as_of, identical, differing).
    """
    if days < 2:
        raise DataError(f"a backfill to measure has at least 2 days, got {days}", field="days")
    shutil.rmtree(home, ignore_errors=True)
    here = {**variables, names.HOME: str(home)}
    try:
        up(here)
        base = stack_variables(here)
        environment = Environment.from_mapping(base)
        say(f"importing {data}")
        import_online_retail(data, environment, received_at=datetime.now(UTC))
        last = until or day_after_last_import(environment)
        first = last - timedelta(days=days - 1)
        say(f"backfilling as_of {first} to {last}")
        nights = backfill_nights(
            first.isoformat(),
            last.isoformat(),
            variables=here,
            on_night=lambda n: say(f"{n['dag_run_id']} {n['state']} in {n['seconds']:.0f} s"),
        )
        again = first + timedelta(days=random.Random(seed).randrange(1, days))  # noqa: S311
        rerun = _rerun(here, base, again, say)
        return _report(environment, nights, rerun)
    finally:
        down(here)


def _rerun(here: Mapping[str, str], base: Mapping[str, str], as_of: date, say: Say) -> dict[str, Any]:
    before = _hashes(base, as_of)
    (night,) = backfill_nights(as_of.isoformat(), as_of.isoformat(), variables=here)
    after = _hashes(base, as_of)
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    say(f"as_of {as_of} again: {night['state']}, {len(differing)} of {len(before)} tables differ")
    return {
        "as_of": as_of.isoformat(),
        "state": night["state"],
        "compared": len(before),
        "identical": not differing,
        "differing": differing,
    }


def _hashes(variables: Mapping[str, str], as_of: date) -> dict[str, str]:
    command = [sys.executable, "-m", "infra.cli.main", "hash", "--as-of", as_of.isoformat(), "--json"]
    done = subprocess.run(command, env=dict(variables), cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["hashes"]


def _report(environment: Environment, nights: list[Night], rerun: dict[str, Any]) -> dict[str, Any]:
    seconds = [night["seconds"] or 0.0 for night in nights]
    later = seconds[1:]
    part = max(1, len(later) // 5)
    figures = {
        "first_night_seconds": figure("s", seconds[:1]),
        "night_seconds": figure("s", later, baseline=later[:part]),
        "last_nights_seconds": figure("s", later[-part:], baseline=later[:part]),
    }
    for name in TASKS:
        times = [t["seconds"] or 0.0 for night in nights[1:] for t in night["tasks"] if t["task_id"] == name]
        if times:
            figures[f"{name}_seconds"] = figure("s", times)
    middle = statistics.median(later)
    tables = {name: days_by_row_count(environment, name) for name in GROWING}
    return make_report(
        "bench backfill",
        figures,
        environment.code_version,
        nights=[
            {
                "run_key": night["run_key"],
                "state": night["state"],
                "seconds": night["seconds"],
                "days_derived": _days_derived(environment, night),
            }
            for night in nights
        ],
        all_succeeded=all(night["state"] == "success" for night in nights),
        within_20_percent=sum(abs(s - middle) <= 0.2 * middle for s in later) / len(later),
        partitions={name: len(days) for name, days in tables.items()},
        rows={name: sum(days.values()) for name, days in tables.items()},
        rerun=rerun,
    )


def _days_derived(environment: Environment, night: Night) -> Any:
    if night["state"] != "success":
        return None
    return read_report(environment, night["run_key"], REFINE_FILE)["days_derived"]
