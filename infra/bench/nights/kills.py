"""`nightjar torture night`: SIGKILL at seeded random points of a night; the results must be those of a quiet night.

Every night is the first night of a tenant of its own with the same bronze tables (`small_night`), so nights can be
compared by the hashes of their tables, their published lists and their bundle.

A kill point is a moment of a quiet night, drawn uniformly over its whole length: it falls into a task, a while after
that task's start. There the program and all its processes are killed, at once and without warning, and the task is
started again, as its retry would be. Points that fall into the same task follow one another within one night.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import NightjarError
from infra.bench.nights.small_night import Night, Say, imported_shop, night_hashes, tenant_of_its_own
from infra.bench.report import figure, make_report
from infra.local.night import TASKS
from infra.local.programs import Attempt, attempt

QUIET_NIGHTS = 2
KILLS_A_NIGHT = 10
MOST_DRAWS = 3
"""A point is drawn again when the task ended before the kill came; at most so many times the wanted number."""


class Point(NamedTuple):
    """Where to kill: `offset` seconds after the start of `task`."""

    task: str
    offset: float


def torture_night(
    home: Path, variables: Mapping[str, str], *, kills: int, seed: int, event_count: int, say: Say
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    Figures: `night_seconds`, `night_cpu_seconds` and `<task>_cpu_seconds` (undisturbed), `lost_seconds` (work destroyed
    by a kill), `time_ratio` (a night with one such kill against one without). Further keys: kills, missed, identical,
    differing (table -> nights).
    """
    with imported_shop(home, variables, event_count=event_count, say=say) as (base, as_of):
        quiet = [_night(base, f"quiet-{n}", as_of, (), say) for n in range(QUIET_NIGHTS)]
        tortured, missed = _tortured(base, as_of, kills, random.Random(seed), quiet, say)  # noqa: S311
    return _report(base, seed, quiet, tortured, missed)


def draw(rng: random.Random, durations: Mapping[str, float]) -> Point:
    """A point uniform over a night whose tasks take `durations` seconds one after another."""
    moment = rng.uniform(0.0, sum(durations.values()))
    for task, seconds in durations.items():
        if moment < seconds:
            return Point(task, moment)
        moment -= seconds
    return Point(task, seconds)


def _tortured(
    base: Mapping[str, str], as_of: str, kills: int, rng: random.Random, quiet: Sequence[Night], say: Say
) -> tuple[list[Night], int]:
    """Nights with KILLS_A_NIGHT points each, until `kills` have landed; (the nights, how many points missed)."""
    durations = {
        task: statistics.median(a.seconds for night in quiet for a in night.attempts if a.task == task)
        for task in TASKS
    }
    nights: list[Night] = []
    landed = missed = 0
    while landed < kills:
        if landed + missed >= MOST_DRAWS * kills:
            raise NightjarError(f"only {landed} of {landed + missed} kills came before the end of their task")
        points = [draw(rng, durations) for _ in range(min(KILLS_A_NIGHT, kills - landed))]
        night = _night(base, f"killed-{len(nights)}", as_of, points, say)
        nights.append(night)
        landed += len(night.lost)
        missed += len(points) - len(night.lost)
    return nights, missed


def _night(base: Mapping[str, str], tenant: str, as_of: str, points: Sequence[Point], say: Say) -> Night:
    variables, log = tenant_of_its_own(base, tenant)
    attempts: list[Attempt] = []
    for task in TASKS:
        for point in (p for p in points if p.task == task):
            attempts.append(attempt(task, tenant, as_of, variables=variables, log=log, kill_after=point.offset))
            if not attempts[-1].killed:
                break  # it has ended; the task is done
        else:
            attempts.append(attempt(task, tenant, as_of, variables=variables, log=log))
    hashes, version = night_hashes(variables, as_of)
    night = Night(attempts, hashes, version)
    say(f"{tenant}: {night.seconds:.0f} s, {len(night.lost)} kills, version {version}")
    return night


def _report(
    base: Mapping[str, str], seed: int, quiet: Sequence[Night], tortured: Sequence[Night], missed: int
) -> dict[str, Any]:
    normal = [night.seconds for night in quiet]
    lost = [seconds for night in tortured for seconds in night.lost]
    expected = quiet[0].hashes
    differing: dict[str, list[int]] = {}
    for number, night in enumerate((*quiet, *tortured)):
        for name in expected.keys() | night.hashes.keys():
            if expected.get(name) != night.hashes.get(name):
                differing.setdefault(name, []).append(number)
    quiet_seconds = statistics.median(normal)
    return make_report(
        "torture night",
        {
            "night_seconds": figure("s", normal),
            "night_cpu_seconds": figure("s", [night.cpu_seconds for night in quiet]),
            **{
                f"{task}_cpu_seconds": figure("s", [a.cpu_seconds for n in quiet for a in n.attempts if a.task == task])
                for task in sorted({attempt.task for attempt in quiet[0].attempts}, key=TASKS.index)
            },
            "lost_seconds": figure("s", lost),
            "time_ratio": figure("x", [(quiet_seconds + seconds) / quiet_seconds for seconds in lost], baseline=[1.0]),
        },
        str(base.get(names.CODE_VERSION, "")),
        seed=seed,
        kills=len(lost),
        missed=missed,
        compared=len(expected),
        identical=not differing,
        differing=differing,
        by_task={task: sum(a.task == task and a.killed for n in tortured for a in n.attempts) for task in TASKS},
        written_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
