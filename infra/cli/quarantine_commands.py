"""`nightjar quarantine list|show|replay`: what was refused, why, and how it comes back in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, nearest
from infra.cli.output import ExitCode, emit, err, out, step
from infra.local.variables import known_addresses

if TYPE_CHECKING:
    from infra.quarantine.originals import LineReader
    from infra.quarantine.records import QuarantinedRecord, State
    from infra.quarantine.repair import RepairPlan
    from infra.quarantine.replay import ReplayReport

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
OnlyReason = Annotated[str | None, typer.Option("--reason", help="Only this reason.", metavar="REASON")]
Since = Annotated[
    str | None, typer.Option("--since", help="Quarantined since: 24h, 7d, or a day or time (UTC).", metavar="WHEN")
]
Header = Annotated[
    str | None, typer.Option("--header", help="The header line of imported CSV files whose reject file is gone.")
]
MappingFile = Annotated[
    Path | None, typer.Option("--mapping", help="The mapping that the lines were imported with.", metavar="FILE")
]

_DURATION = re.compile(r"(\d{1,5})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_SHOWN_BYTES = 4000


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    group = typer.Typer(
        name="quarantine", help="What was refused: see it, mend it, send it again.", no_args_is_help=True
    )
    group.command("list")(list_quarantine)
    group.command("show")(show)
    group.command("replay")(replay_quarantine)
    app.add_typer(group)


def list_quarantine(
    reason: OnlyReason = None,
    since: Since = None,
    state: Annotated[
        str | None, typer.Option("--state", help="open, still_bad or replayed; default: open and still_bad.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many of the newest are named.")] = 20,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write them all as JSON lines to edit, for replay --fix.", metavar="FILE"),
    ] = None,
    mapping_file: MappingFile = None,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    """What is quarantined, by reason and state, and the newest of it."""
    from infra.quarantine.records import State, count_by_reason, read_records

    env, moment = _environment(), _since(since)
    with step("reading the quarantine", quiet=as_json):
        every = read_records(env, reason=reason, since=moment)
    wanted = _states(state) if state else (State.OPEN, State.STILL_BAD)
    chosen = [record for record in every if record.state in wanted]
    newest = chosen[::-1][:limit]
    document = {
        "counts": count_by_reason(every),
        "events": [_document(record) for record in newest],
        "left_out": len(chosen) - len(newest),
    }
    if export is not None:
        lines = _line_reader(env, mapping_file, header)
        export.write_text("".join(_export_line(record, lines) + "\n" for record in chosen), "utf-8")
        document["exported"] = {"file": str(export), "events": len(chosen)}
    emit(document, as_json=as_json, render=lambda: _print_list(document))


def show(
    quarantine_id: Annotated[str, typer.Argument(help="The id, or its beginning.", metavar="ID")],
    mapping_file: MappingFile = None,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    """One refused event: its bytes, what they say, which rule it breaks, and what was tried."""
    from infra.quarantine.originals import read_original
    from infra.quarantine.records import find_record

    env = _environment()
    record = find_record(env, quarantine_id)
    original = read_original(record, _line_reader(env, mapping_file, header))
    document = {
        **_document(record),
        "raw": record.raw.decode("utf-8", "backslashreplace"),
        "form": original.form,
        "event": original.event,
        "own_event_id": record.own_event_id,
        "last_attempt": record.last,
    }
    emit(document, as_json=as_json, render=lambda: _print_record(document))


def replay_quarantine(
    reason: OnlyReason = None,
    since: Since = None,
    only: Annotated[
        list[str] | None, typer.Option("--id", help="Only this one (or its beginning); may be repeated.", metavar="ID")
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix", help="Edited events (.jsonl, from list --export), or repairs (.toml, .json).", metavar="FILE"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Give a field this value; may be repeated.", metavar="FIELD=VALUE")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--map", help="Change one value of a field.", metavar="FIELD:OLD=NEW")
    ] = None,
    rename: Annotated[list[str] | None, typer.Option("--rename", help="Rename a field.", metavar="OLD=NEW")] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="Leave a field out.", metavar="FIELD")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge the mended events, send nothing.")] = False,
    mapping_file: MappingFile = None,
    header: Header = None,
    wait_seconds: Annotated[float, typer.Option("--wait", help="How long to wait for an import to end.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Mend refused events and send them again: to the API, or to the importer where they came from a file.

    Twice is once. Nothing is deleted. Exit code 1 when some of them break a rule still."""
    from infra.quarantine.records import State, read_records
    from infra.quarantine.replay import mend, replay

    env = _environment()
    plan = _plan(fix, set_, values, rename, drop)
    with step("reading the quarantine", quiet=as_json):
        records = read_records(env, reason=reason, since=_since(since))
        if only:
            records = [r for r in records if any(r.quarantine_id.startswith(start) for start in only)]
        if only and not records:
            raise DataError(
                f"no quarantined event {', '.join(only)}; `nightjar quarantine list` names them", field="id"
            )
        if plan.edited:
            records = [r for r in records if r.quarantine_id in plan.edited]
        waiting = [r for r in records if r.state is not State.REPLAYED]
        # an edited event that was replayed already is done; one that is in no table is a mistake
        plan = _without_done(plan, records, waiting)
        mended = mend(waiting, plan, _line_reader(env, mapping_file, header))
    with _bar("replaying", quiet=as_json) as move:
        report = replay(
            env, mended, send=_send, at=datetime.now(UTC), dry_run=dry_run, wait_seconds=wait_seconds, progress=move
        )
    document = {**report.to_mapping(), "replayed_before": len(records) - len(waiting)}
    emit(document, as_json=as_json, render=lambda: _print_report(report, len(records) - len(waiting)))
    if report.still_bad:
        raise typer.Exit(ExitCode.FAILED)


def _environment() -> Environment:
    return Environment.from_mapping(known_addresses(os.environ))


def _send(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from infra.cli.serving_commands import ask

    return list(ask("/v1/events", {"events": list(events)})["results"])


def _since(text: str | None) -> datetime | None:
    from feature_repo.contracts.times import parse_timestamp

    if text is None:
        return None
    if found := _DURATION.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        return parse_timestamp(text)
    except DataError as error:
        raise DataError(
            f"--since is 24h, 7d, 2024-03-01 or 2024-03-01T09:30:00Z, got {text!r}", field="since"
        ) from error


def _states(text: str) -> tuple[State, ...]:
    from infra.quarantine.records import State

    if text not in tuple(State):
        known = [str(state) for state in State]
        raise DataError(f"--state is one of {', '.join(known)}, got {text!r}{nearest(text, known)}", field="state")
    return (State(text),)


def _line_reader(env: Environment, mapping_file: Path | None, header: str | None) -> LineReader:
    from infra.importing.mapping import ColumnMap
    from infra.quarantine.originals import LineReader

    return LineReader(env, ColumnMap.load(mapping_file, "events") if mapping_file is not None else None, header)


def _plan(
    fix: Path | None,
    set_: Sequence[str] | None,
    values: Sequence[str] | None,
    rename: Sequence[str] | None,
    drop: Sequence[str] | None,
) -> RepairPlan:
    from infra.quarantine.repair import RepairPlan, load_plan, parse_repair

    given = bool(set_ or values or rename or drop)
    if fix is not None and given:
        raise DataError("give --fix, or --set, --map, --rename and --drop; not both", field="fix")
    if fix is not None:
        return load_plan(fix)
    repair = parse_repair(set_=set_ or (), values=values or (), rename=rename or (), drop=drop or ())
    return RepairPlan((repair,)) if given else RepairPlan()


def _without_done(
    plan: RepairPlan, records: Sequence[QuarantinedRecord], waiting: Sequence[QuarantinedRecord]
) -> RepairPlan:
    from dataclasses import replace

    done = {r.quarantine_id for r in records} - {r.quarantine_id for r in waiting}
    return replace(plan, edited={name: event for name, event in plan.edited.items() if name not in done})


def _export_line(record: QuarantinedRecord, lines: LineReader) -> str:
    from infra.quarantine.originals import read_original

    original = read_original(record, lines)
    event = original.event if original.problem is None else record.raw.decode("utf-8", "replace")
    entry = {"id": record.quarantine_id, "reason": record.reason, "field": record.field, "detail": record.detail}
    return json.dumps({**entry, "event": event}, ensure_ascii=False, default=str)


def _document(record: QuarantinedRecord) -> dict[str, Any]:
    return {
        "id": record.quarantine_id,
        "state": str(record.state),
        "reason": record.reason,
        "field": record.field,
        "detail": record.detail,
        "quarantined_at": record.quarantined_at.isoformat(),
        "table": record.table,
        "source": record.source,
        "source_position": record.source_position,
    }


def _print_list(document: Mapping[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not document["counts"]:
        out.print("the quarantine is empty")
        return
    totals = Table("reason", box=None)
    for name in ("open", "still bad", "replayed"):
        totals.add_column(name, justify="right")
    for reason, states in document["counts"].items():
        totals.add_row(reason, *(f"{states[name]:,}" for name in ("open", "still_bad", "replayed")))
    out.print(totals)
    if document["events"]:
        rows = Table("id", "quarantined (UTC)", "reason", "detail", box=None)
        rows.columns[0].no_wrap = rows.columns[1].no_wrap = True
        for event in document["events"]:
            reason = event["reason"] + (" (still bad)" if event["state"] == "still_bad" else "")
            rows.add_row(event["id"], event["quarantined_at"][:16].replace("T", " "), reason, escape(event["detail"]))
        out.print()
        out.print(rows)
    if document["left_out"]:
        out.print(f"and {document['left_out']:,} older ones: --limit, --reason, --since or --json")
    if "exported" in document:
        exported = document["exported"]
        out.print(f"{exported['events']:,} events to edit in {exported['file']}", markup=False, soft_wrap=True)


def _print_record(document: Mapping[str, Any]) -> None:
    from rich.markup import escape

    field = f" in {document['field']}" if document["field"] else ""
    out.print(f"[bold]{document['id']}[/]  {document['state']}  {document['quarantined_at'][:19]}Z")
    out.print(f"{document['reason']}{field}: {document['detail']}", markup=False)
    out.print(f"{document['table']}, {document['source']} at {document['source_position']}", markup=False)
    out.print(f"\nas it came ({document['form']}):")
    out.print(escape(document["raw"][:_SHOWN_BYTES]), soft_wrap=True)
    if document["event"] is not None and document["form"] != "native":
        out.print("\nas an event:")
        out.print(
            json.dumps(document["event"], indent=1, ensure_ascii=False, default=str), markup=False, soft_wrap=True
        )
    last = document["last_attempt"]
    if last is not None:
        words = f" ({last['reason']}: {last['detail']})" if last["reason"] else ""
        event_id = f" as {last['event_id']}" if last["event_id"] else ""
        out.print(
            f"\nlast attempt {last['replayed_at']:%Y-%m-%d %H:%M}: {last['outcome']}{event_id}{words}", markup=False
        )
        if last["repair"]:
            out.print(f"repair: {last['repair']}", markup=False, soft_wrap=True)


def _print_report(report: ReplayReport, done_before: int) -> None:
    from rich.table import Table

    if not report.selected:
        out.print(f"nothing to replay; {done_before:,} were replayed before" if done_before else "nothing to replay")
        return
    table = Table("would be" if report.dry_run else "outcome", box=None)
    table.add_column("events", justify="right")
    for outcome, count in sorted(report.outcomes.items()):
        if outcome != "still_bad":
            table.add_row(outcome, f"{count:,}", style="green")
    for reason, count in report.still_bad.items():
        table.add_row(f"still bad: {reason} (such as {report.examples[reason]})", f"{count:,}", style="yellow")
    out.print(table)
    if done_before:
        out.print(f"{done_before:,} more were replayed before")


@contextmanager
def _bar(title: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress line on stderr; silent when not a terminal or `quiet`."""
    if quiet or not err.is_terminal:
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
