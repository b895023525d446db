"""`nightjar torture api`: whatever comes over the wire, no answer is a 500, no worker dies, and memory stays flat.

Cases that Schemathesis makes of our own OpenAPI document, then raw bytes (`raw_requests`), against what an installation
serves: the production entry point with two workers, both Redis roles on disk, consumer and archiver behind them. Faults
are found on three sides: in the answers, in what the servers print (a traceback), and in their own counters.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from feature_repo.contracts import environment as names
from feature_repo.contracts.keys import dead_letter_stream_key
from infra.bench.events.api_cases import run_cases
from infra.bench.events.raw_requests import RawRequests, seeds_of
from infra.bench.events.raw_sender import Tally, send_raw
from infra.bench.report import figure, make_report
from infra.bench.small_installation import ARCHIVER, CONSUMER, SmallInstallation

Say = Callable[[str], None]

WORKERS = 2
PEOPLE = 1_000
WARM_UP = 0.2
"""Share of the raw requests after which memory must stay what it is."""
MAX_GROWTH = 0.10
STEPS = 20
"""Lines that it says."""
SLICES = 200
_SETTINGS = {"NIGHTJAR_SERVING_LOG_TIMEOUT_MS": "15000", "NIGHTJAR_SERVING_LEASE_SECONDS": "30"}
"""A busy machine shall not look like a broken server."""


def torture_api(
    home: Path,
    variables: Mapping[str, str],
    *,
    cases: int,
    requests: int,
    seed: int,
    say: Say,
    longest_seconds: float = math.inf,
) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report. After `longest_seconds` no more is sent.

    Figures: `faults` (answers >= 500 that are no overload, requests without an answer, answers that are no HTTP),
    `crashes` (workers, consumer, archiver that ended), `memory_growth` (of the workers' own resident memory after
    the warm-up). `clean`: no faults, no crashes, no traceback in any log, no refused connection, and memory flat.
    Further keys: cases, cases_sent by operation, raw_requests, statuses of both parts, overloaded, refused, dropped
    (connections ended before the first answer that was due), dead_letters, printed, memory_mb, kept_faults.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    memory: dict[str, float] = {}
    cases_tally, raw = Tally(), Tally()
    with SmallInstallation(home, variables, people=PEOPLE, settings=_SETTINGS) as installation:
        api, port = installation.start_api(workers=WORKERS)
        others = [installation.start(CONSUMER), installation.start(ARCHIVER)]
        url = f"http://127.0.0.1:{port}"
        document = httpx.get(f"{url}/openapi.json", trust_env=False, timeout=30).json()
        memory["start"] = _resident_mb(api)
        began = time.monotonic()
        counts = run_cases(
            document, url, cases=cases, seed=seed, tally=cases_tally, deadline=began + longest_seconds / 2
        )
        memory["after_cases"] = _resident_mb(api)
        say(f"{cases_tally.requests:,} cases: {_said(cases_tally)}; {memory['after_cases']:.0f} MB")
        stream, told, raw_began = RawRequests(seeds_of(document), seed), 0, time.monotonic()
        left = max(1.0, began + longest_seconds - raw_began)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            while (done := max(raw.requests / requests, (time.monotonic() - raw_began) / left)) < 1:
                runner.run(send_raw(port, stream, max(1, min(requests - raw.requests, requests // SLICES)), raw))
                if done >= WARM_UP:
                    memory.setdefault("warm", _resident_mb(api))
                if done * STEPS >= told:
                    told += 1
                    say(f"{raw.requests:,} raw requests: {_said(raw)}; {_resident_mb(api):.0f} MB")
        memory["end"] = _resident_mb(api)
        memory.setdefault("warm", memory["end"])
        counted = _counted_failures(url)
        printed = {name: _printed(installation.log_of(name)) for name in ("serving", CONSUMER, ARCHIVER)}
        dead = [process for process in others if process.poll() is not None]
        with redis.Redis.from_url(installation.log.url) as log:
            letters = int(log.xlen(dead_letter_stream_key()))
    crashes = printed["serving"]["worker_ends"] + len(dead)
    tracebacks = sum(found["tracebacks"] for found in printed.values())
    faults = max(cases_tally.fault_count + raw.fault_count, counted)
    growth = memory["end"] / memory["warm"] - 1
    clean = not (faults or crashes or tracebacks or cases_tally.refused or raw.refused) and growth <= MAX_GROWTH
    if clean:
        shutil.rmtree(home, ignore_errors=True)
    return make_report(
        "torture api",
        {"faults": figure("1", [faults]), "crashes": figure("1", [crashes]), "memory_growth": figure("1", [growth])},
        str(variables.get(names.CODE_VERSION, "")),
        clean=clean,
        seed=seed,
        cases=cases_tally.requests,
        cases_sent=counts,
        case_statuses=dict(sorted(cases_tally.statuses.items())),
        raw_requests=raw.requests,
        raw_statuses=dict(sorted(raw.statuses.items())),
        overloaded=cases_tally.overloaded + raw.overloaded,
        refused=cases_tally.refused + raw.refused,
        dropped=cases_tally.dropped + raw.dropped,
        dead_letters=letters,
        printed=printed,
        memory_mb={name: round(value, 1) for name, value in memory.items()},
        kept_faults=[*cases_tally.faults, *raw.faults],
        kept_dropped=raw.kept_dropped,
    )


def _said(tally: Tally) -> str:
    found = ", ".join(f"{status}: {count:,}" for status, count in sorted(tally.statuses.items()))
    return f"{found}; {tally.fault_count} faults, {tally.dropped} dropped"


def _resident_mb(api: psutil.Process) -> float:
    """Of the workers' own, without pages of files (a worker that looks for a decision maps its log, and lets go of it);
    one that ended just now has none."""
    total = 0
    for worker in api.children():
        try:
            memory = worker.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += memory.rss - getattr(memory, "shared", 0)  # of files; told on Linux
    return total / 1e6


def _counted_failures(url: str) -> int:
    """The 500s that the workers counted, also those of clients that did not wait."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "nightjar_api_requests_total" and sample.labels["status"] in ("500", "501", "502", "None")
    )


def _printed(path: Path) -> dict[str, int]:
    """What a program's log has of tracebacks, of steps tried again, and of workers that the supervisor replaced."""
    found = {"tracebacks": 0, "retries": 0, "worker_ends": 0}
    with path.open("rb") as lines:
        for line in lines:
            found["tracebacks"] += b"Traceback" in line
            found["retries"] += b"trying again" in line
            found["worker_ends"] += b'"worker ' in line and b" ended with " in line
    return found
