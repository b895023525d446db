"""`nightjar torture events`: harm to the event path at seeded random moments, and a book that says what must be left.

An installation of its own: two Redis servers, an API with two workers, a consumer and two archivers (one of them works
at a time), all watched by the library of `power`. Clients send events, alone and in batches, and send again whatever
was not acknowledged. Meanwhile API workers, consumer, archivers and both Redis servers are killed or stopped for a
while. The night's maintenance compacts the archive and the imported tables, and in every third cycle a file is
imported; both are programs that may be killed or stopped too. Answers are asked for as well, their decisions go to the
archive, and in every second cycle the night's task counts what answers brought. Some cycles end with a power cut, a
full or a slow disk, or a torn end of the log's file. Then everything comes back, the clients finish, and the `Ledger`
judges.

Both Redis servers keep an append-only file here, so that session records can be compared after their server's death; in
an ordinary installation `online` is rebuilt instead. Two control runs show that the judge sees what it should: with
`appendfsync everysec` a power cut must lose acknowledged events, and without dedup marks events must count twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import redis
from deltalake import DeltaTable

from feature_repo.contracts import environment as names
from feature_repo.contracts.keys import (
    EVENT_PARTITIONS,
    applied_key,
    session_key,
    speed_counters_key,
    stream_key,
)
from feature_repo.contracts.packing import SessionState, unpack_session
from feature_repo.contracts.stream_entry import source_of, split_entry
from feature_repo.contracts.tables import table_path
from infra.bench.disk import judge_disk
from infra.bench.events.installation import SETTLE_SECONDS, Control, Installation, TortureError, send_signal
from infra.bench.events.ledger import Findings, Ledger, event_id_of
from infra.bench.events.power import compiler
from infra.bench.events.torture_decisions import Decisions
from infra.bench.events.torture_imports import TABLE as IMPORTED
from infra.bench.events.torture_imports import Imports
from infra.bench.events.torture_maintenance import ARCHIVE, IMPORTS, Maintenance
from infra.bench.events.torture_metrics import DECISIONS, IMPRESSIONS, JOB, METRICS, Metrics
from infra.bench.report import figure, make_report
from infra.bench.small_version import publish_small_version
from serving.speed.positions import position_number

Say = Callable[[str], None]
Ending = Literal["none", "power cut", "disk full", "torn tail", "disk slow"]

CLIENTS = 12
PEOPLE = 60
LOAD_SECONDS = 0.9
LEAST_EVENTS = 100
"""Events that are acknowledged after the harm and before the ending."""
CONTROL_CYCLES = 6
FORGET_SECONDS = 0.05
"""In the control without dedup marks they vanish so often."""
IMPORT_EVERY = 3
ARCHIVERS = ("archiver", "second archiver")
VICTIMS = ("api worker", "consumer", *ARCHIVERS, "redis-log", "redis-online", "importer", ARCHIVE, IMPORTS, JOB)
_TYPES = ("view_item", "view_item", "view_item", "add_to_cart", "purchase", "dislike", "search")

_ENDINGS: Sequence[Ending] = ("none", "power cut", "disk full", "power cut", "torn tail", "disk slow")
_CONTROLS: Sequence[Control] = ("everysec", "no marks")


class Clients:
    """Senders that never give up: whatever was not acknowledged is sent again under the same id."""

    def __init__(self, url: str, ledger: Ledger, rng: random.Random) -> None:
        self._url = url
        self._ledger = ledger
        self._rng = rng
        self._number = 0
        self._began = datetime(2024, 3, 8, tzinfo=UTC)
        self.is_open = False
        self.pause_seconds = 0.0
        self.requests = self.retries = 0

    async def run(self) -> None:
        """Send until `is_open` is False and everything is acknowledged."""
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        async with httpx.AsyncClient(timeout=1.2, trust_env=False) as http:
            while self.is_open:
                size = 1 if self._rng.random() < 0.5 else self._rng.randint(2, 25)
                events = [self._event() for _ in range(size)]
                await self._deliver(http, events)
                if self._rng.random() < 0.1:  # a client that missed the answer
                    await asyncio.sleep(self.pause_seconds)
                    await self._deliver(http, events)

    async def _deliver(self, http: httpx.AsyncClient, events: Sequence[Mapping[str, Any]]) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            self.requests += 1
            try:
                answer = await http.post(
                    f"{self._url}/v1/events", json=events[0] if len(events) == 1 else {"events": events}
                )
                if answer.status_code == 202:
                    for result in answer.json()["results"]:
                        self._ledger.note(result["event_id"], result["status"])
                    return
            except httpx.HTTPError:
                pass
            self.retries += 1
            await asyncio.sleep(self._rng.uniform(0.02, 0.1))
        raise TortureError(f"no acknowledgement within {SETTLE_SECONDS:.0f} s")

    def _event(self) -> dict[str, Any]:
        self._number += 1
        kind = self._rng.choice(_TYPES)
        late = timedelta(milliseconds=self._rng.choice((0, 0, 0, 5_000, 3_600_000)))
        moment = self._began + timedelta(milliseconds=1_370 * self._number) - late  # nobody is so fast as to be a bot
        event = {
            "event_id": f"e{self._number:07d}",
            "event_type": kind,
            "user_id": f"u{self._rng.randrange(PEOPLE)}",
            "session_id": f"s{self._number // 500}",
            "timestamp": moment.isoformat().replace("+00:00", "Z"),
        }
        if kind != "search":
            event["item_id"] = f"i{self._rng.randrange(500)}"
        if self._rng.random() < 0.1:
            event["sent_at"] = event["timestamp"]  # judged by the whole rule table; its clock is years off
        self._ledger.send(event)
        return event


class Torture:
    """Cycles on one installation."""

    def __init__(
        self, folder: Path, variables: Mapping[str, str], *, seed: int, cycles: int, control: Control | None = None
    ) -> None:
        self._rng = random.Random(seed)  # noqa: S311
        self._control = control
        self.installation = Installation(folder, variables, control=control)
        self.ledger = Ledger()
        self.clients = Clients(self.installation.url, self.ledger, self._rng)
        if control == "no marks":  # what is sent again comes when its mark has vanished
            self.clients.pause_seconds = 3 * FORGET_SECONDS
        self.imports = Imports(self.installation, folder / "imports")
        self.maintenance = Maintenance(self.installation)
        self.decisions = Decisions(self.installation)
        self.metrics = Metrics(self.installation, cycles=cycles)
        self.harm: Counter[str] = Counter()
        self.cut_bytes = 0

    def begin(self) -> None:
        """Everything runs."""
        if self._control is None:
            self.imports.begin()
            self.metrics.begin()
        self.installation.start()
        if self._control is None:
            with self._client(self.installation.online_url) as online:
                publish_small_version(self.installation.environment, online, people=PEOPLE)
            self.installation.settle_disk()

    async def cycle(self, number: int) -> Findings:
        """Load, harm, an ending, recovery, judgement."""
        if self._control == "everysec":
            ending: Ending = "power cut"
        elif self._control == "no marks":
            ending = "none"
        else:
            ending = self._ending(number)
        self.clients.is_open = True
        sending = asyncio.create_task(self.clients.run())
        jobs = [asyncio.create_task(self._keep_up()), asyncio.create_task(self._forget_marks())]
        jobs += [asyncio.create_task(self.decisions.keep_asking())] if self._control is None else []
        batch_work = asyncio.gather(self._import(number), self._maintain(number), self._count(number))
        try:
            if self._control is None:
                await self._harm(LOAD_SECONDS)
            await self._acknowledged(len(self.ledger.acknowledged) + LEAST_EVENTS)
            await self._end(ending, jobs)
            self.clients.is_open = False
            await sending
        finally:
            for job in (*jobs, sending):
                job.cancel()
            await asyncio.gather(*jobs, sending, return_exceptions=True)
        await self._settle()
        await batch_work
        if self._control is None:
            await self.decisions.promise()
        return self.judge()

    async def _import(self, number: int) -> None:
        if self._control is None and number % IMPORT_EVERY == 0:
            await self.imports.run(number)

    async def _maintain(self, number: int) -> None:
        if self._control is None:
            await self.maintenance.run(number)

    async def _count(self, number: int) -> None:
        if self._control is None:
            await self.metrics.run(number)

    async def _acknowledged(self, count: int) -> None:
        """Wait until so many events are: on a busy machine an ending shall meet a load too."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while len(self.ledger.acknowledged) < count and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _ending(self, number: int) -> Ending:
        if self.installation.disk is None:
            return "torn tail" if number % 4 == 3 else "none"
        return _ENDINGS[number % len(_ENDINGS)]

    async def _harm(self, seconds: float) -> None:
        """Kill or stop two to four victims at random moments."""
        moments = sorted(self._rng.uniform(0.0, seconds) for _ in range(self._rng.randint(2, 4)))
        began = time.monotonic()
        for moment in moments:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            alive = {victim: pids for victim in VICTIMS if (pids := self.installation.pids_of(victim))}
            if not alive:
                continue
            victim = self._rng.choice(sorted(alive))
            pids = alive[victim]
            pid = self._rng.choice(pids)
            if self._rng.random() < 0.5:
                self.harm[f"kill {victim}"] += 1
                send_signal(pid, signal.SIGKILL)
            else:
                self.harm[f"stop {victim}"] += 1
                send_signal(pid, signal.SIGSTOP)
                await asyncio.sleep(self._rng.uniform(0.05, 0.9))
                send_signal(pid, signal.SIGCONT)
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))

    async def _end(self, ending: Ending, jobs: list[asyncio.Task[None]]) -> None:
        disk = self.installation.disk
        if ending == "none":
            return
        self.harm[ending] += 1
        if ending == "disk full":
            assert disk is not None
            disk.fill(is_full=True)
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))
            disk.fill(is_full=False)
            return
        if ending == "disk slow":
            assert disk is not None
            disk.slow_down(self._rng.uniform(0.05, 0.25))
            for pid in (pid for name in ARCHIVERS for pid in self.installation.pids_of(name)):
                send_signal(pid, signal.SIGKILL)  # their successors open the tables on such a disk
            await asyncio.sleep(self._rng.uniform(2.0, 5.0))
            disk.slow_down(0.0)
            return
        keeper = jobs[0]
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        if ending == "power cut":
            assert disk is not None
            self.installation.kill_everything()
            self.cut_bytes += disk.cut().bytes_gone
        else:
            for pid in self.installation.pids_of("redis-log"):
                send_signal(pid, signal.SIGKILL)
            process = self.installation.programs["redis-log"].process
            if process is not None:
                process.wait()
            with self.installation.newest_append_file().open(
                "ab"
            ) as file:  # half of a transaction that nobody was told
                torn = b"*1\r\n$5\r\nMULTI\r\n*5\r\n$3\r\nSET\r\n$40\r\nnj:default:{events:0}:dedup:never"
                file.write(torn[: self._rng.randint(1, len(torn))])
        jobs[0] = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        """Start again whatever has died, a moment later."""
        while True:
            await asyncio.sleep(0.1)
            self.installation.start_the_dead()

    async def _forget_marks(self) -> None:
        """The control without dedup marks: they vanish as soon as they are there."""
        while self._control == "no marks":
            with contextlib.suppress(redis.RedisError), self._client(self.installation.log_url) as client:
                marks = list(client.scan_iter("*:dedup:*", count=1000))
                if marks:
                    client.delete(*marks)
            await asyncio.sleep(FORGET_SECONDS)

    async def _settle(self) -> None:
        """Until everything runs and the consumer has applied all there is."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            self.installation.start_the_dead()
            with contextlib.suppress(redis.RedisError, OSError):
                if self._is_applied():
                    self.installation.wait_until_well()  # the next cycle's harm is to meet its load
                    return
            await asyncio.sleep(0.05)
        raise TortureError(f"the consumer did not catch up within {SETTLE_SECONDS:.0f} s")

    def _is_applied(self) -> bool:
        with self._client(self.installation.log_url) as log, self._client(self.installation.online_url) as online:
            for partition in range(EVENT_PARTITIONS):
                newest: Any = log.xrevrange(stream_key(partition), count=1)
                applied: Any = online.get(applied_key(partition))
                if newest and (
                    applied is None or position_number(applied.decode()) < position_number(newest[0][0].decode())
                ):
                    return False
        return True

    def judge(self) -> Findings:
        """Streams and table as sets, counts, and session records against the book."""
        deliveries: set[tuple[str, str, int]] = set()
        with self._client(self.installation.log_url) as log, self._client(self.installation.online_url) as online:
            for partition in range(EVENT_PARTITIONS):
                stream = stream_key(partition)
                entries: Any = log.xrange(stream)
                for position, fields in entries:
                    for number, (raw, _) in enumerate(split_entry(fields)):
                        at = position_number(position.decode())
                        deliveries.add((event_id_of(raw), source_of(stream, number), at))
            # The table is read after the streams: what is trimmed in between is in it by then.
            archived = self._archived()
            counters: Any = online.hgetall(speed_counters_key())
            people = [f"u:u{number}" for number in range(PEOPLE)]
            records: Any = online.mget([session_key(subject) for subject in people])
        deliveries -= set(archived)
        states: dict[str, SessionState | None] = {
            subject: unpack_session(record) if record else None for subject, record in zip(people, records, strict=True)
        }
        found = self.ledger.judge(
            deliveries=[*archived, *deliveries], applied=int(counters.get(b"applied", 0)), states=states
        )
        self.imports.judge(found, (event_id for (event_id,) in self._rows(IMPORTED, "event_id")))
        if self._control is None:
            in_files = self.decisions.in_files()
            self.decisions.judge(found, in_files, (name for (name,) in self._rows(DECISIONS, "recommendation_id")))
            self.metrics.judge(
                found,
                self._rows(IMPRESSIONS, "recommendation_id", "item_id"),
                self._rows(METRICS, "metric_date", "position", "decisions", "impressions", "clicks"),
            )
        return found

    def _archived(self) -> list[tuple[str, str, int]]:
        return self._rows("bronze.events", "event_id", "source", "source_position")

    def _rows(self, name: str, *columns: str) -> list[Any]:
        path = table_path(self.installation.environment.lakehouse, name)
        if not DeltaTable.is_deltatable(path):
            return []
        rows = DeltaTable(path).to_pyarrow_table(columns=list(columns))
        return list(zip(*(rows[column].to_pylist() for column in rows.column_names), strict=True))

    def _client(self, url: str) -> redis.Redis:
        return redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2)


def torture_events(home: Path, variables: Mapping[str, str], *, cycles: int, seed: int, say: Say) -> dict[str, Any]:
    """Run it in `home` (made anew) and return the report.

    Figures: `events_lost` and `events_counted_twice` by cycle, `cycle_seconds`; events that were imported, decisions,
    impressions and the metrics of a day are among them. Further keys: events, acknowledged, imported, import_attempts,
    maintenance_runs, maintenance_attempts, decisions (that must be kept), metric_days, metric_attempts, harm,
    cut_bytes, restarts, wrong_sessions, clean, controls (control -> {"caught", "cycles", "events_lost",
    "events_counted_twice"}), skipped (why there was no power cut; None), and what `judge_disk` says.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    disk = judge_disk(home)
    torture = Torture(home / "torture", variables, seed=seed, cycles=cycles)
    findings, seconds = asyncio.run(_cycles(torture, cycles, say))
    controls: dict[str, Any] = {}
    for control in _CONTROLS:
        if control == "everysec" and compiler() is None:
            continue
        controls[control] = _control(home / control.replace(" ", "-"), variables, seed, control, say)
    report = make_report(
        "torture events",
        {
            "events_lost": figure("", [found.events_lost for found in findings]),
            "events_counted_twice": figure("", [found.events_counted_twice for found in findings]),
            "cycle_seconds": figure("s", seconds),
        },
        str(variables.get(names.CODE_VERSION, "")),
        seed=seed,
        cycles=len(findings),
        events=len(torture.ledger.sent),
        acknowledged=len(torture.ledger.acknowledged),
        imported=len(torture.imports.acknowledged),
        import_attempts=torture.imports.attempts,
        maintenance_runs=torture.maintenance.runs,
        maintenance_attempts=torture.maintenance.attempts,
        decisions=len(torture.decisions.promised),
        metric_days=len(torture.metrics.acknowledged),
        metric_attempts=torture.metrics.attempts,
        requests=torture.clients.requests,
        retries=torture.clients.retries,
        restarts=torture.installation.restarts,
        harm=dict(sorted(torture.harm.items())),
        cut_bytes=torture.cut_bytes,
        wrong_sessions=sum(len(found.wrong_sessions) for found in findings),
        strangers=sum(len(found.strangers) for found in findings),
        clean=all(found.is_clean() for found in findings),
        controls=controls,
        skipped=None if compiler() else "no C compiler: no power cut and no full disk",
        **disk,
    )
    if report["clean"]:
        shutil.rmtree(home, ignore_errors=True)
    return report


async def _cycles(
    torture: Torture, cycles: int, say: Say, *, is_enough: Callable[[Findings], bool] = lambda _: False
) -> tuple[list[Findings], list[float]]:
    findings: list[Findings] = []
    seconds: list[float] = []
    try:
        torture.begin()
        for number in range(cycles):
            began = time.monotonic()
            findings.append(await torture.cycle(number))
            seconds.append(time.monotonic() - began)
            found = findings[-1]
            say(
                f"cycle {number + 1}: {len(torture.ledger.acknowledged):,} acknowledged, {found.events_lost} lost, "
                f"{found.events_counted_twice} twice, {len(found.wrong_sessions)} sessions wrong, {seconds[-1]:.1f} s"
            )
            if is_enough(found):
                break
    finally:
        torture.installation.kill_everything()
    return findings, seconds


def _control(folder: Path, variables: Mapping[str, str], seed: int, control: Control, say: Say) -> dict[str, Any]:
    say(f"control: {control}")
    torture = Torture(folder, variables, seed=seed, cycles=CONTROL_CYCLES, control=control)

    def is_caught(found: Findings) -> bool:
        return bool(found.events_lost if control == "everysec" else found.events_counted_twice)

    findings, _ = asyncio.run(_cycles(torture, CONTROL_CYCLES, say, is_enough=is_caught))
    last = findings[-1]
    return {
        "caught": is_caught(last),
        "cycles": len(findings),
        "events_lost": last.events_lost,
        "events_counted_twice": last.events_counted_twice,
    }
