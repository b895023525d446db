"""`nightjar bench`: measurements that anybody can repeat."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.times import parse_as_of
from infra.bench.serving.mix import MixName
from infra.cli.bench_output import JsonOut, Seed, own_home, same_hashes, say, show_disk, show_report
from infra.cli.limits_command import serving_limits
from infra.cli.output import ExitCode, out

Mix = Annotated[
    MixName, typer.Option("--mix", help="usual: placement home with exploration, a session index. plain: neither.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    bench = typer.Typer(help="Measure, on real data or on a simulated shop.", no_args_is_help=True)
    bench.command("backfill")(backfill)
    bench.command("cluster")(cluster)
    bench.command("night")(large_night)
    bench.command("quality")(quality)
    bench.command("prepare")(prepare)
    bench.command("sessions")(sessions)
    bench.command("session-weights")(session_weights)
    bench.command("ingest")(ingest)
    bench.command("serving")(serving)
    bench.command("serving-limits")(serving_limits)
    bench.command("regression")(regression)
    bench.command("features")(features)
    bench.command("training")(training)
    bench.command("publication")(publication)
    bench.command("freshness")(freshness)
    bench.command("backlog")(backlog)
    app.add_typer(bench, name="bench")


def backfill(
    data: Annotated[Path, typer.Option("--data", help="The UCI Online Retail file (.csv or .csv.gz).")],
    days: Annotated[int, typer.Option("--days", help="How many nights, one as_of a day.")] = 30,
    until: Annotated[
        str | None, typer.Option("--until", help="The last as_of. Default: the day after the last event.")
    ] = None,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """A month of nights over real history, backfilled through Airflow; one of them twice. Takes an hour or two.

    Exit code 1: a night failed, or the repeated one left other tables.
    """
    from infra.bench.nights.backfill_month import backfill_month

    if not data.is_file():
        raise DataError(f"--data {data}: there is no such file")
    last = parse_as_of(until) if until else None
    home = own_home("bench-backfill")
    report = backfill_month(home, os.environ, data=data, days=days, until=last, seed=seed, say=say)
    show_report(report, report_file)
    rerun = report["rerun"]
    out.print(f"partitions: {', '.join(f'{name} {count}' for name, count in report['partitions'].items())}")
    out.print(
        f"all succeeded: {report['all_succeeded']}; within 20 % of the median: {report['within_20_percent']:.0%}; "
        f"as_of {rerun['as_of']} again: {same_hashes(rerun)}"
    )
    if not (report["all_succeeded"] and rerun["identical"]):
        raise typer.Exit(ExitCode.FAILED)


def cluster(
    events: Annotated[int, typer.Option("--events", help="Size of the simulated shop.")] = 12_000,
    report_file: JsonOut = None,
) -> None:
    """The same night here, on a Spark cluster of two workers, and with workers killed. Exit code 1: results differ."""
    from infra.bench.nights.cluster_night import cluster_night

    report = cluster_night(own_home("cluster-night"), os.environ, event_count=events, say=say)
    show_report(report, report_file)
    out.print(f"{report['workers_killed']} workers killed; version {report['version']}; {same_hashes(report)}")
    if not report["identical"]:
        raise typer.Exit(ExitCode.FAILED)


def large_night(
    events: Annotated[int, typer.Option("--events", help="Events in bronze.")] = 10_000_000,
    smaller: Annotated[
        str, typer.Option("--smaller", help="Further sizes, for the slope, with commas between. Empty: none.")
    ] = "300000,1000000,3000000",
    report_file: JsonOut = None,
) -> None:
    """The first night of a large simulated shop through the scheduler, and how it grows with the events. Needs 20 GB of
    disk for 10 M events."""
    from infra.bench.nights.scale import bench_night

    try:
        sizes = [int(size) for size in smaller.split(",") if size.strip()]
    except ValueError as error:
        raise DataError(
            f"--smaller {smaller!r}, expected numbers with commas: 300000,1000000", field="--smaller"
        ) from error
    report = bench_night(own_home("bench-night"), os.environ, event_counts=[*sizes, events], say=say)
    show_report(report, report_file)


def features(
    people: Annotated[int, typer.Option("--people", help="Users with features.")] = 5_000,
    entities: Annotated[int, typer.Option("--entities", help="Users in one read.")] = 200,
    count: Annotated[int, typer.Option("--features", help="Features in one read.")] = 10,
    pairs: Annotated[int, typer.Option("--pairs", help="Reads of each, in turns.")] = 30,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """Online features read by our own reader, beside Feast's SDK."""
    from infra.bench.serving.feature_reads import bench_features

    report = bench_features(
        own_home("bench-features"), os.environ, people=people, entities=entities, features=count, pairs=pairs,
        seed=seed, say=say,
    )  # fmt: skip
    show_report(report, report_file)


def training(
    train: Annotated[Path, typer.Option("--train", help="Lines `user item item ...`, plain or .gz.")],
    test: Annotated[Path, typer.Option("--test", help="The same for the items to be found.")],
    pairs: Annotated[int, typer.Option("--pairs", help="Fits of each engine, in turns.")] = 3,
    report_file: JsonOut = None,
) -> None:
    """Implicit ALS by the night's kernel and by Spark's MLlib, on the same data."""
    from infra.bench.nights.training import bench_training

    for option, path in (("--train", train), ("--test", test)):
        if not path.is_file():
            raise DataError(f"{option} {path}: there is no such file", field=option)
    report = bench_training(own_home("bench-training"), os.environ, train=train, test=test, pairs=pairs, say=say)
    show_report(report, report_file)


def publication(
    train: Annotated[Path, typer.Option("--train", help="Lines `user item item ...`, plain or .gz.")],
    pairs: Annotated[int, typer.Option("--pairs", help="Runs of each side, in turns.")] = 3,
    report_file: JsonOut = None,
) -> None:
    """From vectors to served lists: the night's way, and MLlib's recommendForAllUsers with Feast."""
    from infra.bench.nights.publishing import bench_publication

    if not train.is_file():
        raise DataError(f"--train {train}: there is no such file", field="--train")
    report = bench_publication(own_home("bench-publication"), os.environ, train=train, pairs=pairs, say=say)
    show_report(report, report_file)
    out.print(
        f"{report['identical']} of {report['sampled']} lists are those of brute force, {report['wrong']} are wrong"
    )
    if report["wrong"]:
        raise typer.Exit(ExitCode.FAILED)


def quality(
    protocol: Annotated[str, typer.Option("--protocol", help="pairs, sessions, sequences or events.")],
    report_file: Annotated[Path, typer.Option("--json", help="Write the report to this file.")],
    train: Annotated[Path | None, typer.Option("--train", help="Training file, plain or .gz.")] = None,
    test: Annotated[Path | None, typer.Option("--test", help="Test file; opened once, at the end.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="The one file of --protocol sequences.")] = None,
    attributes: Annotated[
        Path | None,
        typer.Option("--attributes", help="What is said of each item: lines `item attribute ...`, or JSON."),
    ] = None,
    repeats: Annotated[
        str, typer.Option("--repeats", help="Events: may what a user already had be recommended? allowed or new-only.")
    ] = "new-only",
    negatives: Annotated[
        Path | None, typer.Option("--negatives", help="Rank each answer against these items only.")
    ] = None,
    k: Annotated[int, typer.Option("--k", help="Length of the lists.")] = 20,
    minutes: Annotated[float, typer.Option("--minutes", help="Budget of the tuning.")] = 10.0,
) -> None:
    """How good the models of the night are on any data. Formats and rules: infra/docs/quality-bench.md."""
    from infra.bench.quality.quality_bench import Sources, bench_quality
    from infra.bench.quality.tuning import Budget

    wanted = (("--data", data),) if protocol == "sequences" else (("--train", train), ("--test", test))
    for option, value in wanted:
        if value is None:
            raise DataError(f"--protocol {protocol} needs {option} FILE", field=option)
    if minutes <= 0:
        raise DataError(f"--minutes {minutes}, expected more than 0", field="--minutes")
    paths = [value for _, value in wanted if value is not None]
    report = bench_quality(
        protocol,
        Sources(paths[0], paths[-1], negatives, attributes),
        k=k,
        budget=Budget(60 * minutes),
        shipped_file=report_file.with_name(f"{report_file.stem}.shipped.json"),
        repeats=repeats,
        code_version=Environment.from_mapping(os.environ).code_version,
        say=say,
    )
    show_report(report, report_file)
    for name, found in sorted(report["models"].items(), key=lambda entry: -entry[1][f"ndcg@{k}"]):
        out.print(f"{name:<18} " + "  ".join(f"{metric} {value:.4f}" for metric, value in found.items()))
    out.print(f"shipped: {report['shipped']}")


def prepare(
    name: Annotated[str, typer.Argument(help="online-retail or ml-100k.")],
    data: Annotated[Path, typer.Option("--data", help="The publisher's file, or the folder it lies in.")],
    folder: Annotated[Path, typer.Option("--out", help="Where the files are written.")],
) -> None:
    """Write a public set as files for `nightjar bench quality`."""
    from infra.bench.quality.prepare import prepare as prepare_set

    for path in prepare_set(name, data, folder):
        out.print(str(path))


def sessions(
    train: Annotated[Path, typer.Option("--train", help="Lines `item item ...`, a session each, oldest first.")],
    test: Annotated[Path, typer.Option("--test", help="Lines `item item ...<TAB>next item`.")],
    questions: Annotated[int | None, typer.Option("--questions", help="Ask so many of the test. Default: all.")] = None,
    k: Annotated[int, typer.Option("--k", help="Length of the lists.")] = 20,
    report_file: JsonOut = None,
) -> None:
    """Held-out sessions asked through the API, placement raw, beside what the model itself says of them.

    Exit code 1: the API's hit rate is below 99 % of the model's.
    """
    from infra.bench.serving.session_replay import bench_sessions

    report = bench_sessions(
        own_home("bench-sessions"), os.environ, train=train, test=test, k=k, questions=questions,
        code_version=Environment.from_mapping(os.environ).code_version, say=say,
    )  # fmt: skip
    show_report(report, report_file)
    out.print(
        f"{report['questions']:,} questions in {report['requests_seconds']} s; index of {report['index_mb']} MB, "
        f"{report['manner']}; {report['same_lists']:.2%} of the lists are the model's own, place by place"
    )
    if not report["reaches_bar"]:
        raise typer.Exit(ExitCode.FAILED)


def session_weights(
    events: Annotated[Path, typer.Option("--events", help="csv with a header: user,item,time[,event].")],
    exclude_seen: Annotated[
        str, typer.Option("--exclude-seen", help="As the night's parameter: interacted or none.")
    ] = "interacted",
    k: Annotated[int, typer.Option("--k", help="Length of the lists.")] = 20,
    report_file: JsonOut = None,
) -> None:
    """How loud the session should be beside a person's own list, and beside popular items; chosen on one stretch of
    time, reported on the next. Exit code 1: a blend is worse than one of its parts alone."""
    from infra.bench.serving.session_weights import bench_session_weights

    report = bench_session_weights(
        own_home("bench-session-weights"), events=events, exclude_seen=exclude_seen, k=k,
        code_version=Environment.from_mapping(os.environ).code_version, say=say,
    )  # fmt: skip
    show_report(report, report_file)
    out.print(f"manner {report['manner']}, lists of {report['model']}")
    for who, found in report["who"].items():
        out.print(f"{who}: {found['questions']} questions, weight {found['weight']:g} was best on validation")
    if not report["reaches_bar"]:
        raise typer.Exit(ExitCode.FAILED)


def ingest(
    pairs: Annotated[int, typer.Option("--pairs", help="How often both sides are measured, in turns.")] = 3,
    seconds: Annotated[int, typer.Option("--seconds", help="Of each measurement.")] = 4,
    connections: Annotated[int, typer.Option("--connections", help="Of the load generator.")] = 128,
    batch: Annotated[int, typer.Option("--batch", help="Events of a request, where they come in batches.")] = 100,
    report_file: JsonOut = None,
) -> None:
    """Events that one worker core makes durable in a second, beside FastAPI + pydantic + redis-py without fsync.

    Exit code 1: a request failed, or an acknowledged event is not in the log.
    """
    from infra.bench.events.ingest import bench_ingest

    report = bench_ingest(
        own_home("bench-ingest"), os.environ, pairs=pairs, seconds=seconds, connections=connections, batch=batch,
        say=say,
    )  # fmt: skip
    show_report(report, report_file)
    out.print(
        f"{report['batch']} events a batch, {report['connections']} connections of {report['generator']}; the worker's "
        f"core was at least {report['worker_busy']:.0%} busy; {report['errors']} errors, {report['missing']} missing"
    )
    show_disk(report)
    if report["errors"] or report["missing"]:
        raise typer.Exit(ExitCode.FAILED)


def serving(
    mix: Mix = MixName.USUAL,
    pairs: Annotated[int, typer.Option("--pairs", help="How often both sides are measured, in turns.")] = 5,
    seconds: Annotated[int, typer.Option("--seconds", help="Of each measurement.")] = 6,
    connections: Annotated[int, typer.Option("--connections", help="Of wrk.")] = 64,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """Answers of one worker core and of this machine, beside FastAPI + pydantic + redis-py + JSON with equal answers.

    Exit code 1: a request failed, an answer differs, the baseline is too slow to be one, or a bar was missed (8 times
    its answers on a core, for an eighth of its processor time).
    """
    from infra.bench.serving.throughput import SIMPLEST_PER_SECOND, bench_serving

    report = bench_serving(
        own_home("bench-serving"), os.environ, mix_name=mix, pairs=pairs, seconds=seconds, connections=connections,
        seed=seed, say=say,
    )  # fmt: skip
    show_report(report, report_file)
    for feature, micros in report["us_per_feature"].items():
        out.print(f"{micros:7.1f} us  {feature}")
    out.print(
        f"{report['different_answers']} of {report['samples']:,} answers differ from the baseline's; it answers its "
        f"simplest request {report['baseline_simplest_per_second']:,} times a second (asked for: more than "
        f"{SIMPLEST_PER_SECOND:,})"
    )
    out.print(
        f"{report['connections']} connections of wrk; the worker's core was at least {report['worker_busy']:.0%} busy; "
        f"{report['errors']} errors; missed: {', '.join(report['missed_bars']) or 'nothing'}"
    )
    is_fair = report["baseline_is_fast_enough"] and not report["different_answers"]
    if report["errors"] or report["missed_bars"] or not is_fair:
        raise typer.Exit(ExitCode.FAILED)


def regression(
    base: Annotated[str, typer.Option("--base", help="The revision to compare with: a tag, a branch, a commit.")],
    mix: Mix = MixName.USUAL,
    pairs: Annotated[int, typer.Option("--pairs", help="How often both sides are measured, in turns.")] = 5,
    seconds: Annotated[int, typer.Option("--seconds", help="Of each measurement.")] = 4,
    connections: Annotated[int, typer.Option("--connections", help="Of wrk.")] = 64,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """What an answer costs now, beside another revision. Exit code 1: over 5 % more, or a request failed."""
    from infra.bench.serving.regression import bench_regression

    report = bench_regression(
        own_home("bench-regression"), os.environ, base=base, mix_name=mix, pairs=pairs, seconds=seconds,
        connections=connections, seed=seed, say=say,
    )  # fmt: skip
    show_report(report, report_file)
    out.print(
        f"{report['different_answers']} of {report['samples']} answers differ from those of {report['base'][:12]}; "
        f"{report['errors']} errors"
    )
    if report["errors"] or report["is_dearer"]:
        raise typer.Exit(ExitCode.FAILED)


def freshness(
    rounds: Annotated[int, typer.Option("--rounds", help="How often it is measured, after one round to warm up.")] = 3,
    seconds: Annotated[int, typer.Option("--seconds", help="Of each round.")] = 10,
    events_per_second: Annotated[int, typer.Option("--events", min=50, help="Events a second, one a request.")] = 5_000,
    reads_per_second: Annotated[int, typer.Option("--reads", min=1, help="Recommendations a second.")] = 5_000,
    rates: Annotated[
        str, typer.Option("--rates", help="Before that, so many events and as many reads a second: 1000,2000,3000.")
    ] = "",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Of the API.")] = 1,
    report_file: JsonOut = None,
) -> None:
    """How soon an acknowledged event changes its person's next answer, under a fixed load of events and reads.

    Exit code 1: a request failed, an answer never changed, or the 99th percentile of the change is 5 ms or more.
    """
    from infra.bench.events.freshness import bench_freshness

    try:
        steps = [int(each) for each in rates.split(",") if each.strip()]
    except ValueError as error:
        raise DataError(f"--rates {rates!r}, expected numbers with commas: 1000,2000", field="--rates") from error
    if any(step < 50 for step in steps):
        raise DataError(f"--rates {rates!r}, expected numbers from 50 on", field="--rates")
    report = bench_freshness(
        own_home("bench-freshness"), os.environ, rounds=rounds, seconds=seconds, events_per_second=events_per_second,
        reads_per_second=reads_per_second, say=say, workers=workers, rates=steps,
    )  # fmt: skip
    show_report(report, report_file)
    out.print(f"{report['probes']} probes, {report['unchanged']} never changed; {report['errors']} requests failed")
    if report["rates"]:
        out.print(f"highest rate within the bar: {report['highest_rate_in_time'] or 'none of them'}")
    show_disk(report)
    if report["errors"] or report["unchanged"] or report["missed_bars"]:
        raise typer.Exit(ExitCode.FAILED)


def backlog(
    events: Annotated[int, typer.Option("--events", help="How many wait when the consumers start.")] = 1_000_000,
    reads_per_second: Annotated[
        int, typer.Option("--reads", min=1, help="Recommendations a second, all the while.")
    ] = 300,
    seconds: Annotated[int, typer.Option("--seconds", help="Of each round of reads.")] = 5,
    consumers: Annotated[int, typer.Option("--consumers", help="Processes that share the work.")] = 1,
    seed: Seed = 7,
    report_file: JsonOut = None,
) -> None:
    """How fast the consumers catch up with events that wait, and what that does to answers.

    Exit code 1: an event was not applied, a read failed, or a bar was missed (20,000 events a second and core; the
    99th percentile of answers less than twice that before the consumers start and after they are done).
    """
    from infra.bench.events.backlog import bench_backlog

    report = bench_backlog(
        own_home("bench-backlog"), os.environ, events=events, reads_per_second=reads_per_second, seconds=seconds,
        consumers=consumers, seed=seed, say=say,
    )  # fmt: skip
    show_report(report, report_file)
    out.print(
        f"{report['applied']:,} of {report['events']:,} events applied, {report['dead_letters']} dead letters; "
        f"{report['errors']} reads failed; missed: {', '.join(report['missed_bars']) or 'nothing'}"
    )
    show_disk(report)
    if report["missed_bars"] or report["errors"] or report["applied"] != report["events"]:
        raise typer.Exit(ExitCode.FAILED)
