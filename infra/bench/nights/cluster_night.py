"""`nightjar bench cluster`: the same first night on this machine, on a cluster, and on a cluster that loses a worker.

One simulated shop is imported once; every night is the first night of a tenant of its own with the same bronze tables.
Only the master that spark-submit is given differs, which is what the connection `spark_default` says. In the third
night a worker is killed (SIGKILL) in the middle of refine_events and, after it came back, of score_users.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import NightjarError
from infra.bench.nights.small_night import Night, Say, imported_shop, night_hashes, tenant_of_its_own
from infra.bench.report import figure, make_report
from infra.local.cluster import WORKERS, Cluster, cluster_up, find_worker, live_workers
from infra.local.night import SPARK_TASKS, TASKS
from infra.local.programs import Attempt, attempt

KILLED_IN = ("refine_events", "score_users")
KILL_AT_SHARE = 0.6
"""Of the time that the task took on the whole cluster: its executors are at work, and much is left to do."""


OfDrivers = Callable[[Mapping[str, str]], dict[str, str]]
"""Makes the variables of a cluster's driver of those of a program."""


def cluster_night(
    home: Path, variables: Mapping[str, str], *, event_count: int, say: Say, of_drivers: OfDrivers = dict
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report. `of_drivers`: what the drivers of the cluster nights get.

    Figures: `local_seconds`, `cluster_seconds`, `killed_seconds` of a night, and `<task>_<where>_seconds` of the Spark
    tasks. Further keys: workers_killed, identical, differing (hash -> nights), compared, version.
    """
    with imported_shop(home, variables, event_count=event_count, say=say) as (base, as_of):
        nights = {"local": _night(base, "local", as_of, None, {}, say, dict)}
        cluster = cluster_up(base)
        nights["cluster"] = _night(base, "cluster", as_of, cluster, {}, say, of_drivers)
        usual = {a.task: a.seconds for a in nights["cluster"].attempts}
        kill_after = {task: KILL_AT_SHARE * usual[task] for task in KILLED_IN}
        nights["killed"] = _night(base, "killed", as_of, cluster, kill_after, say, of_drivers)
    return _report(base, nights, kills=len(kill_after))


def _night(
    base: Mapping[str, str],
    tenant: str,
    as_of: str,
    cluster: Cluster | None,
    kill_after: Mapping[str, float],
    say: Say,
    of_drivers: OfDrivers,
) -> Night:
    variables, log = tenant_of_its_own(base, tenant)
    attempts: list[Attempt] = []
    for task in TASKS:
        if cluster is not None and live_workers(cluster) < len(WORKERS):
            cluster_up(base)
        killer = _Killer(variables, kill_after[task]) if task in kill_after else None
        master = cluster.master if cluster is not None else "local[*]"
        own = of_drivers(variables) if task in SPARK_TASKS else variables
        attempts.append(attempt(task, tenant, as_of, variables=own, log=log, master=master))
        if killer is not None:
            killer.check(task)
            say(f"{tenant}: a worker was killed {kill_after[task]:.0f} s after the start of {task}")
    hashes, version = night_hashes(variables, as_of)
    night = Night(attempts, hashes, version)
    say(f"{tenant}: {night.seconds:.0f} s, version {version}")
    return night


class _Killer:
    """Kills one worker after a while, from beside."""

    def __init__(self, variables: Mapping[str, str], seconds: float) -> None:
        self._worker = find_worker(variables, WORKERS[-1])
        self._killed = threading.Event()
        threading.Thread(target=self._kill, args=(seconds,), daemon=True).start()

    def _kill(self, seconds: float) -> None:
        time.sleep(seconds)
        if self._worker is not None:
            self._worker.kill()
            self._killed.set()

    def check(self, task: str) -> None:
        """Raises NightjarError when the task was over before the worker was killed: then nothing was shown."""
        if not self._killed.is_set():
            raise NightjarError(f"{task} ended before a worker was killed")
        if self._worker is not None:
            psutil.wait_procs([self._worker], timeout=10)


def _report(base: Mapping[str, str], nights: Mapping[str, Night], *, kills: int) -> dict[str, Any]:
    expected = nights["local"].hashes
    differing = {
        name: [where for where, night in nights.items() if night.hashes.get(name) != expected.get(name)]
        for name in sorted(set().union(*(night.hashes for night in nights.values())))
    }
    differing = {name: found for name, found in differing.items() if found}
    local = {a.task: a.seconds for a in nights["local"].attempts}
    figures = {
        f"{where}_seconds": figure("s", [night.seconds], baseline=[nights["local"].seconds])
        for where, night in nights.items()
    }
    for task in (name for name in TASKS if name in SPARK_TASKS):
        for where, night in nights.items():
            seconds = next(a.seconds for a in night.attempts if a.task == task)
            figures[f"{task}_{where}_seconds"] = figure("s", [seconds], baseline=[local[task]])
    return make_report(
        "cluster night",
        figures,
        str(base.get(names.CODE_VERSION, "")),
        workers_killed=kills,
        version=nights["local"].version,
        compared=len(expected),
        identical=not differing,
        differing=differing,
    )
