"""`nightjar bench serving-limits`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from feature_repo.contracts.errors import DataError
from infra.cli.bench_output import JsonOut, Seed, own_home, say, show_report
from infra.cli.output import ExitCode, out


def serving_limits(
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            help="open_loop, rank, pages, flat, publication, start; may be repeated. Default: all.",
        ),
    ] = None,
    rates: Annotated[
        str, typer.Option("--rates", help="Requests a second of the open loop, with commas between.")
    ] = "500,1000,2000,5000,10000",
    rounds: Annotated[int, typer.Option("--rounds", help="How often each is measured.")] = 3,
    seconds: Annotated[float, typer.Option("--seconds", help="Of each measurement.")] = 6.0,
    connections: Annotated[int, typer.Option("--connections", help="Of the load generator.")] = 64,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Of the open loop's server. Default: one a core.")
    ] = None,
    people: Annotated[int, typer.Option("--people", help="Of the large shop of part flat.")] = 1_000_000,
    items: Annotated[int, typer.Option("--items", help="Of the other large shop of part flat.")] = 200_000,
    rate: Annotated[float, typer.Option("--rate", help="Requests a second while part publication publishes.")] = 500.0,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """What the API does at fixed rates, in large shops, during a publication, and right after its start.

    Exit code 1: a request failed, or a bar was missed (which, is said at the end).
    """
    from infra.bench.serving.limits.bench import PARTS, Sizes, bench_limits

    try:
        steps = [float(each) for each in rates.split(",") if each.strip()]
    except ValueError as error:
        raise DataError(f"--rates {rates!r}, expected numbers with commas: 500,2000", field="--rates") from error
    if not steps or min(steps) <= 0:
        raise DataError(f"--rates {rates!r}, expected at least one number above 0", field="--rates")
    report = bench_limits(
        own_home("bench-serving-limits"), os.environ, parts=part or PARTS,
        sizes=Sizes(
            rounds=rounds, seconds=seconds, connections=connections, workers=workers, rates=steps,
            publication_rate=rate, flat_people=people, flat_items=items,
        ),
        seed=seed, say=say,
    )  # fmt: skip
    show_report(report, report_file)
    for missed in report["missed_bars"]:
        out.print(f"missed: {missed}", markup=False)
    if report["missed_bars"]:
        raise typer.Exit(ExitCode.FAILED)
    out.print("every bar was reached")
