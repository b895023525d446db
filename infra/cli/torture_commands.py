"""`nightjar torture`: ordeals that anybody can repeat."""

from __future__ import annotations

import math
import os
from typing import Annotated

import typer

from infra.cli.bench_output import JsonOut, Seed, own_home, same_hashes, say, show_disk, show_report
from infra.cli.output import ExitCode, out


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    torture = typer.Typer(help="Do harm on purpose, and see that nothing is lost.", no_args_is_help=True)
    torture.command("night")(night)
    torture.command("events")(events)
    torture.command("api")(api)
    torture.command("serving")(serving_ordeal)
    app.add_typer(torture, name="torture")


def night(
    kills: Annotated[int, typer.Option("--kills", help="How many kills must land.")] = 50,
    events: Annotated[int, typer.Option("--events", help="Size of the simulated shop.")] = 12_000,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """SIGKILL a night at random points; compare what it leaves with a quiet night. Exit code 1: they differ."""
    from infra.bench.nights.kills import torture_night

    home = own_home("torture-night")
    report = torture_night(home, os.environ, kills=kills, seed=seed, event_count=events, say=say)
    show_report(report, report_file)
    by_task = ", ".join(f"{task} {count}" for task, count in report["by_task"].items() if count)
    out.print(f"{report['kills']} kills ({by_task}), {report['missed']} came too late; {same_hashes(report)}")
    if not report["identical"]:
        raise typer.Exit(ExitCode.FAILED)


def events(
    cycles: Annotated[int, typer.Option("--cycles", help="How many; one takes three or four seconds.")] = 20,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """Kill, stop, fill the disk and cut the power under the event path; no acknowledged event may be lost or doubled.

    Exit code 1: one was, a session record differs from an offline replay, or a control run was not caught.
    """
    from infra.bench.events.torture import torture_events

    home = own_home("torture-events")
    report = torture_events(home, os.environ, cycles=cycles, seed=seed, say=say)
    show_report(report, report_file)
    harm = ", ".join(f"{name} {count}" for name, count in report["harm"].items())
    out.print(
        f"{report['acknowledged']:,} events acknowledged in {report['requests']:,} requests; {harm}; power cuts took "
        f"{report['cut_bytes']:,} bytes; {report['wrong_sessions']} session records differ from the replay"
    )
    for name, control in report["controls"].items():
        said = "caught" if control["caught"] else "[bold red]not caught[/]"
        out.print(
            f"control {name}: {said}, {control['events_lost']} lost, {control['events_counted_twice']} counted twice"
        )
    if report["skipped"]:
        out.print(f"[bold yellow]left out[/]: {report['skipped']}")
    show_disk(report)
    if not (report["clean"] and all(control["caught"] for control in report["controls"].values())):
        out.print(f"what it left is in {home}", markup=False)
        raise typer.Exit(ExitCode.FAILED)


def api(
    cases: Annotated[int, typer.Option("--cases", help="Made by Schemathesis of our OpenAPI document.")] = 20_000,
    requests: Annotated[int, typer.Option("--requests", help="Raw ones: valid ones, damaged.")] = 1_000_000,
    minutes: Annotated[float, typer.Option("--minutes", help="Send no more after so long.")] = math.inf,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """Send what no client should; no answer may be a 500, no worker may die, and memory must stay flat.

    Exit code 1: one was, one did, or it grew by more than a tenth after the warm-up.
    """
    from infra.bench.events.api_torture import torture_api

    home = own_home("torture-api")
    report = torture_api(
        home, os.environ, cases=cases, requests=requests, seed=seed, say=say, longest_seconds=minutes * 60
    )
    show_report(report, report_file)
    for part in ("case", "raw"):
        statuses = ", ".join(f"{status} {count:,}" for status, count in report[f"{part}_statuses"].items())
        out.print(f"{part} answers: {statuses}")
    out.print(
        f"{report['overloaded']:,} refused as overload, {report['refused']} connections refused, {report['dropped']} "
        f"ended without an answer; {report['dead_letters']} dead letters; resident memory in MB: {report['memory_mb']}"
    )
    if not report["clean"]:
        out.print(f"what it left is in {home}", markup=False)
        raise typer.Exit(ExitCode.FAILED)


def serving_ordeal(
    seconds: Annotated[float, typer.Option("--seconds", help="Of each harm.")] = 60.0,
    rate: Annotated[float, typer.Option("--rate", help="Questions a second, open loop.")] = 2_000.0,
    overload_seconds: Annotated[
        float, typer.Option("--overload-seconds", help="Five times too many; 0: none.")
    ] = 120.0,
    flips: Annotated[int, typer.Option("--flips", help="Changes of the published version under load.")] = 1_000,
    report_file: JsonOut = None,
) -> None:
    """Do harm between the API and Redis, ask for too much, change versions under load; look at every answer.

    Exit code 1: fewer than 99.99 % of the answers were good within 50 ms, one broke a rule or mixed versions, personal
    lists were not back within 2 s, goodput fell below 90 % of the peak, or memory grew by more than a tenth.
    """
    from infra.bench.serving.torture import torture_serving

    home = own_home("torture-serving")
    report = torture_serving(
        home, os.environ, seconds=seconds, rate=rate, overload_seconds=overload_seconds, flips=flips, say=say
    )
    show_report(report, report_file)
    out.print(f"missed: {', '.join(report['missed']) or 'nothing'}")
    if not report["clean"]:
        out.print(f"what it left is in {home}", markup=False)
        raise typer.Exit(ExitCode.FAILED)
