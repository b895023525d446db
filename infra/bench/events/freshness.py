"""`nightjar bench freshness`: how soon an acknowledged event changes its person's next answer, under load.

Redis `log` and `online`, an API with two workers, the consumer and the archiver, as an installation has them; a client
of its own (`open_loop`) sends events and asks for recommendations at fixed rates and watches probes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from feature_repo.contracts import environment as names
from infra.bench.disk import judge_disk
from infra.bench.report import figure, make_report
from infra.bench.serving.open_loop import PROBE_EVERY, Freshness, run_open_loop
from infra.bench.small_installation import ARCHIVER, CONSUMER, SmallInstallation

Say = Callable[[str], None]

READERS = 2_000
"""People that background reads ask for; probes come behind them."""


def bench_freshness(
    home: Path,
    variables: Mapping[str, str],
    *,
    rounds: int,
    seconds: int,
    events_per_second: int,
    reads_per_second: int,
    say: Say,
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    Figures, one sample a round: `event_to_answer_p99_ms` and `event_to_answer_p50_ms` (acknowledgement to changed
    answer), `sent_to_answer_p99_ms`, `event_p99_ms`, `read_p99_ms` (from the intended send), `events_per_second` and
    `reads_per_second` (answered). Further keys: probes, unchanged, errors, fsync_median_ms, filesystem, void.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    disk = judge_disk(home)
    probes = seconds * events_per_second // PROBE_EVERY + 2
    people = READERS + (rounds + 1) * probes
    with SmallInstallation(home, variables, people=people) as installation:
        _, port = installation.start_api(workers=2)
        installation.start(CONSUMER)
        installation.start(ARCHIVER)
        found = []
        for number in range(rounds + 1):
            one = run_open_loop(
                port, seconds=seconds, events_per_second=events_per_second, reads_per_second=reads_per_second,
                first_person=READERS + number * probes, run=f"{time.time_ns():x}",
            )  # fmt: skip
            if number == 0:
                continue  # warm-up
            found.append(one)
            say(
                f"round {number}: {one.events_per_second:,.0f} events/s, {one.reads_per_second:,.0f} reads/s, answer "
                f"changed after {one.event_to_answer_p50_ms:.1f} ms (p50), {one.event_to_answer_p99_ms:.1f} ms (p99)"
            )
    shutil.rmtree(home, ignore_errors=True)
    units = {name: "ms" if name.endswith("_ms") else "1/s" for name in Freshness._fields[3:]}
    return make_report(
        "bench freshness",
        {name: figure(unit, [getattr(one, name) for one in found]) for name, unit in units.items()},
        str(variables.get(names.CODE_VERSION, "")),
        **disk,
        probes=sum(one.probes for one in found),
        unchanged=sum(one.unchanged for one in found),
        errors=sum(one.errors for one in found),
        wanted_events_per_second=events_per_second,
        wanted_reads_per_second=reads_per_second,
    )
