"""Mended events on their way back in: through the API, or, for imported lines, through the importer.

Replaying twice counts once, whatever dies in between: an event keeps its id, or gets one made of where it was refused;
the API and silver leave out what comes again; and what bronze.quarantine_replays says is done is not sent again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.events import Reason, Rejection, check_event, subject_key
from feature_repo.contracts.times import format_timestamp
from infra.importing.events import import_events
from infra.importing.lease import writer_lease
from infra.importing.mapping import ColumnMap
from infra.importing.report import Options
from infra.importing.tables import append_rows, users_who_refuse_storage
from infra.quarantine.originals import LineReader, read_original
from infra.quarantine.records import IMPORT_TABLE, REPLAYS_TABLE, Outcome, QuarantinedRecord, State
from infra.quarantine.repair import RepairPlan

BATCH_EVENTS = 500
BATCH_BYTES = 1_000_000
IMPORT_PREFIX = "replay:"
"""What the sources of replayed lines begin with."""

Send = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]
"""Makes events durable at the front door: for each, in order, what `POST /v1/events` says of it.

Raises DependencyError when nothing is promised; the same events may then be sent again."""

Progress = Callable[[int, int], None]
"""Is told how many of how many are done."""


@dataclass(frozen=True, slots=True)
class Mended:
    """One record after its repair: an `event` that breaks no rule, or the `rejection` of what it still breaks."""

    record: QuarantinedRecord
    event: dict[str, Any] | None
    rejection: Rejection | None
    repair: str | None

    def attempt(self, outcome: Outcome, rejection: Rejection | None, at: datetime) -> dict[str, Any]:
        """The row of bronze.quarantine_replays."""
        event, record = self.event, self.record
        is_known = event is not None and outcome is not Outcome.NOT_STORED
        return {
            "quarantine_id": record.quarantine_id,
            "quarantine_table": record.table,
            "source": record.source,
            "source_position": record.source_position,
            "event_id": event["event_id"] if event is not None and is_known else None,
            "subject_key": subject_key(event.get("user_id"), event.get("anonymous_id")) if event and is_known else None,
            "outcome": str(outcome),
            "reason": None if rejection is None else str(rejection.reason),
            "detail": None if rejection is None else rejection.detail,
            "repair": self.repair,
            "replayed_at": at,
        }


@dataclass(frozen=True)
class ReplayReport:
    """selected = outcomes together. `still_bad` is by reason, as it is now; `examples` are ids by reason."""

    selected: int
    outcomes: Mapping[str, int]
    still_bad: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def mend(records: Sequence[QuarantinedRecord], plan: RepairPlan, lines: LineReader) -> list[Mended]:
    """Each record repaired and judged again by the rule table, as of its own receipt: a time in the future then is not
    right because it has come by now. Raises DataError when an edited event names no selected record."""
    known = {record.quarantine_id for record in records}
    unknown = sorted(set(plan.edited) - known)
    if unknown:
        raise DataError(
            f"{len(unknown)} edited events are not among the {len(known)} selected ones: {', '.join(unknown[:5])}",
            field="fix",
        )
    return [_mend(record, plan, lines) for record in records]


def _mend(record: QuarantinedRecord, plan: RepairPlan, lines: LineReader) -> Mended:
    original = read_original(record, lines)
    if original.problem is not None and record.quarantine_id not in plan.edited:
        return Mended(record, None, original.problem, None)
    event, repair = plan.mend(record.quarantine_id, record.reason, original.event)
    if isinstance(event, Mapping) and event.get("event_id") is None:
        event = {**event, "event_id": record.own_event_id}
    try:
        good, rejection = check_event(event, received_at=record.quarantined_at)
    except (RecursionError, TypeError) as error:
        return Mended(record, None, Rejection(Reason.UNREADABLE, None, str(error)[:200]), repair)
    return Mended(record, good, rejection, repair)


def replay(
    env: Environment,
    mended: Sequence[Mended],
    *,
    send: Send,
    at: datetime,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
    progress: Progress | None = None,
) -> ReplayReport:
    """Send what is good and is not replayed yet, and remember what became of each. `at` stamps the attempts.

    Raises DependencyError when the API or a table does not answer: what was sent before that is remembered, or comes
    again as a duplicate.
    """
    chosen = [one for one in mended if one.record.state is not State.REPLAYED]
    bad = [one for one in chosen if one.event is None]
    good = [one for one in chosen if one.event is not None]
    outcomes: Counter[str] = Counter()
    told: Counter[str] = Counter()
    examples: dict[str, str] = {}
    done = 0

    def remember(attempts: Sequence[tuple[Mended, Outcome, Rejection | None]]) -> None:
        nonlocal done
        for one, outcome, rejection in attempts:
            outcomes[str(outcome)] += 1
            if rejection is not None:
                told[str(rejection.reason)] += 1
                examples.setdefault(str(rejection.reason), one.record.quarantine_id)
        if not dry_run:
            rows = [one.attempt(outcome, rejection, at) for one, outcome, rejection in attempts]
            news = [row for row, (one, *_) in zip(rows, attempts, strict=True) if _says_more(row, one.record.last)]
            append_rows(env, REPLAYS_TABLE, news)
        done += len(attempts)
        if progress is not None:
            progress(done, len(chosen))

    if dry_run:
        remember([(one, Outcome.STILL_BAD, one.rejection) for one in bad])
        remember([(one, Outcome.IMPORTED if _is_line(one) else Outcome.ACCEPTED, None) for one in good])
        return ReplayReport(len(chosen), dict(outcomes), dict(told), examples, dry_run=True)
    with writer_lease(env, wait_seconds=wait_seconds):
        if bad:
            remember([(one, Outcome.STILL_BAD, one.rejection) for one in bad])
        lines = [one for one in good if _is_line(one)]
        if lines:
            remember(_import(env, lines, at))
        for batch in _batches([one for one in good if not _is_line(one)]):
            results = send([_as_sent(one.event) for one in batch if one.event is not None])
            remember([_outcome(one, result) for one, result in zip(batch, results, strict=True)])
    return ReplayReport(len(chosen), dict(outcomes), dict(sorted(told.items())), examples)


def _is_line(one: Mended) -> bool:
    return one.record.table == IMPORT_TABLE


def _says_more(row: Mapping[str, Any], last: Mapping[str, Any] | None) -> bool:
    """Whether an attempt tells anything that the one before did not."""
    if last is None:
        return True
    return any(row[name] != last[name] for name in ("outcome", "reason", "detail", "repair", "event_id"))


def _outcome(one: Mended, result: Mapping[str, Any]) -> tuple[Mended, Outcome, Rejection | None]:
    if result["status"] == "quarantined":
        rejection = Rejection(Reason(result["reason"]), result.get("field"), str(result.get("detail") or ""))
        return replace(one, event=None), Outcome.STILL_BAD, rejection
    if result.get("stored") is False:
        return one, Outcome.NOT_STORED, None
    return one, Outcome(result["status"]), None


def _import(env: Environment, lines: Sequence[Mended], at: datetime) -> list[tuple[Mended, Outcome, Rejection | None]]:
    """One file of mended lines per source, imported as `replay:<source>.<first id>.jsonl`: another try of the same
    lines replaces the same source."""
    refusing = frozenset(users_who_refuse_storage(env).to_pylist())
    by_source: dict[str, list[Mended]] = {}
    for one in lines:
        by_source.setdefault(one.record.source, []).append(one)
    attempts: list[tuple[Mended, Outcome, Rejection | None]] = []
    folder = Path(env.home, "quarantine")
    folder.mkdir(parents=True, exist_ok=True)
    for source, some in sorted(by_source.items()):
        path = folder / f"{source.replace('/', '-')}.{some[0].record.quarantine_id}.jsonl"
        events = [_as_sent(one.event) for one in some if one.event is not None]
        path.write_text("".join(json.dumps(event, sort_keys=True) + "\n" for event in events), "utf-8")
        try:
            import_events(path, env, ColumnMap(kind="events"), received_at=at, options=Options(prefix=IMPORT_PREFIX))
        finally:
            path.unlink()
        for one in some:
            is_refused = one.event is not None and (
                one.event.get("user_id") in refusing or (one.event.get("consent") or {}).get("store") is False
            )
            attempts.append((one, Outcome.NOT_STORED if is_refused else Outcome.IMPORTED, None))
    return attempts


def _as_sent(event: Mapping[str, Any] | None) -> dict[str, Any]:
    assert event is not None
    return {**event, "timestamp": format_timestamp(event["timestamp"])}


def _batches(mended: Sequence[Mended]) -> Iterator[list[Mended]]:
    """Requests that no default limit refuses."""
    batch: list[Mended] = []
    size = 0
    for one in mended:
        bytes_ = len(json.dumps(_as_sent(one.event), default=str).encode())
        if batch and (len(batch) >= BATCH_EVENTS or size + bytes_ > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += bytes_
    if batch:
        yield batch
