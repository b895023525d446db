"""What answers brought, counted while the ordeal goes on: `silver.impressions` and `gold.metrics_daily`.

The table of decisions begins with answers of past days, and `silver.events` says what was seen of them and clicked. In
every second cycle the night's own task `attribute_events` derives one day more, as its DAG runs it: killed, it is run
again. Its exit code 0 is the acknowledgement: from then on that day is in both tables, whole and once.

Its MLflow is a folder beside the installation, that no power cut reaches: whether the task is told is its business.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from feature_repo.contracts.run import Run
from feature_repo.contracts.tables import table, table_path
from infra.bench.events.installation import FILE_STORE_ALLOWED, JOB_SECONDS, Installation, TortureError
from infra.bench.events.ledger import Findings
from serving.speed.delta_archive import DeltaArchive
from spark_jobs.io import tracking
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.io.run_store import write_run

JOB = "attribute_events"
DECISIONS, EVENTS, IMPRESSIONS, METRICS = (
    "silver.decisions", "silver.events", "silver.impressions", "gold.metrics_daily",
)  # fmt: skip
EVERY = 2
FIRST_DAY = date(2022, 1, 1)
_ITEMS = ("i1", "i2")
_ANSWERS = 3
"""A day: the first answer was seen as a whole, of the second the first item, of the third nothing."""
_SEEN = ((0, 0), (0, 1), (1, 0))
_CLICKED = (0, 1)


class Metrics:
    """The days of one ordeal, and what became of them."""

    def __init__(self, installation: Installation, *, cycles: int) -> None:
        self._installation = installation
        self._days = [FIRST_DAY + timedelta(days=number) for number in range(-(-cycles // EVERY))]
        self.tried: set[date] = set()
        self.acknowledged: set[date] = set()
        self.attempts = 0

    def begin(self) -> None:
        """The tables before the ordeal, and what each run is to do, while nothing else runs."""
        environment = self._installation.environment
        archive = DeltaArchive(environment.lakehouse, DECISIONS, tenant=environment.tenant)
        archive.open()
        archive.append([row for day in self._days for row in _answers(day)], {})
        write_deltalake(
            table_path(environment.lakehouse, EVENTS),
            pa.Table.from_pylist([row for day in self._days for row in _deeds(day)], schema=arrow_schema(EVENTS)),
            partition_by=list(table(EVENTS).partition_by),
        )
        os.environ.setdefault(FILE_STORE_ALLOWED, "true")
        told = tracking.start_night(environment, run_key="torture", as_of=FIRST_DAY.isoformat(), tags={})
        for number, day in enumerate(self._days):
            run = Run(
                run_key=_run_key(number), tenant=environment.tenant, as_of=(day + timedelta(days=1)).isoformat(),
                pins={DECISIONS: 1}, derive_days=(), publishes=False, why="", mlflow_run_id=told, code_version="",
            )  # fmt: skip
            write_run(environment, run)

    async def run(self, number: int) -> None:
        """Derive the day of a cycle until the task says that it is done. Raises TortureError when it never does."""
        if number % EVERY:
            return
        words = ["-m", f"spark_jobs.jobs.{JOB}", "--run-key", _run_key(number // EVERY)]
        deadline = asyncio.get_running_loop().time() + JOB_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            self.attempts += 1
            self.tried.add(self._days[number // EVERY])
            process = self._installation.start_job(JOB, words)
            while process.poll() is None:
                await asyncio.sleep(0.05)
            if process.returncode == 0:
                self.acknowledged |= self.tried
                return
            await asyncio.sleep(0.1)
        raise TortureError(f"{words[1]} was not done within {JOB_SECONDS:.0f} s")

    def judge(self, found: Findings, impressions: Iterable[Sequence[Any]], metrics: Iterable[Sequence[Any]]) -> None:
        """Add to the findings what is wrong with the rows of both tables.

        impressions  (recommendation_id, item_id)
        metrics      (metric_date, position, decisions, impressions, clicks)
        """
        seen = Counter((name, item) for name, item in impressions)
        wanted = {pair for day in self.acknowledged for pair in _seen(day)}
        possible = {pair for day in self.tried for pair in _seen(day)}
        found.lost |= {f"impression {name} {item}" for name, item in wanted - seen.keys()}
        found.strangers |= {f"impression {name} {item}" for name, item in seen.keys() - possible}
        found.twice |= {f"impression {name} {item}" for (name, item), count in seen.items() if count > 1}
        counted: dict[date, Counter[str]] = {}
        for day, position, decisions, shown, clicks in metrics:
            of_day = counted.setdefault(day, Counter())
            of_day.update(decisions=decisions if position == 1 else 0, impressions=shown, clicks=clicks)
        whole = Counter(decisions=_ANSWERS, impressions=len(_SEEN), clicks=1)
        found.lost |= {f"metrics of {day}" for day in self.acknowledged if counted.get(day) != whole}
        found.strangers |= {f"metrics of {day}" for day in counted.keys() - self.tried}


def _run_key(number: int) -> str:
    return f"attribution-{number:04d}"


def _name(day: date, answer: int) -> str:
    return f"r{day:%Y%m%d}-{answer}"


def _seen(day: date) -> set[tuple[str, str]]:
    return {(_name(day, answer), _ITEMS[place]) for answer, place in _SEEN}


def _answers(day: date) -> list[dict[str, Any]]:
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return [
        {
            "recommendation_id": _name(day, answer), "decided_at": noon, "kind": "recommendations", "placement": "home",
            "subject_key": "u:past", "model_version": "2022-01-01-00000000", "fallback_level": "personal",
            "item_ids": list(_ITEMS), "experiment_ids": [], "arms": [], "source": "past", "source_position": answer,
            "decision_date": day,
        }
        for answer in range(_ANSWERS)
    ]  # fmt: skip


def _deeds(day: date) -> list[dict[str, Any]]:
    """Half a minute after the answers: what was seen, then what was clicked."""
    moment = datetime(day.year, day.month, day.day, 12, 0, 30, tzinfo=UTC)
    deeds = [("impression", *place) for place in _SEEN] + [("click", *_CLICKED)]
    return [
        {
            "event_id": f"past-{day}-{number}", "event_type": kind, "user_id": "past", "subject_key": "u:past",
            "item_id": _ITEMS[place], "recommendation_id": _name(day, answer), "is_bot": False,
            "event_timestamp": moment + timedelta(seconds=number), "event_date": day,
        }
        for number, (kind, answer, place) in enumerate(deeds)
    ]  # fmt: skip
