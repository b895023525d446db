"""`nightjar simulate` and `nightjar import ...`: make data, take data, and say what became of every line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, nearest
from infra.cli.output import emit, err, out

if TYPE_CHECKING:
    from rich.table import Table

    from infra.importing.inbox import SyncReport
    from infra.importing.mapping import ColumnMap
    from infra.importing.report import ImportReport, Options

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Mapped = Annotated[
    list[str] | None,
    typer.Option("--map", help="field=column, or a constant as field=:value; may be repeated.", metavar="FIELD=COLUMN"),
]
Input = Annotated[
    Path, typer.Argument(help="A .csv, .tsv, .jsonl or .parquet file (text also .gz), or a folder of them.")
]
ItemInput = Annotated[
    Path,
    typer.Argument(help="As for events; also a Google Merchant feed (.xml, .txt) or schema.org products (.json)."),
]
MappingFile = Annotated[
    Path | None, typer.Option("--mapping", help="A saved mapping (.toml or .json); --map adds to it.", metavar="FILE")
]
SaveMapping = Annotated[
    Path | None,
    typer.Option("--save-mapping", help="Write the mapping that was used, guessed or given.", metavar="FILE"),
]
Rejects = Annotated[
    Path | None,
    typer.Option(
        "--rejects",
        help="Where refused lines go, each with its reason; mend them and import that file. "
        "Default: below NIGHTJAR_HOME/rejects.",
        metavar="FILE",
    ),
]
InputFormat = Annotated[
    str, typer.Option("--format", help="auto, csv, jsonl, parquet, google-merchant or schema-org.", metavar="FORMAT")
]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="Of text files that are no UTF-8, such as cp1252.", metavar="NAME")
]
Wait = Annotated[float, typer.Option("--wait", help="How long to wait for another import to end.", metavar="SECONDS")]


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    app.command("simulate")(simulate)
    group = typer.Typer(name="import", help="Take data into the lakehouse.", no_args_is_help=True)
    group.command("events")(take_events)
    group.command("items")(take_items)
    group.command("users")(take_users)
    group.command("sync")(sync)
    group.command("shop")(take_shop)
    group.command("online-retail")(take_online_retail)
    app.add_typer(group)


def simulate(
    folder: Annotated[Path, typer.Option("--out", help="A new or empty folder, or an older simulated shop.")],
    event_count: Annotated[int, typer.Option("--events", help="Event lines to aim at.")] = 120_000,
    user_count: Annotated[int, typer.Option("--users")] = 2_000,
    item_count: Annotated[int, typer.Option("--items")] = 800,
    days: Annotated[int, typer.Option("--days", help="Days of history.")] = 60,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal shops.")] = 7,
    end_day: Annotated[
        datetime, typer.Option("--end-day", formats=["%Y-%m-%d"], help="The day after the history (UTC).")
    ] = datetime(2025, 7, 1),  # noqa: DTZ001 - typer parses days as naive datetimes
    as_json: AsJson = False,
) -> None:
    """Make a shop with known tastes: `nightjar import shop DIR` takes it."""
    from infra.simulator.shop import ShopConfig, simulate_shop

    config = ShopConfig(
        seed=seed, user_count=user_count, item_count=item_count, event_count=event_count, days=days,
        end_day=end_day.date(),
    )  # fmt: skip
    started = time.perf_counter()
    with _bar("simulating", quiet=as_json) as move:
        summary = simulate_shop(config, folder, progress=lambda done, total: move(done, total, f"day {done}"))
    seconds = time.perf_counter() - started

    def render() -> None:
        out.print(
            f"[bold]{folder}[/]: {summary.lines:,} event lines of {summary.users:,} users on {summary.items:,} items "
            f"over {days} days, in {seconds:.1f} s",
            soft_wrap=True,
        )
        table = _table("what", "lines")
        for event_type, count in summary.by_type.items():
            table.add_row(event_type, f"{count:,}")
        table.add_section()
        for what, count in (
            ("delivered twice", summary.repeated), ("delivered late", summary.late),
            ("from crawlers", summary.bot_lines), ("without a user", summary.anonymous_lines),
            ("not to be stored (consent)", summary.not_stored), ("malformed", sum(summary.malformed.values())),
        ):  # fmt: skip
            table.add_row(what, f"{count:,}")
        out.print(table)

    document = {"folder": str(folder), "seconds": round(seconds, 3), "config": config.to_mapping()}
    emit({**document, "counts": asdict(summary)}, as_json=as_json, render=render)


def take_events(
    path: Input,
    mapping: Mapped = None,
    mapping_file: MappingFile = None,
    save_mapping: SaveMapping = None,
    rejects: Rejects = None,
    input_format: InputFormat = "auto",
    encoding: Encoding = None,
    wait_seconds: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Take events. Every line is accepted, quarantined with its reason, or counted as not to be stored.

    Without a mapping, columns are recognised by their names, and said."""
    from infra.importing.events import import_events

    column_map = _mapping("events", mapping, mapping_file)
    options = _options("events", column_map, save_mapping, rejects, input_format, encoding, wait_seconds)
    with _bar("importing", quiet=as_json) as move:
        report = import_events(
            path, _environment(), column_map, options=options, progress=lambda n, source: move(n, None, source)
        )
    _show([report], as_json=as_json)


def take_items(
    path: ItemInput,
    mapping: Mapped = None,
    mapping_file: MappingFile = None,
    save_mapping: SaveMapping = None,
    rejects: Rejects = None,
    input_format: InputFormat = "auto",
    encoding: Encoding = None,
    full_catalogue: Annotated[
        bool, typer.Option("--full-catalogue", help="Items that are not in PATH become out of stock and hidden.")
    ] = False,
    missing_limit: Annotated[
        float,
        typer.Option("--missing-limit", help="Share of the catalogue that may go missing that way.", min=0, max=1),
    ] = 0.5,
    wait_seconds: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Take items; an item_id that is known is replaced."""
    from infra.importing.catalogue import import_items

    column_map = _mapping("items", mapping, mapping_file)
    options = _options("items", column_map, save_mapping, rejects, input_format, encoding, wait_seconds)
    with _bar("importing items", quiet=as_json) as move:
        report = import_items(
            path, _environment(), column_map, options=options, full_catalogue=full_catalogue,
            missing_limit=missing_limit, progress=lambda n, source: move(n, None, source),
        )  # fmt: skip
    _show([report], as_json=as_json)


def take_users(
    path: Input,
    mapping: Mapped = None,
    mapping_file: MappingFile = None,
    save_mapping: SaveMapping = None,
    rejects: Rejects = None,
    input_format: InputFormat = "auto",
    encoding: Encoding = None,
    wait_seconds: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Take users and what they consent to; a user_id that is known is replaced."""
    from infra.importing.catalogue import import_users

    column_map = _mapping("users", mapping, mapping_file)
    options = _options("users", column_map, save_mapping, rejects, input_format, encoding, wait_seconds)
    with _bar("importing users", quiet=as_json) as move:
        report = import_users(
            path, _environment(), column_map, options=options, progress=lambda n, source: move(n, None, source)
        )
    _show([report], as_json=as_json)


def sync(
    settle_seconds: Annotated[
        float, typer.Option("--settle", help="Files modified less than this ago wait.", metavar="SECONDS", min=0)
    ] = 10.0,
    wait_seconds: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Take what is new in the inbox (NIGHTJAR_INBOX, default NIGHTJAR_HOME/inbox): users/, items/ and events/.

    Exit code 2 when a file is bad; all others are imported all the same."""
    from infra.importing.inbox import sync_inbox

    with _bar("importing", quiet=as_json) as move:
        report = sync_inbox(
            _environment(), now=datetime.now(UTC), settle_seconds=settle_seconds, wait_seconds=wait_seconds,
            progress=lambda n, source: move(n, None, source),
        )  # fmt: skip
    emit(report.to_mapping(), as_json=as_json, render=lambda: print_sync(report))
    if report.failed:
        named = "; ".join(f"{source}: {error}" for source, error in report.failed.items())
        count = f"{len(report.failed)} file{'s' * (len(report.failed) > 1)}"
        raise DataError(f"{count} of the inbox could not be imported: {named}")


def take_shop(
    folder: Annotated[Path, typer.Argument(help="A folder that `nightjar simulate` made.")], as_json: AsJson = False
) -> None:
    """Take a simulated shop: users, items and events."""
    from infra.importing.shop import import_shop

    with _bar("importing", quiet=as_json) as move:
        reports = import_shop(folder, _environment(), progress=lambda n, source: move(n, None, source))
    _show(reports, as_json=as_json)


def take_online_retail(
    path: Annotated[Path, typer.Argument(help="The UCI file as .csv or .csv.gz.")], as_json: AsJson = False
) -> None:
    """Take the Online Retail file (UCI 352): events, and users and a catalogue derived from them."""
    from infra.importing.online_retail import import_online_retail

    with _bar("importing", quiet=as_json) as move:
        reports = import_online_retail(path, _environment(), progress=lambda n, source: move(n, None, source))
    _show(reports, as_json=as_json)


def _environment() -> Environment:
    return Environment.from_mapping(os.environ)


def _mapping(kind: str, pairs: Sequence[str] | None, file: Path | None) -> ColumnMap | None:
    """The saved mapping with --map on top; None when neither is given."""
    from infra.importing.mapping import FIELDS_BY_KIND, ColumnMap

    saved = ColumnMap.load(file, kind) if file is not None else None
    if not pairs:
        return saved
    given = ColumnMap.parse(pairs, FIELDS_BY_KIND[kind])
    return (saved or ColumnMap(kind=kind)).with_columns_of(given)


def _options(
    kind: str,
    column_map: ColumnMap | None,
    save_mapping: Path | None,
    rejects: Path | None,
    input_format: str,
    encoding: str | None,
    wait_seconds: float,
) -> Options:
    from infra.importing.mapping import INPUT_FORMATS, check_encoding
    from infra.importing.report import Options

    formats = ("auto", *INPUT_FORMATS) if kind == "items" else ("auto", *INPUT_FORMATS[:3])
    if input_format not in formats:
        hint = nearest(input_format, formats)
        raise DataError(f"--format is one of {', '.join(formats)}, got {input_format!r}{hint}", field="format")
    return Options(
        input_format=None if input_format == "auto" else input_format,
        encoding=check_encoding(encoding) if encoding else None,
        guess=column_map is None,
        save_mapping=save_mapping,
        rejects=rejects,
        rejects_folder=Path(_environment().home, "rejects", kind),
        wait_seconds=wait_seconds,
    )


def _show(reports: Sequence[ImportReport], *, as_json: bool) -> None:
    def render() -> None:
        for report in reports:
            print_report(report)

    emit({report.kind: report.to_mapping() for report in reports}, as_json=as_json, render=render)


def print_report(report: ImportReport) -> None:
    """The counts of one import as a table: read = accepted + quarantined by reason + not stored."""
    table = _table(f"{report.kind}: {_named(report.sources)}", "lines")
    table.add_row("read", f"{report.read:,}", style="bold")
    table.add_row("accepted", f"{report.accepted:,}", style="green")
    for reason, count in sorted(report.quarantined.items()):
        table.add_row(f"quarantined: {reason}", f"{count:,}", style="yellow")
    if report.not_stored:
        table.add_row("not stored (consent)", f"{report.not_stored:,}", style="yellow")
    table.add_section()
    table.add_row("rows written", f"{report.rows_written:,}")
    if report.repeated:
        table.add_row("accepted with an id that came before", f"{report.repeated:,}")
    for note, count in report.notes.items():
        table.add_row(note, f"{count:,}")
    out.print(table)
    if report.mapping:
        named = ", ".join(f"{ours} = {theirs}" for ours, theirs in report.mapping.items())
        out.print(f"columns recognised: {named}", markup=False)
    for path in report.rejects:
        out.print(f"rejects: {path} (mend the lines there, then import that file)", markup=False, soft_wrap=True)


def print_sync(report: SyncReport) -> None:
    """Each imported file with its counts, then what waits and what failed; a line when nothing was new."""
    for done in report.imported:
        print_report(done)
    for title, said in (("waits", report.waiting), ("same bytes as", report.duplicates), ("failed", report.failed)):
        for source, words in said.items():
            out.print(f"{title}: {source}: {words}", markup=False, soft_wrap=True)
    out.print(
        f"{report.inbox}: {len(report.imported)} imported, {len(report.unchanged)} unchanged, "
        f"{len(report.duplicates)} doubled, {len(report.waiting)} waiting, {len(report.failed)} failed",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _named(sources: Sequence[str]) -> str:
    return sources[0] if len(sources) == 1 else f"{len(sources)} files, {sources[0]} ..."


def _table(title: str, unit: str) -> Table:
    from rich.table import Column, Table

    return Table(Column(title, no_wrap=True), Column(unit, justify="right"), box=None)


@contextmanager
def _bar(title: str, *, quiet: bool) -> Iterator[Callable[[int, int | None, str], None]]:
    """A progress line on stderr, told (done, total or None, what); silent when not a terminal or `quiet`."""
    if quiet or not err.is_terminal:
        yield lambda _done, _total, _what: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"))
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total, what: progress.update(
            task, completed=done, total=total, description=f"{title} {what}"
        )
